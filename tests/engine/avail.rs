// SPDX-License-Identifier: GPL-2.0

//! Taking chains of direct descriptors from the available ring.

use vhost_iocm_engine::engine::error::RingError;
use vhost_iocm_engine::engine::mem::Segment;

use crate::guest::{region, Access, Descriptor, Guest, GUEST, HEAP, INDIRECT, OWNER};

fn segment(base: usize, len: usize) -> Segment {
    Segment { base, len }
}

#[test]
fn an_empty_ring_gives_nothing() {
    assert_eq!(Guest::new(4).pop(), Ok(None));
}

#[test]
fn a_chain_is_described_by_its_head_and_its_segments_in_order() {
    let mut guest = Guest::new(8);
    guest.put(3, Descriptor::readable(guest.heap(0), 10).then(1));
    guest.put(1, Descriptor::readable(guest.heap(100), 20).then(6));
    guest.put(6, Descriptor::writable(guest.heap(200), 30));
    guest.publish(3);
    let (chain, segments) = guest.pop().unwrap().unwrap();
    assert_eq!((chain.head, chain.readable, chain.writable), (3, 2, 1));
    assert_eq!(
        segments,
        [
            segment(guest.heap_owner(0), 10),
            segment(guest.heap_owner(100), 20),
            segment(guest.heap_owner(200), 30),
        ]
    );
    assert_eq!(chain.len, 60);
    assert_eq!(guest.pop(), Ok(None));
}

#[test]
fn buffers_of_either_kind_follow_each_other() {
    let mut guest = Guest::new(4);
    for index in 0..4 {
        let offset = 0x100 * u64::from(index);
        let len = 1 + u32::from(index);
        let descriptor = if index < 2 {
            Descriptor::readable(guest.heap(offset), len)
        } else {
            Descriptor::writable(guest.heap(offset), len)
        };
        guest.put(
            index,
            if index < 3 {
                descriptor.then(index + 1)
            } else {
                descriptor
            },
        );
    }
    guest.publish(0);
    let (chain, segments) = guest.pop().unwrap().unwrap();
    assert_eq!((chain.readable, chain.writable), (2, 2));
    let expected =
        [0, 1, 2, 3].map(|index| segment(guest.heap_owner(0x100 * index), 1 + index as usize));
    assert_eq!(segments, expected);
}

#[test]
fn heads_are_taken_in_the_order_of_the_available_ring() {
    let mut guest = Guest::new(4);
    for head in [2, 0, 3, 1] {
        guest.put(head, Descriptor::readable(guest.heap(0), 1));
        guest.publish(head);
    }
    assert_eq!(guest.drain(), [2, 0, 3, 1]);
}

#[test]
fn an_available_index_one_ring_size_ahead_is_a_full_ring() {
    let mut guest = Guest::new(4);
    guest.post_singles(4);
    assert_eq!(guest.drain().len(), 4);
}

#[test]
fn an_available_index_more_than_a_ring_size_ahead_is_refused() {
    let mut guest = Guest::new(4);
    guest.write_avail_idx(5);
    assert_eq!(guest.pop_error(), RingError::AvailIndex);
}

#[test]
fn an_available_index_that_moved_back_is_refused() {
    let mut guest = Guest::new(32768).starting_at(100);
    guest.write_avail_idx(99);
    assert_eq!(guest.pop_error(), RingError::AvailIndex);
}

#[test]
fn the_distance_of_the_available_index_counts_from_the_next_entry_to_take() {
    let mut guest = Guest::new(4).starting_at(7);
    guest.post_singles(4);
    guest.pop_head();
    guest.write_avail_idx(12);
    guest.disable_notify();
    assert_eq!(guest.enable_notify(), Ok(true));
    guest.write_avail_idx(13);
    guest.disable_notify();
    assert_eq!(guest.enable_notify(), Err(RingError::AvailIndex));
}

