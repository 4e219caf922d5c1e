// SPDX-License-Identifier: GPL-2.0

//! Decisions about notifications in both directions.

use vhost_iocm_engine::engine::error::RingError;
use vhost_iocm_engine::engine::ring::notify::event_passed;

use crate::guest::{Access, Guest};

/// NO_NOTIFY of the used ring and NO_INTERRUPT of the available ring.
const SUPPRESSED: u16 = 1;

#[test]
fn an_event_is_passed_when_the_index_steps_over_it() {
    // Stepping through the indices is the definition; the engine has a formula.
    for old in [0, 1, 0x7fff, 0xfff0, 0xffff_u16] {
        for steps in 0..40 {
            for distance in 0..60 {
                let event = old.wrapping_sub(10).wrapping_add(distance);
                let stepped_over = (0..steps).any(|step| old.wrapping_add(step) == event);
                let new = old.wrapping_add(steps);
                assert_eq!(
                    event_passed(event, new, old),
                    stepped_over,
                    "event {event} new {new} old {old}"
                );
            }
        }
    }
}

#[test]
fn the_largest_step_passes_all_events_but_one() {
    let (old, new) = (5_u16, 4);
    let passed = (0..=u16::MAX).filter(|event| event_passed(*event, new, old));
    assert_eq!(passed.count(), 65535);
    assert!(!event_passed(4, new, old));
}

#[test]
fn without_event_index_the_flag_of_the_driver_decides() {
    let mut guest = Guest::new(4);
    assert!(guest.needs_interrupt());
    guest.write_avail_flags(SUPPRESSED);
    assert!(!guest.needs_interrupt());
    guest.write_avail_flags(0);
    assert!(guest.needs_interrupt());
}

#[test]
fn other_flags_of_the_driver_mean_nothing() {
    let mut guest = Guest::new(4);
    guest.write_avail_flags(!SUPPRESSED);
    assert!(guest.needs_interrupt());
    guest.write_avail_flags(!0);
    assert!(!guest.needs_interrupt());
}

#[test]
fn a_driver_whose_flags_cannot_be_read_is_interrupted() {
    let mut guest = Guest::new(4);
    guest.write_avail_flags(SUPPRESSED);
    guest.mem.break_range(guest.layout.avail..guest.layout.used);
    assert!(guest.needs_interrupt());
}

#[test]
fn with_event_index_the_flag_means_nothing() {
    let mut guest = Guest::new(4).starting_at(0).with_features(true, false);
    guest.needs_interrupt();
    guest.write_avail_flags(SUPPRESSED);
    guest.write_used_event(0);
    guest.push(1);
    assert!(guest.needs_interrupt());
}

#[test]
fn with_event_index_the_first_decision_is_to_interrupt() {
    let mut guest = Guest::new(4).starting_at(0).with_features(true, false);
    guest.write_used_event(1000);
    guest.push(1);
    assert!(guest.needs_interrupt());
}

#[test]
fn with_event_index_a_driver_is_interrupted_once_per_event() {
    let mut guest = Guest::new(8).starting_at(0).with_features(true, false);
    guest.push(1);
    guest.needs_interrupt();
    guest.write_used_event(2);
    guest.push(1);
    assert!(!guest.needs_interrupt(), "index 2 has not passed event 2");
    guest.push(1);
    assert!(guest.needs_interrupt(), "index 3 passed event 2");
    guest.push(1);
    assert!(!guest.needs_interrupt(), "event 2 was passed before");
}

#[test]
fn nothing_given_back_is_no_reason_to_interrupt() {
    let mut guest = Guest::new(4).starting_at(0).with_features(true, false);
    guest.push(1);
    guest.needs_interrupt();
    for event in [0, 1, 2] {
        guest.write_used_event(event);
        assert!(!guest.needs_interrupt());
    }
}

#[test]
fn an_event_within_a_batch_interrupts() {
    let mut guest = Guest::new(8).starting_at(0).with_features(true, false);
    guest.needs_interrupt();
    guest.write_used_event(2);
    guest.push(5);
    assert!(guest.needs_interrupt());
}

#[test]
fn events_are_passed_over_the_wrap_of_the_index() {
    let mut guest = Guest::new(8).starting_at(0xfffe).with_features(true, false);
    guest.needs_interrupt();
    guest.write_used_event(0xffff);
    guest.push(1);
    assert!(!guest.needs_interrupt());
    guest.push(2);
    assert!(guest.needs_interrupt());
    guest.write_used_event(1);
    guest.push(1);
    assert!(guest.needs_interrupt());
}

