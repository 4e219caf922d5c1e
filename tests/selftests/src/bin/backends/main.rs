// SPDX-License-Identifier: GPL-2.0
//! Backends: which descriptors a virtqueue takes, and that packets go through each kind.

mod refused;
mod traffic;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let mut suite = Suite::new();
    traffic::add(&mut suite, &options);
    refused::add(&mut suite, &options);
    suite.run(&options.filters)
}
