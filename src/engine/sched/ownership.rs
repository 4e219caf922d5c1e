// SPDX-License-Identifier: GPL-2.0

//! The state machine that gives a virtqueue to exactly one thread at a time.
//!
//! A virtqueue is marked *pending* from any context (a kick, a socket event), stands on at most
//! one list of one worker, and is *taken* by one thread at a time: by its worker, which serves a
//! slice, or by a control operation, which *holds* it to change it. The whole state is one word:
//!
//! | flag | meaning | set by | cleared by |
//! |---|---|---|---|
//! | PENDING | there is, or may be, something to serve | mark, finish | begin |
//! | LISTED | it stands on a worker's list, which has a reference to it | mark, finish, release | begin |
//! | SERVED | its worker serves it | begin | finish |
//! | HELD | a control operation holds it | hold, finish, release | release |
//! | WANTED | a control operation waits for it | hold | finish, release |
//! | GRANTED | it was handed to a waiting control operation, which has not woken up yet | finish, release | hold |
//!
//! | transition | from | to | what the caller does |
//! |---|---|---|---|
//! | mark | neither LISTED, SERVED nor HELD | PENDING, LISTED | puts it on its worker's list |
//! | mark | LISTED, SERVED or HELD | PENDING | nothing: begin, finish or release will see it |
//! | begin | LISTED, PENDING, not HELD | SERVED | serves a slice |
//! | begin | LISTED and HELD, or not PENDING | not LISTED | nothing |
//! | finish | SERVED, WANTED | HELD, GRANTED | wakes those who wait |
//! | finish | SERVED, not WANTED, PENDING or more to do | PENDING, LISTED | puts it on a list again |
//! | finish | SERVED, not WANTED, nothing to do | nothing set | nothing |
//! | hold | neither SERVED nor HELD; or GRANTED, after a wait | HELD | changes the virtqueue |
//! | hold | SERVED or HELD, otherwise | WANTED | waits, then tries again |
//! | release | HELD, WANTED | HELD, GRANTED | wakes those who wait |
//! | release | HELD, not WANTED, PENDING, not LISTED | PENDING, LISTED | puts it on its worker's list |
//! | release | HELD, not WANTED, otherwise | the rest | nothing |
//!
//! Which worker owns a virtqueue may change only while it is held. A worker that takes one that
//! it does not own any more finishes it at once with more to do, and puts it on the owner's list.
//! So a pending mark is never lost, and a hand-over waits for one slice at most: finish grants the
//! virtqueue to who waits, it does not leave it to a race.

use crate::atomics::AtomicU32;

const PENDING: u32 = 1 << 0;
const LISTED: u32 = 1 << 1;
const SERVED: u32 = 1 << 2;
const HELD: u32 = 1 << 3;
const WANTED: u32 = 1 << 4;
const GRANTED: u32 = 1 << 5;

/// What has to follow a transition that gave the virtqueue away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Rest,
    /// Put the virtqueue on a list: the caller does, and nobody else will.
    List,
    /// Wake those who wait to hold the virtqueue: one of them has it now.
    Wake,
}

/// The ownership word of one virtqueue.
///
/// Every transition is one compare-and-exchange with full ordering, so what a thread did to the
/// virtqueue before it gave it away is visible to the one who takes it, and what was written
/// before a mark is visible to the slice that the mark brings about.
pub struct Ownership(AtomicU32);

impl Ownership {
    /// A virtqueue that nobody holds and that has nothing to do.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Applies `transition` to the word until no other thread changed it in between.
    fn change<R>(&self, transition: impl Fn(u32) -> (u32, R)) -> R {
        let mut old = self.0.load();
        loop {
            let (new, result) = transition(old);
            match self.0.compare_exchange(old, new) {
                Ok(()) => return result,
                Err(current) => old = current,
            }
        }
    }

    /// Says that there may be something to serve. Any context.
    #[must_use]
    pub fn mark(&self) -> Then {
        self.change(|old| {
            if old & (LISTED | SERVED | HELD) == 0 {
                (old | PENDING | LISTED, Then::List)
            } else {
                (old | PENDING, Then::Rest)
            }
        })
    }

    /// Begins a slice, by the worker that took the virtqueue from a list. Returns false when
    /// there is nothing to serve or a control operation has the virtqueue.
    #[must_use]
    pub fn begin(&self) -> bool {
        self.change(|old| {
            let unlisted = old & !LISTED;
            if old & HELD != 0 || old & PENDING == 0 {
                (unlisted, false)
            } else {
                ((unlisted | SERVED) & !PENDING, true)
            }
        })
    }

    /// Ends a slice; `more` says that the virtqueue has to be served again.
    #[must_use]
    pub fn finish(&self, more: bool) -> Then {
        self.change(|old| {
            let mut new = old & !SERVED;
            if more {
                new |= PENDING;
            }
            Self::give_away(new)
        })
    }

    /// Tries to hold the virtqueue. Returns false when the caller has to wait until it is woken
    /// and try again; the request is noted then. `waited` says that it has: a grant is for those.
    #[must_use]
    pub fn try_hold(&self, waited: bool) -> bool {
        self.change(|old| {
            if old & GRANTED != 0 && waited {
                (old & !GRANTED, true)
            } else if old & (SERVED | HELD) != 0 {
                (old | WANTED, false)
            } else {
                (old | HELD, true)
            }
        })
    }

    /// Ends a hold.
    #[must_use]
    pub fn release(&self) -> Then {
        self.change(|old| Self::give_away(old & !HELD))
    }

    fn give_away(new: u32) -> (u32, Then) {
        if new & WANTED != 0 {
            ((new & !WANTED) | HELD | GRANTED, Then::Wake)
        } else if new & PENDING != 0 && new & LISTED == 0 {
            (new | LISTED, Then::List)
        } else {
            (new, Then::Rest)
        }
    }
}

impl Default for Ownership {
    fn default() -> Self {
        Self::new()
    }
}
