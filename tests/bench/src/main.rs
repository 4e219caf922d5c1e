// SPDX-License-Identifier: GPL-2.0
//! What serving costs, measured in the same boot for the kernel's vhost_net and for vhost_iocm.

mod bare;
mod counts;
mod crowd;
mod mqtt;
mod open_loop;
mod operations;
mod pairs;
mod plot;
mod processes;
mod profile;
mod rates;
mod record;
mod results;
mod samples;
mod subject;
mod testpmd;
mod times;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, Result};
use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::pairs::Wanted;
use crate::record::Tier;
use crate::subject::Subjects;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure, and print each record as a line of JSON.
    Measure {
        /// The node of the kernel's vhost_net.
        #[arg(long, default_value = "/dev/vhost-net")]
        stock: PathBuf,

        /// The node of vhost_iocm, loaded with another name.
        #[arg(long, default_value = "/dev/vhost-iocm")]
        ours: PathBuf,

        /// How to measure.
        #[arg(long, ignore_case = true)]
        tier: Tier,

        /// Only the metrics whose name contains one of these.
        metrics: Vec<String>,
    },
    /// Make records of measurements that another program made, and print each as a line of JSON.
    Compare {
        /// How they were made.
        #[arg(long, ignore_case = true)]
        tier: Tier,
    },
    /// Load MQTT brokers, and print how many messages came back in a second.
    Mqtt(mqtt::Load),
    /// Collect the records among the lines of the standard input into a file, and show the ratios. Profiles go into
    /// another one beside it, functions.txt.
    Collect {
        /// The file.
        results: PathBuf,
    },
    /// Draw the ratios, those of each tier into a file of its own.
    Plot {
        /// The records.
        results: PathBuf,
        /// Where the pictures go.
        directory: PathBuf,
    },
    /// Fail if a ratio of the results is more than 1 % above that of the baseline.
    Check {
        /// What was measured.
        results: PathBuf,
        /// What it is compared with.
        baseline: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Measure {
            stock,
            ours,
            tier,
            metrics,
        } => {
            let subjects = Subjects::new(&stock, &ours)?;
            let wanted = Wanted(metrics);
            let records = match tier {
                Tier::T1 => {
                    let mut records = counts::run(&subjects, &wanted)?;
                    let (parts, rows) = profile::run(&subjects, &wanted)?;
                    records.extend(parts);
                    print(&rows)?;
                    records
                }
                Tier::T2 | Tier::T3 => {
                    print(&rates::run(&subjects, &wanted)?)?;
                    return open_loop::run(&subjects, &wanted, print);
                }
                Tier::T4 => bail!("tests/bench/guests measures tier t4"),
                Tier::T5 => {
                    print(&times::run(&subjects, &wanted)?)?;
                    return processes::run(&subjects, &wanted, print);
                }
            };
            print(&records)
        }
        Command::Compare { tier } => print(&samples::compare(tier, std::io::stdin().lock())?),
        Command::Mqtt(load) => {
            println!("{:.1}", mqtt::run(&load)?);
            Ok(())
        }
        Command::Collect { results } => results::collect(std::io::stdin().lock(), &results),
        Command::Plot { results, directory } => plot::draw(&results, &directory),
        Command::Check { results, baseline } => results::check(&results, &baseline),
    }
}

/// Prints each of them as a line.
fn print(records: &[impl Serialize]) -> Result<()> {
    for record in records {
        println!("{}", serde_json::to_string(record)?);
    }
    Ok(())
}
