// SPDX-License-Identifier: GPL-2.0

//! The account of how long it takes to hand an object over from one worker to another.

use super::cpu;
use super::inbox::Inbox;
use super::served::Service;
use core::ptr;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{new_spinlock, SpinLock};

/// A hand-over that is under way.
struct Account {
    /// When it began, in nanoseconds.
    begun: u64,
    /// Slices that had to end for it so far.
    slices: u64,
    /// The address of the inbox whose reader's slices count from `mark` on. It is compared only.
    reader: usize,
    /// The number of slices that this reader had ended then.
    mark: u64,
}

impl Account {
    /// Counts the slices of `reader` from now on.
    fn count<S: Service>(&mut self, reader: &Inbox<S>) {
        self.reader = ptr::from_ref(reader).addr();
        self.mark = reader.slices();
    }

    /// Ends a stay with `reader`, which began when that had ended `since` slices, or later. Returns
    /// false if it was with another: then nothing had waited when the account began.
    fn leave<S: Service>(&mut self, reader: &Inbox<S>, since: u64) -> bool {
        let stayed = self.reader == ptr::from_ref(reader).addr();
        if stayed {
            let ended = reader.slices().saturating_sub(self.mark.max(since));
            self.slices = self.slices.saturating_add(ended);
        }
        stayed
    }
}

/// The account of an object. Who moves the object begins it after the request, so the reader that
/// passes the object on may be faster, and a hand-over is then not counted.
#[pin_data]
pub(super) struct HandOver {
    /// Whether there is an account, for those who look at each slice.
    under_way: Atomic<bool>,
    #[pin]
    account: SpinLock<Option<Account>>,
}

impl HandOver {
    /// None is under way.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            under_way: Atomic::new(false),
            account <- new_spinlock!(None, "vhost_iocm::HandOver::account"),
        })
    }

    /// Begins an account: the object waits with the reader of `from`, and that of `to` is to have it. A
    /// hand-over that begins before another one has ended is part of that one. If it takes the object back to
    /// where it still waits, there is none.
    pub(super) fn begin<S: Service>(&self, from: &Inbox<S>, to: *const Inbox<S>) {
        let mut account = self.account.lock();
        if account
            .as_ref()
            .is_some_and(|account| account.reader == to.addr())
        {
            *account = None;
            self.under_way.store(false, Relaxed);
        } else if account.is_none() {
            let mut new = Account {
                begun: cpu::now(),
                slices: 0,
                reader: 0,
                mark: 0,
            };
            new.count(from);
            *account = Some(new);
            self.under_way.store(true, Relaxed);
        }
    }

    /// The reader of `from`, which has had the object since it had ended `since` slices, or later,
    /// passes it on to that of `to`, to which `push` hands it.
    pub(super) fn pass_on<S: Service>(
        &self,
        from: &Inbox<S>,
        since: u64,
        to: &Inbox<S>,
        push: impl FnOnce(),
    ) {
        // Locked until the slices of `to` are looked at, which is after the object waits for them: what
        // ends before is not waited for, however long the caller is kept from pushing. The other reader
        // that takes the object meanwhile waits in `end`.
        let mut account = self.account.lock();
        push();
        *account = account.take().and_then(|mut account| {
            let stayed = account.leave(from, since);
            account.count(to);
            stayed.then_some(account)
        });
    }

    /// Ends the account: the reader of `inbox` has taken the object. Returns how long that took, in
    /// nanoseconds and slices, if there was an account.
    pub(super) fn end<S: Service>(&self, inbox: &Inbox<S>) -> Option<(u64, u64)> {
        let mut account = self.account.lock().take()?;
        self.under_way.store(false, Relaxed);
        account
            .leave(inbox, 0)
            .then(|| (cpu::now().saturating_sub(account.begun), account.slices))
    }

    /// Gives the account up: nothing that waits is handed over.
    pub(super) fn cancel(&self) {
        if self.under_way.load(Relaxed) {
            *self.account.lock() = None;
            self.under_way.store(false, Relaxed);
        }
    }
}
