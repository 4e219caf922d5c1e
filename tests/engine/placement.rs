// SPDX-License-Identifier: GPL-2.0

//! Which worker a new device gets.

use proptest::prelude::*;
use vhost_iocm_engine::engine::abi::{parse_group, parse_rule, Malformed, WorkerId};
use vhost_iocm_engine::engine::sched::placement::{least_loaded, Candidate, Rule};

fn candidate(worker: u32, load: u32, pending: u64, virtqueues: u32) -> Candidate {
    Candidate {
        worker: WorkerId(worker),
        load,
        pending,
        virtqueues,
    }
}

#[test]
fn nobody_is_chosen_from_none() {
    assert_eq!(least_loaded([]), None);
}

#[test]
fn the_smallest_load_wins_over_the_fewest_virtqueues() {
    let chosen = least_loaded([candidate(0, 300, 0, 0), candidate(1, 100, 0, 16)]);
    assert_eq!(chosen, Some(WorkerId(1)));
}

#[test]
fn a_trace_of_load_does_not_count() {
    let chosen = least_loaded([candidate(0, 0, 0, 16), candidate(1, 20, 0, 2)]);
    assert_eq!(chosen, Some(WorkerId(1)));
}

#[test]
fn idle_workers_get_devices_in_turn() {
    let mut workers = [0, 1, 2].map(|worker| candidate(worker, 0, 0, 0));
    let mut order = Vec::new();
    for _ in 0..6 {
        let chosen = least_loaded(workers).expect("a worker");
        order.push(chosen.0);
        workers[chosen.0 as usize].virtqueues += 2;
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn the_age_of_work_tells_workers_apart_that_have_no_time_left() {
    let busy = [candidate(0, 951, 900_000, 2), candidate(1, 1000, 90_000, 8)];
    assert_eq!(least_loaded(busy), Some(WorkerId(1)));
    let busy = [candidate(0, 949, 900_000, 2), candidate(1, 1000, 90_000, 8)];
    assert_eq!(least_loaded(busy), Some(WorkerId(0)));
    // An age that is an old memory of a worker with time to spare means nothing.
    let idle = [candidate(0, 0, 900_000, 2), candidate(1, 0, 90_000, 8)];
    assert_eq!(least_loaded(idle), Some(WorkerId(0)));
}

#[test]
fn a_rule_considers_its_group() {
    assert!(!Rule::Default.considers(0));
    assert!(Rule::LeastLoaded.considers(0) && Rule::LeastLoaded.considers(7));
    assert!(Rule::LeastLoadedOf(7).considers(7) && !Rule::LeastLoadedOf(7).considers(0));
}

#[test]
fn what_is_no_rule_is_malformed() {
    for text in [
        "",
        "\n",
        "Default",
        "default ",
        "default 1",
        "least_loaded ",
        "least_loaded x",
        "least_loaded -1",
        "least_loaded 01",
        "least_loaded 1 2",
        "least_loaded  1",
        "least_loaded\t1",
        "least_loaded 4294967296",
        "least",
        "0",
        "least_loaded 1\n\n",
    ] {
        assert_eq!(parse_rule(text.as_bytes()), Err(Malformed), "{text:?}");
    }
}

#[test]
fn a_group_is_a_number() {
    assert_eq!(parse_group(b"0\n"), Ok(0));
    assert_eq!(parse_group(b"4294967295"), Ok(u32::MAX));
    for text in ["", "\n", "-1", "+1", "01", "1 ", "4294967296", "x"] {
        assert_eq!(parse_group(text.as_bytes()), Err(Malformed), "{text:?}");
    }
}

proptest! {
    #![proptest_config(crate::cases(256))]

    #[test]
    fn what_is_printed_for_a_rule_is_read_as_that_rule(group: u32, newline: bool) {
        for rule in [Rule::Default, Rule::LeastLoaded, Rule::LeastLoadedOf(group)] {
            let mut text = rule.to_string();
            if newline {
                text.push('\n');
            }
            prop_assert_eq!(parse_rule(text.as_bytes()), Ok(rule));
        }
    }

    #[test]
    fn the_order_of_the_workers_does_not_matter(
        values in prop::collection::vec((any::<u32>(), any::<u64>(), any::<u32>()), 1..20)
    ) {
        let workers: Vec<_> = values
            .iter()
            .enumerate()
            .map(|(worker, (load, pending, virtqueues))| {
                candidate(worker as u32, *load, *pending, *virtqueues)
            })
            .collect();
        let chosen = least_loaded(workers.iter().copied());
        prop_assert!(chosen.is_some());
        prop_assert_eq!(chosen, least_loaded(workers.iter().rev().copied()));
    }
}
