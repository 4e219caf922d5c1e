// SPDX-License-Identifier: GPL-2.0
//! The ioctls: which calls are answered, with which error, in which state of the device.

mod fixture;
mod matrix;
mod semantics;

use std::process::ExitCode;

use clap::Parser;
use fixture::Bench;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let bench = Bench::new(&options);
    let mut suite = Suite::new();
    matrix::add(&mut suite, &bench);
    semantics::add(&mut suite, &options, &bench);
    suite.run(&options.filters)
}
