// SPDX-License-Identifier: GPL-2.0
//! The dirty log: every page that the device writes is in it, and no page that it does not write.

mod errors;
mod pages;
mod requests;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let mut suite = Suite::new();
    requests::add(&mut suite, &options);
    pages::add(&mut suite, &options);
    errors::add(&mut suite, &options);
    suite.run(&options.filters)
}
