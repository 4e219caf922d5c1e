// SPDX-License-Identifier: GPL-2.0

//! Indirect tables.

use vhost_iocm_engine::engine::error::RingError;
use vhost_iocm_engine::engine::mem::Segment;

use crate::guest::{region, Access, Descriptor, Guest, INDIRECT, OWNER, WRITE};

/// What a ring makes of a chain of one descriptor, an indirect one.
fn outcome(guest: &mut Guest, table: Descriptor) -> Result<(usize, usize), RingError> {
    guest.put(0, table);
    guest.publish(0);
    let popped = guest.pop()?;
    let (chain, _) = popped.expect("something was made available");
    Ok((chain.readable, chain.writable))
}

#[test]
fn the_buffers_of_a_table_are_those_of_the_chain() {
    let mut guest = Guest::new(4);
    let table = guest.put_table(
        guest.heap(0),
        &[
            Descriptor::readable(guest.heap(0x100), 3).then(1),
            Descriptor::readable(guest.heap(0x200), 4).then(2),
            Descriptor::writable(guest.heap(0x300), 5),
        ],
    );
    guest.put(2, table);
    guest.publish(2);
    let (chain, segments) = guest.pop().unwrap().unwrap();
    assert_eq!((chain.head, chain.readable, chain.writable), (2, 2, 1));
    let expected = [(0x100, 3), (0x200, 4), (0x300, 5)].map(|(offset, len)| Segment {
        base: guest.heap_owner(offset),
        len,
    });
    assert_eq!(segments, expected);
}

#[test]
fn a_table_in_one_piece_is_translated_once() {
    let mut guest = Guest::new(4);
    let entry = Descriptor::readable(guest.heap(0x100), 1);
    let table = guest.put_table(guest.heap(0), &[entry.then(1), entry.then(2), entry]);
    assert_eq!(outcome(&mut guest, table), Ok((3, 0)));
    let accesses = guest.mem.accesses().into_iter();
    let translated = accesses.filter(|access| *access == Access::Translate(guest.heap(0)));
    assert_eq!(translated.count(), 1);
    // The table and its three buffers.
    assert_eq!(guest.mem.accesses().len() - guest.mem.touches().len(), 4);
}

#[test]
fn a_table_may_follow_direct_descriptors() {
    let mut guest = Guest::new(4);
    let table = guest.put_table(guest.heap(0), &[Descriptor::writable(guest.heap(0x100), 3)]);
    guest.put(1, Descriptor::readable(guest.heap(0x200), 3).then(3));
    guest.put(3, table);
    guest.publish(1);
    let (chain, _) = guest.pop().unwrap().unwrap();
    assert_eq!((chain.head, chain.readable, chain.writable), (1, 1, 1));
}

#[test]
fn the_chain_may_go_on_in_the_direct_table_after_an_indirect_one() {
    let mut guest = Guest::new(4);
    let table = guest.put_table(guest.heap(0), &[Descriptor::readable(guest.heap(0x100), 3)]);
    guest.put(0, table.then(2));
    guest.put(2, Descriptor::writable(guest.heap(0x200), 3));
    guest.publish(0);
    let (chain, _) = guest.pop().unwrap().unwrap();
    assert_eq!((chain.readable, chain.writable), (1, 1));
}

#[test]
fn a_table_in_a_table_is_refused() {
    let mut guest = Guest::new(4);
    let inner = Descriptor::table(guest.heap(0x100), 16);
    let table = guest.put_table(guest.heap(0), &[inner]);
    assert_eq!(outcome(&mut guest, table), Err(RingError::IndirectNested));
}

#[test]
fn an_empty_table_is_refused() {
    let mut guest = Guest::new(4);
    let table = Descriptor::table(guest.heap(0), 0);
    assert_eq!(outcome(&mut guest, table), Err(RingError::Loop));
}

#[test]
fn a_table_length_that_descriptors_do_not_divide_is_refused() {
    for len in [1, 8, 15, 17, 24, 31, u32::MAX] {
        let mut guest = Guest::new(4);
        let table = Descriptor::table(guest.heap(0), len);
        assert_eq!(outcome(&mut guest, table), Err(RingError::IndirectLength));
    }
}

#[test]
fn the_length_of_a_table_is_checked_before_its_address() {
    let mut guest = Guest::new(4);
    let table = Descriptor::table(0, 17);
    assert_eq!(outcome(&mut guest, table), Err(RingError::IndirectLength));
}

