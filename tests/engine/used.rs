// SPDX-License-Identifier: GPL-2.0

//! Giving chains back through the used ring.

use vhost_iocm_engine::engine::error::RingError;
use vhost_iocm_engine::engine::mem::UsedElem;

use crate::guest::{Access, Guest};

fn elem(id: u32, len: u32) -> UsedElem {
    UsedElem { id, len }
}

#[test]
fn an_element_is_written_before_the_index_that_publishes_it() {
    let mut guest = Guest::new(4);
    guest.ring.push_used(&guest.mem, &[elem(3, 77)]).unwrap();
    assert_eq!(
        guest.mem.accesses(),
        [
            Access::WriteUsed(guest.layout.used + 4, 1),
            Access::WriteU16(guest.layout.used + 2, 1),
        ]
    );
    assert_eq!(guest.used_elem(0), elem(3, 77));
}

#[test]
fn a_batch_is_published_by_one_write_of_the_index() {
    let mut guest = Guest::new(4);
    guest.push(3);
    assert_eq!(
        guest.mem.accesses(),
        [
            Access::WriteUsed(guest.layout.used + 4, 3),
            Access::WriteU16(guest.layout.used + 2, 3),
        ]
    );
}

#[test]
fn a_batch_that_reaches_the_end_of_the_ring_exactly_is_one_write() {
    let mut guest = Guest::new(4).starting_at(2);
    guest.push(2);
    assert_eq!(
        guest.mem.accesses(),
        [
            Access::WriteUsed(guest.layout.used + 4 + 8 * 2, 2),
            Access::WriteU16(guest.layout.used + 2, 4),
        ]
    );
}

#[test]
fn a_batch_goes_on_at_the_start_of_the_ring() {
    let mut guest = Guest::new(4).starting_at(3);
    let elems = [elem(10, 1), elem(11, 2), elem(12, 3)];
    guest.ring.push_used(&guest.mem, &elems).unwrap();
    assert_eq!(
        guest.mem.accesses(),
        [
            Access::WriteUsed(guest.layout.used + 4 + 8 * 3, 1),
            Access::WriteUsed(guest.layout.used + 4, 2),
            Access::WriteU16(guest.layout.used + 2, 6),
        ]
    );
    assert_eq!(guest.used_elem(3), elem(10, 1));
    assert_eq!(guest.used_elem(0), elem(11, 2));
    assert_eq!(guest.used_elem(1), elem(12, 3));
}

#[test]
fn an_element_of_a_batch_in_order_lies_in_the_slot_of_its_first_chain() {
    let mut guest = Guest::new(8).starting_at(6);
    let elems = [elem(20, 1), elem(21, 2), elem(22, 3)];
    guest
        .ring
        .push_used_in_order(&guest.mem, &elems, &[1, 4, 2])
        .unwrap();
    assert_eq!(
        guest.mem.accesses(),
        [
            Access::WriteUsed(guest.layout.used + 4 + 8 * 6, 1),
            Access::WriteUsed(guest.layout.used + 4 + 8 * 7, 1),
            Access::WriteUsed(guest.layout.used + 4 + 8 * 3, 1),
            Access::WriteU16(guest.layout.used + 2, 13),
        ]
    );
    assert_eq!(guest.used_elem(6), elem(20, 1));
    assert_eq!(guest.used_elem(7), elem(21, 2));
    assert_eq!(guest.used_elem(3), elem(22, 3));
}

#[test]
fn batches_in_order_that_cannot_be_written_may_be_given_back_again() {
    let mut guest = Guest::new(4);
    let used = guest.layout.used;
    guest.mem.break_range(used + 4 + 8 * 2..used + 4 + 8 * 3);
    let elems = [elem(1, 0), elem(2, 0)];
    let chains = [2, 1];
    assert_eq!(
        guest.ring.push_used_in_order(&guest.mem, &elems, &chains),
        Err(RingError::Fault)
    );
    assert_eq!(guest.used_idx(), 0);
    guest.mem.repair();
    guest
        .ring
        .push_used_in_order(&guest.mem, &elems, &chains)
        .unwrap();
    assert_eq!(guest.used_idx(), 3);
    assert_eq!(guest.used_elem(0), elem(1, 0));
    assert_eq!(guest.used_elem(2), elem(2, 0));
}

