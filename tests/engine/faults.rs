// SPDX-License-Identifier: GPL-2.0

//! Every single access of an operation fails once.

use vhost_iocm_engine::engine::error::RingError;
use vhost_iocm_engine::engine::mem::{Segment, UsedElem};

use crate::guest::{region, Access, Descriptor, Guest};

/// A chain of a direct descriptor, one that regions divide, and a scattered table with an entry
/// that straddles two regions.
fn guest_with_a_chain_of_every_kind() -> Guest {
    let mut guest = Guest::with_table(4, |heap| {
        vec![
            region(0x1000, 24, heap + 0x2000),
            region(0x1018, 0x800, heap + 0x1000),
        ]
    });
    let table = guest.put_table(
        0x1000,
        &[
            Descriptor::readable(0x1100, 5).then(1),
            Descriptor::writable(0x1100, 6).then(2),
            Descriptor::writable(0x1010, 20),
        ],
    );
    guest.put(0, Descriptor::readable(0x1200, 7).then(1));
    guest.put(1, Descriptor::readable(0x1008, 40).then(2));
    guest.put(2, table);
    guest.publish(0);
    guest
}

/// The chain as it is taken without any fault, and in how many accesses.
fn taken(guest: &mut Guest) -> (Vec<Segment>, usize) {
    guest.mem.forget_accesses();
    let (_, segments) = guest.pop().unwrap().unwrap();
    (segments, guest.mem.accesses().len())
}

#[test]
fn a_fault_at_any_access_refuses_the_chain_and_leaves_it() {
    let (expected, count) = taken(&mut guest_with_a_chain_of_every_kind());
    assert_eq!(expected.len(), 7);
    assert!(count > 20, "the chain has {count} accesses only");
    for failing in 0..count {
        let mut guest = guest_with_a_chain_of_every_kind();
        guest.mem.fail_after(failing);
        let error = guest.pop_error();
        let accesses = guest.mem.accesses();
        assert_eq!(accesses.len(), failing + 1, "went on after {failing}");
        let due = match accesses[failing] {
            Access::Translate(_) => RingError::Unmapped,
            _ => RingError::Fault,
        };
        assert_eq!(error, due, "access {failing}");
        assert_eq!(guest.ring.base(), 0);
        guest.mem.repair();
        assert_eq!(taken(&mut guest).0, expected);
    }
}

#[test]
fn a_fault_at_any_access_of_giving_back_is_reported() {
    let elems = [UsedElem { id: 0, len: 0 }; 7];
    let pushed = |failing: Option<usize>| {
        let mut guest = Guest::new(4).starting_at(3);
        if let Some(failing) = failing {
            guest.mem.fail_after(failing);
        }
        let result = guest.ring.push_used(&guest.mem, &elems);
        (result, guest.mem.accesses().len(), guest.used_idx())
    };
    let (result, count, index) = pushed(None);
    assert_eq!((result, count, index), (Ok(()), 4, 10));
    for failing in 0..count {
        let (result, accesses, index) = pushed(Some(failing));
        assert_eq!(result, Err(RingError::Fault));
        assert_eq!(accesses, failing + 1);
        assert_eq!(index, 3, "published after a fault");
    }
}