#[test]
fn a_table_of_65537_entries_is_refused() {
    let mut guest = Guest::with_table(4, |_| vec![region(0, 1 << 40, OWNER)]);
    let table = Descriptor::table(0, 65537 * 16);
    assert_eq!(outcome(&mut guest, table), Err(RingError::IndirectTooLong));
}

#[test]
fn a_table_may_have_65536_entries_as_in_stock_vhost() {
    // Only the first entry is read: memory of zeros is a descriptor that ends the chain.
    let mut guest = Guest::with_table(4, |heap| vec![region(0, 1 << 40, heap)]);
    let table = Descriptor::table(0, 65536 * 16);
    assert_eq!(outcome(&mut guest, table), Ok((0, 0)));
}

#[test]
fn an_unmapped_table_is_refused() {
    let mut guest = Guest::new(4);
    assert_eq!(
        outcome(&mut guest, Descriptor::table(0, 16)),
        Err(RingError::Unmapped)
    );
}

#[test]
fn a_table_is_refused_when_entries_that_are_not_used_are_unmapped() {
    let mut guest = Guest::with_table(4, |heap| vec![region(0x1000, 0x20, heap)]);
    guest.put_table(0x1000, &[Descriptor::readable(0x1000, 1)]);
    let table = Descriptor::table(0x1000, 0x30);
    assert_eq!(outcome(&mut guest, table), Err(RingError::Unmapped));
}

#[test]
fn an_unmapped_table_counts_as_that_even_when_it_is_too_long() {
    let mut guest = Guest::new(4);
    let table = Descriptor::table(guest.heap(0), 65537 * 16);
    assert_eq!(outcome(&mut guest, table), Err(RingError::Unmapped));
}

#[test]
fn a_table_that_does_not_end_a_chain_is_refused() {
    let mut guest = Guest::new(4);
    let entry = Descriptor::readable(guest.heap(0x100), 1);
    let table = guest.put_table(guest.heap(0), &[entry.then(1), entry.then(2)]);
    assert_eq!(outcome(&mut guest, table), Err(RingError::Loop));
}

#[test]
fn entries_after_the_end_of_the_chain_are_not_read() {
    let mut guest = Guest::new(4);
    let entry = Descriptor::readable(guest.heap(0x100), 1);
    let nested = Descriptor::table(guest.heap(0x100), 16);
    let table = guest.put_table(guest.heap(0), &[entry, nested]);
    assert_eq!(outcome(&mut guest, table), Ok((1, 0)));
    let second = Access::ReadDescriptor(guest.heap_owner(16) as u64);
    assert!(!guest.mem.accesses().contains(&second));
}

#[test]
fn entries_are_taken_in_table_order_whatever_their_next_fields_say() {
    let mut guest = Guest::new(4);
    let table = guest.put_table(
        guest.heap(0),
        &[
            Descriptor::readable(guest.heap(0x100), 1).then(0xffff),
            Descriptor::readable(guest.heap(0x100), 2).then(0),
            Descriptor::readable(guest.heap(0x100), 3),
        ],
    );
    guest.put(0, table);
    guest.publish(0);
    let (_, segments) = guest.pop().unwrap().unwrap();
    let lengths: Vec<_> = segments.iter().map(|segment| segment.len).collect();
    assert_eq!(lengths, [1, 2, 3]);
}

#[test]
fn a_table_may_have_more_entries_than_the_ring() {
    let mut guest = Guest::new(1);
    let entry = Descriptor::readable(guest.heap(0x1000), 1);
    let mut entries = vec![entry.then(0); 100];
    entries.push(entry);
    let table = guest.put_table(guest.heap(0), &entries);
    assert_eq!(outcome(&mut guest, table), Ok((101, 0)));
}

#[test]
fn a_readable_entry_after_a_writable_one_is_refused() {
    let mut guest = Guest::new(4);
    let table = guest.put_table(
        guest.heap(0),
        &[
            Descriptor::writable(guest.heap(0x100), 1).then(1),
            Descriptor::readable(guest.heap(0x100), 1),
        ],
    );
    assert_eq!(
        outcome(&mut guest, table),
        Err(RingError::ReadableAfterWritable)
    );
}

#[test]
fn a_readable_entry_after_a_writable_direct_descriptor_is_refused() {
    let mut guest = Guest::new(4);
    let table = guest.put_table(guest.heap(0), &[Descriptor::readable(guest.heap(0x100), 1)]);
    guest.put(0, Descriptor::writable(guest.heap(0x100), 1).then(1));
    guest.put(1, table);
    guest.publish(0);
    assert_eq!(guest.pop_error(), RingError::ReadableAfterWritable);
}