#[test]
fn more_elements_than_slots_go_around_more_than_once_inside_the_ring() {
    for num in [1, 2, 4] {
        let mut guest = Guest::new(num).starting_at(1);
        guest.push(11);
        assert_eq!(guest.used_idx(), 12);
        let end = guest.layout.used + 4 + 8 * u64::from(num);
        for access in guest.mem.accesses() {
            if let Access::WriteUsed(addr, count) = access {
                assert!(addr + 8 * count as u64 <= end, "{num}");
            }
        }
        // The last elements are those that stay: ids count up from 0 at index 1.
        for index in 12 - num..12 {
            let id = u32::from(index) - 1;
            assert_eq!(guest.used_elem(index % num), elem(id, 0), "{num}");
        }
    }
}

#[test]
fn the_used_index_wraps_from_65535_to_0() {
    let mut guest = Guest::new(4).starting_at(0xffff);
    guest.push(1);
    assert_eq!(guest.used_idx(), 0);
    assert_eq!(guest.used_elem(3), elem(0, 0));
    guest.push(1);
    assert_eq!(guest.used_idx(), 1);
}

#[test]
fn the_largest_ring_can_be_given_back_at_once() {
    let mut guest = Guest::new(32768).starting_at(0xc001);
    guest.push(32768);
    assert_eq!(guest.used_idx(), 0x4001);
    assert_eq!(guest.used_elem(0x4000), elem(32767, 0));
    assert_eq!(guest.used_elem(0x4001), elem(0, 0));
}

#[test]
fn no_elements_leave_the_index_where_it_is() {
    let mut guest = Guest::new(4).starting_at(9);
    guest.push(0);
    assert_eq!(guest.used_idx(), 9);
}

#[test]
fn elements_that_cannot_be_written_are_not_published() {
    let mut guest = Guest::new(4);
    let elems = guest.layout.used + 4;
    guest.mem.break_range(elems..elems + 32);
    let result = guest.ring.push_used(&guest.mem, &[elem(0, 0)]);
    assert_eq!(result, Err(RingError::Fault));
    assert_eq!(guest.used_idx(), 0);
    guest.mem.repair();
    guest.push(1);
    assert_eq!(guest.used_idx(), 1);
}

#[test]
fn elements_before_a_fault_are_given_back_again_with_the_others() {
    let mut guest = Guest::new(4).starting_at(3);
    let elems = guest.layout.used + 4;
    guest.mem.break_range(elems..elems + 8);
    let both = [elem(5, 0), elem(6, 0)];
    let result = guest.ring.push_used(&guest.mem, &both);
    assert_eq!(result, Err(RingError::Fault));
    assert_eq!(guest.used_idx(), 3);
    guest.mem.repair();
    assert_eq!(guest.ring.push_used(&guest.mem, &both), Ok(()));
    assert_eq!(guest.used_idx(), 5);
    assert_eq!(guest.used_elem(3), elem(5, 0));
    assert_eq!(guest.used_elem(0), elem(6, 0));
}

#[test]
fn an_index_that_cannot_be_written_leaves_the_elements_to_be_given_back_again() {
    let mut guest = Guest::new(4);
    let index = guest.layout.used + 2;
    guest.mem.break_range(index..index + 2);
    let result = guest.ring.push_used(&guest.mem, &[elem(0, 0)]);
    assert_eq!(result, Err(RingError::Fault));
    guest.mem.repair();
    assert_eq!(guest.ring.push_used(&guest.mem, &[elem(0, 0)]), Ok(()));
    assert_eq!(guest.used_idx(), 1);
}
