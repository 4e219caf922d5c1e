// SPDX-License-Identifier: GPL-2.0
//! The binary snapshot of workers, devices and virtqueues.

mod access;
mod contents;
mod lifetime;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let control = Control::default();
    let mut suite = Suite::new();
    access::add(&mut suite, &control, &options);
    contents::add(&mut suite, &control, &options);
    lifetime::add(&mut suite, &control, &options);
    suite.run(&options.filters)
}
