// SPDX-License-Identifier: GPL-2.0

//! The notifications between a driver and a device that sleep whenever they may.
//!
//! `tests/engine/wakeups.rs` explores the same with a memory of its own and longer runs. Loom's
//! memory is that of C11, and it was not written by who wrote the engine. A thread that sleeps has
//! ended here, and what wakes it makes it go on when the other thread has ended as well: what
//! matters is whether anything does.

use std::sync::Arc;

use loom::sync::atomic::{fence, AtomicBool, AtomicU16, AtomicU32, Ordering, Ordering::Relaxed};
use loom::thread;

use crate::engine;
use crate::engine::error::RingError;
use crate::engine::mem::{Access, RingMem, Segment, UsedElem};
use crate::engine::ring::Layout;
use crate::explore::{explore, failure};

const NUM: u16 = 2;
const LAYOUT: Layout = Layout {
    desc: 0x1000,
    avail: 0x2000,
    used: 0x3000,
};
/// What stands in the rings before anybody writes there.
const STALE: u16 = 0xfff;
/// More turns than a device needs that does not go around in circles.
const TURNS_MAX: usize = 20;

/// The ring of the engine, or of a copy with a bug. The methods are those of
/// [`Ring`](crate::engine::ring::Ring).
trait DeviceRing: Send + Sync + 'static {
    fn new(event_idx: bool) -> Self;
    fn pop(&mut self, mem: &Shared) -> Option<u16>;
    fn push_used(&mut self, mem: &Shared, head: u16);
    fn disable_notify(&mut self, mem: &Shared);
    fn enable_notify(&mut self, mem: &Shared) -> bool;
    fn needs_interrupt(&mut self, mem: &Shared) -> bool;
}

/// Implements [`DeviceRing`] for the module `ring` of the engine or of a copy.
macro_rules! device_ring {
    ($($module:tt)+) => {
        const _: () = {
            use $($module)+ as copy;

            impl DeviceRing for copy::Ring {
                fn new(event_idx: bool) -> Self {
                    let Layout { desc, avail, used } = LAYOUT;
                    let mut ring = copy::Ring::new();
                    assert!(ring.set_num(NUM.into()));
                    ring.set_layout(copy::Layout { desc, avail, used });
                    ring.set_features(event_idx, false);
                    ring
                }
                fn pop(&mut self, mem: &Shared) -> Option<u16> {
                    let popped = copy::Ring::pop(self, mem, &mut [Segment::default(); 1]);
                    popped.expect("a ring without faults").map(|chain| chain.head)
                }
                fn push_used(&mut self, mem: &Shared, head: u16) {
                    let id = u32::from(head);
                    copy::Ring::push_used(self, mem, &[UsedElem { id, len: 0 }])
                        .expect("a ring without faults");
                }
                fn disable_notify(&mut self, mem: &Shared) {
                    copy::Ring::disable_notify(self, mem).expect("a ring without faults");
                }
                fn enable_notify(&mut self, mem: &Shared) -> bool {
                    copy::Ring::enable_notify(self, mem).expect("a ring without faults")
                }
                fn needs_interrupt(&mut self, mem: &Shared) -> bool {
                    copy::Ring::needs_interrupt(self, mem)
                }
            }
        };
    };
}

device_ring!(engine::ring);

#[derive(Clone, Copy, Debug)]
struct Scenario {
    event_idx: bool,
    /// Entries that are available from the beginning.
    posted: u16,
    /// Entries that the driver makes available in all, at most as many as fit.
    posts: u16,
    /// Whether the driver takes them back, sleeping while there are none.
    reaps: bool,
    preemptions: usize,
}

/// The memory of the ring, and what wakes the two sides.
struct Shared {
    avail_flags: AtomicU16,
    avail_idx: AtomicU16,
    entries: [AtomicU16; NUM as usize],
    used_event: AtomicU16,
    used_flags: AtomicU16,
    used_idx: AtomicU16,
    elems: [AtomicU32; NUM as usize],
    avail_event: AtomicU16,
    kicked: AtomicBool,
    interrupted: AtomicBool,
}

