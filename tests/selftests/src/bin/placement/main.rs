// SPDX-License-Identifier: GPL-2.0
//! Which worker serves a virtqueue: single ones move, and no packet notices, whatever else happens.

mod chaos;
mod removal;
mod virtqueues;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::{Flavour, Options};

#[derive(Parser)]
struct Arguments {
    /// Moves amid everything else that can happen (default: 100000, in a debug kernel 3000).
    #[arg(long, env = "VHOST_IOCM_CHAOS")]
    moves: Option<u32>,

    /// Where the random numbers start, to see a failure again.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let options = &arguments.options;
    let moves = arguments.moves.unwrap_or(match Flavour::of_environment() {
        Flavour::Plain => 100_000,
        Flavour::Debug => 3_000,
    });
    let control = Control::default();
    let mut suite = Suite::new();
    virtqueues::add(&mut suite, options, &control);
    removal::add(&mut suite, options, &control);
    chaos::add(&mut suite, options, &control, moves, arguments.seed);
    suite.run(&options.filters)
}
