// SPDX-License-Identifier: GPL-2.0

//! Counters.

use std::sync::Barrier;
use std::thread;

use vhost_iocm_engine::engine::stats::{Counter, VirtqueueStats, WorkerStats};

#[test]
fn a_counter_begins_at_0_and_adds_up() {
    let counter = Counter::new();
    assert_eq!(counter.get(), 0);
    counter.add(5);
    counter.add(0);
    counter.add_shared();
    assert_eq!(counter.get(), 6);
}

#[test]
fn a_counter_wraps_after_its_largest_value() {
    let counter = Counter::new();
    counter.add(u64::MAX);
    counter.add(3);
    assert_eq!(counter.get(), 2);
}

#[test]
fn nothing_that_threads_count_at_once_is_missing() {
    let counter = Counter::new();
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                (0..500_000).for_each(|_| counter.add_shared());
            });
        }
    });
    assert_eq!(counter.get(), 2_000_000);
}

#[test]
fn all_counters_begin_at_0() {
    for stats in [VirtqueueStats::new(), VirtqueueStats::default()] {
        let counters = [
            stats.packets,
            stats.bytes,
            stats.kicks,
            stats.notif_works,
            stats.interrupts,
            stats.errors,
            stats.drops,
        ];
        assert!(counters.iter().all(|counter| counter.get() == 0));
    }
    for stats in [WorkerStats::new(), WorkerStats::default()] {
        let counters = [stats.loops, stats.works, stats.mm_switches, stats.wait];
        assert!(counters.iter().all(|counter| counter.get() == 0));
    }
}
