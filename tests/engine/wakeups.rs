// SPDX-License-Identifier: GPL-2.0

//! No notification is lost, in either direction and in any interleaving.
//!
//! A driver and a device that sleep whenever they may run against each other. The device runs the
//! engine; before each of its reads of the ring and at each of its full barriers, the driver may take
//! any number of its own steps, each of which is one access. All interleavings are run, but for
//! those that differ from another only in the order of steps that do not see each other.
//!
//! Memory is weaker than that of x86 and gives what the barriers of the engine promise and no
//! more:
//!
//! - A write of the device stays in a buffer until some read of the driver needs to know whether
//!   it is out, which is a choice then. A write barrier keeps later writes in until earlier ones
//!   are out, and a full barrier puts everything out.
//! - A read of the device may return any value that the place had since the last barrier: after
//!   a read barrier nothing older than what was read before it, after a full barrier nothing
//!   older than the barrier.
//! - The driver is correct: its barriers are where the specification wants them, so its steps
//!   take effect in order and at once.
//!
//! The bounds are small: two entries are made available, which is what it takes for an entry to
//! appear before, while and after the device looks.

use std::cell::RefCell;
use std::rc::Rc;

use crate::atomics::{with_barriers, Barriers};
use crate::engine::error::RingError;
use crate::engine::mem::{Access, RingMem, Segment, UsedElem};
use crate::engine::ring::{Layout, Ring};
use crate::explore::{all_runs, Choices};

const NUM: u16 = 4;
const LAYOUT: Layout = Layout {
    desc: 0x1000,
    avail: 0x2000,
    used: 0x3000,
};
const AVAIL_FLAGS: u64 = LAYOUT.avail;
const AVAIL_IDX: u64 = LAYOUT.avail + 2;
const AVAIL_RING: u64 = LAYOUT.avail + 4;
const USED_EVENT: u64 = AVAIL_RING + 2 * NUM as u64;
const USED_FLAGS: u64 = LAYOUT.used;
const USED_IDX: u64 = LAYOUT.used + 2;
const USED_RING: u64 = LAYOUT.used + 4;
const AVAIL_EVENT: u64 = USED_RING + 8 * NUM as u64;

/// More turns than any run needs that does not go around in circles.
const TURNS_MAX: usize = 100;

/// What varies between explorations.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    event_idx: bool,
    /// Both indices at the beginning.
    base: u16,
    /// Entries that are available from the beginning.
    posted: u16,
    /// Entries that the driver makes available in all.
    posts: u16,
    /// Whether the driver wants its entries back, sleeping while there are none.
    reaps: bool,
    /// The device takes entries in packets of this many, and leaves fewer alone.
    packet: u16,
    /// Whether the device gives each packet back at once, and not all when it runs dry.
    eager: bool,
}

/// What the driver does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    WriteEntry,
    WriteIndex,
    Notify,
    /// Looks at the used index with interrupts suppressed.
    Look,
    ReadElem,
    /// Asks for interrupts.
    Ask,
    /// Looks once more before it sleeps.
    LookAgain,
    /// Asks for no more interrupts after it was woken or found something.
    Suppress,
    Sleep,
    Done,
}

struct World {
    scenario: Scenario,
    choices: Choices,
    /// Values that the driver's places had, with the time from which on.
    history: Vec<(u64, Vec<(u32, u16)>)>,
    now: u32,
    /// What the device reads is not older than this.
    floor: u32,
    /// The time of the newest value that the device has read.
    newest: u32,
    /// The device's places, as everybody sees them.
    visible: Vec<(u64, u64)>,
    /// What the device has written and is not out yet; `None` stands for a write barrier.
    buffered: Vec<Option<(u64, u64)>>,
    step: Step,
    avail_idx: u16,
    used_idx: u16,
    found_used_idx: u16,
    reaped: Vec<u32>,
    kicked: bool,
    interrupted: bool,
}

fn place<T: Copy>(places: &[(u64, T)], addr: u64) -> T {
    let found = places.iter().find(|(place, _)| *place == addr);
    found.expect("a place of the ring").1
}

impl World {
    fn new(scenario: Scenario, choices: Choices) -> Self {
        let base = scenario.base;
        let mut history = vec![
            (AVAIL_FLAGS, vec![(0, 0)]),
            (AVAIL_IDX, vec![(0, base)]),
            (USED_EVENT, vec![(0, base)]),
        ];
        let mut visible = vec![
            (USED_FLAGS, 0),
            (USED_IDX, u64::from(base)),
            (AVAIL_EVENT, u64::from(base)),
        ];
        for slot in 0..u64::from(NUM) {
            // Stale entries are valid heads that nobody posted, so that reading them shows.
            history.push((AVAIL_RING + 2 * slot, vec![(0, NUM - 1)]));
            visible.push((USED_RING + 8 * slot, u64::MAX));
        }
        let mut world = Self {
            scenario,
            choices,
            history,
            now: 0,
            floor: 0,
            newest: 0,
            visible,
            buffered: Vec::new(),
            step: Step::WriteEntry,
            avail_idx: base,
            used_idx: base,
            found_used_idx: base,
            reaped: Vec::new(),
            kicked: false,
            interrupted: false,
        };
        world.step = world.after_posting();
        while world.posted() < scenario.posted {
            world.driver_step();
        }
        world.floor = world.now;
        world
    }

