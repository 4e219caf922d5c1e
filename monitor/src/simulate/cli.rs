// SPDX-License-Identifier: GPL-2.0

//! `iocm simulate`.

use super::costs::Costs;
use super::experiment::{sweep, Comparison, Results};
use super::scenario::Scenario;
use crate::policy::standard::Settings;
use anyhow::{ensure, Context, Result};
use clap::Args as ClapArgs;
use std::path::PathBuf;

/// The scenarios that come with the program, in the order in which they are shown.
pub const SHIPPED: [(&str, &str); 9] = [
    (
        "six-small-vms",
        include_str!("../../scenarios/six-small-vms.toml"),
    ),
    ("large-vm", include_str!("../../scenarios/large-vm.toml")),
    ("messages", include_str!("../../scenarios/messages.toml")),
    ("netperf", include_str!("../../scenarios/netperf.toml")),
    (
        "web-server",
        include_str!("../../scenarios/web-server.toml"),
    ),
    (
        "flash-crowd",
        include_str!("../../scenarios/flash-crowd.toml"),
    ),
    (
        "elephant-and-mice",
        include_str!("../../scenarios/elephant-and-mice.toml"),
    ),
    (
        "oscillation",
        include_str!("../../scenarios/oscillation.toml"),
    ),
    ("vm-churn", include_str!("../../scenarios/vm-churn.toml")),
];

/// Try policies on a model of a host
#[derive(Clone, Debug, ClapArgs)]
pub struct Args {
    /// Scenarios: files, or names of those that come with the program
    #[arg(value_name = "SCENARIO", required_unless_present_any = ["all", "list"])]
    scenarios: Vec<PathBuf>,
    /// Run all scenarios that come with the program
    #[arg(long, conflicts_with = "scenarios")]
    all: bool,
    /// Name the scenarios that come with the program
    #[arg(long)]
    list: bool,
    /// Runs of each scenario; each has its own seed, and its own costs within their ranges
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// The first seed; the costs of all runs follow from it and their number
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    first_seed: u64,
    /// Print the decisions of the default policy in the run of each scenario that has this seed, or
    /// in the first run, and why
    #[arg(long, value_name = "SEED", num_args = 0..=1, require_equals = true)]
    explain: Option<Option<u64>>,
    /// Thresholds of the default policy, as TOML
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Write a report with plots
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the results
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
///
/// A file cannot be read or written, or says something that makes no sense.
pub fn run(args: &Args) -> Result<()> {
    if args.list {
        for (name, text) in SHIPPED {
            println!("{name}: {}", Scenario::parse(text)?.description);
        }
        return Ok(());
    }
    let settings = match &args.policy {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            toml::from_str(&text).with_context(|| format!("in {}", path.display()))?
        }
        None => Settings::default(),
    };
    let scenarios = scenarios(args)?;
    let costs = Costs::sweep(args.seeds as usize, args.first_seed);
    let mut all = Vec::new();
    if let Some(seed) = args.explain {
        let seed = seed.unwrap_or(args.first_seed);
        let costs = seed
            .checked_sub(args.first_seed)
            .and_then(|index| costs.get(usize::try_from(index).ok()?));
        let costs = costs.with_context(|| format!("none of the runs has the seed {seed}"))?;
        for scenario in &scenarios {
            explain(scenario, *costs, seed, &settings);
        }
        return Ok(());
    }
    for scenario in &scenarios {
        let comparisons = sweep(scenario, &costs, args.first_seed, &settings);
        ensure!(
            comparisons.len() == costs.len(),
            "a run of the scenario {} failed",
            scenario.name
        );
        let results = Results::of(scenario, &comparisons);
        print(&results);
        all.push((results, comparisons));
    }
    if let Some(path) = &args.json {
        let results: Vec<&Results> = all.iter().map(|(results, _)| results).collect();
        let text = serde_json::to_string_pretty(&results)?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.html {
        let text = super::report::html(&all)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn scenarios(args: &Args) -> Result<Vec<Scenario>> {
    let shipped = |(name, text): &(&str, &str)| -> Result<Scenario> {
        let mut scenario =
            Scenario::parse(text).with_context(|| format!("in the scenario {name}"))?;
        (*name).clone_into(&mut scenario.name);
        Ok(scenario)
    };
    if args.all {
        return SHIPPED.iter().map(shipped).collect();
    }
    args.scenarios
        .iter()
        .map(|path| {
            SHIPPED
                .iter()
                .find(|(name, _)| path.as_os_str() == *name)
                .map_or_else(|| Scenario::read(path), shipped)
        })
        .collect()
}

fn explain(scenario: &Scenario, costs: Costs, seed: u64, settings: &Settings) {
    println!("{} with {costs:?}", scenario.name);
    for (time, plan) in super::experiment::decisions(scenario, costs, seed, settings) {
        for step in &plan.steps {
            let milliseconds = time as f64 / 1e6;
            println!("{milliseconds:8.1} ms  {}: {}", step.action, step.reason);
        }
    }
}

fn print(results: &Results) {
    println!(
        "{}: optimum {:.3} cores, best static number {}",
        results.scenario.name, results.optimum.mean, results.best_static
    );
    println!("                    cost   of optimum   worst   cores     p99    late changes");
    for row in &results.rows {
        println!(
            "  {:15} {:7.3} {:6.2} +-{:4.2} {:7.2} {:7.3} {:7.2} {:6.1}% {:7.1}",
            row.name,
            row.cost.mean,
            row.ratio.mean,
            row.ratio.half_width,
            row.ratio_max,
            row.cores.mean,
            row.p99.mean,
            row.late * 100.0,
            row.changes
        );
    }
    println!(
        "  the default policy is dearer than stock threads for {} seeds of {}, than the original for {}",
        results.dearer_than_stock, results.seeds, results.dearer_than_original
    );
}

/// What the report is made of.
pub type Report = Vec<(Results, Vec<Comparison>)>;
