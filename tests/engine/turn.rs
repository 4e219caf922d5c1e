// SPDX-License-Identifier: GPL-2.0

//! Whose turn it is on a worker.

use proptest::prelude::*;
use vhost_iocm_engine::engine::sched::turn::{Place, Turn};

/// Takes the parts of the worker's loop in turn; `found` says who was found stuck in each of them.
/// Returns what was done, in order.
fn run(found: &[Option<Place>]) -> Vec<Place> {
    let mut turn = Turn::new();
    let mut done = Vec::new();
    let mut found = found.iter();
    for place in [Place::Work, Place::Polled].into_iter().cycle() {
        if turn.passes_over(place) {
            continue;
        }
        let Some(found) = found.next() else {
            return done;
        };
        done.push(place);
        if let Some(first) = found {
            turn.set_first(*first);
        }
    }
    done
}

#[test]
fn works_and_looks_alternate_while_nobody_is_stuck() {
    use Place::{Polled, Work};
    assert_eq!(run(&[None; 4]), [Work, Polled, Work, Polled]);
}

#[test]
fn who_is_stuck_is_next() {
    use Place::{Polled, Work};
    assert_eq!(run(&[Some(Work), None, None]), [Work, Work, Polled]);
    assert_eq!(run(&[Some(Polled), None, None]), [Work, Polled, Work]);
    assert_eq!(run(&[None, Some(Polled), None]), [Work, Polled, Polled]);
    assert_eq!(run(&[None, Some(Work), None]), [Work, Polled, Work]);
}

proptest! {
    #[test]
    fn who_is_stuck_is_next_unless_the_others_were_passed_over_before(
        found in prop::collection::vec(
            prop_oneof![Just(None), Just(Some(Place::Work)), Just(Some(Place::Polled))], 1..50,
        ),
    ) {
        let done = run(&found);
        for index in 0..found.len() - 1 {
            let again = done[index + 1] == done[index];
            let before = index > 0 && done[index] == done[index - 1];
            prop_assert_eq!(again, found[index] == Some(done[index]) && !before);
        }
    }
}

#[test]
fn nobody_is_passed_over_twice_in_a_row() {
    use Place::{Polled, Work};
    assert_eq!(
        run(&[Some(Work); 7]),
        [Work, Work, Polled, Work, Work, Polled, Work]
    );
}

#[test]
fn a_place_that_goes_first_may_be_empty_by_then() {
    let mut turn = Turn::new();
    turn.set_first(Place::Polled);
    assert!(turn.passes_over(Place::Work));
    // It has its turn, and nothing is there any more.
    assert!(!turn.passes_over(Place::Polled));
    assert!(!turn.passes_over(Place::Work));
}
