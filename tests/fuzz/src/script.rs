// SPDX-License-Identifier: GPL-2.0

//! Scripts out of the fuzzer's bytes: what guest, owner and device do, in turn.

use vhost_iocm_engine::engine::mem::Region;
use vhost_iocm_engine::engine::ring::{Layout, Ring};
use vhost_iocm_engine::engine::sched::budget::{Budget, Data};

use crate::act::Act;
use crate::device::{Device, DeviceRing};
use crate::input::{Descriptor, Input, INDIRECT, NEXT};
use crate::memory::{self, Memory, Write, GUEST, OWNER};
use crate::outcome::{Event, Outcomes};

/// Accesses, of both sides, after which a script ends: inputs shall differ in what they reach, not
/// in how often they do it. A call of the engine that was begun goes on.
const WORK_MAX: usize = 1 << 13;
/// How often something is repeated at most, for the same reason.
const REPEAT_MAX: u16 = 1024;
/// Regions in a memory table: the kernel's default limit.
const REGIONS_MAX: usize = 64;
/// Places that change before every access.
const RACES_MAX: usize = 4;
/// Segments of the largest chain that the driver of the engine accepts.
const ROOM_MAX: usize = 1024;
/// Chains that are given back at once.
const BATCH: usize = 64;
/// Packets of one slice, and its time.
const SLICE_PACKETS: usize = 256;
const SLICE_TIME: u64 = 200;

/// Runs the script that `data` is.
///
/// # Panics
///
/// When the engine does something wrong.
pub fn run<R: DeviceRing + Default + 'static>(data: &[u8]) -> Outcomes {
    let mut world = World::new(Input::new(data), Box::new(R::default()), None);
    world.run();
    world.device.outcomes
}

/// What guest and owner do in the script that `data` is, from the first [`SetUp`](Act::SetUp) on. The
/// device is taken to serve everything whenever it serves.
pub fn acts(data: &[u8]) -> Vec<Act> {
    let ring = Box::new(Ring::default());
    let mut world = World::new(Input::new(data), ring, Some(Vec::new()));
    world.run();
    world.acts.unwrap_or_default()
}

struct World<'a> {
    input: Input<'a>,
    memory: Memory,
    device: Device,
    /// The driver's available index.
    avail_idx: u16,
    /// How often the guest wrote.
    written: usize,
    /// What guest and owner did, if that is what is wanted. The device does nothing then.
    acts: Option<Vec<Act>>,
}

impl<'a> World<'a> {
    fn new(mut input: Input<'a>, ring: Box<dyn DeviceRing>, acts: Option<Vec<Act>>) -> Self {
        let size = input.byte();
        let num = match size % 32 {
            size @ 0..=15 => 1 << size,
            size => 1 << (size % 5),
        };
        let memory = Memory::new(num);
        let mut world = Self {
            input,
            memory,
            device: Device::new(ring),
            avail_idx: 0,
            written: 0,
            acts,
        };
        world.device.set_num(num.into());
        world.device.set_layout(memory::place(num).0);
        world
            .device
            .set_features(size & 0x20 != 0, size & 0x40 != 0);
        world.start();
        world
    }

    fn run(&mut self) {
        while !self.input.is_empty() && !self.is_tired() {
            self.step();
        }
    }

    fn tell(&mut self, act: impl FnOnce() -> Act) {
        if let Some(acts) = &mut self.acts {
            acts.push(act());
        }
    }

    fn start(&mut self) {
        let setup = self.device.setup();
        if let Some(acts) = &mut self.acts {
            acts.push(Act::SetUp(setup));
        } else {
            self.device.start(&self.memory);
        }
    }

    fn is_tired(&self) -> bool {
        self.device.work + self.written >= WORK_MAX
    }

