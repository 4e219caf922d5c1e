// SPDX-License-Identifier: GPL-2.0

//! A driver and a device work together on random chains: every buffer comes back once and in
//! order, segments are the buffers that were posted, and whoever sleeps is woken.

use std::collections::VecDeque;

use proptest::prelude::*;
use vhost_iocm_engine::engine::mem::{Region, Segment, UsedElem};

use crate::cases;
use crate::guest::{region, Descriptor, Guest, NEXT};

/// Where guest-physical memory begins, and how much of it the regions divide among them.
const BASE: u64 = 0x10_0000;
const SIZE: u64 = 0x1_0000;
/// Buffers lie in the first half, indirect tables in the second.
const TABLES: u64 = BASE + SIZE / 2;
/// Room for the largest indirect table of a script.
const TABLE_SIZE: u64 = 16 * 16;

#[derive(Clone, Debug)]
struct Post {
    /// Offset and length of each buffer.
    buffers: Vec<(u64, u32)>,
    /// How many of them are device-readable.
    readable: usize,
    /// How many of them, the last ones, stand in an indirect table.
    indirect: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Post(Post),
    /// The device takes up to `take` chains, leaves the last `leave` of them, and gives the
    /// others back in batches.
    Serve {
        take: usize,
        leave: usize,
        batch: usize,
    },
    /// The driver takes back all that it can and then sleeps.
    Reap,
}

fn steps() -> impl Strategy<Value = Step> {
    let buffers = proptest::collection::vec((0..SIZE / 2 - 0x400, 0_u32..0x400), 1..8);
    let post = (
        buffers,
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
    );
    let post = post.prop_map(|(buffers, readable, indirect)| Post {
        readable: readable.index(buffers.len() + 1),
        indirect: indirect.index(buffers.len() + 1),
        buffers,
    });
    prop_oneof![
        3 => post.prop_map(Step::Post),
        2 => (0_usize..6, 0_usize..3, 1_usize..4)
            .prop_map(|(take, leave, batch)| Step::Serve { take, leave, batch }),
        1 => Just(Step::Reap),
    ]
}

