// SPDX-License-Identifier: GPL-2.0

//! How busy a worker has been lately.

use proptest::prelude::*;
use vhost_iocm_engine::engine::sched::load::{Load, LOAD_MAX};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// Serves for `share` parts per thousand of each millisecond of a second from `begin` on.
fn serve(load: &Load, begin: u64, share: u64) -> u64 {
    for index in 0..1000 {
        load.charge(share * 1000, begin + index * MS + share * 1000);
    }
    begin + SECOND
}

#[test]
fn a_worker_that_never_served_has_no_load() {
    assert_eq!(Load::new().share(0), 0);
    assert_eq!(Load::new().share(u64::MAX), 0);
}

#[test]
fn the_load_is_gone_a_second_after_the_work() {
    let load = Load::new();
    let end = serve(&load, 5 * SECOND, 999);
    assert!(load.share(end) > 980, "{}", load.share(end));
    assert!(load.share(end + 100 * MS) < 500);
    assert_eq!(load.share(end + SECOND), 0);
    assert_eq!(load.share(u64::MAX), 0);
}

#[test]
fn reading_changes_nothing() {
    let load = Load::new();
    let end = serve(&load, 5 * SECOND, 500);
    let before = load.share(end);
    assert_eq!(load.share(end + SECOND), 0);
    assert_eq!(load.share(end), before);
}

#[test]
fn one_long_slice_is_no_more_than_all_of_the_time() {
    let load = Load::new();
    for index in 1..100 {
        load.charge(u64::MAX, index * 10 * MS);
        assert!(load.share(index * 10 * MS) <= LOAD_MAX);
    }
    assert!(load.share(SECOND) > 990);
}

proptest! {
    #![proptest_config(crate::cases(64))]

    #[test]
    fn the_load_is_the_share_of_the_time(share in 0u64..=1000, begin in 0u64..u64::MAX / 2) {
        let load = Load::new();
        let end = serve(&load, begin, share);
        // The last slice may end in a window that is not over yet.
        let shown = u64::from(load.share(end + 10 * MS));
        prop_assert!(shown.abs_diff(share) <= share / 8 + 10, "{shown} of {share}");
    }

    #[test]
    fn a_clock_that_goes_back_does_no_harm(times in prop::collection::vec(any::<u64>(), 1..50)) {
        let load = Load::new();
        for time in times {
            load.charge(time, time);
            prop_assert!(load.share(time) <= LOAD_MAX);
        }
    }
}
