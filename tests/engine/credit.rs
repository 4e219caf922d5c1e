// SPDX-License-Identifier: GPL-2.0

//! Deficit round robin: who gets how much of a worker.

use std::collections::VecDeque;

use proptest::prelude::*;
use vhost_iocm_engine::engine::sched::credit::{quantum, Credit, WEIGHT_DEFAULT};

const SLICE: u64 = 200_000;

/// A virtqueue that always has work, and takes `slice` nanoseconds whenever it is served.
struct Busy {
    weight: u32,
    slice: u64,
    credit: Credit,
    served: u64,
}

/// Serves `virtqueues` as a worker does, for `time` nanoseconds; returns the longest time for which
/// one with credit had to wait for the others.
fn run(virtqueues: &mut [Busy], time: u64) {
    let (mut ready, mut spent): (VecDeque<usize>, VecDeque<usize>) =
        ((0..virtqueues.len()).collect(), VecDeque::new());
    let (mut now, mut round, mut turns) = (0, 1, 0u64);
    while now < time {
        turns += 1;
        assert!(turns < 100_000_000, "the worker spins");
        let Some(index) = ready.pop_front() else {
            round += 1;
            ready.append(&mut spent);
            continue;
        };
        let one = &mut virtqueues[index];
        if !one.credit.may_run(round, quantum(SLICE, one.weight, 1)) {
            spent.push_back(index);
            continue;
        }
        now += one.slice;
        one.served += one.slice;
        let list = if one.credit.charge(one.slice) {
            &mut ready
        } else {
            &mut spent
        };
        list.push_back(index);
    }
}

fn busy(weight: u32, slice: u64) -> Busy {
    Busy {
        weight,
        slice,
        credit: Credit::new(),
        served: 0,
    }
}

proptest! {
    #![proptest_config(crate::cases(64))]

    #[test]
    fn shares_follow_weights_whatever_slices_take(
        virtqueues in prop::collection::vec((10u32..1000, 1_000u64..400_000), 2..8),
    ) {
        let mut virtqueues: Vec<_> = virtqueues
            .into_iter()
            .map(|(weight, slice)| busy(weight, slice))
            .collect();
        let time = 20_000_000_000;
        run(&mut virtqueues, time);
        let weights: u32 = virtqueues.iter().map(|one| one.weight).sum();
        let total: u64 = virtqueues.iter().map(|one| one.served).sum();
        for one in &virtqueues {
            let expected = total as f64 * f64::from(one.weight) / f64::from(weights);
            prop_assert!((one.served as f64 / expected - 1.0).abs() < 0.03,
                "{} of {expected}", one.served);
        }
    }
}

#[test]
fn the_smallest_weight_is_served_beside_the_largest() {
    let mut virtqueues = [busy(1, 50_000), busy(10_000, 200_000)];
    run(&mut virtqueues, 60_000_000_000);
    assert!(virtqueues[0].served > 0);
}

#[test]
fn alone_the_smallest_weight_gets_everything() {
    let mut virtqueues = [busy(1, 200_000)];
    run(&mut virtqueues, 1_000_000_000);
    assert_eq!(virtqueues[0].served, 1_000_000_000);
}

#[test]
fn one_quantum_is_one_slice_at_the_default_weight() {
    assert_eq!(quantum(SLICE, WEIGHT_DEFAULT, 1), SLICE);
}

#[test]
fn virtqueues_of_a_device_divide_its_quantum() {
    assert_eq!(quantum(SLICE, WEIGHT_DEFAULT, 2), SLICE / 2);
}

#[test]
fn a_quantum_is_never_nothing() {
    assert_eq!(quantum(10_000, 1, 2), 50);
    assert_eq!(quantum(1, 1, u32::MAX), 1);
}

#[test]
fn what_was_left_counts_until_the_round_ends() {
    let mut credit = Credit::new();
    assert!(credit.may_run(1, 100));
    assert!(credit.charge(40));
    // It had nothing to do for a while, and comes back.
    assert!(credit.may_run(1, 100));
    assert!(!credit.charge(60));
    assert!(!credit.may_run(1, 100));
    assert!(credit.may_run(2, 100));
}

#[test]
fn rounds_that_were_sat_out_are_not_made_up_for() {
    let mut credit = Credit::new();
    assert!(credit.may_run(1, 100));
    assert!(credit.may_run(50, 100));
    assert!(!credit.charge(100));
}

#[test]
fn what_was_used_too_much_is_paid_for() {
    let mut credit = Credit::new();
    assert!(credit.may_run(1, 100));
    assert!(!credit.charge(250));
    assert!(!credit.may_run(2, 100));
    assert!(credit.may_run(3, 100));
}
