// SPDX-License-Identifier: GPL-2.0

//! Batches that end in time.

use proptest::prelude::*;
use vhost_iocm_engine::engine::sched::batch::Batches;

const MOST: usize = 64;

#[test]
fn batches_are_as_large_as_they_can_be_without_a_limit() {
    let mut batches = Batches::new();
    assert!(!batches.is_limited());
    assert_eq!(batches.size(MOST), MOST);
    batches.note_sent(64, None);
    assert_eq!(batches.size(MOST), MOST);
}

#[test]
fn the_first_batch_under_a_limit_is_one_frame() {
    let mut batches = Batches::new();
    batches.set_limit(10_000);
    assert!(batches.is_limited());
    assert_eq!(batches.size(MOST), 1);
    batches.note_sent(1, Some(1000));
    assert_eq!(batches.size(MOST), 10);
}

#[test]
fn a_limit_that_one_frame_exceeds_lets_one_frame_pass() {
    let mut batches = Batches::new();
    batches.set_limit(1);
    for _ in 0..10 {
        assert_eq!(batches.size(MOST), 1);
        batches.note_sent(1, Some(1000));
    }
}

#[test]
fn frames_that_take_no_time_are_sent_at_most_as_many_as_fit() {
    let mut batches = Batches::new();
    batches.set_limit(u64::MAX);
    batches.note_sent(1, Some(0));
    assert_eq!(batches.size(MOST), MOST);
    batches.set_limit(0);
    assert_eq!(batches.size(MOST), MOST);
}

#[test]
fn batches_are_counted_once() {
    let mut batches = Batches::new();
    assert_eq!(batches.take_sent(), 0);
    batches.note_sent(64, None);
    batches.note_sent(1, Some(5));
    assert_eq!(batches.take_sent(), 2);
    assert_eq!(batches.take_sent(), 0);
}

proptest! {
    #[test]
    fn batches_of_steady_frames_come_to_what_fits(
        limit in 1_000u64..1_000_000, cost in 10u64..10_000, overhead in 0u64..5_000,
    ) {
        let mut batches = Batches::new();
        batches.set_limit(limit);
        for _ in 0..200 {
            let frames = batches.size(MOST) as u64;
            batches.note_sent(frames, Some(overhead + frames * cost));
        }
        let frames = batches.size(MOST) as u64;
        // The last frame may end after the limit; the average lags by a nanosecond for each frame.
        let (takes, frame) = (overhead + frames * cost, overhead / frames + cost);
        prop_assert!(frames == 1 || takes <= limit + frame + frames, "{frames} take {takes}");
        let fits = (limit.saturating_sub(overhead) / cost).min(MOST as u64);
        prop_assert!(frames + 1 + fits / 8 >= fits, "{frames} of {fits}");
    }
}
