// SPDX-License-Identifier: GPL-2.0

//! What the monitor is told by signals, while it waits for the next interval.

use crate::failure::{Failure, Result};
use nix::errno::Errno;
use nix::poll::{ppoll, PollFd, PollFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use std::os::fd::AsFd;
use std::time::Duration;

/// Signals that interrupt nothing and wait until they are asked for. To wait for one until a moment is a
/// single call of the system, which counts with a hundred intervals in a second.
pub struct Signals(SignalFd);

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The configuration is to be read again (SIGHUP).
    Reload,
    /// The monitor is to end (SIGINT, SIGTERM).
    End,
}

impl Signals {
    /// Holds these signals back, in this thread and those that it makes from now on.
    ///
    /// # Errors
    ///
    /// Whatever the system refuses it with.
    pub fn hold() -> Result<Self> {
        let signals = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];
        let signals: SigSet = signals.into_iter().collect();
        signals
            .thread_block()
            .and_then(|()| {
                SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            })
            .map(Self)
            .map_err(failure)
    }

    /// Waits for an order, for so long at most.
    ///
    /// # Errors
    ///
    /// Whatever waiting fails with.
    pub fn wait(&self, time: Duration) -> Result<Option<Order>> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from(time)), None) {
            Ok(0) | Err(Errno::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(errno) => return Err(failure(errno)),
        }
        let signal = self.0.read_signal().map_err(failure)?;
        Ok(
            signal.map(|signal| match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGHUP) => Order::Reload,
                _ => Order::End,
            }),
        )
    }
}

fn failure(errno: Errno) -> Failure {
    Failure::System {
        what: "cannot wait for signals".into(),
        source: errno.into(),
    }
}