#[test]
fn a_driver_whose_event_cannot_be_read_is_interrupted() {
    let mut guest = Guest::new(4).starting_at(0).with_features(true, false);
    guest.needs_interrupt();
    guest.write_used_event(1000);
    let event = guest.layout.avail + 4 + 2 * 4;
    guest.mem.break_range(event..event + 2);
    guest.push(1);
    assert!(guest.needs_interrupt());
}

#[test]
fn the_index_that_a_decision_was_made_for_is_remembered_when_the_event_was_unreadable() {
    let mut guest = Guest::new(4).starting_at(0).with_features(true, false);
    guest.needs_interrupt();
    guest.write_used_event(0);
    let event = guest.layout.avail + 4 + 2 * 4;
    guest.mem.break_range(event..event + 2);
    guest.push(1);
    guest.needs_interrupt();
    guest.mem.repair();
    guest.push(1);
    assert!(!guest.needs_interrupt());
}

/// A ring whose used index was at 10 at the last decision and has since moved by `count`.
fn moved_without_decision(count: u32) -> Guest {
    let mut guest = Guest::new(16384).starting_at(10).with_features(true, false);
    guest.needs_interrupt();
    // An event that only a forgotten window can pass, whatever the distance.
    guest.write_used_event(9);
    let mut left = count;
    while left > 0 {
        let batch = left.min(1000);
        guest.push(batch);
        left -= batch;
    }
    guest
}

#[test]
fn the_window_of_an_event_holds_for_65535_elements() {
    assert!(!moved_without_decision(65534).needs_interrupt());
    assert!(!moved_without_decision(65535).needs_interrupt());
}

#[test]
fn the_window_of_an_event_is_forgotten_when_the_index_went_around() {
    assert!(moved_without_decision(65536).needs_interrupt());
    assert!(moved_without_decision(65537).needs_interrupt());
    assert!(moved_without_decision(66000).needs_interrupt());
    assert!(moved_without_decision(70000).needs_interrupt());
}

#[test]
fn a_window_that_was_forgotten_is_remembered_anew_by_the_decision() {
    let mut guest = moved_without_decision(70000);
    assert!(guest.needs_interrupt());
    guest.push(1);
    assert!(!guest.needs_interrupt());
}

#[test]
fn a_batch_over_the_end_of_the_ring_can_forget_the_window_in_its_second_part() {
    let mut guest = Guest::new(32768).starting_at(0).with_features(true, false);
    guest.needs_interrupt();
    guest.write_used_event(0xffff);
    guest.push(32768);
    guest.push(16384);
    // 16384 elements up to the end of the ring bring the index to the one remembered, 0.
    guest.push(16384 + 5);
    assert!(guest.needs_interrupt());
}

#[test]
fn with_notify_on_empty_a_drained_ring_interrupts_against_the_wish_of_the_driver() {
    let mut guest = Guest::new(4).with_features(false, true);
    guest.write_avail_flags(SUPPRESSED);
    guest.post_singles(2);
    guest.pop_head();
    assert!(!guest.needs_interrupt(), "one entry is left");
    guest.pop_head();
    assert!(guest.needs_interrupt());
}

#[test]
fn with_notify_on_empty_a_drained_ring_interrupts_whatever_the_event() {
    let mut guest = Guest::new(4).starting_at(0).with_features(true, true);
    guest.write_used_event(1000);
    guest.post_singles(2);
    guest.pop_head();
    guest.needs_interrupt();
    assert!(!guest.needs_interrupt(), "one entry is left");
    guest.pop_head();
    assert!(guest.needs_interrupt());
    assert!(guest.needs_interrupt());
}

#[test]
fn without_notify_on_empty_a_drained_ring_does_not_interrupt_against_the_wish() {
    let mut guest = Guest::new(4);
    guest.write_avail_flags(SUPPRESSED);
    guest.post_singles(1);
    guest.pop_head();
    assert!(!guest.needs_interrupt());
}

#[test]
fn asking_for_silence_sets_the_flag_once() {
    let mut guest = Guest::new(4);
    guest.disable_notify();
    guest.disable_notify();
    let flags = Access::WriteU16(guest.layout.used, SUPPRESSED);
    assert_eq!(guest.mem.accesses(), [flags]);
}

#[test]
fn asking_for_silence_with_event_index_touches_nothing() {
    let mut guest = Guest::new(4).with_features(true, false);
    guest.disable_notify();
    assert_eq!(guest.mem.accesses(), []);
}

