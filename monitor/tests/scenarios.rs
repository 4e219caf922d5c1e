// SPDX-License-Identifier: GPL-2.0

//! What the default policy comes to on the scenarios that are shipped, with a few seeds and costs, the
//! smallest and the largest among them: those of `iocm simulate SCENARIO --seeds NUMBER`.
//! docs/simulation.md has what it comes to with thirty.

use iocm::policy::standard::Settings;
use iocm::simulate::cli::SHIPPED;
use iocm::simulate::costs::Costs;
use iocm::simulate::experiment::{sweep, Results};
use iocm::simulate::scenario::Scenario;

/// Compares the policies on a scenario with so many seeds. `ratio` is the most that the default policy
/// may cost in parts of the optimum, on average; it has to be cheaper than stock threads and than the
/// original's as well.
fn compare(name: &str, seeds: usize, ratio: f64) {
    let (_, text) = SHIPPED
        .iter()
        .find(|(shipped, _)| *shipped == name)
        .expect("a scenario that is shipped");
    let scenario = Scenario::parse(text).expect("the scenario is valid");
    let costs = Costs::sweep(seeds, 1);
    let results = Results::of(
        &scenario,
        &sweep(&scenario, &costs, 1, &Settings::default()),
    );
    let [standard, original, stock] = &results.rows[..3] else {
        panic!("a policy is missing");
    };
    let mean = standard.ratio.mean;
    assert!(mean <= ratio, "{name}: {mean:.4} of the optimum");
    for other in [original, stock] {
        assert!(
            standard.cost.mean < other.cost.mean,
            "{name}: {:.4} cores with the default policy, {:.4} with {}",
            standard.cost.mean,
            other.cost.mean,
            other.name
        );
    }
}

#[test]
fn six_small_vms() {
    compare("six-small-vms", 2, 1.02);
}

#[test]
fn large_vm() {
    compare("large-vm", 4, 1.18);
}

#[test]
fn messages() {
    compare("messages", 2, 1.03);
}

#[test]
fn netperf() {
    compare("netperf", 2, 1.02);
}

#[test]
fn web_server() {
    compare("web-server", 4, 1.05);
}

#[test]
fn flash_crowd() {
    compare("flash-crowd", 6, 1.05);
}

#[test]
fn elephant_and_mice() {
    compare("elephant-and-mice", 2, 1.02);
}

#[test]
fn oscillation() {
    compare("oscillation", 2, 1.04);
}

#[test]
fn vm_churn() {
    compare("vm-churn", 5, 1.07);
}
