// SPDX-License-Identifier: GPL-2.0

//! The end of a slice.

use proptest::prelude::*;
use vhost_iocm_engine::engine::sched::budget::{Budget, Data};

use crate::cases;

/// A slice without an end of its time.
fn fresh() -> Budget {
    Budget::new(u64::MAX, Data::default())
}

/// How many charges of `bytes` a slice takes, the last one included.
fn charges(bytes: usize) -> usize {
    let mut budget = fresh();
    (1..1000)
        .find(|_| !budget.charge(bytes, 0, || 0, |_| false))
        .expect("an end of the slice")
}

#[test]
fn a_slice_of_small_packets_ends_after_256() {
    assert_eq!(charges(1), 256);
}

#[test]
fn a_slice_of_large_packets_ends_after_half_a_mebibyte() {
    assert_eq!(charges(0x80000), 1);
    assert_eq!(charges(0x7ffff), 2);
    assert_eq!(charges(0x40000), 2);
    assert_eq!(charges(0x10000), 8);
}

#[test]
fn a_slice_in_which_nothing_is_moved_ends_too() {
    assert_eq!(charges(0), 256);
}

#[test]
fn a_packet_larger_than_any_slice_ends_it() {
    assert_eq!(charges(usize::MAX), 1);
}

#[test]
fn a_slice_that_ended_does_not_go_on() {
    let mut budget = fresh();
    assert!(!budget.charge(usize::MAX, 0, || 0, |_| false));
    assert!(!budget.charge(0, 0, || 0, |_| false));
    let mut budget = fresh();
    for _ in 0..1000 {
        let _ = budget.charge(0, 0, || 0, |_| false);
    }
    assert!(!budget.charge(0, 0, || 0, |_| false));
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_slice_goes_on_while_packets_and_bytes_are_below_their_limits(
        packets in proptest::collection::vec(
            (prop_oneof![0_usize..100, 0_usize..0x20000], prop_oneof![0_usize..3, 0_usize..4000]),
            1..400,
        ),
    ) {
        let mut budget = fresh();
        let mut bytes = 0;
        for (index, (packet, descriptors)) in packets.into_iter().enumerate() {
            bytes += packet + 16 * descriptors;
            prop_assert_eq!(
                budget.charge(packet, descriptors, || 0, |_| false),
                index + 1 < 256 && bytes < 0x80000
            );
        }
    }
}

#[test]
fn descriptors_without_data_end_a_slice_as_well() {
    let mut budget = fresh();
    assert!(budget.charge(0, 0x80000 / 16 - 1, || 0, |_| false));
    assert!(!budget.charge(0, 1, || 0, |_| false));
}

#[test]
fn any_number_of_descriptors_can_be_charged() {
    assert!(!fresh().charge(0, usize::MAX, || 0, |_| false));
    assert!(!fresh().charge(usize::MAX, 1, || 0, |_| false));
}

#[test]
fn a_slice_ends_soon_after_its_time() {
    let mut budget = Budget::new(1000, Data::default());
    let charges = (1..256)
        .find(|index| !budget.charge(64, 1, || index * 100, |_| false))
        .expect("an end of the slice");
    assert!((10..=32).contains(&charges), "{charges}");
    // Large packets are looked at more often.
    let mut budget = Budget::new(1000, Data::default());
    assert!(budget.charge(0x8000, 1, || 2000, |_| false));
    assert!(!budget.charge(0x8000, 1, || 2000, |_| false));
}

/// How many packets of `bytes` a slice with these limits moves while somebody else is stuck, or is
/// not.
fn moved(bytes: usize, data: Data, stuck: bool) -> usize {
    let mut budget = Budget::new(u64::MAX, data);
    (1..1000)
        .find(|_| !budget.charge(bytes, 0, || 0, |_| stuck))
        .expect("an end of the slice")
}

#[test]
fn the_maximum_ends_a_slice_at_its_packet() {
    let data = |max| Data { min: 0, max };
    assert_eq!(moved(1500, data(1), false), 1);
    assert_eq!(moved(1500, data(1500), false), 1);
    assert_eq!(moved(1500, data(3000), false), 2);
    assert_eq!(moved(1500, data(3001), false), 3);
    assert_eq!(moved(1500, data(usize::MAX), false), 256);
    assert_eq!(moved(0x8000, data(usize::MAX), false), 16);
}

#[test]
fn a_slice_ends_for_who_is_stuck_and_not_below_its_minimum() {
    let data = |min| Data { min, max: 0x80000 };
    assert_eq!(moved(100, data(0), true), 16);
    assert_eq!(moved(100, data(1600), true), 16);
    assert_eq!(moved(100, data(1601), true), 32);
    assert_eq!(moved(100, data(0x80000), true), 256);
    assert_eq!(moved(0x8000, data(0), true), 2);
    assert_eq!(moved(0x8000, data(0x30001), true), 8);
    assert_eq!(moved(100, data(0), false), 256);
}

#[test]
fn a_minimum_above_the_maximum_is_the_maximum() {
    let data = Data {
        min: 6000,
        max: 3000,
    };
    assert_eq!(moved(1500, data, true), 2);
}

#[test]
fn a_minimum_does_not_prolong_the_time_of_a_slice() {
    let data = Data {
        min: 0x80000,
        max: 0x80000,
    };
    let mut budget = Budget::new(1000, data);
    let charges = (1..256)
        .find(|_| !budget.charge(100, 0, || 1000, |_| false))
        .expect("an end of the slice");
    assert_eq!(charges, 16);
}

#[test]
fn others_are_asked_about_the_time_that_the_clock_said() {
    let mut budget = Budget::new(
        u64::MAX,
        Data {
            min: 0,
            max: 0x80000,
        },
    );
    let mut asked = Vec::new();
    for index in 1..=48 {
        assert!(budget.charge(
            100,
            0,
            || index,
            |now| {
                asked.push(now);
                false
            }
        ));
    }
    assert_eq!(asked, [16, 32, 48]);
}