    fn posted(&self) -> u16 {
        self.avail_idx.wrapping_sub(self.scenario.base)
    }

    fn after_posting(&self) -> Step {
        if self.posted() < self.scenario.posts {
            Step::WriteEntry
        } else {
            self.after_reaping()
        }
    }

    fn after_reaping(&self) -> Step {
        if self.scenario.reaps && self.reaped.len() < usize::from(self.scenario.posts) {
            Step::Look
        } else {
            Step::Done
        }
    }

    fn driver_writes(&mut self, addr: u64, value: u16) {
        self.now += 1;
        let now = self.now;
        let place = self.history.iter_mut().find(|(place, _)| *place == addr);
        let (_, values) = place.expect("a place of the driver");
        values.push((now, value));
    }

    fn driver_reads(&mut self, addr: u64) -> u64 {
        while let Some(at) = self
            .buffered
            .iter()
            .position(|write| matches!(write, Some((place, _)) if *place == addr))
        {
            if !self.choices.flip() {
                break;
            }
            // Everything before the last barrier is out when this write is.
            let write = self.buffered.remove(at);
            let barrier = self.buffered[..at].iter().rposition(Option::is_none);
            let earlier: Vec<_> = self.buffered.drain(..barrier.unwrap_or(0)).collect();
            for write in earlier.into_iter().chain([write]) {
                self.put_out(write);
            }
        }
        place(&self.visible, addr)
    }

    fn put_out(&mut self, write: Option<(u64, u64)>) {
        if let Some((addr, value)) = write {
            let place = self.visible.iter_mut().find(|(place, _)| *place == addr);
            place.expect("a place of the device").1 = value;
        }
    }

    fn driver_can_step(&self) -> bool {
        match self.step {
            Step::Done => false,
            Step::Sleep => self.interrupted,
            _ => true,
        }
    }

    fn driver_step(&mut self) {
        let event_idx = self.scenario.event_idx;
        self.step = match self.step {
            Step::WriteEntry => {
                let slot = u64::from(self.avail_idx % NUM);
                let head = self.posted();
                self.driver_writes(AVAIL_RING + 2 * slot, head);
                Step::WriteIndex
            }
            Step::WriteIndex => {
                self.avail_idx = self.avail_idx.wrapping_add(1);
                self.driver_writes(AVAIL_IDX, self.avail_idx);
                Step::Notify
            }
            Step::Notify => {
                self.kicked |= if event_idx {
                    let event = self.driver_reads(AVAIL_EVENT) as u16;
                    event == self.avail_idx.wrapping_sub(1)
                } else {
                    self.driver_reads(USED_FLAGS) & 1 == 0
                };
                self.after_posting()
            }
            Step::Look => {
                self.found_used_idx = self.driver_reads(USED_IDX) as u16;
                if self.found_used_idx == self.used_idx {
                    Step::Ask
                } else {
                    Step::ReadElem
                }
            }
            Step::ReadElem => {
                let slot = u64::from(self.used_idx % NUM);
                let elem = self.driver_reads(USED_RING + 8 * slot);
                self.reaped.push(elem as u32);
                self.used_idx = self.used_idx.wrapping_add(1);
                if self.used_idx == self.found_used_idx {
                    self.after_reaping()
                } else {
                    Step::ReadElem
                }
            }
            Step::Ask => {
                if event_idx {
                    self.driver_writes(USED_EVENT, self.used_idx);
                } else {
                    self.driver_writes(AVAIL_FLAGS, 0);
                }
                Step::LookAgain
            }
            Step::LookAgain => {
                self.found_used_idx = self.driver_reads(USED_IDX) as u16;
                if self.found_used_idx == self.used_idx {
                    Step::Sleep
                } else {
                    Step::Suppress
                }
            }
            Step::Suppress => {
                // With event index the stale event is what suppresses.
                if !event_idx {
                    self.driver_writes(AVAIL_FLAGS, 1);
                }
                Step::Look
            }
            Step::Sleep => {
                self.interrupted = false;
                Step::Suppress
            }
            Step::Done => unreachable!("a driver that is done takes no step"),
        };
    }

