// SPDX-License-Identifier: GPL-2.0
//! Who gets how much of a worker that has more to do than it can.

mod ceiling;
mod latency;
mod shares;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let control = Control::default();
    let mut suite = Suite::new();
    shares::add(&mut suite, &options, &control);
    ceiling::add(&mut suite, &options, &control);
    latency::add(&mut suite, &options, &control);
    suite.run(&options.filters)
}