#[test]
fn the_available_index_is_not_read_while_known_entries_are_left() {
    let mut guest = Guest::new(4);
    guest.post_singles(3);
    guest.pop_head();
    guest.mem.forget_accesses();
    guest.write_avail_idx(0x4321);
    assert_eq!(guest.pop_head(), Some(1));
    assert_eq!(guest.pop_head(), Some(2));
    let index = Access::ReadU16(guest.layout.avail + 2);
    assert!(!guest.mem.accesses().contains(&index));
}

#[test]
fn a_head_outside_of_the_table_is_refused() {
    for head in [4, 5, 0x7fff, 0xffff] {
        let mut guest = Guest::new(4);
        guest.publish(head);
        assert_eq!(guest.pop_error(), RingError::DescriptorIndex, "{head}");
    }
}

#[test]
fn a_head_outside_of_the_table_is_refused_unread() {
    let mut guest = Guest::new(4);
    guest.publish(4);
    guest.pop_error();
    let reads_a_descriptor = |access: &Access| matches!(access, Access::ReadDescriptor(_));
    assert!(!guest.mem.accesses().iter().any(reads_a_descriptor));
}

#[test]
fn a_next_field_outside_of_the_table_is_refused() {
    for next in [4, 0xffff] {
        let mut guest = Guest::new(4);
        guest.put(0, Descriptor::readable(guest.heap(0), 1).then(next));
        guest.publish(0);
        assert_eq!(guest.pop_error(), RingError::DescriptorIndex, "{next}");
    }
}

#[test]
fn a_next_field_outside_of_the_table_counts_as_that_even_when_the_chain_is_too_long() {
    let mut guest = Guest::new(2);
    guest.put(0, Descriptor::readable(guest.heap(0), 1).then(1));
    guest.put(1, Descriptor::readable(guest.heap(0), 1).then(2));
    guest.publish(0);
    assert_eq!(guest.pop_error(), RingError::DescriptorIndex);
}

#[test]
fn a_next_field_means_nothing_without_its_flag() {
    let mut guest = Guest::new(4);
    let mut last = Descriptor::readable(guest.heap(0), 1);
    last.next = 0xffff;
    guest.put(0, last);
    guest.publish(0);
    assert_eq!(guest.pop_head(), Some(0));
}

#[test]
fn flags_that_split_rings_do_not_define_mean_nothing() {
    let mut guest = Guest::new(4);
    let mut descriptor = Descriptor::readable(guest.heap(0), 1);
    descriptor.flags = 0xfff8;
    guest.put(0, descriptor);
    guest.publish(0);
    let (chain, _) = guest.pop().unwrap().unwrap();
    assert_eq!((chain.readable, chain.writable), (1, 0));
}

#[test]
fn a_chain_may_take_the_whole_table() {
    for num in [1, 2, 8, 1024] {
        let mut guest = Guest::new(num);
        for index in 0..num {
            let descriptor = Descriptor::readable(guest.heap(0), 1);
            let last = index == num - 1;
            guest.put(
                index,
                if last {
                    descriptor
                } else {
                    descriptor.then(index + 1)
                },
            );
        }
        guest.publish(0);
        let (chain, _) = guest.pop().unwrap().unwrap();
        assert_eq!(chain.readable, usize::from(num));
    }
}

#[test]
fn a_chain_that_comes_back_to_itself_is_refused() {
    for num in [1, 2, 8] {
        let mut guest = Guest::new(num);
        for index in 0..num {
            let next = (index + 1) % num;
            guest.put(index, Descriptor::readable(guest.heap(0), 1).then(next));
        }
        guest.publish(0);
        assert_eq!(guest.pop_error(), RingError::Loop, "{num}");
    }
}

#[test]
fn a_loop_is_left_after_as_many_descriptors_as_the_table_has() {
    let mut guest = Guest::new(8);
    guest.put(5, Descriptor::readable(guest.heap(0), 0).then(5));
    guest.publish(5);
    assert_eq!(guest.pop_error(), RingError::Loop);
    let reads = guest.mem.accesses().into_iter();
    let reads = reads.filter(|access| matches!(access, Access::ReadDescriptor(_)));
    assert_eq!(reads.count(), 8);
}

