// SPDX-License-Identifier: GPL-2.0

//! The memory table.

use proptest::prelude::*;
use vhost_iocm_engine::engine::error::RingError;
use vhost_iocm_engine::engine::mem::{sort_regions, Lookup, Order, Region};

use crate::cases;
use crate::guest::region;

/// Looks an address up in a table that is brought into order first.
fn look_up(regions: &[Region], addr: u64) -> Result<(u64, u64), RingError> {
    let mut regions = regions.to_vec();
    let order = sort_regions(&mut regions).expect("a table that can be used");
    Lookup::new(&regions, order).translate(addr)
}

#[test]
fn an_empty_table_can_be_used_and_maps_nothing() {
    assert_eq!(sort_regions(&mut []), Some(Order::Disjoint));
    assert_eq!(look_up(&[], 0), Err(RingError::Unmapped));
}

#[test]
fn a_region_maps_its_addresses_and_no_others() {
    let table = [region(0x1000, 0x10, 0x9000)];
    assert_eq!(look_up(&table, 0xfff), Err(RingError::Unmapped));
    assert_eq!(look_up(&table, 0x1000), Ok((0x9000, 0x10)));
    assert_eq!(look_up(&table, 0x100f), Ok((0x900f, 1)));
    assert_eq!(look_up(&table, 0x1010), Err(RingError::Unmapped));
}

#[test]
fn an_empty_region_is_refused() {
    for guest_addr in [0, 0x1000] {
        let mut table = [region(0x2000, 1, 0), region(guest_addr, 0, 0)];
        assert_eq!(sort_regions(&mut table), None);
    }
}

#[test]
fn a_region_may_end_with_the_address_space_of_the_guest() {
    let mut table = [region(u64::MAX - 0xf, 0x10, 0)];
    assert_eq!(sort_regions(&mut table), Some(Order::Disjoint));
    assert_eq!(look_up(&table, u64::MAX), Ok((0xf, 1)));
}

#[test]
fn a_region_beyond_the_address_space_of_the_guest_is_refused() {
    assert_eq!(sort_regions(&mut [region(u64::MAX - 0xf, 0x11, 0)]), None);
}

#[test]
fn a_region_may_end_with_the_address_space_of_the_owner() {
    let mut table = [region(0, 0x10, u64::MAX - 0xf)];
    assert_eq!(sort_regions(&mut table), Some(Order::Disjoint));
    assert_eq!(look_up(&table, 0xf), Ok((u64::MAX, 1)));
}

/// Where a region lies is checked where it is used, as in stock vhost; here nothing may overflow.
#[test]
fn a_region_beyond_the_address_space_of_the_owner_wraps() {
    let table = [region(0, 0x12, u64::MAX - 0xf)];
    assert_eq!(look_up(&table, 0xf), Ok((u64::MAX, 3)));
    assert_eq!(look_up(&table, 0x11), Ok((1, 1)));
}

#[test]
fn the_largest_region_can_be_used() {
    let table = [region(1, u64::MAX, 0)];
    assert_eq!(look_up(&table, u64::MAX), Ok((u64::MAX - 1, 1)));
    assert_eq!(look_up(&table, 1), Ok((0, u64::MAX)));
    assert_eq!(look_up(&table, 0), Err(RingError::Unmapped));
}

#[test]
fn flags_of_a_region_mean_nothing() {
    let mut flagged = region(0x1000, 0x10, 0x9000);
    flagged.flags = u64::MAX;
    assert_eq!(look_up(&[flagged], 0x1001), Ok((0x9001, 0xf)));
}

#[test]
fn regions_that_adjoin_do_not_overlap() {
    let mut table = [region(0x1010, 0x10, 0), region(0x1000, 0x10, 0)];
    assert_eq!(sort_regions(&mut table), Some(Order::Disjoint));
}

#[test]
fn regions_that_share_one_address_overlap() {
    let mut table = [region(0x100f, 0x10, 0), region(0x1000, 0x10, 0)];
    assert_eq!(sort_regions(&mut table), Some(Order::Overlapping));
}

#[test]
fn a_region_overlaps_a_long_one_from_before_its_neighbour() {
    let mut table = [
        region(0x1000, 0x1000, 0),
        region(0x1100, 0x10, 0),
        region(0x1200, 0x10, 0),
        region(0x3000, 0x10, 0),
    ];
    assert_eq!(sort_regions(&mut table), Some(Order::Overlapping));
    let table = [
        region(0x1000, 0x1000, 0x10_0000),
        region(0x1100, 0x10, 0x20_0000),
    ];
    assert_eq!(look_up(&table, 0x1200), Ok((0x10_0200, 0xe00)));
}

