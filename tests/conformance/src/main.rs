// SPDX-License-Identifier: GPL-2.0
//! Does the same with stock vhost_net and with vhost_iocm, and compares what they do.
//!
//! Both have a node in the same kernel. Every case is a sequence of requests, ring contents and packets;
//! answers, memory, eventfds and packets are recorded, and the two records have to be the same but for
//! what [`differences`] and [`fuzz::known`] list.

mod case;
mod cases;
mod child;
mod device;
mod differences;
mod event;
mod fuzz;
#[path = "../../selftests/src/ktap.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "the suites of the selftests use more of it, and test it"
)]
mod ktap;
mod log;
mod memory;
#[path = "../../selftests/src/random.rs"]
#[allow(dead_code, reason = "the suites of the selftests use more of it")]
mod random;
mod rig;
mod ring;
mod tap;
mod transcript;

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use case::Node;
use ktap::Suite;

/// Compares what stock vhost_net and vhost_iocm do.
#[derive(Parser)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Task>,

    /// The node of stock vhost_net.
    #[arg(required = true)]
    stock: Option<PathBuf>,

    /// The node of vhost_iocm.
    #[arg(required = true)]
    ours: Option<PathBuf>,

    /// Print what stock vhost does in each case.
    #[arg(long)]
    records: bool,

    /// Run only the cases whose name contains one of these words.
    filters: Vec<String>,
}

#[derive(Subcommand)]
enum Task {
    /// Compares what both do with rings and packets made from seeds.
    Fuzz {
        /// The seeds, FROM..TO: the last one is left out.
        #[arg(long, value_parser = range)]
        seeds: Range<u64>,

        /// Print what stock vhost does with each seed.
        #[arg(long)]
        records: bool,

        /// The node of stock vhost_net.
        stock: PathBuf,

        /// The node of vhost_iocm.
        ours: PathBuf,
    },
    /// Makes calls on a device that another program passed on.
    #[command(hide = true)]
    Call {
        /// The device's descriptor.
        fd: i32,
        /// Which calls.
        row: usize,
    },
}

fn range(text: &str) -> Result<Range<u64>> {
    let (from, to) = text.split_once("..").context("no FROM..TO")?;
    Ok(from.parse()?..to.parse()?)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Task::Fuzz {
            seeds,
            records,
            stock,
            ours,
        }) => nodes(stock, ours).map(|(stock, ours)| fuzz::run(seeds, &stock, &ours, records)),
        Some(Task::Call { fd, row }) => cases::call_as_other(fd, row).map(|()| ExitCode::SUCCESS),
        None => match (arguments.stock, arguments.ours) {
            (Some(stock), Some(ours)) => nodes(stock, ours)
                .map(|(stock, ours)| compare(&stock, &ours, arguments.records, &arguments.filters)),
            // The parser has seen to it.
            _ => Ok(ExitCode::FAILURE),
        },
    };
    result.unwrap_or_else(|error| {
        eprintln!("conformance: {error:#}");
        ExitCode::FAILURE
    })
}

fn nodes(stock: PathBuf, ours: PathBuf) -> Result<(Node, Node)> {
    Ok((Node::new(&stock)?, Node::new(&ours)?))
}

fn compare(stock: &Node, ours: &Node, records: bool, filters: &[String]) -> ExitCode {
    let cases = cases::all();
    let mut suite = Suite::new();
    for case in &cases.list {
        suite.case(case.name.clone(), move || {
            case.run_patiently(stock, ours, records)
        });
    }
    suite.run(filters)
}
