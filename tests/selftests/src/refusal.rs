// SPDX-License-Identifier: GPL-2.0
//! Writes to the control interface that must fail and change nothing.

use anyhow::{ensure, Result};
use nix::errno::Errno;

use crate::control::Control;

/// Names of workers that cannot be one, whatever workers there are.
pub const MALFORMED_WORKERS: &[&str] = &[
    "\n", "0", "w", "w.", "w.x", "w.0x", "w.-1", "w. 0", " w.0", "w.0 ", "w.0\t", "w.0\n\n",
    "w.0,w.0", "W.0", "w0", "d.0", "w.0\0", "w.+0", "w.0.0", "w.0x0",
];

/// Texts that are no number, however large or small numbers may be.
pub const MALFORMED_NUMBERS: &[&str] = &[
    "\n", "x", "1x", "0x1", "1 2", "1\t2", " 1", "1 ", "--1", "-", "+", "1\0", "1\n\n", "1.5",
    "1,0", "w.0",
];

/// Checks that a write is refused with this error, and that nothing in the whole tree changed by it.
pub fn expect_refused(control: &Control, file: &str, text: &str, errno: Errno) -> Result<()> {
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