#[test]
fn a_readable_descriptor_after_a_writable_one_is_refused() {
    let mut guest = Guest::new(4);
    guest.put(0, Descriptor::writable(guest.heap(0), 1).then(1));
    guest.put(1, Descriptor::readable(guest.heap(1), 1));
    guest.publish(0);
    assert_eq!(guest.pop_error(), RingError::ReadableAfterWritable);
}

#[test]
fn an_empty_readable_descriptor_after_a_writable_one_is_refused_too() {
    let mut guest = Guest::new(4);
    guest.put(0, Descriptor::writable(guest.heap(0), 1).then(1));
    guest.put(1, Descriptor::readable(guest.heap(1), 0));
    guest.publish(0);
    assert_eq!(guest.pop_error(), RingError::ReadableAfterWritable);
}

#[test]
fn a_readable_descriptor_after_an_empty_writable_one_is_accepted_as_in_stock_vhost() {
    let mut guest = Guest::new(4);
    guest.put(0, Descriptor::writable(guest.heap(0), 0).then(1));
    guest.put(1, Descriptor::readable(guest.heap(1), 1));
    guest.publish(0);
    let (chain, _) = guest.pop().unwrap().unwrap();
    assert_eq!((chain.readable, chain.writable), (1, 0));
}

#[test]
fn an_empty_descriptor_gives_no_segment() {
    let mut guest = Guest::new(4);
    guest.put(0, Descriptor::readable(guest.heap(0), 0).then(1));
    guest.put(1, Descriptor::readable(guest.heap(9), 5).then(2));
    guest.put(2, Descriptor::writable(guest.heap(0), 0));
    guest.publish(0);
    let (chain, segments) = guest.pop().unwrap().unwrap();
    assert_eq!((chain.readable, chain.writable), (1, 0));
    assert_eq!(segments, [segment(guest.heap_owner(9), 5)]);
}

#[test]
fn an_empty_descriptor_may_have_any_address() {
    let mut guest = Guest::new(4);
    guest.put(0, Descriptor::writable(u64::MAX, 0));
    guest.publish(0);
    assert_eq!(guest.pop_with_room(0).unwrap().unwrap().0.writable, 0);
}

#[test]
fn a_buffer_outside_of_every_region_is_refused() {
    for addr in [0, GUEST - 1, u64::MAX] {
        let mut guest = Guest::new(4);
        guest.put(0, Descriptor::readable(addr, 1));
        guest.publish(0);
        assert_eq!(guest.pop_error(), RingError::Unmapped, "{addr:#x}");
    }
}

#[test]
fn a_buffer_that_ends_with_its_region_is_accepted() {
    let mut guest = Guest::new(4);
    guest.put(0, Descriptor::readable(guest.heap(HEAP - 7), 7));
    guest.publish(0);
    assert_eq!(guest.pop_head(), Some(0));
}

#[test]
fn a_buffer_that_ends_one_byte_behind_its_region_is_refused() {
    let mut guest = Guest::new(4);
    guest.put(0, Descriptor::readable(guest.heap(HEAP - 7), 8));
    guest.publish(0);
    assert_eq!(guest.pop_error(), RingError::Unmapped);
}

/// Three regions of 0x100, 0x10 and 0x100 bytes from 0x1000 on, in another order in the owner's
/// address space, then a hole, then one more from 0x2000 on.
fn scattered(num: u16) -> Guest {
    Guest::with_table(num, |heap| {
        vec![
            region(0x1000, 0x100, heap + 0x4000),
            region(0x1100, 0x10, heap + 0x3000),
            region(0x1110, 0x100, heap + 0x1000),
            region(0x2000, 0x100, heap + 0x2000),
        ]
    })
}

#[test]
fn a_buffer_over_several_regions_becomes_as_many_segments() {
    let mut guest = scattered(4);
    guest.put(0, Descriptor::writable(0x10f0, 0x40));
    guest.publish(0);
    let (chain, segments) = guest.pop().unwrap().unwrap();
    assert_eq!((chain.readable, chain.writable), (0, 3));
    assert_eq!(
        segments,
        [
            segment(guest.heap_owner(0x40f0), 0x10),
            segment(guest.heap_owner(0x3000), 0x10),
            segment(guest.heap_owner(0x1000), 0x20),
        ]
    );
}