impl Shared {
    fn new() -> Self {
        Self {
            avail_flags: AtomicU16::new(1),
            avail_idx: AtomicU16::new(0),
            entries: [AtomicU16::new(STALE), AtomicU16::new(STALE)],
            used_event: AtomicU16::new(u16::MAX),
            used_flags: AtomicU16::new(0),
            used_idx: AtomicU16::new(0),
            elems: [AtomicU32::new(STALE.into()), AtomicU32::new(STALE.into())],
            avail_event: AtomicU16::new(0),
            kicked: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
        }
    }

    /// The field at an address of the ring.
    fn field(&self, addr: u64) -> &AtomicU16 {
        let Layout { avail, used, .. } = LAYOUT;
        match addr {
            _ if addr == avail => &self.avail_flags,
            _ if addr == avail + 2 => &self.avail_idx,
            _ if addr == avail + 4 + 2 * u64::from(NUM) => &self.used_event,
            _ if addr == used => &self.used_flags,
            _ if addr == used + 2 => &self.used_idx,
            _ if addr == used + 4 + 8 * u64::from(NUM) => &self.avail_event,
            _ => &self.entries[((addr - avail - 4) / 2) as usize],
        }
    }
}

impl RingMem for Shared {
    fn read_u16(&self, addr: u64) -> Result<u16, RingError> {
        Ok(self.field(addr).load(Relaxed))
    }

    fn write_u16(&self, addr: u64, value: u16) -> Result<(), RingError> {
        self.field(addr).store(value, Relaxed);
        Ok(())
    }

    fn read_descriptor(&self, _addr: u64) -> Result<[u8; 16], RingError> {
        // Descriptors do not change: what is explored is who learns of them.
        Ok([0; 16])
    }

    fn write_used(&self, addr: u64, elems: &[UsedElem]) -> Result<(), RingError> {
        let first = ((addr - LAYOUT.used - 4) / 8) as usize;
        for (place, elem) in self.elems[first..].iter().zip(elems) {
            place.store(elem.id, Relaxed);
        }
        Ok(())
    }

    fn translate(&self, _addr: u64, _access: Access) -> Result<(u64, u64), RingError> {
        Err(RingError::Unmapped)
    }
}

/// A driver by the specification, with its barriers where they have to be.
struct Driver {
    scenario: Scenario,
    mem: Arc<Shared>,
    avail_idx: u16,
    used_idx: u16,
}

impl Driver {
    /// Makes an entry available (virtio 1.3, 2.7.13).
    fn post(&mut self) {
        let mem = &self.mem;
        mem.entries[usize::from(self.avail_idx % NUM)].store(self.avail_idx, Relaxed);
        fence(Ordering::Release);
        let old = self.avail_idx;
        self.avail_idx += 1;
        mem.avail_idx.store(self.avail_idx, Relaxed);
        fence(Ordering::SeqCst);
        let notify = if self.scenario.event_idx {
            mem.avail_event.load(Relaxed) == old
        } else {
            mem.used_flags.load(Relaxed) & 1 == 0
        };
        if notify {
            mem.kicked.store(true, Relaxed);
        }
    }

    /// Takes back what is there (2.7.14); returns whether there was anything.
    fn reap(&mut self) -> bool {
        let used_idx = self.mem.used_idx.load(Relaxed);
        fence(Ordering::Acquire);
        let found = used_idx != self.used_idx;
        while self.used_idx != used_idx {
            let elem = &self.mem.elems[usize::from(self.used_idx % NUM)];
            let id = elem.load(Relaxed);
            assert_eq!(id, u32::from(self.used_idx), "an element from before");
            self.used_idx += 1;
        }
        found
    }

    /// Runs until there is nothing to do but wait.
    fn run(&mut self) {
        while self.avail_idx < self.scenario.posts {
            self.post();
        }
        while self.scenario.reaps && self.used_idx < self.scenario.posts {
            if self.reap() {
                continue;
            }
            if self.scenario.event_idx {
                self.mem.used_event.store(self.used_idx, Relaxed);
            } else {
                self.mem.avail_flags.store(0, Relaxed);
            }
            fence(Ordering::SeqCst);
            if !self.reap() {
                return;
            }
            if !self.scenario.event_idx {
                self.mem.avail_flags.store(1, Relaxed);
            }
        }
    }
}

