// SPDX-License-Identifier: GPL-2.0

//! How often the default policy changes its mind.

use iocm::policy::standard::{Settings, Standard};
use iocm::policy::Policy;
use iocm::simulate::costs::Costs;
use iocm::simulate::host::{Host, Setup};
use iocm::simulate::measure::Outcome;
use iocm::simulate::scenario::Scenario;

/// The most cores.
const MOST: u32 = 4;
fn run(scenario: &Scenario, costs: Costs, policy: &mut dyn Policy) -> Outcome {
    let setup = Setup {
        scenario,
        costs,
        seed: 1,
        signal_batch: 64,
        cores: 0,
    };
    Host::new(&setup).run(Some(policy)).0
}

/// Six file servers whose load is `rates` requests in a second each, for `phase` milliseconds each.
fn scenario(phase: usize, rates: &[f64]) -> Scenario {
    let phases: Vec<String> = rates
        .iter()
        .enumerate()
        .map(|(index, rate)| format!("{{ at_ms = {}, rate = {rate} }}", index * phase))
        .collect();
    let text = format!(
        r#"
        description = "steps"
        duration_ms = {}
        cores = 16
        cores_max = {MOST}
        [[load]]
        name = "requests"
        vms = 6
        receive_bytes = 128
        guest_us = 8.0
        transmit_bytes = 32768
        target_us = 1000.0
        arrival = {{ kind = "open", rate = 1.0 }}
        phase = [{}]
        "#,
        phase * rates.len(),
        phases.join(", ")
    );
    Scenario::parse(&text).expect("the scenario is valid")
}

/// When the number of cores changed, by however many at once, in milliseconds.
fn changes(outcome: &Outcome) -> Vec<f64> {
    let mut times: Vec<f64> = outcome.changes.iter().map(|(at, _)| *at).collect();
    times.dedup();
    times
}

/// A load that jumps up and down is followed by one change for each jump, and one more at most.
#[test]
fn oscillation_makes_one_superfluous_change_at_most() {
    for half in [20, 50, 120, 250] {
        let steps = 2000 / half;
        let rates: Vec<f64> = (0..steps)
            .map(|step| if step % 2 == 0 { 3_000.0 } else { 45_000.0 })
            .collect();
        let scenario = scenario(half, &rates);
        for costs in Costs::sweep(6, 11) {
            let mut policy = Standard::new(Settings::default());
            let outcome = run(&scenario, costs, &mut policy);
            let times = changes(&outcome);
            for step in 0..steps {
                let from = (step * half) as f64;
                let count = times
                    .iter()
                    .filter(|at| (from..from + half as f64).contains(*at))
                    .count();
                assert!(
                    count <= 2,
                    "{count} changes after the jump at {from} ms with {costs:?}: {times:?}"
                );
            }
        }
    }
}

/// What jumps too fast for a change to pay is not followed again and again.
#[test]
fn fast_oscillation_is_left_alone() {
    let rates: Vec<f64> = (0..100)
        .map(|step| if step % 2 == 0 { 3_000.0 } else { 45_000.0 })
        .collect();
    let scenario = scenario(20, &rates);
    for costs in Costs::sweep(6, 13) {
        let mut policy = Standard::new(Settings::default());
        let outcome = run(&scenario, costs, &mut policy);
        let times = changes(&outcome);
        assert!(times.len() <= 20, "{} changes in 100 jumps", times.len());
    }
}