#[test]
fn a_buffer_that_ends_where_a_region_ends_does_not_touch_the_next_one() {
    let mut guest = scattered(4);
    guest.put(0, Descriptor::readable(0x10f0, 0x10));
    guest.publish(0);
    let (_, segments) = guest.pop().unwrap().unwrap();
    assert_eq!(segments, [segment(guest.heap_owner(0x40f0), 0x10)]);
}

#[test]
fn a_buffer_over_a_hole_between_regions_is_refused() {
    let mut guest = scattered(4);
    guest.put(0, Descriptor::readable(0x1200, 0xf00));
    guest.publish(0);
    assert_eq!(guest.pop_error(), RingError::Unmapped);
}

#[test]
fn a_divided_buffer_counts_as_writable_as_a_whole() {
    let mut guest = scattered(4);
    guest.put(0, Descriptor::readable(0x10f0, 0x20).then(1));
    guest.put(1, Descriptor::writable(0x10f0, 0x20));
    guest.publish(0);
    let (chain, _) = guest.pop().unwrap().unwrap();
    assert_eq!((chain.readable, chain.writable), (2, 2));
}

#[test]
fn a_buffer_past_the_end_of_the_address_space_is_refused() {
    let mut guest = Guest::with_table(4, |heap| {
        // Two regions that adjoin each other for whoever lets addresses wrap.
        vec![
            region(0, 0x100, heap),
            region(u64::MAX - 0xff, 0x100, heap + 0x1000),
        ]
    });
    guest.put(0, Descriptor::readable(u64::MAX - 0xf, 0x11));
    guest.publish(0);
    assert_eq!(guest.pop_error(), RingError::Unmapped);
}

#[test]
fn a_buffer_may_end_with_the_address_space() {
    let mut guest = Guest::with_table(4, |heap| vec![region(u64::MAX - 0xff, 0x100, heap)]);
    guest.put(0, Descriptor::readable(u64::MAX - 0xf, 0x10));
    guest.publish(0);
    let (_, segments) = guest.pop().unwrap().unwrap();
    assert_eq!(segments, [segment(guest.heap_owner(0xf0), 0x10)]);
}

#[test]
fn the_longest_buffer_is_one_segment() {
    let mut guest = Guest::with_table(4, |_| vec![region(0, 1 << 40, OWNER)]);
    guest.put(0, Descriptor::writable(0x10, u32::MAX));
    guest.publish(0);
    let (_, segments) = guest.pop().unwrap().unwrap();
    let base = OWNER as usize + 0x10;
    assert_eq!(segments, [segment(base, u32::MAX as usize)]);
}

#[test]
fn in_overlapping_regions_the_one_that_begins_first_holds_until_it_ends() {
    let mut guest = Guest::with_table(4, |heap| {
        vec![
            region(0x1080, 0x100, heap + 0x2000),
            region(0x1000, 0x100, heap + 0x1000),
        ]
    });
    guest.put(0, Descriptor::readable(0x1090, 0xf0));
    guest.publish(0);
    let (_, segments) = guest.pop().unwrap().unwrap();
    assert_eq!(
        segments,
        [
            segment(guest.heap_owner(0x1090), 0x70),
            segment(guest.heap_owner(0x2080), 0x80),
        ]
    );
}

#[test]
fn a_chain_may_fill_the_segments_exactly() {
    let mut guest = Guest::new(4);
    guest.put(0, Descriptor::readable(guest.heap(0), 1).then(1));
    guest.put(1, Descriptor::readable(guest.heap(0), 1));
    guest.publish(0);
    assert_eq!(guest.pop_with_room(2).unwrap().unwrap().1.len(), 2);
}

