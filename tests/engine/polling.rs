// SPDX-License-Identifier: GPL-2.0

//! When polling starts and stops.

use vhost_iocm_engine::engine::sched::polling::{Mode, Polling, Tunables};

const TUNABLES: Tunables = Tunables {
    start: 50_000,
    idle: 1_000_000,
};

/// Work every `gap` nanoseconds, from `begin` on, `count` times; returns the time of the last.
fn work(polling: &mut Polling, begin: u64, gap: u64, count: u64) -> u64 {
    for index in 0..count {
        polling.work(begin + index * gap, &TUNABLES);
    }
    begin + (count - 1) * gap
}

/// For how long after `begin` the virtqueue is polled without work.
fn patience(polling: &mut Polling, mode: Mode, begin: u64) -> u64 {
    (0..10_000_000)
        .step_by(1000)
        .find(|passed| !polling.keep(mode, begin + passed, &TUNABLES))
        .expect("an end of polling")
}

#[test]
fn frequent_work_starts_polling_and_rare_work_does_not() {
    let mut polling = Polling::new();
    work(&mut polling, 1_000_000_000, 200_000, 100);
    assert!(!polling.start(Mode::Auto, &TUNABLES));
    let mut polling = Polling::new();
    work(&mut polling, 1_000_000_000, 10_000, 100);
    assert!(polling.start(Mode::Auto, &TUNABLES));
}

#[test]
fn a_single_piece_of_work_does_not_start_polling() {
    let mut polling = Polling::new();
    polling.work(5_000_000_000, &TUNABLES);
    assert!(!polling.start(Mode::Auto, &TUNABLES));
}

#[test]
fn the_modes_that_are_no_question_do_not_look_at_the_work() {
    let mut polling = Polling::new();
    polling.work(5_000_000_000, &TUNABLES);
    assert!(polling.start(Mode::Always, &TUNABLES));
    work(&mut polling, 6_000_000_000, 10_000, 100);
    assert!(!polling.start(Mode::Never, &TUNABLES));
    assert!(!polling.is_active());
}

#[test]
fn what_is_always_polled_is_parked_after_the_idle_time() {
    let mut polling = Polling::new();
    polling.work(7_000_000, &TUNABLES);
    assert!(polling.start(Mode::Always, &TUNABLES));
    assert_eq!(patience(&mut polling, Mode::Always, 7_000_000), 1_000_000);
}

#[test]
fn what_is_never_polled_is_parked_at_once() {
    let mut polling = Polling::new();
    polling.work(7_000_000, &TUNABLES);
    assert_eq!(patience(&mut polling, Mode::Never, 7_000_000), 0);
}

#[test]
fn patience_grows_when_work_comes_soon_after_parking() {
    let mut polling = Polling::new();
    let mut now = work(&mut polling, 1_000_000_000, 10_000, 100);
    let mut last = 0;
    for _ in 0..10 {
        let waited = patience(&mut polling, Mode::Auto, now);
        assert!(waited >= last && waited <= TUNABLES.idle);
        last = waited;
        now += waited;
        assert!(polling.start(Mode::Always, &TUNABLES));
        assert!(polling.park(now));
        now += 1000;
        polling.work(now, &TUNABLES);
    }
    assert_eq!(last, TUNABLES.idle);
}

#[test]
fn patience_shrinks_when_work_stays_away() {
    let mut polling = Polling::new();
    let mut now = work(&mut polling, 1_000_000_000, 10_000, 100);
    // First it learns to wait long.
    for _ in 0..10 {
        now += patience(&mut polling, Mode::Auto, now);
        assert!(polling.start(Mode::Always, &TUNABLES));
        assert!(polling.park(now));
        now += 1000;
        polling.work(now, &TUNABLES);
    }
    let long = patience(&mut polling, Mode::Auto, now);
    for _ in 0..10 {
        now += patience(&mut polling, Mode::Auto, now);
        assert!(polling.start(Mode::Always, &TUNABLES));
        assert!(polling.park(now));
        now += 1_000_000_000;
        polling.work(now, &TUNABLES);
    }
    let short = patience(&mut polling, Mode::Auto, now);
    assert!(short <= long / 8, "{short} after {long}");
}

#[test]
fn a_parked_virtqueue_is_not_polled_until_there_is_work() {
    let mut polling = Polling::new();
    let now = work(&mut polling, 1_000_000_000, 10_000, 100);
    assert!(polling.start(Mode::Auto, &TUNABLES));
    assert!(polling.park(now));
    assert!(!polling.is_active());
    assert!(!polling.park(now));
}

#[test]
fn a_timeout_lets_a_single_piece_of_work_start_polling() {
    let mut polling = Polling::new();
    polling.set_timeout(500);
    assert_eq!(polling.timeout(), 500);
    polling.work(7_000_000, &TUNABLES);
    assert!(polling.start(Mode::Auto, &TUNABLES));
    // 512 microseconds, as the unit is 1024 nanoseconds.
    assert_eq!(patience(&mut polling, Mode::Auto, 7_000_000), 512_000);
    polling.park(7_600_000);
    polling.set_timeout(0);
    polling.work(900_000_000, &TUNABLES);
    assert!(!polling.start(Mode::Auto, &TUNABLES));
}

#[test]
fn no_timeout_is_longer_than_the_idle_time() {
    let mut polling = Polling::new();
    polling.set_timeout(u32::MAX);
    polling.work(7_000_000, &TUNABLES);
    assert!(polling.start(Mode::Auto, &TUNABLES));
    assert_eq!(patience(&mut polling, Mode::Auto, 7_000_000), TUNABLES.idle);
}

#[test]
fn a_timeout_shortens_nothing() {
    let mut polling = Polling::new();
    polling.set_timeout(1);
    polling.work(7_000_000, &TUNABLES);
    assert!(polling.start(Mode::Auto, &TUNABLES));
    // A sixteenth of the idle time is what a virtqueue has at least.
    assert_eq!(patience(&mut polling, Mode::Auto, 7_000_000), 63_000);
    assert_eq!(patience(&mut polling, Mode::Always, 7_000_000), 1_000_000);
}

#[test]
fn a_timeout_changes_nothing_where_polling_is_forbidden() {
    let mut polling = Polling::new();
    polling.set_timeout(u32::MAX);
    polling.work(7_000_000, &TUNABLES);
    assert!(!polling.start(Mode::Never, &TUNABLES));
    assert_eq!(patience(&mut polling, Mode::Never, 7_000_000), 0);
}