struct Device<R> {
    ring: R,
    mem: Arc<Shared>,
    taken: u16,
}

impl<R: DeviceRing> Device<R> {
    /// Serves until there is nothing to do but wait.
    fn run(&mut self) {
        self.ring.disable_notify(&self.mem);
        for _ in 0..TURNS_MAX {
            if let Some(head) = self.ring.pop(&self.mem) {
                assert_eq!(head, self.taken, "an entry from before");
                self.taken += 1;
                self.ring.push_used(&self.mem, head);
                if self.ring.needs_interrupt(&self.mem) {
                    self.mem.interrupted.store(true, Relaxed);
                }
                continue;
            }
            if !self.ring.enable_notify(&self.mem) {
                return;
            }
            self.ring.disable_notify(&self.mem);
        }
        panic!("the device goes around in circles");
    }
}

/// Runs a scenario in all interleavings; returns how many there are.
fn run<R: DeviceRing>(scenario: Scenario) -> usize {
    explore(scenario.preemptions, move || {
        let mem = Arc::new(Shared::new());
        let mut driver = Driver {
            scenario,
            mem: mem.clone(),
            avail_idx: 0,
            used_idx: 0,
        };
        while driver.avail_idx < scenario.posted {
            driver.post();
        }
        let mut device = Device {
            ring: R::new(scenario.event_idx),
            mem: mem.clone(),
            taken: 0,
        };
        let device = thread::spawn(move || {
            device.run();
            device
        });
        driver.run();
        let mut device = device.join().expect("a device that sleeps in the end");
        loop {
            if mem.kicked.swap(false, Relaxed) {
                device.run();
            } else if mem.interrupted.swap(false, Relaxed) {
                driver.run();
            } else {
                break;
            }
        }
        assert_eq!(device.taken, scenario.posts, "an entry was lost");
        if scenario.reaps {
            assert_eq!(driver.used_idx, scenario.posts, "an element was lost");
        }
    })
}

const KICKS: Scenario = Scenario {
    event_idx: false,
    posted: 0,
    posts: 2,
    reaps: false,
    preemptions: 6,
};

const INTERRUPTS: Scenario = Scenario {
    posted: 2,
    reaps: true,
    ..KICKS
};

const BOTH: Scenario = Scenario {
    posts: 1,
    reaps: true,
    ..KICKS
};

/// All scenarios, with the negotiated feature and without.
fn scenarios() -> impl Iterator<Item = Scenario> {
    let scenarios = [KICKS, INTERRUPTS, BOTH];
    scenarios.into_iter().flat_map(|scenario| {
        [false, true].map(|event_idx| Scenario {
            event_idx,
            ..scenario
        })
    })
}

fn nothing_is_lost(scenario: Scenario) {
    for event_idx in [false, true] {
        let scenario = Scenario {
            event_idx,
            ..scenario
        };
        let runs = run::<engine::ring::Ring>(scenario);
        println!("{runs} interleavings");
        assert!(runs > 100, "{runs} interleavings only");
    }
}

#[test]
fn no_kick_is_lost() {
    nothing_is_lost(KICKS);
}

#[test]
fn no_interrupt_is_lost() {
    nothing_is_lost(INTERRUPTS);
}

#[test]
fn neither_side_waits_for_ever_when_both_may_sleep() {
    nothing_is_lost(BOTH);
}

fn is_found<R: DeviceRing>() {
    let why = scenarios().find_map(|scenario| failure(|| run::<R>(scenario)));
    println!("{}", why.expect("a bug that is found"));
}

macro_rules! planted_bugs_are_found {
    ($($bug:ident)+) => {
        $(device_ring!(crate::planted::ring::$bug);)+
        /// One test for each planted bug.
        mod finds {
            $(
                #[test]
                fn $bug() {
                    super::is_found::<crate::planted::ring::$bug::Ring>();
                }
            )+
        }
    };
}

crate::planted::planted_bugs!(ring, planted_bugs_are_found);
