// SPDX-License-Identifier: GPL-2.0

//! Which bits of the dirty log stand for a write.

use std::collections::BTreeSet;

use proptest::prelude::*;
use vhost_iocm_engine::engine::log::{for_each_word, span, OutOfRange, PAGE_SIZE};
use vhost_iocm_engine::engine::mem::{guest_ranges, Region};

use crate::cases;
use crate::guest::region;

/// The words and bits that are set.
fn words(base: u64, addr: u64, len: u64) -> Result<Vec<(u64, u32)>, OutOfRange> {
    let mut words = Vec::new();
    for_each_word(base, addr, len, |word, bits| {
        words.push((word, bits));
        Ok(())
    })?;
    Ok(words)
}

/// The bits that are set, as byte and bit in it.
fn bits(base: u64, addr: u64, len: u64) -> BTreeSet<(u64, u32)> {
    let mut bits = BTreeSet::new();
    for (word, mask) in words(base, addr, len).unwrap() {
        assert_eq!(word % 4, 0);
        assert_ne!(mask, 0);
        for bit in (0..32).filter(|bit| mask & 1 << bit != 0) {
            assert!(bits.insert((word + u64::from(bit) / 8, bit % 8)), "twice");
        }
    }
    bits
}

#[test]
fn a_bit_stands_for_a_page() {
    assert_eq!(words(0x1000, 0, 1), Ok(vec![(0x1000, 1)]));
    assert_eq!(words(0x1000, 4095, 1), Ok(vec![(0x1000, 1)]));
    assert_eq!(words(0x1000, 4095, 2), Ok(vec![(0x1000, 3)]));
    assert_eq!(words(0x1000, 31 * 4096, 1), Ok(vec![(0x1000, 1 << 31)]));
    assert_eq!(words(0x1000, 32 * 4096, 1), Ok(vec![(0x1004, 1)]));
}

#[test]
fn pages_of_one_word_are_set_together() {
    assert_eq!(words(0x1000, 0, 32 * 4096), Ok(vec![(0x1000, u32::MAX)]));
    assert_eq!(
        words(0x1000, 30 * 4096, 36 * 4096),
        Ok(vec![(0x1000, 3 << 30), (0x1004, u32::MAX), (0x1008, 3)])
    );
}

#[test]
fn a_log_may_begin_at_any_address() {
    assert_eq!(words(0x1003, 0, 1), Ok(vec![(0x1000, 1 << 24)]));
    assert_eq!(
        words(0x1003, 7 * 4096, 2 * 4096),
        Ok(vec![(0x1000, 1 << 31), (0x1004, 1)])
    );
}

#[test]
fn nothing_is_written_of_nothing() {
    assert_eq!(words(0x1000, 0x5000, 0), Ok(vec![]));
    assert_eq!(span(0x1000, 0x5000, 0), Some((0x1000, 0)));
    assert_eq!(words(u64::MAX, u64::MAX, 0), Ok(vec![]));
}

#[test]
fn what_lies_in_no_address_space_is_refused() {
    assert_eq!(words(0, u64::MAX, 2), Err(OutOfRange));
    assert_eq!(words(u64::MAX, 8 * PAGE_SIZE, 1), Err(OutOfRange));
    assert_eq!(words(u64::MAX - 1, 0, 17 * PAGE_SIZE), Err(OutOfRange));
    assert_eq!(span(u64::MAX, 8 * PAGE_SIZE, 1), None);
    assert_eq!(span(u64::MAX, 0, 1), Some((u64::MAX, 1)));
}

#[test]
fn an_error_ends_the_setting() {
    #[derive(Debug, PartialEq)]
    struct Stop;
    impl From<OutOfRange> for Stop {
        fn from(_: OutOfRange) -> Self {
            Self
        }
    }
    let mut calls = 0;
    let result = for_each_word(0, 0, 1000 * PAGE_SIZE, |_, _| {
        calls += 1;
        Err(Stop)
    });
    assert_eq!((result, calls), (Err(Stop), 1));
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn exactly_the_pages_written_are_logged(
        base in 0u64..1 << 20,
        addr in 0u64..1 << 24,
        len in 0u64..1 << 20,
    ) {
        let pages = (addr / PAGE_SIZE..(addr + len).div_ceil(PAGE_SIZE)).filter(|_| len > 0);
        let naive: BTreeSet<_> = pages
            .map(|page| (base + page / 8, (page % 8) as u32))
            .collect();
        prop_assert_eq!(&bits(base, addr, len), &naive);
        let (begin, bytes) = span(base, addr, len).unwrap();
        prop_assert!(naive.iter().all(|(byte, _)| (begin..begin + bytes).contains(byte)));
        if let (Some(first), Some(last)) = (naive.first(), naive.last()) {
            prop_assert_eq!((first.0, last.0), (begin, begin + bytes - 1));
        }
    }

    #[test]
    fn every_guest_address_of_a_byte_is_found(
        regions in prop::collection::vec((0u64..64, 1u64..32, 0u64..64), 0..6),
        addr in 0u64..100,
        len in 0u64..40,
    ) {
        let regions: Vec<Region> = regions
            .into_iter()
            .map(|(guest, size, user)| region(guest, size, user))
            .collect();
        let mut found: Vec<u64> = guest_ranges(&regions, addr, len)
            .flat_map(|(guest, len)| {
                assert!(len > 0);
                guest..guest + len
            })
            .collect();
        let mut naive: Vec<u64> = regions
            .iter()
            .flat_map(|region| (0..region.size).map(move |at| (region, at)))
            .filter(|(region, at)| (addr..addr + len).contains(&(region.user_addr + at)))
            .map(|(region, at)| region.guest_addr + at)
            .collect();
        found.sort_unstable();
        naive.sort_unstable();
        prop_assert_eq!(found, naive);
    }
}
