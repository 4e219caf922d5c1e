// SPDX-License-Identifier: GPL-2.0

//! What the monitor is told by signals, while it waits for the next interval.

use crate::failure::{Failure, Result};
use nix::errno::Errno;
use nix::poll::ppoll;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::time::TimeSpec;
use signal_hook::flag;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// Signals that interrupt nothing but waiting for them. To wait for one until a moment is a single call of
/// the system, which counts with a hundred intervals in a second, and it is one that has no file to look at.
pub struct Signals {
    /// What is held back while the monitor waits: nothing that was not before.
    waiting: SigSet,
    reload: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
}

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
        let [reload, end] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let meanings = [
            (Signal::SIGHUP, &reload),
            (Signal::SIGINT, &end),
            (Signal::SIGTERM, &end),
        ];
        // They are held back first: none is to come between two waits without being seen.
        let held: SigSet = meanings.iter().map(|(signal, _)| *signal).collect();
        let mut waiting = held
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .map_err(failure)?;
        for (signal, flag) in meanings {
            waiting.remove(signal);
            flag::register(signal as i32, Arc::clone(flag)).map_err(failure)?;
        }
        Ok(Self {
            waiting,
            reload,
            end,
        })
    }

    /// Waits for an order, for so long at most.
    ///
    /// # Errors
    ///
    /// Whatever waiting fails with.
    pub fn wait(&self, time: Duration) -> Result<Option<Order>> {
        match ppoll(&mut [], Some(TimeSpec::from(time)), Some(self.waiting)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failure(errno)),
        }
        let was_sent = |flag: &AtomicBool| flag.swap(false, Ordering::Relaxed);
        Ok(if was_sent(&self.end) {
            Some(Order::End)
        } else {
            was_sent(&self.reload).then_some(Order::Reload)
        })
    }
}

fn failure(source: impl Into<io::Error>) -> Failure {
    Failure::System {
        what: "cannot wait for signals".into(),
        source: source.into(),
    }
}