/// Divides the guest's memory at `cuts` and lays the pieces out in another order.
fn regions(cuts: &[u64], heap: u64) -> Vec<Region> {
    let mut cuts: Vec<_> = cuts.iter().copied().chain([0, SIZE]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let pieces = cuts.windows(2).map(|piece| (piece[0], piece[1] - piece[0]));
    let mut user_addr = heap;
    let regions = pieces.rev().map(|(begin, size)| {
        let region = region(BASE + begin, size, user_addr);
        // A gap keeps pieces from being continued by their neighbours in the owner's memory.
        user_addr += size + 64;
        region
    });
    regions.collect()
}

/// What the driver remembers of a chain that it made available.
struct Posted {
    head: u16,
    descriptors: Vec<u16>,
    table: Option<u64>,
    readable: Vec<u64>,
    writable: Vec<u64>,
}

struct Simulation {
    guest: Guest,
    event_idx: bool,
    notify_on_empty: bool,
    free: VecDeque<u16>,
    free_tables: Vec<u64>,
    /// Made available, in order, and not yet back at the driver. The first `given` of them were
    /// given back by the device.
    outstanding: VecDeque<Posted>,
    given: usize,
    used_idx: u16,
    /// The device sleeps until it is notified.
    device_asleep: bool,
    /// The driver sleeps until it is interrupted.
    driver_asleep: bool,
}

impl Simulation {
    fn post(&mut self, post: &Post) {
        let Posting { direct, entries } = self.divide(post);
        let needed = direct.len() + usize::from(!entries.is_empty());
        let full = self.outstanding.len() == usize::from(self.guest.num);
        if full || needed > self.free.len() || (!entries.is_empty() && self.free_tables.is_empty())
        {
            return;
        }
        let table = (!entries.is_empty())
            .then(|| self.free_tables.pop())
            .flatten();
        let mut direct = direct;
        if let Some(addr) = table {
            direct.push(self.guest.put_table(addr, &entries));
        }
        let descriptors: Vec<_> = self.free.drain(..needed).collect();
        for (index, descriptor) in direct.iter().enumerate() {
            let chained = match descriptors.get(index + 1) {
                Some(next) => descriptor.then(*next),
                None => *descriptor,
            };
            self.guest.put(descriptors[index], chained);
        }
        let bytes = |buffers: &[(u64, u32)]| {
            let bytes = buffers
                .iter()
                .flat_map(|(offset, len)| (0..u64::from(*len)).map(|byte| BASE + *offset + byte));
            let bytes = bytes.map(|addr| self.guest.mem.owner_addr(addr));
            bytes.collect::<Option<Vec<_>>>().expect("mapped buffers")
        };
        let (readable, writable) = post.buffers.split_at(post.readable);
        let (readable, writable) = (bytes(readable), bytes(writable));
        self.outstanding.push_back(Posted {
            head: descriptors[0],
            descriptors,
            table,
            readable,
            writable,
        });
        let head = self.outstanding.back().expect("just posted").head;
        let old = self.guest.avail_idx;
        self.guest.publish(head);
        let notified = if self.event_idx {
            self.guest.avail_event() == old
        } else {
            self.guest.used_flags() & 1 == 0
        };
        if notified {
            self.device_asleep = false;
        }
    }

    fn divide(&self, post: &Post) -> Posting {
        let descriptors = post
            .buffers
            .iter()
            .enumerate()
            .map(|(index, (offset, len))| {
                if index < post.readable {
                    Descriptor::readable(BASE + offset, *len)
                } else {
                    Descriptor::writable(BASE + offset, *len)
                }
            });
        let mut direct: Vec<_> = descriptors.collect();
        let mut entries = direct.split_off(direct.len() - post.indirect);
        let last = entries.len().saturating_sub(1);
        for (index, entry) in entries.iter_mut().enumerate() {
            if index < last {
                *entry = entry.then(index as u16 + 1);
            }
        }
        debug_assert!(direct.iter().all(|it| it.flags & NEXT == 0));
        Posting { direct, entries }
    }

    fn serve(&mut self, take: usize, leave: usize, batch: usize) {
        if self.device_asleep {
            let seen = self.guest.ring.base() == self.guest.avail_idx;
            let left = self.given < self.outstanding.len();
            assert!(seen && !left, "the device was not notified");
            return;
        }
        self.guest.disable_notify();
        let mut taken = 0;
        let mut drained = false;
        while taken < take {
            match self.guest.pop().expect("a well-formed ring") {
                Some((chain, segments)) => {
                    let posted = &self.outstanding[self.given + taken];
                    assert_eq!(chain.head, posted.head);
                    let (readable, writable) = segments.split_at(chain.readable);
                    assert_eq!(writable.len(), chain.writable);
                    assert_eq!(bytes_of(readable), posted.readable);
                    assert_eq!(bytes_of(writable), posted.writable);
                    taken += 1;
                }
                None => {
                    assert_eq!(self.given + taken, self.outstanding.len());
                    drained = true;
                    break;
                }
            }
        }
        let leave = leave.min(taken);
        self.guest.ring.unpop(leave as u16);
        let done = taken - leave;
        let finished: Vec<_> = (0..done)
            .map(|index| &self.outstanding[self.given + index])
            .map(|posted| UsedElem {
                id: posted.head.into(),
                len: posted.writable.len() as u32,
            })
            .collect();
        for elems in finished.chunks(batch) {
            let guest = &mut self.guest;
            guest.ring.push_used(&guest.mem, elems).expect("no fault");
            self.given += elems.len();
            self.interrupt();
        }
        if drained && leave == 0 {
            assert_eq!(self.guest.enable_notify(), Ok(false));
            self.device_asleep = true;
        }
    }

    fn interrupt(&mut self) {
        let interrupted = self.guest.needs_interrupt();
        if self.driver_asleep {
            assert!(interrupted, "the driver was not interrupted");
            self.driver_asleep = false;
            self.suppress();
        } else if !self.event_idx && !self.notify_on_empty {
            assert!(!interrupted, "the driver was interrupted against its wish");
        }
    }

    fn suppress(&self) {
        // With event index, a stale event is what suppresses.
        if !self.event_idx {
            self.guest.write_avail_flags(1);
        }
    }

    fn reap(&mut self) {
        while self.used_idx != self.guest.used_idx() {
            let elem = self.guest.used_elem(self.used_idx % self.guest.num);
            let posted = self.outstanding.pop_front().expect("an element too many");
            self.given -= 1;
            assert_eq!(elem.id, u32::from(posted.head));
            assert_eq!(elem.len, posted.writable.len() as u32);
            self.free.extend(posted.descriptors);
            self.free_tables.extend(posted.table);
            self.used_idx = self.used_idx.wrapping_add(1);
        }
        assert_eq!(self.given, 0, "an element is missing");
        if self.event_idx {
            self.guest.write_used_event(self.used_idx);
        } else {
            self.guest.write_avail_flags(0);
        }
        self.driver_asleep = true;
    }
}

struct Posting {
    direct: Vec<Descriptor>,
    entries: Vec<Descriptor>,
}

fn bytes_of(segments: &[Segment]) -> Vec<u64> {
    let bytes = segments
        .iter()
        .flat_map(|segment| segment.base..segment.base + segment.len);
    bytes.map(|byte| byte as u64).collect()
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn buffers_come_back_once_and_in_order_and_nobody_sleeps_too_long(
        num in prop_oneof![Just(1_u16), Just(2), Just(4), Just(16), Just(64)],
        base in prop_oneof![Just(0_u16), 0xffe0_u16.., any::<u16>()],
        event_idx: bool,
        notify_on_empty: bool,
        // Even cuts: a region at an odd address may divide a field of an indirect table.
        cuts in proptest::collection::vec((0..SIZE / 2).prop_map(|cut| 2 * cut), 0..8),
        script in proptest::collection::vec(steps(), 1..80),
    ) {
        let guest = Guest::with_table(num, |heap| regions(&cuts, heap))
            .starting_at(base)
            .with_features(event_idx, notify_on_empty);
        let tables = usize::from(num).min((SIZE / 2 / TABLE_SIZE) as usize);
        let mut simulation = Simulation {
            guest,
            event_idx,
            notify_on_empty,
            free: (0..num).rev().collect(),
            free_tables: (0..tables as u64).map(|table| TABLES + table * TABLE_SIZE).collect(),
            outstanding: VecDeque::new(),
            given: 0,
            used_idx: base,
            device_asleep: false,
            driver_asleep: false,
        };
        simulation.suppress();
        for step in &script {
            match step {
                Step::Post(post) => simulation.post(post),
                Step::Serve { take, leave, batch } => simulation.serve(*take, *leave, *batch),
                Step::Reap => simulation.reap(),
            }
        }
        // In the end everything comes back.
        simulation.serve(usize::MAX, 0, 1);
        simulation.reap();
        prop_assert!(simulation.outstanding.is_empty());
        prop_assert_eq!(simulation.free.len(), usize::from(num));
        prop_assert_eq!(simulation.guest.used_idx(), simulation.guest.avail_idx);
    }
}
