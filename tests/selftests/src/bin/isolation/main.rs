// SPDX-License-Identifier: GPL-2.0
//! A device whose memory is missing, or whose backend is full, holds up nobody but itself.

mod home;
mod meanwhile;
mod neighbour;
mod stalled;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::{Flavour, Options};

#[derive(Parser)]
struct Arguments {
    /// Seconds for which the page faults of a device are left unanswered (default: 10, in a debug
    /// kernel 2).
    #[arg(long, env = "VHOST_IOCM_STALL")]
    stall: Option<u64>,

    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let Arguments { stall, options } = Arguments::parse();
    let stall = stall.unwrap_or(match Flavour::of_environment() {
        Flavour::Plain => 10,
        Flavour::Debug => 2,
    });
    let control = Control::default();
    let mut suite = Suite::new();
    neighbour::add(&mut suite, &options, &control, Duration::from_secs(stall));
    meanwhile::add(&mut suite, &options, &control);
    home::add(&mut suite, &options, &control);
    suite.run(&options.filters)
}
