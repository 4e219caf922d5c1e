// SPDX-License-Identifier: GPL-2.0
//! Rings of a guest that does whatever it likes: nothing breaks, and its neighbour on the worker gets all of
//! its frames.

mod arena;
mod hostile;
mod input;
mod malice;
mod measured;
mod neighbour;
mod racer;
mod waiting;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

#[derive(Parser)]
struct Arguments {
    /// How many scripts of a hostile guest are played (default: 20,000, in a debug kernel 1,000). Each shows
    /// the device nearly three rings.
    #[arg(long, env = "VHOST_IOCM_MALICE")]
    scripts: Option<u64>,

    /// The first of them, to play one again.
    #[arg(long, default_value_t = 0)]
    first: u64,

    /// What their bytes follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let Arguments {
        scripts,
        first,
        seed,
        options,
    } = Arguments::parse();
    let scripts = scripts.unwrap_or(options.volume(20_000, 1_000));
    let control = Control::default();
    let mut suite = Suite::new();
    malice::add(&mut suite, &options, &control, seed, first..first + scripts);
    waiting::add(&mut suite, &options, &control);
    measured::add(&mut suite, &options, &control, seed);
    suite.run(&options.filters)
}
