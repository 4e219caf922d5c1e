// SPDX-License-Identifier: GPL-2.0

//! Reading the available ring and the descriptor table ahead.

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::sample::Index;

use crate::cases;
use crate::guest::{Access, Descriptor, Guest, NEXT};

const NUM: u16 = 64;

fn guest() -> Guest {
    let guest = Guest::new(NUM);
    guest.mem.offer_ahead();
    guest
}

/// What the engine reads to take all chains.
fn reads(guest: &mut Guest) -> Vec<Access> {
    guest.mem.forget_accesses();
    guest.drain();
    guest.mem.touches()
}

#[test]
fn chains_that_lie_together_take_few_reads() {
    let mut guest = guest();
    guest.post_singles(NUM);
    let avail = guest.layout.avail;
    let desc = guest.layout.desc;
    assert_eq!(
        reads(&mut guest),
        [
            Access::ReadU16(avail + 2),
            Access::ReadAhead(avail + 4, 64),
            Access::ReadAhead(desc, 512),
            Access::ReadAhead(avail + 68, 64),
            Access::ReadAhead(desc + 512, 512),
            // It is empty now.
            Access::ReadU16(avail + 2),
        ]
    );
}

#[test]
fn chains_in_reverse_order_take_few_reads() {
    let mut guest = guest();
    for head in (0..32).rev() {
        guest.put(
            head,
            Descriptor::readable(guest.heap(0), 1 + u32::from(head)),
        );
        guest.publish(head);
    }
    assert_eq!(reads(&mut guest).len(), 4);
}

/// As by a driver that takes those descriptors first that it got back last, in batches of eight chains.
#[test]
fn batches_in_reverse_order_take_few_reads() {
    let mut guest = guest();
    for batch in 0..4 {
        for chain in (0..8).rev() {
            let next = 16 * batch + 2 * chain;
            let head = next + 1;
            guest.put(head, Descriptor::readable(guest.heap(0), 12).then(next));
            guest.put(next, Descriptor::readable(guest.heap(0), 60));
            guest.publish(head);
        }
    }
    // The last chain of a batch may be read by itself, as what follows lies elsewhere.
    assert!(reads(&mut guest).len() <= 10);
}

#[test]
fn what_lies_far_apart_is_read_one_by_one() {
    let mut guest = guest();
    for head in [0, 40] {
        guest.put(head, Descriptor::readable(guest.heap(0), 1));
        guest.publish(head);
    }
    let reads = reads(&mut guest);
    let single = |access: &&Access| matches!(access, Access::ReadDescriptor(_));
    assert_eq!(reads.iter().filter(single).count(), 2);
}

#[test]
fn a_chain_alone_is_read_as_ever() {
    let mut guest = guest();
    guest.post_singles(1);
    let ahead = |access: &Access| matches!(access, Access::ReadAhead(..));
    assert!(!reads(&mut guest).iter().any(ahead));
}

#[test]
fn nothing_is_read_beyond_the_ends_of_ring_and_table() {
    let mut guest = guest().starting_at(NUM - 2);
    for head in [NUM - 2, NUM - 1, 0, 1] {
        guest.put(head, Descriptor::readable(guest.heap(0), 1));
        guest.publish(head);
    }
    let avail = guest.layout.avail;
    let desc = guest.layout.desc;
    let last = u64::from(NUM - 2);
    let expected = [
        Access::ReadAhead(avail + 4 + 2 * last, 4),
        Access::ReadAhead(desc + 16 * (last - 2), 64),
        Access::ReadAhead(avail + 4, 4),
        Access::ReadAhead(desc, 64),
    ];
    let mut reads = reads(&mut guest);
    reads.retain(|access| matches!(access, Access::ReadAhead(..)));
    assert_eq!(reads, expected);
}

#[test]
fn a_head_out_of_range_behind_others_does_not_harm_them() {
    let mut guest = guest();
    guest.post_singles(3);
    guest.publish(NUM);
    for head in 0..3 {
        assert_eq!(guest.pop_head(), Some(head));
    }
    guest.pop_error();
}