#[test]
fn silence_that_cannot_be_written_is_reported() {
    let mut guest = Guest::new(4);
    guest
        .mem
        .break_range(guest.layout.used..guest.layout.used + 2);
    assert_eq!(guest.ring.disable_notify(&guest.mem), Err(RingError::Fault));
}

#[test]
fn asking_for_notifications_clears_the_flag_and_then_looks() {
    let mut guest = Guest::new(4);
    guest.disable_notify();
    guest.mem.forget_accesses();
    assert_eq!(guest.enable_notify(), Ok(false));
    assert_eq!(
        guest.mem.accesses(),
        [
            Access::WriteU16(guest.layout.used, 0),
            Access::ReadU16(guest.layout.avail + 2),
        ]
    );
}

#[test]
fn asking_for_notifications_with_event_index_names_the_next_index_and_then_looks() {
    let mut guest = Guest::new(4).starting_at(5).with_features(true, false);
    guest.post_singles(2);
    guest.pop_head();
    guest.pop_head();
    guest.disable_notify();
    guest.mem.forget_accesses();
    assert_eq!(guest.enable_notify(), Ok(false));
    assert_eq!(
        guest.mem.accesses(),
        [
            Access::WriteU16(guest.layout.used + 4 + 8 * 4, 7),
            Access::ReadU16(guest.layout.avail + 2),
        ]
    );
}

#[test]
fn the_event_follows_what_was_seen_and_not_what_was_taken() {
    let mut guest = Guest::new(8).starting_at(0).with_features(true, false);
    guest.post_singles(3);
    guest.pop_head();
    guest.disable_notify();
    assert_eq!(guest.enable_notify(), Ok(false));
    assert_eq!(guest.avail_event(), 3);
}

#[test]
fn asking_twice_for_notifications_does_nothing() {
    let mut guest = Guest::new(4);
    guest.disable_notify();
    guest.enable_notify().unwrap();
    guest.post_singles(1);
    guest.mem.forget_accesses();
    assert_eq!(guest.enable_notify(), Ok(false));
    assert_eq!(guest.mem.accesses(), []);
}

#[test]
fn entries_that_appeared_meanwhile_are_reported_and_found() {
    for event_idx in [false, true] {
        let mut guest = Guest::new(4).with_features(event_idx, false);
        guest.disable_notify();
        guest.post_singles(1);
        assert_eq!(guest.enable_notify(), Ok(true));
        assert_eq!(guest.pop_head(), Some(0));
    }
}

/// CVE-2026-74356: a device that leaves entries because they are too few, and is told that there
/// are entries, would try again for ever.
#[test]
fn entries_that_were_seen_and_left_are_not_reported_again() {
    for event_idx in [false, true] {
        let mut guest = Guest::new(4).with_features(event_idx, false);
        guest.post_singles(2);
        guest.disable_notify();
        guest.pop_head();
        guest.pop_head();
        guest.ring.unpop(2);
        assert_eq!(guest.enable_notify(), Ok(false));
    }
}

#[test]
fn an_entry_after_those_that_were_left_is_reported() {
    for event_idx in [false, true] {
        let mut guest = Guest::new(4).with_features(event_idx, false);
        guest.post_singles(1);
        guest.disable_notify();
        guest.pop_head();
        guest.ring.unpop(1);
        guest.publish(1);
        assert_eq!(guest.enable_notify(), Ok(true));
    }
}

#[test]
fn an_impossible_index_is_reported_when_notifications_are_asked_for() {
    let mut guest = Guest::new(4);
    guest.disable_notify();
    guest.write_avail_idx(5);
    assert_eq!(guest.enable_notify(), Err(RingError::AvailIndex));
}

#[test]
fn asking_for_notifications_reports_what_cannot_be_reached() {
    for event_idx in [false, true] {
        let guest = Guest::new(4).with_features(event_idx, false);
        let asked = if event_idx {
            guest.layout.used + 4 + 8 * 4
        } else {
            guest.layout.used
        };
        for field in [asked, guest.layout.avail + 2] {
            let mut ring = guest.ring;
            ring.disable_notify(&guest.mem).unwrap();
            guest.mem.break_range(field..field + 2);
            assert_eq!(ring.enable_notify(&guest.mem), Err(RingError::Fault));
            guest.mem.repair();
        }
    }
}

#[test]
fn silence_can_be_asked_for_again_after_it_was_ended() {
    let mut guest = Guest::new(4);
    guest.disable_notify();
    guest.enable_notify().unwrap();
    assert_eq!(guest.used_flags(), 0);
    guest.disable_notify();
    assert_eq!(guest.used_flags(), SUPPRESSED);
}
