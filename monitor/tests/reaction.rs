// SPDX-License-Identifier: GPL-2.0

//! How soon the default policy follows a step of the load, and how often it changes its mind.

use iocm::policy::fixed::Fixed;
use iocm::policy::standard::{Settings, Standard};
use iocm::policy::Policy;
use iocm::simulate::costs::Costs;
use iocm::simulate::host::{Host, Setup};
use iocm::simulate::measure::{mean, Outcome, Window, WINDOW};
use iocm::simulate::scenario::Scenario;

/// Intervals within which a step has to be followed.
const REACTION: f64 = 10.0;
/// The time between two decisions, in milliseconds.
const INTERVAL: f64 = 10.0;
/// The most cores.
const MOST: u32 = 4;
/// VMs.
const VMS: u32 = 6;
/// Bytes of a request and of its answer.
const BYTES: [u32; 2] = [128, 32_768];

fn run(scenario: &Scenario, costs: Costs, cores: u32, policy: &mut dyn Policy) -> Outcome {
    let setup = Setup {
        scenario,
        costs,
        seed: 1,
        signal_batch: 64,
        cores,
    };
    Host::new(&setup).run(Some(policy)).0
}

/// File servers whose load is `rates` requests in a second each, for `phase` milliseconds each.
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
        vms = {VMS}
        receive_bytes = {}
        guest_us = 8.0
        transmit_bytes = {}
        target_us = 1000.0
        arrival = {{ kind = "open", rate = 1.0 }}
        phase = [{}]
        "#,
        phase * rates.len(),
        BYTES[0],
        BYTES[1],
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

/// Cores that are kept at a time, in milliseconds.
fn cores_at(outcome: &Outcome, time: f64) -> u32 {
    let last = outcome.changes.iter().rfind(|(at, _)| *at <= time);
    last.map_or(0, |(_, cores)| *cores)
}

/// Ten intervals after each step, up and down, there are as many cores as are best for the load if
/// the number may not change, whatever things cost and however long it takes to take a core. That is
/// so after each step if the policy is told what a notification costs on the host. If it has to
/// assume that, there may be fewer after a single step up, which cost no more than the policy's
/// `margin` more. A number with which workers would be busier than the policy is allowed to
/// make them is not asked for.
#[test]
fn steps_are_followed_within_ten_intervals() {
    const PHASE: usize = 500;
    const RATES: [f64; 5] = [500.0, 40_000.0, 500.0, 60_000.0, 500.0];
    let scenario = scenario(PHASE, &RATES);
    let settings = Settings::default();
    let windows = PHASE * 1_000_000 / WINDOW as usize;
    let mut ups = 0;
    let mut others = 0;
    for costs in Costs::sweep(10, 7) {
        let fixed: Vec<Outcome> = (0..=MOST)
            .map(|cores| run(&scenario, costs, cores, &mut Fixed { cores }))
            .collect();
        let mut told = settings.clone();
        told.cores.assumptions.notification_ns = costs.exit.round() as u64;
        let [assuming, told] = [settings.clone(), told]
            .map(|settings| run(&scenario, costs, 0, &mut Standard::new(settings)));
        let request: u64 = BYTES.iter().map(|bytes| costs.service(*bytes)).sum();
        for (step, rate) in RATES.iter().enumerate().skip(1) {
            // Packets, and a slice for each virtqueue as often as work may wait.
            let often = 2.0 * 1e6 / settings.cores.age_us as f64;
            let vm = (rate * request as f64 + often * costs.slice) * 1e-9;
            let is_allowed = |cores: u32| {
                let vms = VMS.checked_div(cores).map_or(0, |_| VMS.div_ceil(cores));
                f64::from(vms) * vm < settings.cores.utilisation
            };
            // Without the window in which the step is: what is left over from before is served in it.
            let phase = step * windows + 1..(step + 1) * windows;
            let cost = |cores: u32| {
                let windows = &fixed[cores as usize].windows[phase.clone()];
                mean(windows.iter().map(Window::cost))
            };
            let best = (0..=MOST)
                .filter(|cores| is_allowed(*cores))
                .min_by(|one, other| cost(*one).total_cmp(&cost(*other)))
                .expect("none is always allowed");
            let soon = (step * PHASE) as f64 + REACTION * INTERVAL;
            let check = |reached: u32, margin: f64| {
                assert!(
                    cost(reached) <= cost(best) + margin,
                    "{reached} cores cost {:.2}, and {best} {:.2}, after step {step} with {costs:?}",
                    cost(reached),
                    cost(best)
                );
            };
            let reached = cores_at(&told, soon);
            ups += u32::from(reached > 0);
            check(reached, 0.0);
            let reached = cores_at(&assuming, soon);
            let is_up = *rate > RATES[step - 1];
            others += u32::from(cost(reached) > cost(best));
            let margin = if is_up && reached < best {
                settings.cores.margin * f64::from(best)
            } else {
                0.0
            };
            check(reached, margin);
        }
    }
    assert!(ups >= 8, "cores were taken after {ups} steps only");
    assert!(others <= 1, "another number after {others} steps up");
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
            let outcome = run(&scenario, costs, 0, &mut policy);
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
        let outcome = run(&scenario, costs, 0, &mut policy);
        let times = changes(&outcome);
        assert!(times.len() <= 20, "{} changes in 100 jumps", times.len());
    }
}