    fn step(&mut self) {
        let what = self.input.byte() % 32;
        if what >= 20 && self.acts.is_some() {
            self.tell(|| Act::Serve);
            self.pass_over(what);
            return;
        }
        match what {
            // The guest, as a driver would.
            0..=2 => {
                let head = self.input.index();
                self.publish(head);
            }
            3..=5 => {
                let index = self.input.index();
                let descriptor = self.input.descriptor(&self.memory);
                self.poke(self.describe(index, descriptor));
            }
            6 | 7 => {
                let addr = self.memory.heap_owner() + 16 * u64::from(self.input.byte());
                let descriptor = self.input.descriptor(&self.memory);
                self.poke(Write::descriptor(addr, descriptor.bytes()));
            }
            8 => self.fill_table(),
            9 => self.fill_chain(),
            10 if self.input.flip() => self.repeat_table(),
            10 => {
                for _ in 0..self.repeat().min(self.device.num) {
                    self.publish(self.avail_idx % self.device.num);
                }
            }
            // The guest, as no driver would.
            11 | 12 => {
                let write = self.write();
                self.poke(write);
            }
            13 | 14 => {
                let after = self.input.count().into();
                let write = self.write();
                self.tell(|| Act::WriteLater(after, write));
                self.memory.change(after, write);
            }
            15 if self.memory.racing() < RACES_MAX => {
                let writes = [self.write(), self.write()];
                let [first, second] = writes;
                let same_place = Write {
                    addr: first.addr,
                    ..second
                };
                self.tell(|| Act::Race([first, same_place]));
                self.memory.race([first, same_place]);
            }
            15 => {
                self.tell(|| Act::Calm);
                self.memory.calm();
            }
            // The owner.
            16 => self.set_table(),
            17 => self.shatter(),
            18 => self.restart(),
            19 => self.memory.fail_after(self.input.below(16)),
            // The device.
            20..=23 => {
                let room = match self.input.byte() {
                    room @ 0..=31 => room.into(),
                    _ => ROOM_MAX,
                };
                // Why it may be refused is checked there.
                let _ = self.device.pop(&self.memory, room);
                self.device.take_work();
            }
            24 => {
                let count = self.input.below(8);
                self.device.unpop(count);
            }
            25 => {
                let count = self.input.count().into();
                if let after @ 0..=2 = self.input.below(8) {
                    self.memory.fail_after(after);
                }
                self.device.push(&self.memory, count, 1);
            }
            26 => self.device.decide_interrupt(&self.memory),
            // A fault of these is checked there.
            27 => drop(self.device.enable(&self.memory)),
            28 => drop(self.device.disable(&self.memory)),
            29 if self.input.flip() => drop(self.device.peek(&self.memory)),
            29 => self.device.is_empty(&self.memory),
            30 => {
                // All for one packet.
                let most = self.repeat();
                for _ in 0..most {
                    let popped = self.device.pop(&self.memory, 1);
                    if !matches!(popped, Ok(Some(_))) || self.is_tired() {
                        break;
                    }
                }
                self.device.take_work();
                let all = self.device.outstanding.len();
                self.device.push(&self.memory, all, 0);
            }
            _ => self.slice(),
        }
    }

    /// Takes the input of a step of the device, and lets it have served everything.
    fn pass_over(&mut self, what: u8) {
        let bytes = match what {
            20..=24 | 29 => 1,
            31 => 2,
            _ => 0,
        };
        for _ in 0..bytes {
            self.input.byte();
        }
        if matches!(what, 25 | 30) {
            self.input.count();
        }
        if what == 25 {
            self.input.byte();
        }
        self.device.next_avail = self.avail_idx;
    }

    fn repeat(&mut self) -> u16 {
        self.input.count().min(REPEAT_MAX)
    }

    fn poke(&mut self, write: Write) {
        self.written += 1;
        self.tell(|| Act::Write(write));
        self.memory.poke(&write);
    }

    /// Makes a chain available.
    fn publish(&mut self, head: u16) {
        let entry = self.device.avail_entry(self.avail_idx);
        self.poke(Write::word(entry, head));
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.poke(self.avail_idx_write(self.avail_idx));
    }

    fn avail_idx_write(&self, index: u16) -> Write {
        Write::word(self.device.layout.avail.wrapping_add(2), index)
    }

    fn describe(&self, index: u16, descriptor: Descriptor) -> Write {
        let addr = self.device.layout.desc.wrapping_add(16 * u64::from(index));
        Write::descriptor(addr, descriptor.bytes())
    }

    /// Writes alike entries one after the other into the heap.
    fn fill_table(&mut self) {
        let first = self.input.byte();
        let count = self.repeat();
        let entry = Descriptor {
            next: 0,
            ..self.input.descriptor(&self.memory)
        };
        let ends = self.input.flip();
        for index in 0..count {
            let mut entry = entry;
            entry.flags |= NEXT;
            if ends && index + 1 == count {
                entry.flags &= !NEXT;
            }
            let addr = self.memory.heap_owner() + 16 * (u64::from(first) + u64::from(index));
            self.poke(Write::descriptor(addr, entry.bytes()));
        }
    }