#[test]
fn where_regions_overlap_the_one_that_begins_first_wins() {
    let table = [
        region(0x1008, 0x10, 0x2_0000),
        region(0x1000, 0x10, 0x1_0000),
    ];
    assert_eq!(look_up(&table, 0x1007), Ok((0x1_0007, 9)));
    assert_eq!(look_up(&table, 0x100f), Ok((0x1_000f, 1)));
    assert_eq!(look_up(&table, 0x1010), Ok((0x2_0008, 8)));
}

#[test]
fn of_regions_that_begin_together_the_one_given_first_wins() {
    // As many regions as a table may have, eight at each of eight addresses.
    let regions = (0..64).map(|index| region(0x1000 * (index % 8), 0x1000, 0x10_0000 * index));
    let table: Vec<_> = regions.collect();
    for begin in 0..8 {
        let addr = 0x1000 * begin;
        assert_eq!(look_up(&table, addr), Ok((0x10_0000 * begin, 0x1000)));
    }
}

#[test]
fn regions_of_the_guest_may_share_memory_of_the_owner() {
    let table = [region(0, 0x10, 0x9000), region(0x100, 0x10, 0x9000)];
    assert_eq!(look_up(&table, 4), Ok((0x9004, 0xc)));
    assert_eq!(look_up(&table, 0x104), Ok((0x9004, 0xc)));
}

/// Regions near each other around `base`, few of which wrap or are empty.
fn tables() -> impl Strategy<Value = (u64, Vec<Region>)> {
    let base = prop_oneof![Just(0), Just(0x1_0000), Just(u64::MAX - 90), any::<u64>()];
    let one = (
        0_u64..96,
        0_u64..24,
        prop_oneof![9 => 0_u64..1 << 40, 1 => u64::MAX - 30..],
    );
    let many = proptest::collection::vec(one, 0..12);
    (base, many).prop_map(|(base, parts)| {
        let regions = parts.into_iter().map(|(offset, size, user_addr)| {
            // Empty regions refuse the whole table, so most of them are made larger.
            let size = if size < 2 && offset % 8 != 0 { 5 } else { size };
            region(base.wrapping_add(offset), size, user_addr)
        });
        (base, regions.collect())
    })
}

/// Every address of a region on its own; `None` when the region cannot be used.
fn naive_bytes(region: &Region) -> Option<Vec<(u64, u64)>> {
    let byte = |offset| {
        let guest = region.guest_addr.checked_add(offset)?;
        Some((guest, region.user_addr.wrapping_add(offset)))
    };
    let bytes: Option<Vec<_>> = (0..region.size).map(byte).collect();
    bytes.filter(|bytes| !bytes.is_empty())
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn a_table_translates_each_byte_as_the_region_that_begins_first((base, regions) in tables()) {
        let mut sorted = regions.clone();
        let order = sort_regions(&mut sorted);
        let bytes: Option<Vec<_>> = regions.iter().map(naive_bytes).collect();
        prop_assert_eq!(order.is_some(), bytes.is_some());
        if let (Some(order), Some(mut bytes)) = (order, bytes) {
            // A stable sort: of regions that begin together, the first given stays first.
            bytes.sort_by_key(|region| region[0].0);
            let holding = |addr| {
                let held = |region: &&Vec<(u64, u64)>| region.iter().any(|byte| byte.0 == addr);
                let mut holding = bytes.iter().filter(held);
                (holding.next(), holding.next().is_some())
            };
            let mut overlap = false;
            // Where something was found last must not matter, so the addresses jump.
            let lookup = Lookup::new(&sorted, order);
            for step in 0..128 {
                let offset = step * 37 % 128;
                let addr = base.wrapping_sub(4).wrapping_add(offset);
                let (region, several) = holding(addr);
                overlap |= several;
                let naive = region.map(|region| {
                    let at = region.iter().position(|byte| byte.0 == addr).unwrap();
                    (region[at].1, (region.len() - at) as u64)
                });
                prop_assert_eq!(lookup.translate(addr).ok(), naive);
            }
            prop_assert_eq!(order == Order::Overlapping, overlap);
        }
    }
}

#[test]
fn of_regions_that_begin_together_the_one_that_was_given_first_wins() {
    for count in 2..=64 {
        let mut regions: Vec<_> = (0..count)
            .map(|index| region(0x1000 * (index % 7), 0x1000, 0x10_0000 * (index + 1)))
            .collect();
        let order = sort_regions(&mut regions).unwrap();
        let lookup = Lookup::new(&regions, order);
        for begin in 0..count.min(7) {
            let found = lookup.translate(0x1000 * begin).unwrap().0;
            assert_eq!(found, 0x10_0000 * (begin + 1));
        }
    }
}