#[test]
fn what_cannot_be_read_ahead_is_read_when_it_is_needed() {
    let mut guest = guest();
    guest.post_singles(4);
    let desc = guest.layout.desc;
    guest.mem.break_range(desc + 32..desc + 48);
    assert_eq!(guest.pop_head(), Some(0));
    assert_eq!(guest.pop_head(), Some(1));
    guest.pop_error();
    guest.mem.repair();
    assert_eq!(guest.pop_head(), Some(2));
}

#[test]
fn a_new_slice_believes_nothing_that_was_read() {
    let mut guest = guest();
    guest.post_singles(4);
    assert_eq!(guest.pop_head(), Some(0));
    guest.put(1, Descriptor::readable(guest.heap(0), 100));
    guest.ring.begin_slice();
    assert_eq!(guest.pop().unwrap().unwrap().0.len, 100);
}

/// What driver and device do.
#[derive(Clone, Debug)]
enum Step {
    /// The driver makes a chain of so many descriptors available.
    Post(Vec<Index>),
    /// The device takes a chain.
    Pop,
    /// It puts some of those back that it has not given back.
    Unpop(Index),
    /// It gives the oldest back, and the driver writes nonsense over it.
    GiveBack,
    /// It begins a slice.
    Begin,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => proptest::collection::vec(any::<Index>(), 1..4).prop_map(Step::Post),
        8 => Just(Step::Pop),
        1 => any::<Index>().prop_map(Step::Unpop),
        6 => Just(Step::GiveBack),
        1 => Just(Step::Begin),
    ]
}

/// A driver that follows the specification, and what it has made available.
struct Driver {
    free: Vec<u16>,
    /// Chains that the device has not given back, oldest first: their descriptors and length.
    out: VecDeque<(Vec<u16>, usize)>,
    /// How many of them the device has taken.
    taken: usize,
    bytes: u32,
}

impl Driver {
    fn post(&mut self, guest: &mut Guest, choices: &[Index]) {
        let mut chain = Vec::new();
        for choice in choices {
            if !self.free.is_empty() {
                chain.push(self.free.remove(choice.index(self.free.len())));
            }
        }
        let mut total = 0;
        for (place, number) in chain.iter().enumerate() {
            self.bytes = self.bytes % 100 + 1;
            total += self.bytes as usize;
            let descriptor = Descriptor::readable(guest.heap(0), self.bytes);
            guest.put(
                *number,
                match chain.get(place + 1) {
                    Some(next) => descriptor.then(*next),
                    None => descriptor,
                },
            );
        }
        if let Some(head) = chain.first() {
            guest.publish(*head);
            self.out.push_back((chain, total));
        }
    }

    fn take_back(&mut self, guest: &mut Guest) {
        if self.taken == 0 {
            return;
        }
        self.taken -= 1;
        let (chain, _) = self.out.pop_front().expect("a chain that was taken");
        for number in &chain {
            let nonsense = Descriptor {
                addr: u64::MAX,
                len: u32::MAX,
                flags: NEXT,
                next: u16::MAX,
            };
            guest.put(*number, nonsense);
        }
        guest.push(1);
        self.free.extend(chain);
    }
}

proptest! {
    #![proptest_config(cases(400))]

    /// Whatever is read ahead, a driver that follows the specification finds its chains taken as it
    /// has made them.
    #[test]
    fn every_chain_is_taken_as_it_was_made(
        base in any::<u16>(),
        steps in proptest::collection::vec(steps(), 1..300),
    ) {
        let mut guest = guest().starting_at(base);
        let mut driver = Driver {
            free: (0..NUM).collect(),
            out: VecDeque::new(),
            taken: 0,
            bytes: 0,
        };
        for step in steps {
            match step {
                Step::Post(choices) => driver.post(&mut guest, &choices),
                Step::Pop => {
                    guest.ring.take_work();
                    let expected = driver.out.get(driver.taken);
                    let popped = guest.pop().expect("a well-formed ring");
                    let popped = popped.map(|(chain, _)| (chain.head, chain.len));
                    prop_assert_eq!(popped, expected.map(|(chain, len)| (chain[0], *len)));
                    driver.taken += usize::from(popped.is_some());
                }
                Step::Unpop(count) => {
                    let count = count.index(driver.taken + 1);
                    driver.taken -= count;
                    guest.ring.unpop(count as u16);
                }
                Step::GiveBack => driver.take_back(&mut guest),
                Step::Begin => guest.ring.begin_slice(),
            }
        }
    }
}
