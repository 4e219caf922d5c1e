// SPDX-License-Identifier: GPL-2.0

//! A guest that writes whatever it likes: the engine neither panics nor works without end.

use proptest::prelude::*;
use vhost_iocm_engine::engine::mem::{Region, Segment, UsedElem};

use crate::cases;
use crate::guest::{region, Descriptor, Guest, OWNER};

/// A descriptor that has a chance to get somewhere.
fn descriptors() -> impl Strategy<Value = Descriptor> {
    let addr = prop_oneof![
        8 => 0x1000_u64..0x1400,
        // Tables are more likely to be read to some depth when they begin where others do.
        8 => (0x100_u64..0x140).prop_map(|entry| 16 * entry),
        1 => any::<u64>(),
        1 => u64::MAX - 40..,
    ];
    let len = prop_oneof![
        4 => Just(0),
        8 => 0_u32..64,
        8 => (0_u32..16).prop_map(|count| 16 * count),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![16 => 0_u16..8, 8 => Just(1), 4 => Just(4), 1 => any::<u16>()];
    let next = prop_oneof![16 => 0_u16..8, 1 => any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| Descriptor {
        addr,
        len,
        flags,
        next,
    })
}

/// Regions in and around the first 0x400 bytes from 0x1000 on, overlapping or not.
fn tables() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    let boundary = prop_oneof![(0_u64..0x40).prop_map(|it| 16 * it), 0_u64..0x400];
    proptest::collection::vec((boundary.clone(), 1_u64..0x400, boundary), 0..5)
}

#[derive(Clone, Debug)]
enum Call {
    Pop {
        room: usize,
    },
    Unpop,
    IsEmpty,
    Push {
        count: usize,
    },
    NeedsInterrupt,
    Enable,
    Disable,
    Start,
    /// The guest moves its index as a driver would, by a few.
    Publish {
        count: u16,
    },
    /// The guest writes garbage somewhere into the ring.
    Scribble {
        offset: u64,
        value: u16,
    },
    /// An access of the next call fails.
    Fail {
        after: usize,
    },
}

fn calls() -> impl Strategy<Value = Call> {
    prop_oneof![
        8 => (0_usize..20).prop_map(|room| Call::Pop { room }),
        1 => Just(Call::Unpop),
        1 => Just(Call::IsEmpty),
        2 => (0_usize..20).prop_map(|count| Call::Push { count }),
        2 => Just(Call::NeedsInterrupt),
        2 => Just(Call::Enable),
        2 => Just(Call::Disable),
        1 => Just(Call::Start),
        8 => (0_u16..4).prop_map(|count| Call::Publish { count }),
        2 => (0_u64..0x100, any::<u16>())
            .prop_map(|(offset, value)| Call::Scribble { offset, value }),
        1 => (0_usize..8).prop_map(|after| Call::Fail { after }),
    ]
}

/// All that the guest has written before the first call, and the calls.
#[derive(Clone, Debug)]
struct Garbage {
    num: u16,
    base: u16,
    event_idx: bool,
    notify_on_empty: bool,
    /// Whether the engine may read ahead.
    ahead: bool,
    /// Offset and size of regions, and their offset in the owner's memory.
    table: Vec<(u64, u64, u64)>,
    /// What lies in the memory that the regions map.
    entries: Vec<Descriptor>,
    /// What lies in the descriptor table and in the available ring.
    direct: Vec<Descriptor>,
    heads: Vec<u16>,
    script: Vec<Call>,
}

prop_compose! {
    fn garbage()(
        num in prop_oneof![Just(1_u16), Just(2), Just(4), Just(8)],
        base in prop_oneof![Just(0_u16), Just(0xfffe), any::<u16>()],
        event_idx: bool,
        notify_on_empty: bool,
        ahead: bool,
        table in tables(),
        entries in proptest::collection::vec(descriptors(), 0x40),
        direct in proptest::collection::vec(descriptors(), 8),
        heads in proptest::collection::vec(prop_oneof![9 => 0_u16..8, 1 => any::<u16>()], 8),
        script in proptest::collection::vec(calls(), 1..60),
    ) -> Garbage {
        Garbage { num, base, event_idx, notify_on_empty, ahead, table, entries, direct, heads, script }
    }
}

