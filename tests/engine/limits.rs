// SPDX-License-Identifier: GPL-2.0

//! The limits of virtqueues and workers: their bounds, and who is stuck.

use proptest::prelude::*;
use vhost_iocm_engine::engine::sched::limits::{Limits, WorkerLimits};
use vhost_iocm_engine::engine::tunable::Tunable;

const POLL_RATE_MAX: u32 = 300_000_000;

fn limits(items: u32, cycles: u32) -> Limits {
    let limits = Limits::new(POLL_RATE_MAX);
    assert!(limits.max_stuck_pending_items.set(items));
    assert!(limits.max_stuck_cycles.set(cycles));
    limits
}

#[test]
fn a_tunable_takes_what_is_in_its_bounds_and_keeps_what_it_had() {
    let tunable = Tunable::new(5, 1, 10);
    assert_eq!(tunable.get(), 5);
    for value in [1, 10, 7] {
        assert!(tunable.set(value));
        assert_eq!(tunable.get(), u64::from(value));
    }
    for value in [0, 11, u32::MAX] {
        assert!(!tunable.set(value));
        assert_eq!(tunable.get(), 7);
    }
}

#[test]
fn the_defaults_are_the_originals() {
    let limits = Limits::new(POLL_RATE_MAX);
    assert_eq!(limits.min_processed_data.get(), 1500);
    assert_eq!(limits.max_processed_data.get(), 524_288);
    assert_eq!((limits.data().min, limits.data().max), (1500, 524_288));
    assert!(!limits.can_be_stuck());
    assert!(!limits.is_too_soon(0));
    assert!(!WorkerLimits::new().can_be_stuck());
}

#[test]
fn limits_have_bounds() {
    let limits = Limits::new(POLL_RATE_MAX);
    let worker = WorkerLimits::new();
    for (tunable, min, max) in [
        (&limits.min_processed_data, 0, 524_288),
        (&limits.max_processed_data, 1, 524_288),
        (&limits.max_stuck_pending_items, 0, 32_768),
        (&limits.max_stuck_cycles, 0, 1_000_000_000),
        (&limits.min_poll_rate, 0, POLL_RATE_MAX),
        (&worker.work_list_max_stuck, 0, 1_000_000_000),
        (&worker.max_disabled_soft_interrupts, 0, 1_000_000_000),
    ] {
        assert!(tunable.set(min) && tunable.set(max));
        assert!(!tunable.set(max + 1));
        assert!(min == 0 || !tunable.set(min - 1));
    }
}

#[test]
fn nobody_is_stuck_without_limits() {
    assert!(!Limits::new(0).is_stuck(u64::MAX, u16::MAX));
    assert!(!WorkerLimits::new().is_stuck(u64::MAX));
}

#[test]
fn a_work_is_stuck_after_its_limit() {
    let worker = WorkerLimits::new();
    assert!(worker.work_list_max_stuck.set(100));
    assert!(worker.can_be_stuck());
    assert!(!worker.is_stuck(100));
    assert!(worker.is_stuck(101));
}

#[test]
fn a_virtqueue_is_not_served_before_its_time() {
    let limits = Limits::new(POLL_RATE_MAX);
    assert!(limits.min_poll_rate.set(1000));
    assert!(limits.is_too_soon(0));
    assert!(limits.is_too_soon(999));
    assert!(!limits.is_too_soon(1000));
}

proptest! {
    #[test]
    fn a_polled_virtqueue_is_stuck_beyond_either_limit(
        items in 0u32..100, cycles in 0u32..100, waited in 0u64..200, pending in 0u16..200,
    ) {
        let limits = limits(items, cycles);
        let beyond = |value: u64, limit: u32| limit > 0 && value > u64::from(limit);
        let stuck = beyond(pending.into(), items) || beyond(waited, cycles);
        prop_assert_eq!(limits.is_stuck(waited, pending), stuck);
        prop_assert!(limits.can_be_stuck() || !stuck);
    }
}
