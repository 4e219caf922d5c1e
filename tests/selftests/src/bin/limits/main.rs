// SPDX-License-Identifier: GPL-2.0
//! The limits of the original interface: what they are, what they do, and that nothing is lost by them.

mod batches;
mod bounds;
mod coalescing;
mod data;
mod delay;
mod soft_interrupts;
mod stuck;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let control = Control::default();
    let mut suite = Suite::new();
    bounds::add(&mut suite, &options, &control);
    data::add(&mut suite, &options, &control);
    stuck::add(&mut suite, &options, &control);
    coalescing::add(&mut suite, &options, &control);
    batches::add(&mut suite, &options, &control);
    delay::add(&mut suite, &options, &control);
    soft_interrupts::add(&mut suite, &options, &control);
    suite.run(&options.filters)
}
