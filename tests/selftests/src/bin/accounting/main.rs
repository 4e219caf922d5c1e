// SPDX-License-Identifier: GPL-2.0
//! Every nanosecond of a worker has an owner, and every counter counts what it says and nothing else.

mod events;
mod notified;
mod polled;
mod still;
mod time;

use std::process::ExitCode;

use clap::Parser;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let control = Control::default();
    let mut suite = Suite::new();
    still::add(&mut suite, &options, &control);
    notified::add(&mut suite, &options, &control);
    polled::add(&mut suite, &options, &control);
    events::add(&mut suite, &options, &control);
    time::add(&mut suite, &options, &control);
    suite.run(&options.filters)
}