    /// Chains alike descriptors of the table, or lets each be a chain of its own.
    fn fill_chain(&mut self) {
        let first = self.input.index();
        let count = self.repeat();
        let descriptor = self.input.descriptor(&self.memory);
        let chained = self.input.flip();
        for index in first..first.saturating_add(count) {
            let mut descriptor = descriptor;
            if chained {
                descriptor.flags |= NEXT;
                descriptor.next = index + 1;
            }
            if chained && index - first + 1 == count {
                descriptor.flags &= !NEXT;
            }
            self.poke(self.describe(index, descriptor));
        }
    }

    /// Chains descriptors that all name the same indirect table of empty entries.
    fn repeat_table(&mut self) {
        let entries = self.repeat();
        let tables = self.repeat();
        let addr = self.memory.heap();
        let entry = |flags| Descriptor {
            addr,
            len: 0,
            flags,
            next: 0,
        };
        for index in 0..entries {
            let last = index + 1 == entries;
            let addr = self.memory.heap_owner() + 16 * u64::from(index);
            let entry = entry(if last { 0 } else { NEXT });
            self.poke(Write::descriptor(addr, entry.bytes()));
        }
        for index in 0..tables {
            let last = index + 1 == tables;
            let table = Descriptor {
                len: 16 * u32::from(entries),
                next: index + 1,
                ..entry(if last { INDIRECT } else { INDIRECT | NEXT })
            };
            self.poke(self.describe(index, table));
        }
    }

    /// Something that the guest can write at any time.
    fn write(&mut self) -> Write {
        let avail = self.device.layout.avail;
        let used = self.device.layout.used;
        match self.input.byte() % 10 {
            0 => {
                let by = i16::from(self.input.byte() as i8);
                self.avail_idx_write(self.device.next_avail.wrapping_add_signed(by))
            }
            1 => {
                // The driver goes on from there.
                self.avail_idx = self.input.word();
                self.avail_idx_write(self.avail_idx)
            }
            2 => {
                let slot = self
                    .device
                    .next_avail
                    .wrapping_add(self.input.byte().into());
                Write::word(self.device.avail_entry(slot), self.input.index())
            }
            3 | 4 => {
                let index = self.input.index();
                let descriptor = self.input.descriptor(&self.memory);
                self.describe(index, descriptor)
            }
            5 => {
                let addr = self.memory.heap_owner() + 16 * u64::from(self.input.byte());
                let descriptor = self.input.descriptor(&self.memory);
                Write::descriptor(addr, descriptor.bytes())
            }
            6 => Write::word(avail, self.input.byte().into()),
            7 => Write::word(self.device.used_event(), self.input.word()),
            8 => Write::word(
                used.wrapping_add(self.input.byte().into()),
                self.input.word(),
            ),
            _ => Write::word(OWNER + u64::from(self.input.word()), self.input.word()),
        }
    }

    fn region(&mut self, last: &Region) -> Region {
        let input = &mut self.input;
        let guest_addr = match input.byte() % 8 {
            0..=2 => last.guest_addr.wrapping_add(last.size),
            3 | 4 => self.memory.heap() + 8 * u64::from(input.byte()),
            5 => GUEST + u64::from(input.word()),
            6 => u64::from(input.byte()).wrapping_neg(),
            _ => input.addr(&self.memory),
        };
        let size = match input.byte() % 8 {
            0..=2 => 8 * u64::from(input.byte()),
            3 | 4 => input.byte().into(),
            5 => input.word().into(),
            6 => guest_addr.wrapping_neg(),
            _ => input.addr(&self.memory),
        };
        let user_addr = match input.byte() % 8 {
            0..=5 => self.memory.heap_owner() + 8 * u64::from(input.byte()),
            6 => OWNER + u64::from(input.word()),
            _ => input.addr(&self.memory),
        };
        Region {
            guest_addr,
            size,
            user_addr,
            flags: 0,
        }
    }