    /// Whether the driver will write a place of its own. Steps of a driver that will not can as
    /// well come after a read of that place, and need not be tried before.
    fn driver_will_write(&self, addr: u64) -> bool {
        match addr {
            AVAIL_FLAGS | USED_EVENT => self.scenario.reaps && self.step != Step::Done,
            _ => self.posted() < self.scenario.posts,
        }
    }

    /// Lets the driver take any number of steps.
    fn interleave(&mut self) {
        while self.driver_can_step() && self.choices.flip() {
            self.driver_step();
        }
    }

    fn device_reads(&mut self, addr: u64) -> u16 {
        if self.driver_will_write(addr) {
            self.interleave();
        }
        let at = self.history.iter().position(|(place, _)| *place == addr);
        let (_, values) = &self.history[at.expect("a place of the driver")];
        let floor = self.floor;
        // The value that was there at the time of the barrier, and all since.
        let oldest = values.iter().rposition(|(time, _)| *time <= floor);
        let possible = &values[oldest.unwrap_or(0)..];
        let age = usize::from(self.choices.choose(possible.len() as u8));
        let (time, value) = possible[possible.len() - 1 - age];
        self.newest = self.newest.max(time);
        value
    }

    fn device_writes(&mut self, addr: u64, value: u64) {
        // Steps of the driver need not be tried before: the write stays in the buffer for those
        // that come after, if they choose so.
        self.buffered.push(Some((addr, value)));
    }

    fn full_barrier(&mut self) {
        self.interleave();
        for write in std::mem::take(&mut self.buffered) {
            self.put_out(write);
        }
        self.floor = self.now;
    }
}

/// The world as the engine reaches it.
struct Shared(RefCell<World>);

impl RingMem for Shared {
    fn read_u16(&self, addr: u64) -> Result<u16, RingError> {
        Ok(self.0.borrow_mut().device_reads(addr))
    }

    fn write_u16(&self, addr: u64, value: u16) -> Result<(), RingError> {
        self.0.borrow_mut().device_writes(addr, value.into());
        Ok(())
    }

    fn read_descriptor(&self, _addr: u64) -> Result<[u8; 16], RingError> {
        // Descriptors do not change: what is explored is who learns of them.
        Ok([0; 16])
    }

    fn write_used(&self, addr: u64, elems: &[UsedElem]) -> Result<(), RingError> {
        for (index, elem) in elems.iter().enumerate() {
            let addr = addr + 8 * index as u64;
            self.0.borrow_mut().device_writes(addr, elem.id.into());
        }
        Ok(())
    }

    fn translate(&self, _addr: u64, _access: Access) -> Result<(u64, u64), RingError> {
        Err(RingError::Unmapped)
    }
}

impl Barriers for Shared {
    fn read_barrier(&self) {
        let mut world = self.0.borrow_mut();
        world.floor = world.floor.max(world.newest);
    }

    fn write_barrier(&self) {
        self.0.borrow_mut().buffered.push(None);
    }

    fn full_barrier(&self) {
        self.0.borrow_mut().full_barrier();
    }
}

/// The device: serves until the ring is empty, asks to be notified, sleeps until it is.
struct Device {
    mem: Rc<Shared>,
    ring: Ring,
    taken: Vec<u32>,
    finished: Vec<UsedElem>,
    turns: usize,
}

impl Device {
    fn scenario(&self) -> Scenario {
        self.mem.0.borrow().scenario
    }

    /// Takes one packet; returns false when there are not enough entries for one.
    fn take_packet(&mut self) -> bool {
        let mut heads = Vec::new();
        while heads.len() < usize::from(self.scenario().packet) {
            let popped = self.ring.pop(&*self.mem, &mut [Segment::default(); 1]);
            match popped.expect("a well-formed ring") {
                Some(chain) => heads.push(u32::from(chain.head)),
                None => {
                    self.ring.unpop(heads.len() as u16);
                    return false;
                }
            }
        }
        self.taken.extend(&heads);
        let elems = heads.into_iter().map(|id| UsedElem { id, len: 0 });
        self.finished.extend(elems);
        true
    }

    fn give_back(&mut self) {
        let elems = std::mem::take(&mut self.finished);
        if !self.scenario().reaps || elems.is_empty() {
            return;
        }
        self.ring
            .push_used(&*self.mem, &elems)
            .expect("a used ring");
        if self.ring.needs_interrupt(&*self.mem) {
            self.mem.0.borrow_mut().interrupted = true;
        }
    }

    /// Serves until there is nothing to do but wait.
    fn serve(&mut self) {
        self.ring.disable_notify(&*self.mem).expect("a used ring");
        loop {
            self.turns += 1;
            assert!(self.turns < TURNS_MAX, "the device goes around in circles");
            if self.take_packet() {
                if self.scenario().eager {
                    self.give_back();
                }
                continue;
            }
            self.give_back();
            if !self.ring.enable_notify(&*self.mem).expect("a ring") {
                return;
            }
            self.ring.disable_notify(&*self.mem).expect("a used ring");
        }
    }

