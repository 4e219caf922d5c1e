// SPDX-License-Identifier: GPL-2.0
//! The control interface: what its files say, what they take, and what they refuse.

mod devices;
mod formats;
mod races;
mod workers;

use std::process::ExitCode;

use anyhow::{ensure, Result};
use clap::Parser;
use nix::errno::Errno;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let control = Control::default();
    let mut suite = Suite::new();
    formats::add(&mut suite, &options, &control);
    workers::add(&mut suite, &options, &control);
    devices::add(&mut suite, &options, &control);
    races::add(&mut suite, &options, &control);
    suite.run(&options.filters)
}

/// Names of workers that cannot be one, whatever workers there are.
const MALFORMED_WORKERS: &[&str] = &[
    "\n", "0", "w", "w.", "w.x", "w.0x", "w.-1", "w. 0", " w.0", "w.0 ", "w.0\t", "w.0\n\n",
    "w.0,w.0", "W.0", "w0", "d.0", "w.0\0", "w.+0", "w.0.0", "w.0x0",
];

/// Checks that a write is refused with this error, and that nothing in the whole tree changed by it.
fn expect_refused(control: &Control, file: &str, text: &str, errno: Errno) -> Result<()> {
    let before = control.snapshot()?;
    let answer = control.write(file, text);
    ensure!(
        answer == Err(errno),
        "writing {text:?} to {file} gave {answer:?}, expected {errno:?}"
    );
    let after = control.snapshot()?;
    for (path, text_before) in &before {
        let text_after = after.get(path);
        ensure!(
            text_after == Some(text_before),
            "the refused write of {text:?} to {file} changed {} from {text_before:?} to {text_after:?}",
            path.display()
        );
    }
    ensure!(
        after.len() == before.len(),
        "the refused write of {text:?} to {file} made a file"
    );
    Ok(())
}
