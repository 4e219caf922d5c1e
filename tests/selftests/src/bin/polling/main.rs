// SPDX-License-Identifier: GPL-2.0
//! Virtqueues that their worker looks at by itself: when it does, when it stops, and that nothing is
//! missed in between.

mod idle;
mod modes;
mod parking;
mod replaced;
mod states;
mod suppression;
mod timeout;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let control = Control::default();
    let mut suite = Suite::new();
    modes::add(&mut suite, &options, &control);
    suppression::add(&mut suite, &options, &control);
    parking::add(&mut suite, &options, &control);
    replaced::add(&mut suite, &options, &control);
    states::add(&mut suite, &options, &control);
    timeout::add(&mut suite, &options, &control);
    idle::add(&mut suite, &options, &control);
    suite.run(&options.filters)
}
