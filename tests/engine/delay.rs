// SPDX-License-Identifier: GPL-2.0

//! Artificial delays.

use vhost_iocm_engine::engine::sched::delay::Delay;

#[test]
fn nothing_is_delayed_by_default() {
    assert_eq!(Delay::new().of(1000, u64::MAX), 0);
}

#[test]
fn work_and_data_are_delayed_apart() {
    let delay = Delay::new();
    assert!(delay.per_work.set(100));
    assert_eq!(delay.of(1, 0), 100);
    assert_eq!(delay.of(256, 0x80000), 100);
    assert!(delay.per_kbyte.set(10));
    assert_eq!(delay.of(1, 1023), 109);
    assert_eq!(delay.of(5, 2048), 120);
    assert!(delay.per_work.set(0));
    assert_eq!(delay.of(5, 2048), 20);
}

#[test]
fn a_slice_that_moves_nothing_is_not_delayed() {
    let delay = Delay::new();
    assert!(delay.per_work.set(1_000_000) && delay.per_kbyte.set(1_000_000));
    assert_eq!(delay.of(0, 5000), 0);
}

#[test]
fn delays_have_bounds() {
    let delay = Delay::new();
    for tunable in [&delay.per_work, &delay.per_kbyte] {
        assert!(tunable.set(1_000_000) && !tunable.set(1_000_001));
    }
    assert_eq!(delay.of(1, u64::MAX), 1_000_000 + u64::MAX / 1024);
}