#[test]
fn the_write_flag_of_the_table_itself_means_nothing() {
    let mut guest = Guest::new(4);
    let mut table = guest.put_table(guest.heap(0), &[Descriptor::readable(guest.heap(0x100), 1)]);
    table.flags |= WRITE;
    assert_eq!(outcome(&mut guest, table), Ok((1, 0)));
}

#[test]
fn empty_entries_give_no_segments() {
    let mut guest = Guest::new(4);
    let table = guest.put_table(
        guest.heap(0),
        &[
            Descriptor::readable(0, 0).then(1),
            Descriptor::readable(guest.heap(0x100), 1).then(2),
            Descriptor::writable(u64::MAX, 0),
        ],
    );
    assert_eq!(outcome(&mut guest, table), Ok((1, 0)));
}

#[test]
fn the_segments_of_entries_count_against_the_room() {
    let mut guest = Guest::new(4);
    let entry = Descriptor::readable(guest.heap(0x100), 1);
    let table = guest.put_table(guest.heap(0), &[entry.then(1), entry]);
    guest.put(0, table);
    guest.publish(0);
    assert_eq!(guest.pop_with_room(1), Err(RingError::TooManySegments));
    assert_eq!(guest.pop_with_room(2).unwrap().unwrap().1.len(), 2);
}

/// Regions of the given sizes, one after another from 0x1000 on in the guest, and in reverse order
/// with gaps of a page in the owner's address space.
fn scattered(sizes: &[u64]) -> Guest {
    Guest::with_table(4, |heap| {
        let mut guest_addr = 0x1000;
        let regions = sizes.iter().enumerate().map(|(index, size)| {
            let user_addr = heap + 0x1000 * (sizes.len() - index) as u64;
            let region = region(guest_addr, *size, user_addr);
            guest_addr += size;
            region
        });
        regions.collect()
    })
}