#[test]
fn a_chain_with_more_segments_than_there_is_room_for_is_refused() {
    let mut guest = Guest::new(4);
    guest.put(0, Descriptor::readable(guest.heap(0), 1).then(1));
    guest.put(1, Descriptor::writable(guest.heap(0), 1));
    guest.publish(0);
    assert_eq!(guest.pop_with_room(1), Err(RingError::TooManySegments));
}

#[test]
fn a_divided_buffer_with_more_segments_than_there_is_room_for_is_refused() {
    let mut guest = scattered(4);
    guest.put(0, Descriptor::readable(0x10f0, 0x40));
    guest.publish(0);
    assert_eq!(guest.pop_with_room(2), Err(RingError::TooManySegments));
}

#[test]
fn what_was_refused_is_found_again() {
    let mut guest = Guest::new(4);
    guest.post_singles(2);
    guest.put(0, Descriptor::readable(0, 1));
    assert_eq!(guest.pop_error(), RingError::Unmapped);
    assert_eq!(guest.ring.base(), 0);
    guest.put(0, Descriptor::readable(guest.heap(0), 1));
    assert_eq!(guest.pop_head(), Some(0));
    assert_eq!(guest.pop_head(), Some(1));
}

#[test]
fn a_refused_available_index_leaves_the_ring_as_it_was() {
    let mut guest = Guest::new(4);
    guest.write_avail_idx(5);
    guest.pop_error();
    guest.post_singles(2);
    assert_eq!(guest.pop_head(), Some(0));
    assert_eq!(guest.pop_head(), Some(1));
    assert_eq!(guest.pop_head(), None);
}

#[test]
fn no_byte_of_the_guest_is_read_twice_for_a_chain() {
    let mut guest = Guest::new(8);
    let table = guest.put_table(
        guest.heap(0x100),
        &[
            Descriptor::readable(guest.heap(0), 1).then(1),
            Descriptor::writable(guest.heap(0), 1),
        ],
    );
    guest.put(0, Descriptor::readable(guest.heap(0), 1).then(1));
    guest.put(1, table);
    guest.publish(0);
    guest.pop().unwrap().unwrap();
    let reads = guest.mem.reads_per_byte();
    // The available index, the head, and two tables of two descriptors.
    assert_eq!(reads.len(), 2 + 2 + 4 * 16);
    assert!(reads.values().all(|count| *count == 1));
}

#[test]
fn the_index_is_read_before_the_head_and_the_head_before_the_descriptor() {
    let mut guest = Guest::new(4);
    guest.post_singles(1);
    guest.pop().unwrap().unwrap();
    assert_eq!(
        guest.mem.touches(),
        [
            Access::ReadU16(guest.layout.avail + 2),
            Access::ReadU16(guest.layout.avail + 4),
            Access::ReadDescriptor(guest.layout.desc),
        ]
    );
}

#[test]
fn entries_are_found_over_the_wrap_of_the_index() {
    let mut guest = Guest::new(4).starting_at(0xfffe);
    guest.post_singles(4);
    assert_eq!(guest.drain(), [0, 1, 2, 3]);
    assert_eq!(guest.ring.base(), 2);
}

#[test]
fn an_index_too_far_ahead_is_refused_over_the_wrap() {
    let mut guest = Guest::new(4).starting_at(0xfffe);
    guest.write_avail_idx(3);
    assert_eq!(guest.pop_error(), RingError::AvailIndex);
}

#[test]
fn slots_go_around_a_ring_of_every_size() {
    for num in [1, 2, 32768] {
        let mut guest = Guest::new(num).starting_at(num.wrapping_sub(1));
        for turn in 0..4 {
            guest.put(0, Descriptor::readable(guest.heap(0), 1));
            guest.publish(0);
            let slot = u64::from((num - 1).wrapping_add(turn) % num);
            guest.mem.forget_accesses();
            assert_eq!(guest.pop_head(), Some(0));
            let entry = Access::ReadU16(guest.layout.avail + 4 + 2 * slot);
            assert!(guest.mem.accesses().contains(&entry), "{num} {turn}");
        }
    }
}

