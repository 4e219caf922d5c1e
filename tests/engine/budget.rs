// SPDX-License-Identifier: GPL-2.0

//! The end of a slice.

use proptest::prelude::*;
use vhost_iocm_engine::engine::sched::budget::Budget;

use crate::cases;

/// How many charges of `bytes` a slice takes, the last one included.
fn charges(bytes: usize) -> usize {
    let mut budget = Budget::new(u64::MAX);
    (1..1000)
        .find(|_| !budget.charge(bytes, 0, || 0))
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
    let mut budget = Budget::new(u64::MAX);
    assert!(!budget.charge(usize::MAX, 0, || 0));
    assert!(!budget.charge(0, 0, || 0));
    let mut budget = Budget::new(u64::MAX);
    for _ in 0..1000 {
        let _ = budget.charge(0, 0, || 0);
    }
    assert!(!budget.charge(0, 0, || 0));
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
        let mut budget = Budget::new(u64::MAX);
        let mut bytes = 0;
        for (index, (packet, descriptors)) in packets.into_iter().enumerate() {
            bytes += packet + 16 * descriptors;
            prop_assert_eq!(
                budget.charge(packet, descriptors, || 0),
                index + 1 < 256 && bytes < 0x80000
            );
        }
    }
}

#[test]
fn descriptors_without_data_end_a_slice_as_well() {
    let mut budget = Budget::new(u64::MAX);
    assert!(budget.charge(0, 0x80000 / 16 - 1, || 0));
    assert!(!budget.charge(0, 1, || 0));
}

#[test]
fn any_number_of_descriptors_can_be_charged() {
    assert!(!Budget::new(u64::MAX).charge(0, usize::MAX, || 0));
    assert!(!Budget::new(u64::MAX).charge(usize::MAX, 1, || 0));
}

#[test]
fn a_slice_ends_soon_after_its_time() {
    let mut budget = Budget::new(1000);
    let charges = (1..256)
        .find(|index| !budget.charge(64, 1, || index * 100))
        .expect("an end of the slice");
    assert!((10..=32).contains(&charges), "{charges}");
    // Large packets are looked at more often.
    let mut budget = Budget::new(1000);
    assert!(budget.charge(0x8000, 1, || 2000));
    assert!(!budget.charge(0x8000, 1, || 2000));
}
