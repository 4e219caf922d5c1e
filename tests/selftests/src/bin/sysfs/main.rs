// SPDX-License-Identifier: GPL-2.0
//! The control interface: what its files say, what they take, and what they refuse.

mod cpus;
mod devices;
mod formats;
mod placement;
mod races;
mod workers;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let control = Control::default();
    let mut suite = Suite::new();
    formats::add(&mut suite, &options, &control);
    workers::add(&mut suite, &options, &control);
    cpus::add(&mut suite, &options, &control);
    placement::add(&mut suite, &options, &control);
    devices::add(&mut suite, &options, &control);
    races::add(&mut suite, &options, &control);
    suite.run(&options.filters)
}
