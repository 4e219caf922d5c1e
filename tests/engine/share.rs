// SPDX-License-Identifier: GPL-2.0

//! Ceilings on the time of a device.

use proptest::prelude::*;
use vhost_iocm_engine::engine::sched::share::{Share, TIME_SHARE_MAX};

#[test]
fn without_a_ceiling_nothing_is_throttled() {
    let share = Share::new();
    assert_eq!(share.ceiling(), TIME_SHARE_MAX);
    for now in (0..1_000_000_000).step_by(1_000_000) {
        share.charge(1_000_000, now);
        assert_eq!(share.throttled_until(now), None);
    }
}

proptest! {
    #![proptest_config(crate::cases(64))]

    #[test]
    fn a_device_gets_its_ceiling_and_no_more(
        ceiling in 1u32..TIME_SHARE_MAX,
        slice in 1_000u64..5_000_000,
        begin in 0u64..u64::MAX / 4,
    ) {
        let share = Share::new();
        share.set_ceiling(ceiling);
        let time = 60_000_000_000;
        let (mut now, mut used) = (begin, 0);
        while now < begin + time {
            match share.throttled_until(now) {
                Some(until) => {
                    prop_assert!(until > now && until - now <= 10_000_000);
                    now = until;
                }
                None => {
                    now += slice;
                    used += slice;
                    share.charge(slice, now);
                }
            }
        }
        let allowed = time / 1000 * u64::from(ceiling);
        // The first window and the last slice may be used in full.
        prop_assert!(used <= allowed + 20_000_000 + slice, "{used} of {allowed}");
        prop_assert!(used + 20_000_000 + slice >= allowed * 99 / 100, "{used} of {allowed}");
    }
}

proptest! {
    #![proptest_config(crate::cases(64))]

    #[test]
    fn who_only_looks_sees_what_who_serves_is_told(
        ceiling in 1u32..=TIME_SHARE_MAX,
        steps in prop::collection::vec((0u64..30_000_000, 0u64..15_000_000), 1..100),
    ) {
        let share = Share::new();
        share.set_ceiling(ceiling);
        let mut now = 1_000_000_000;
        for (pause, used) in steps {
            now += pause;
            let throttled = share.is_throttled(now);
            prop_assert_eq!(share.is_throttled(now), throttled);
            prop_assert_eq!(share.throttled_until(now).is_some(), throttled);
            share.charge(used, now);
        }
    }
}
