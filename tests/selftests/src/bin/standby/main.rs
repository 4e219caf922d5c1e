// SPDX-License-Identifier: GPL-2.0
//! Standby workers: parked until work waits for too long, woken to take some of it over, and parked again.

mod chaos;
mod crowd;
mod idle;
mod limits;
mod loan;
mod parameters;
mod states;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

#[derive(Parser)]
struct Arguments {
    /// Changes of the control interface while workers are woken and parked (default: 2000, in a debug
    /// kernel 200).
    #[arg(long)]
    changes: Option<u32>,

    /// Where the random numbers start, to see a failure again.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = &arguments.options;
    let changes = arguments
        .changes
        .unwrap_or_else(|| options.volume(2_000, 100));
    let control = Control::default();
    let mut suite = Suite::new();
    states::add(&mut suite, options, &control);
    parameters::add(&mut suite);
    idle::add(&mut suite, options, &control);
    loan::add(&mut suite, options, &control);
    limits::add(&mut suite, options, &control);
    chaos::add(&mut suite, options, &control, changes, arguments.seed);
    suite.run(&options.filters)
}