    /// Sleeps until the driver notifies; returns false when nobody ever will.
    fn sleep(&self) -> bool {
        let mut world = self.mem.0.borrow_mut();
        while !world.kicked && world.driver_can_step() {
            world.driver_step();
        }
        // What wakes a thread orders everything before it.
        let woken = std::mem::take(&mut world.kicked);
        for write in std::mem::take(&mut world.buffered) {
            world.put_out(write);
        }
        world.floor = world.now;
        woken || world.driver_can_step()
    }
}

fn run(scenario: Scenario, choices: Choices) -> Choices {
    let mem = Rc::new(Shared(RefCell::new(World::new(scenario, choices))));
    let mut ring = Ring::new();
    assert!(ring.set_num(NUM.into()));
    ring.set_layout(LAYOUT);
    ring.set_features(scenario.event_idx, false);
    ring.set_base(scenario.base);
    let mut device = Device {
        mem: mem.clone(),
        ring,
        taken: Vec::new(),
        finished: Vec::new(),
        turns: 0,
    };
    with_barriers(mem.clone(), || {
        // The used index is where the base is: what `start` would read. Without starting, every
        // access is one that matters here.
        start(&mut device.ring, scenario.base);
        loop {
            device.serve();
            if !device.sleep() {
                break;
            }
        }
    });
    let heads: Vec<_> = (0..u32::from(scenario.posts)).collect();
    let packets = usize::from(scenario.posts - scenario.posts % scenario.packet);
    assert_eq!(device.taken, heads[..packets], "an entry was lost");
    let world = &mut *mem.0.borrow_mut();
    if scenario.reaps {
        assert_eq!(world.reaped, heads[..packets], "an element was lost");
    }
    std::mem::take(&mut world.choices)
}

/// Starts a ring whose used index is `index`, in memory of its own.
fn start(ring: &mut Ring, index: u16) {
    struct Still(u16);
    impl RingMem for Still {
        fn read_u16(&self, _addr: u64) -> Result<u16, RingError> {
            Ok(self.0)
        }
        fn write_u16(&self, _addr: u64, _value: u16) -> Result<(), RingError> {
            Ok(())
        }
        fn read_descriptor(&self, _addr: u64) -> Result<[u8; 16], RingError> {
            Err(RingError::Fault)
        }
        fn write_used(&self, _addr: u64, _elems: &[UsedElem]) -> Result<(), RingError> {
            Err(RingError::Fault)
        }
        fn translate(&self, _addr: u64, _access: Access) -> Result<(u64, u64), RingError> {
            Err(RingError::Unmapped)
        }
    }
    ring.start(&Still(index)).expect("memory without faults");
}

/// Explores a scenario; `few` is a number of interleavings below which the exploration would not
/// be what it claims to be.
fn explore(scenario: Scenario, few: usize) {
    let runs = all_runs(|choices| run(scenario, choices));
    println!("{scenario:?}: {runs} interleavings");
    assert!(runs > few, "{runs} interleavings only");
}

const KICKS: Scenario = Scenario {
    event_idx: false,
    base: 0xffff,
    posted: 0,
    posts: 2,
    reaps: false,
    packet: 1,
    eager: true,
};

const INTERRUPTS: Scenario = Scenario {
    posted: 2,
    reaps: true,
    ..KICKS
};

#[test]
fn no_kick_is_lost_with_flags() {
    explore(KICKS, 1000);
}

#[test]
fn no_kick_is_lost_with_event_index() {
    let event_idx = true;
    explore(Scenario { event_idx, ..KICKS }, 1000);
}

#[test]
fn a_device_that_leaves_entries_learns_of_those_that_complete_a_packet() {
    for event_idx in [false, true] {
        let scenario = Scenario {
            event_idx,
            packet: 2,
            ..KICKS
        };
        explore(scenario, 1000);
    }
}

#[test]
fn no_interrupt_is_lost_with_flags() {
    for eager in [false, true] {
        explore(
            Scenario {
                eager,
                ..INTERRUPTS
            },
            100,
        );
    }
}

#[test]
fn no_interrupt_is_lost_with_event_index() {
    for eager in [false, true] {
        let event_idx = true;
        let scenario = Scenario {
            event_idx,
            eager,
            ..INTERRUPTS
        };
        explore(scenario, 100);
    }
}

#[test]
fn neither_side_waits_for_ever_when_both_may_sleep() {
    for event_idx in [false, true] {
        let scenario = Scenario {
            event_idx,
            posted: 0,
            posts: 1,
            ..INTERRUPTS
        };
        explore(scenario, 1000);
    }
}