    fn set_table(&mut self) {
        let mut last = Region::default();
        let regions = (0..self.input.below(9)).map(|_| {
            last = self.region(&last);
            last
        });
        let regions: Vec<_> = regions.collect();
        self.tell(|| Act::SetTable(regions.clone()));
        if !self.memory.set_table(regions) {
            self.device.outcomes.saw(Event::TableRefused);
        }
    }

    /// Divides the heap into small regions, in the owner's memory as they are or turned around.
    /// Guest-physical, they may lie on both sides of the end of memory.
    fn shatter(&mut self) {
        let size = 1 + self.input.below(64) as u64;
        let count = 1 + self.input.below(REGIONS_MAX) as u64;
        let turned = self.input.flip();
        let first = match self.input.byte() {
            before @ 0..=63 => (size * u64::from(before)).wrapping_neg(),
            _ => self.memory.heap(),
        };
        let pieces = (0..count).map(|piece| {
            let user = if turned { count - 1 - piece } else { piece };
            Region {
                guest_addr: first.wrapping_add(size * piece),
                size,
                user_addr: self.memory.heap_owner() + size * user,
                flags: 0,
            }
        });
        let pieces: Vec<_> = pieces.collect();
        self.tell(|| Act::SetTable(pieces.clone()));
        assert!(self.memory.set_table(pieces), "pieces side by side");
    }

    /// Sets the ring up anew, as the owner may do between slices.
    fn restart(&mut self) {
        let what = self.input.byte();
        if what & 1 != 0 {
            self.device.reset();
        }
        if what & 2 != 0 {
            let num = match self.input.byte() {
                size @ 0..=0xef => 1 << (size % 16),
                _ => self.input.long(),
            };
            self.device.set_num(num);
        }
        if what & 4 != 0 {
            let mut layout = memory::place(self.device.num).0;
            if what & 8 != 0 {
                layout = Layout {
                    desc: self.place(layout.desc),
                    avail: self.place(layout.avail),
                    used: self.place(layout.used),
                };
            }
            self.device.set_layout(layout);
        }
        if what & 16 != 0 {
            let features = self.input.byte();
            self.device
                .set_features(features & 1 != 0, features & 2 != 0);
        }
        if what & 32 != 0 {
            let base = self.input.word();
            self.avail_idx = base;
            self.device.set_base(base);
        }
        self.start();
    }

    /// An address for a part of the ring, as good as `usual` or not.
    fn place(&mut self, usual: u64) -> u64 {
        match self.input.byte() % 4 {
            0 => usual,
            1 => usual + u64::from(self.input.byte()),
            2 => OWNER + u64::from(self.input.word()),
            _ => self.input.addr(&self.memory),
        }
    }

    /// Serves a slice as the data path does: takes chains until the slice or the ring ends, gives
    /// them back in batches, asks to be notified.
    fn slice(&mut self) {
        let leave = self.input.below(3);
        let look_takes = u64::from(self.input.byte());
        let mut budget = Budget::new(SLICE_TIME, Data::default());
        let mut now = 0;
        let mut packets = 0;
        let mut work = 0;
        if self.device.disable(&self.memory).is_err() {
            return;
        }
        loop {
            if self.device.outstanding.len() >= BATCH {
                self.give_back();
            }
            let len = match self.device.pop(&self.memory, ROOM_MAX) {
                Ok(Some(len)) => len,
                Ok(None) => {
                    self.give_back();
                    if !matches!(self.device.enable(&self.memory), Ok(true)) {
                        return;
                    }
                    0
                }
                Err(_) => break,
            };
            let cost = self.device.take_work();
            packets += 1;
            work += cost;
            let clock = || {
                now += look_takes;
                now
            };
            if !budget.charge(len, cost, clock, |_| false) {
                let event = if now >= SLICE_TIME {
                    Event::SliceOfTime
                } else if packets == SLICE_PACKETS {
                    Event::SliceOfPackets
                } else {
                    Event::SliceOfBytes
                };
                self.device.outcomes.saw(event);
                break;
            }
            assert!(packets < SLICE_PACKETS, "a slice without end");
            assert!(work < 0x80000 / 16, "a slice of {work} descriptors");
        }
        self.device.take_work();
        self.device.unpop(leave);
        self.give_back();
    }

    fn give_back(&mut self) {
        let all = self.device.outstanding.len();
        self.device.push(&self.memory, all, 0);
        self.device.decide_interrupt(&self.memory);
    }
}