#[test]
fn the_largest_ring_can_be_full() {
    let mut guest = Guest::new(32768).starting_at(40000);
    guest.post_singles(32768);
    assert_eq!(guest.drain().len(), 32768);
}

#[test]
fn the_last_descriptor_of_the_largest_ring_can_be_used() {
    let mut guest = Guest::new(32768);
    guest.put(32767, Descriptor::readable(guest.heap(0), 5));
    guest.publish(32767);
    assert_eq!(guest.pop_head(), Some(32767));
    guest.publish(32768);
    assert_eq!(guest.pop_error(), RingError::DescriptorIndex);
}

#[test]
fn what_was_given_back_untouched_is_found_again_in_order() {
    let mut guest = Guest::new(4).starting_at(0xfffe);
    guest.post_singles(4);
    for expected in 0..3 {
        assert_eq!(guest.pop_head(), Some(expected));
    }
    guest.ring.unpop(3);
    assert_eq!(guest.ring.base(), 0xfffe);
    assert_eq!(guest.drain(), [0, 1, 2, 3]);
}

#[test]
fn a_ring_is_empty_until_something_is_made_available() {
    let mut guest = Guest::new(4);
    assert!(guest.ring.is_empty(&guest.mem));
    guest.post_singles(1);
    assert!(!guest.ring.is_empty(&guest.mem));
    guest.pop_head();
    assert!(guest.ring.is_empty(&guest.mem));
}

#[test]
fn a_ring_with_known_entries_is_not_empty_and_is_not_read() {
    let mut guest = Guest::new(4);
    guest.post_singles(2);
    guest.pop_head();
    guest.mem.forget_accesses();
    assert!(!guest.ring.is_empty(&guest.mem));
    assert_eq!(guest.mem.accesses(), []);
}

#[test]
fn a_ring_that_cannot_be_read_is_not_called_empty() {
    let mut guest = Guest::new(4);
    guest.write_avail_idx(5);
    assert!(!guest.ring.is_empty(&guest.mem));
    guest.mem.break_range(guest.layout.avail..guest.layout.used);
    assert!(!guest.ring.is_empty(&guest.mem));
}

#[test]
fn looking_whether_the_ring_is_empty_takes_nothing() {
    let mut guest = Guest::new(4);
    guest.post_singles(1);
    assert!(!guest.ring.is_empty(&guest.mem));
    assert_eq!(guest.ring.base(), 0);
    assert_eq!(guest.pop_head(), Some(0));
}

#[test]
fn the_table_flag_is_what_makes_a_descriptor_indirect() {
    let mut guest = Guest::new(4);
    let mut descriptor = Descriptor::readable(guest.heap(0), 15);
    guest.put(0, descriptor);
    guest.publish(0);
    assert_eq!(guest.pop_head(), Some(0));
    descriptor.flags = INDIRECT;
    guest.put(0, descriptor);
    guest.publish(0);
    assert_eq!(guest.pop_error(), RingError::IndirectLength);
}

#[test]
fn the_descriptors_that_were_read_are_counted_until_asked_for() {
    let mut guest = Guest::new(8);
    assert_eq!(guest.ring.take_work(), 0);
    guest.put(0, Descriptor::readable(guest.heap(0), 1).then(1));
    guest.put(1, Descriptor::readable(guest.heap(0), 0));
    guest.put(2, Descriptor::readable(guest.heap(0), 1));
    guest.publish(0);
    guest.publish(2);
    guest.pop_head();
    guest.pop_head();
    assert_eq!(guest.ring.take_work(), 3);
    assert_eq!(guest.pop_head(), None);
    assert_eq!(guest.ring.take_work(), 0);
}

#[test]
fn the_descriptors_of_a_refused_chain_are_counted_too() {
    let mut guest = Guest::new(8);
    guest.put(0, Descriptor::readable(guest.heap(0), 1).then(1));
    guest.put(1, Descriptor::readable(0, 1));
    guest.publish(0);
    guest.pop_error();
    assert_eq!(guest.ring.take_work(), 2);
}
