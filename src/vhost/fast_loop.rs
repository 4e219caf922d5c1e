// SPDX-License-Identifier: GPL-2.0

//! The fast loop: wakes parked workers and parks them again, by the rules of
//! `engine::sched::standby`.
//!
//! It sleeps until a worker that begins a slice finds that the work is too old and that a parked
//! worker could help. Then it checks all workers at intervals, until none is congested and none is
//! woken.

use super::pool::Pool;
use super::virtqueue::Virtqueue;
use crate::kern::inbox::Inbox;
use crate::kern::parameters;
use crate::kern::thread::{Body, Current, Thread, Urgency};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Full, Relaxed};
use kernel::sync::Arc;

/// Those who wait for the fast loop have more than they can do, so it does not wait behind others.
/// What it does takes some microseconds in each interval.
const URGENCY: Urgency = Urgency {
    nice: -20,
    priority: 0,
};

/// What wakes the fast loop.
pub struct Bell {
    /// Whether the loop is to check the workers, and goes on to.
    rung: Atomic<bool>,
    /// Nothing is ever handed to the loop; its inbox knows whom to wake.
    inbox: Arc<Inbox<Virtqueue>>,
}

impl Bell {
    /// A bell that nobody hears yet.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                rung: Atomic::new(false),
                inbox: Inbox::new()?,
            },
            GFP_KERNEL,
        )?)
    }

    /// Lets the loop check the workers, unless it does already. One that is just about to stop may
    /// miss it: who still has reason to rings again in the next slice.
    pub fn ring(&self) {
        // The full order pairs with the announcement in `Current::sleep_until`: the loop sees the
        // bell rung, or is seen asleep.
        if !self.rung.load(Relaxed) && !self.rung.xchg(true, Full) {
            self.inbox.wake_reader();
        }
    }
}

/// The loop: what its thread works with.
pub struct FastLoop {
    pool: Arc<Pool>,
    bell: Arc<Bell>,
}

impl FastLoop {
    /// Starts the loop for the workers of `pool`. Dropping the thread ends it, after the check that
    /// it may be in.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINTR` when the process is being killed.
    pub fn start(pool: &Arc<Pool>) -> Result<Thread<Self>> {
        let body = Arc::new(
            Self {
                pool: pool.clone(),
                bell: pool.bell(),
            },
            GFP_KERNEL,
        )?;
        Thread::spawn(c"vhost-balance", None, URGENCY, body)
    }
}

impl Body for FastLoop {
    type Service = Virtqueue;

    fn inbox(&self) -> &Inbox<Virtqueue> {
        &self.bell.inbox
    }

    fn run(&self, current: &mut Current) {
        while !current.should_stop() {
            if !self.bell.rung.load(Relaxed) {
                current.sleep_until(|| self.bell.rung.load(Relaxed), None);
            } else {
                current.sleep_until(|| false, Some(parameters::balance_interval()));
                self.bell.rung.store(self.pool.balance(), Relaxed);
            }
            current.breathe();
        }
    }
}