impl Garbage {
    fn guest(&self) -> Guest {
        let guest = Guest::with_table(self.num, |heap| {
            let regions = self.table.iter();
            let mut regions: Vec<Region> = regions
                .map(|(at, size, user)| region(0x1000 + at, *size, heap + user))
                .collect();
            if regions.is_empty() {
                regions.push(region(0x1000, 0x400, heap));
            }
            regions
        });
        let guest = guest
            .starting_at(self.base)
            .with_features(self.event_idx, self.notify_on_empty);
        if self.ahead {
            guest.mem.offer_ahead();
        }
        let heap = guest.heap_owner(0) as u64;
        for (index, entry) in self.entries.iter().enumerate() {
            guest.mem.poke(heap + 16 * index as u64, &entry.bytes());
        }
        for index in 0..self.num {
            guest.put(index, self.direct[usize::from(index)]);
            let head = self.heads[usize::from(index)];
            let addr = guest.layout.avail + 4 + 2 * u64::from(index);
            guest.mem.poke(addr, &head.to_le_bytes());
        }
        guest
    }
}

/// More accesses than any call may take with a ring of `num` entries, of memory that maps `mapped`
/// guest-physical addresses.
fn bound(num: u16, mapped: usize, room: usize) -> usize {
    // Of an indirect table, each mapped address can be in it once. An entry that straddles regions
    // takes 18 accesses, one for each descriptor that is read twice as many for its translation,
    // and the pieces of the table are translated before.
    let table = mapped / 16 * 20 + mapped;
    // Each translation of a buffer fills a segment, but for the one that fails. Entries of the
    // available ring and descriptors are read ahead once each.
    4 + usize::from(num) * (1 + table) + room + 1
}

fn perform(guest: &mut Guest, call: &Call) {
    match *call {
        Call::Pop { room } => {
            let untouched = Segment { base: 1, len: 2 };
            let mut segments = vec![untouched; room];
            let base = guest.ring.base();
            guest.mem.limit_accesses(bound(guest.num, 0x800, room));
            let popped = guest.ring.pop(&guest.mem, &mut segments);
            let taken = guest.ring.base().wrapping_sub(base);
            match popped {
                Ok(Some(chain)) => {
                    assert_eq!(taken, 1);
                    assert!(chain.head < guest.num);
                    let used = chain.readable + chain.writable;
                    assert!(used <= room);
                    for segment in &segments[..used] {
                        // All regions lie in the 0x800 bytes of the heap that tables reach.
                        let heap = guest.heap_owner(0);
                        assert!(segment.len > 0);
                        assert!(segment.base >= heap);
                        assert!(segment.base + segment.len <= heap + 0x800);
                    }
                    assert!(segments[used..].iter().all(|it| *it == untouched));
                }
                Ok(None) | Err(_) => assert_eq!(taken, 0),
            }
        }
        Call::Unpop => guest.ring.unpop(1),
        Call::IsEmpty => {
            guest.mem.limit_accesses(1);
            guest.ring.is_empty(&guest.mem);
        }
        Call::Push { count } => {
            let elems = vec![UsedElem::default(); count];
            guest.mem.limit_accesses(count + 1);
            // A fault that was asked for is reported; there is nothing else to see here.
            let _ = guest.ring.push_used(&guest.mem, &elems);
        }
        Call::NeedsInterrupt => {
            guest.mem.limit_accesses(1);
            guest.needs_interrupt();
        }
        Call::Enable => {
            guest.mem.limit_accesses(2);
            let _ = guest.enable_notify();
        }
        Call::Disable => {
            guest.mem.limit_accesses(1);
            let _ = guest.ring.disable_notify(&guest.mem);
        }
        Call::Start => {
            guest.mem.limit_accesses(2);
            let _ = guest.ring.start(&guest.mem);
        }
        Call::Publish { count } => {
            guest.avail_idx = guest.avail_idx.wrapping_add(count);
            guest.write_avail_idx(guest.avail_idx);
        }
        Call::Scribble { offset, value } => {
            guest.mem.poke(OWNER + offset, &value.to_le_bytes());
        }
        Call::Fail { after } => guest.mem.fail_after(after),
    }
}

proptest! {
    #![proptest_config(cases(600))]

    #[test]
    fn whatever_the_guest_writes_every_call_ends_and_stays_in_bounds(garbage in garbage()) {
        let mut guest = garbage.guest();
        for call in &garbage.script {
            perform(&mut guest, call);
        }
    }
}
