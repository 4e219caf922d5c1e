// SPDX-License-Identifier: GPL-2.0

//! The end of a slice.

use proptest::prelude::*;
use vhost_iocm_engine::engine::sched::budget::Budget;

use crate::cases;

/// How many charges of `bytes` a slice takes, the last one included.
fn charges(bytes: usize) -> usize {
    let mut budget = Budget::new();
    (1..1000)
        .find(|_| !budget.charge(bytes, 0))
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
    let mut budget = Budget::default();
    assert!(!budget.charge(usize::MAX, 0));
    assert!(!budget.charge(0, 0));
    let mut budget = Budget::default();
    for _ in 0..1000 {
        let _ = budget.charge(0, 0);
    }
    assert!(!budget.charge(0, 0));
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
        let mut budget = Budget::new();
        let mut bytes = 0;
        for (index, (packet, descriptors)) in packets.into_iter().enumerate() {
            bytes += packet + 16 * descriptors;
            prop_assert_eq!(
                budget.charge(packet, descriptors),
                index + 1 < 256 && bytes < 0x80000
            );
        }
    }
}

#[test]
fn descriptors_without_data_end_a_slice_as_well() {
    let mut budget = Budget::new();
    assert!(budget.charge(0, 0x80000 / 16 - 1));
    assert!(!budget.charge(0, 1));
}

#[test]
fn any_number_of_descriptors_can_be_charged() {
    assert!(!Budget::new().charge(0, usize::MAX));
    assert!(!Budget::new().charge(usize::MAX, 1));
}
