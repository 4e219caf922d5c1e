// SPDX-License-Identifier: GPL-2.0
//! What cannot be done.

use std::fs;

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::control::Control;

use crate::running::{directory, program};

pub fn refusals() -> Result<()> {
    let control = Control::default();
    let worker = control.restore()?;
    let file = directory()?.join("broken.toml");
    fs::write(&file, "interval_ms = 100\nintervall = 3\n")?;
    let file = file.to_str().context("path")?;
    let cases: &[(&[&str], i32, &str)] = &[
        (&["set", &worker, "nice", "99"], 2, "takes -20 to 19"),
        (&["set", &worker, "colour", "3"], 2, "it has cpus"),
        (&["worker", "create", "4000"], 2, "online"),
        (&["worker", "remove", "w.4000"], 5, "no worker w.4000"),
        (&["move", "d.4000", &worker], 5, "no device d.4000"),
        (&["move", "d.4000", "d.3"], 2, "no worker"),
        (&["config", "check", file], 6, "line 2"),
        (&["config", "check", "/nowhere.toml"], 1, "nowhere.toml"),
    ];
    for (arguments, status, words) in cases {
        let output = program()?.args(*arguments).output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(*status) && text.contains(words),
            "{arguments:?} ended with {} and said {text}",
            output.status
        );
    }
    Ok(())
}
