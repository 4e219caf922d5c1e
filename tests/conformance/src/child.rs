// SPDX-License-Identifier: GPL-2.0
//! A forked child, which has its parent's memory as it was, and is another process.

use std::io::{Read, Write};

use anyhow::{ensure, Context, Result};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{fork, pipe, ForkResult};

/// Lets a forked child do something, and returns what it says. It has ended then.
pub fn in_child(run: impl FnOnce() -> Result<String>) -> Result<String> {
    let (reader, writer) = pipe().context("pipe")?;
    // SAFETY: The test has one thread, so the child may do whatever the parent may.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let text = run().unwrap_or_else(|error| format!("{error:#}"));
            let written = std::fs::File::from(writer).write_all(text.as_bytes());
            std::process::exit(i32::from(written.is_err()));
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut text = String::new();
            std::fs::File::from(reader).read_to_string(&mut text)?;
            let status = waitpid(child, None).context("wait for the child")?;
            ensure!(
                matches!(status, WaitStatus::Exited(_, 0)),
                "the child ended with {status:?}"
            );
            Ok(text)
        }
    }
}
