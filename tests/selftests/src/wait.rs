// SPDX-License-Identifier: GPL-2.0
//! Bounded waiting: every wait names what it waits for, and fails by that name.

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::options::Flavour;

/// How long a condition without a file descriptor rests between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// The longest that anything may take before a test calls it a failure.
///
/// It is far above what is ever needed, because a machine without hardware virtualisation emulates
/// the kernel under test, and the instrumented one is slower again by an order of magnitude.
pub fn patience() -> Duration {
    static PATIENCE: OnceLock<Duration> = OnceLock::new();
    *PATIENCE.get_or_init(|| match Flavour::of_environment() {
        Flavour::Debug => Duration::from_secs(90),
        Flavour::Plain => Duration::from_secs(20),
    })
}

/// Waits until the condition holds.
///
/// # Errors
///
/// Fails when the condition fails, or does not hold within [`patience`].
pub fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + patience();
    while !condition().with_context(|| format!("waiting for: {what}"))? {
        if Instant::now() > end {
            bail!("not within {:?}: {what}", patience());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Waits until one of the descriptors is readable, and says whether one was within the limit.
pub fn readable(descriptors: &[BorrowedFd<'_>], limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    let mut entries: Vec<_> = descriptors
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut entries, timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
    }
}