#[test]
fn a_table_may_be_scattered_over_regions_between_entries() {
    let mut guest = scattered(&[32, 16, 0x1000]);
    let entries: Vec<_> = (0..6)
        .map(|index| Descriptor::readable(0x1030, 1 + index))
        .map(|entry| if entry.len < 6 { entry.then(0) } else { entry })
        .collect();
    let table = guest.put_table(0x1000, &entries);
    guest.put(0, table);
    guest.publish(0);
    let (_, segments) = guest.pop().unwrap().unwrap();
    let lengths: Vec<_> = segments.iter().map(|segment| segment.len).collect();
    assert_eq!(lengths, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn an_entry_may_straddle_regions() {
    // Boundaries in the address, the length, the flags and the next field of the second entry,
    // and a table whose second entry lies in eight pieces.
    for sizes in [
        &[18, 0x1000][..],
        &[22, 0x1000],
        &[26, 0x1000],
        &[28, 0x1000],
        &[30, 0x1000],
        &[18, 2, 2, 2, 2, 2, 2, 2, 0x1000],
    ] {
        let mut guest = scattered(sizes);
        let boundary: u64 = sizes[..sizes.len() - 1].iter().sum();
        let addr = 0x1000 + boundary;
        let table = guest.put_table(
            0x1000,
            &[
                Descriptor::readable(addr, 0x123).then(0x4567),
                Descriptor::readable(addr + 7, 0x7ab).then(0x89ab),
                Descriptor::writable(addr + 9, 0x32),
            ],
        );
        guest.put(0, table);
        guest.publish(0);
        let (chain, segments) = guest.pop().unwrap().unwrap();
        assert_eq!((chain.readable, chain.writable), (2, 1), "{sizes:?}");
        let base = guest.mem.owner_addr(addr).unwrap() as usize;
        let expected = [(0, 0x123), (7, 0x7ab), (9, 0x32)].map(|(offset, len)| Segment {
            base: base + offset,
            len,
        });
        assert_eq!(segments, expected, "{sizes:?}");
    }
}

#[test]
fn an_entry_that_straddles_regions_is_read_once() {
    let mut guest = scattered(&[18, 0x1000]);
    let entry = Descriptor::readable(0x1100, 1);
    let table = guest.put_table(0x1000, &[entry.then(1), entry.then(2), entry]);
    guest.put(0, table);
    guest.publish(0);
    guest.pop().unwrap().unwrap();
    let reads = guest.mem.reads_per_byte();
    assert_eq!(reads.len(), 2 + 2 + 16 + 3 * 16);
    assert!(reads.values().all(|count| *count == 1));
}

#[test]
fn a_16_bit_piece_of_an_entry_must_not_straddle_regions() {
    let mut guest = scattered(&[17, 0x1000]);
    // Empty buffers, for whose address any bytes will do.
    let entry = Descriptor::readable(0, 0);
    let table = guest.put_table(0x1000, &[entry.then(1), entry]);
    assert_eq!(outcome(&mut guest, table), Err(RingError::Unmapped));
}

#[test]
fn a_table_may_lie_in_1024_pieces() {
    let mut guest = scattered_pairs(1024);
    let entry = Descriptor::readable(0x1000, 1);
    let mut entries = vec![entry.then(0); 1023];
    entries.push(entry);
    let table = guest.put_table(0x1000, &entries);
    assert_eq!(outcome(&mut guest, table), Ok((1024, 0)));
}

#[test]
fn a_table_in_more_than_1024_pieces_is_refused_as_in_stock_vhost() {
    let mut guest = scattered_pairs(1025);
    let entry = Descriptor::readable(0x1000, 1);
    let table = guest.put_table(0x1000, &[entry; 1025]);
    assert_eq!(outcome(&mut guest, table), Err(RingError::TooManySegments));
}

/// `count` regions of one entry each.
fn scattered_pairs(count: u64) -> Guest {
    Guest::with_table(4, |heap| {
        (0..count)
            .map(|index| region(0x1000 + 16 * index, 16, heap + 16 * (count - index)))
            .collect()
    })
}

#[test]
fn a_table_past_the_end_of_the_address_space_is_refused() {
    let mut guest = Guest::with_table(4, |heap| {
        vec![
            region(0, 0x100, heap),
            region(u64::MAX - 15, 16, heap + 0x1000),
        ]
    });
    let table = Descriptor::table(u64::MAX - 15, 32);
    assert_eq!(outcome(&mut guest, table), Err(RingError::Unmapped));
}

#[test]
fn a_table_may_end_with_the_address_space() {
    let mut guest = Guest::with_table(4, |heap| vec![region(u64::MAX - 15, 16, heap)]);
    let entry = Descriptor::readable(u64::MAX - 15, 1);
    let table = Descriptor::table(u64::MAX - 15, 16);
    guest.mem.poke(guest.heap_owner(0) as u64, &entry.bytes());
    assert_eq!(outcome(&mut guest, table), Ok((1, 0)));
}

#[test]
fn what_a_table_was_refused_for_leaves_the_chain_to_be_found_again() {
    let mut guest = Guest::new(4);
    let mut entry = Descriptor::readable(guest.heap(0x100), 1);
    entry.flags = INDIRECT;
    let table = guest.put_table(guest.heap(0), &[entry]);
    assert_eq!(outcome(&mut guest, table), Err(RingError::IndirectNested));
    guest.put_table(guest.heap(0), &[Descriptor::readable(guest.heap(0x100), 1)]);
    assert_eq!(guest.pop_head(), Some(0));
}

/// Descriptors that are read for one packet, further pieces included.
const WORK_MAX: usize = 4096;

/// A guest whose first descriptor names a table of `count` empty entries.
fn empty_entries(num: u16, count: usize) -> (Guest, Descriptor) {
    let guest = Guest::new(num);
    let empty = Descriptor::readable(0, 0);
    let mut entries = vec![empty.then(0); count - 1];
    entries.push(empty);
    let table = guest.put_table(guest.heap(0), &entries);
    guest.put(0, table);
    (guest, table)
}

#[test]
fn a_packet_may_take_4096_descriptors() {
    let (mut guest, _) = empty_entries(1, WORK_MAX - 1);
    guest.publish(0);
    assert_eq!(guest.pop_head(), Some(0));
    assert_eq!(guest.ring.take_work(), WORK_MAX);
    assert_eq!(guest.ring.take_work(), 0);
}

#[test]
fn a_packet_must_not_take_4097_descriptors() {
    let (mut guest, _) = empty_entries(1, WORK_MAX);
    guest.publish(0);
    assert_eq!(guest.pop_error(), RingError::TooManyDescriptors);
    assert_eq!(guest.ring.take_work(), WORK_MAX);
    // It is found again.
    assert_eq!(guest.pop_error(), RingError::TooManyDescriptors);
}

#[test]
fn direct_descriptors_and_those_of_tables_count_together() {
    let (mut guest, table) = empty_entries(4, WORK_MAX - 3);
    let empty = Descriptor::readable(0, 0);
    guest.put(0, empty.then(1));
    guest.put(1, table.then(2));
    guest.put(2, empty);
    guest.publish(0);
    assert_eq!(guest.pop_head(), Some(0));
    guest.ring.take_work();
    guest.put(2, empty.then(3));
    guest.put(3, empty);
    guest.publish(0);
    assert_eq!(guest.pop_error(), RingError::TooManyDescriptors);
}

#[test]
fn the_chains_of_a_packet_count_together() {
    let (mut guest, _) = empty_entries(4, WORK_MAX / 2 - 1);
    for _ in 0..3 {
        guest.publish(0);
    }
    assert_eq!(guest.pop_head(), Some(0));
    assert_eq!(guest.pop_head(), Some(0));
    assert_eq!(guest.pop_error(), RingError::TooManyDescriptors);
    // The next packet begins.
    assert_eq!(guest.ring.take_work(), WORK_MAX);
    assert_eq!(guest.pop_head(), Some(0));
}

#[test]
fn a_packet_of_1024_segments_may_have_a_table_for_each() {
    let mut guest = Guest::new(1024);
    let segment = Descriptor::readable(guest.heap(0x100), 1);
    let table = guest.put_table(guest.heap(0), &[segment]);
    for index in 0..1023 {
        guest.put(index, table.then(index + 1));
    }
    guest.put(1023, table);
    guest.publish(0);
    let (chain, _) = guest.pop().unwrap().unwrap();
    assert_eq!((chain.readable, chain.writable), (1024, 0));
}

/// How much work it is to refuse a chain of descriptors that all name `table`, which never ends,
/// and how many accesses that takes at most.
fn refused_after(mut guest: Guest, table: Descriptor, accesses: usize) -> usize {
    for index in 0..guest.num - 1 {
        guest.put(index, table.then(index + 1));
    }
    guest.put(guest.num - 1, table);
    guest.publish(0);
    guest.mem.limit_accesses(accesses);
    assert_eq!(guest.pop(), Err(RingError::TooManyDescriptors));
    guest.ring.take_work()
}

#[test]
fn a_chain_of_many_tables_is_refused_after_bounded_work() {
    let (guest, table) = empty_entries(1024, 0x3fff);
    assert_eq!(refused_after(guest, table, 2 * WORK_MAX), WORK_MAX);
}

#[test]
fn a_chain_of_tables_in_many_pieces_is_refused_after_bounded_work() {
    let guest = Guest::with_table(32768, |heap| {
        (0..64)
            .map(|index| region(0x1000 * index, 0x1000, heap + 0x1000 * index))
            .collect()
    });
    // Memory of zeros: the first entry of the table, an empty buffer, ends it.
    let table = Descriptor::table(0, 64 * 0x1000);
    assert_eq!(refused_after(guest, table, 2 * WORK_MAX), WORK_MAX);
}

#[test]
fn a_chain_of_entries_in_pieces_is_refused_after_bounded_work() {
    for count in [63, 64] {
        // Regions of 8 bytes, so that each entry of 16 bytes straddles two of them.
        let guest = Guest::with_table(32768, |heap| {
            (0..count)
                .map(|index| region(0x1000 + 8 * index, 8, heap + 8 * (count - index)))
                .collect()
        });
        let empty = Descriptor::readable(0, 0);
        let count = count / 2;
        let mut entries = vec![empty.then(0); count as usize - 1];
        entries.push(empty);
        let table = guest.put_table(0x1000, &entries);
        // Work is at most two accesses: what is read is translated first.
        assert_eq!(refused_after(guest, table, 2 * WORK_MAX + 1000), WORK_MAX);
    }
}

#[test]
fn every_piece_of_what_regions_divide_is_work() {
    // The table lies in 2 pieces, and so does its second entry, which takes 8 reads.
    let mut guest = scattered(&[24, 16, 0x1000]);
    let buffer = Descriptor::readable(0x1030, 1);
    let table = guest.put_table(0x1000, &[buffer.then(0), buffer]);
    guest.put(0, table);
    guest.publish(0);
    guest.pop_head();
    assert_eq!(guest.ring.take_work(), 1 + 1 + (1 + 1 + 8));
    // The buffer lies in 3 pieces.
    guest.put(0, Descriptor::readable(0x1010, 0x100));
    guest.publish(0);
    guest.pop_head();
    assert_eq!(guest.ring.take_work(), 1 + 2);
}
