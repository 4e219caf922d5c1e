// SPDX-License-Identifier: GPL-2.0

//! The state machine that gives a virtqueue to exactly one thread at a time.
//!
//! A virtqueue is marked *pending* from any context (a kick, a socket event), stands on at most
//! one list of one thread, and is *taken* by one thread at a time: by its worker or its home
//! thread, which serve a slice, or by a control operation, which *holds* it to change it. The
//! whole state is one word:
//!
//! | flag | meaning | set by | cleared by |
//! |---|---|---|---|
//! | PENDING | there is, or may be, something to serve | mark, finish, leave, poll, begin | begin |
//! | LISTED | it stands on a list of a thread, which has a reference to it | mark, finish, leave, return, poll, release | begin |
//! | SERVED | a thread serves it | begin | finish, leave, return, poll |
//! | HELD | a control operation holds it | hold, finish, release | release |
//! | WANTED | a control operation waits for it | hold | finish, release |
//! | GRANTED | it was handed to a waiting control operation, which has not woken up yet | finish, release | hold |
//! | AWAY | its home thread serves it, and not its worker | leave | return |
//!
//! | transition | from | to | what the caller does |
//! |---|---|---|---|
//! | mark | neither LISTED, SERVED nor HELD | PENDING, LISTED | puts it on the list of who serves it |
//! | mark | LISTED, SERVED or HELD | PENDING | nothing: begin, finish or release will see it |
//! | begin | LISTED, PENDING, not HELD | SERVED | serves a slice |
//! | begin | LISTED and HELD, or not PENDING | not LISTED | nothing |
//! | begin polled | LISTED, not HELD | SERVED | looks at the virtqueue, or serves a slice |
//! | begin polled | LISTED and HELD | PENDING, not LISTED | nothing: release will list it |
//! | finish | SERVED, WANTED | HELD, GRANTED | wakes those who wait |
//! | finish | SERVED, not WANTED, PENDING or more to do | PENDING, LISTED | puts it on a list again |
//! | finish | SERVED, not WANTED, nothing to do | nothing set | nothing |
//! | leave | as finish with more to do | also AWAY | as finish |
//! | return | as finish | also not AWAY | as finish |
//! | poll | SERVED, WANTED | PENDING, HELD, GRANTED | wakes those who wait |
//! | poll | SERVED, not WANTED | LISTED | puts it on the list of what it polls |
//! | hold | neither SERVED nor HELD; or GRANTED, after a wait | HELD | changes the virtqueue |
//! | hold | SERVED or HELD, otherwise | WANTED | waits, then tries again |
//! | release | HELD, WANTED | HELD, GRANTED | wakes those who wait |
//! | release | HELD, not WANTED, PENDING, not LISTED | PENDING, LISTED | puts it on the list of who serves it |
//! | release | HELD, not WANTED, otherwise | the rest | nothing |
//!
//! Which worker owns a virtqueue is not part of the word and may change at any time. Whoever takes
//! a virtqueue from a list of its own and finds that it belongs to another passes it on as it is,
//! LISTED; and whoever changed the owner asks the old one to look through its lists, which it does
//! between two slices. So a pending mark is never lost, a hand-over takes one slice at most, and
//! the virtqueue is not served twice meanwhile: that depends on SERVED alone.
//!
//! A virtqueue that is polled stands on its worker's list without being pending, so a mark finds
//! it LISTED and wakes nobody.

use crate::atomics::AtomicU32;

const PENDING: u32 = 1 << 0;
const LISTED: u32 = 1 << 1;
const SERVED: u32 = 1 << 2;
const HELD: u32 = 1 << 3;
const WANTED: u32 = 1 << 4;
const GRANTED: u32 = 1 << 5;
const AWAY: u32 = 1 << 6;

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

    /// Begins a look at a virtqueue that its worker polls, whether it is pending or not. Returns
    /// false when a control operation has it, which lists it again afterwards.
    #[must_use]
    pub fn begin_polled(&self) -> bool {
        self.change(|old| {
            let unlisted = old & !LISTED;
            if old & HELD != 0 {
                (unlisted | PENDING, false)
            } else {
                ((unlisted | SERVED) & !PENDING, true)
            }
        })
    }

    /// Whether the home thread serves the virtqueue. It stays so as long as the caller has the
    /// virtqueue, or it is on a list of the caller's.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.0.load() & AWAY != 0
    }

    /// Whether a thread serves the virtqueue or has it on a list, which may change at any time.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.0.load() & (LISTED | SERVED) != 0
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

    /// Ends a slice on a worker that cannot go on there: the home thread has to serve the rest.
    #[must_use]
    pub fn leave(&self) -> Then {
        self.change(|old| Self::give_away((old & !SERVED) | AWAY | PENDING))
    }

    /// Ends a slice in the home thread, after which the worker serves the virtqueue again; `more`
    /// says that it has to at once.
    #[must_use]
    pub fn come_back(&self, more: bool) -> Then {
        self.change(|old| {
            let mut new = old & !(SERVED | AWAY);
            if more {
                new |= PENDING;
            }
            Self::give_away(new)
        })
    }

    /// Ends a slice, after which the worker polls the virtqueue.
    #[must_use]
    pub fn poll(&self) -> Then {
        self.change(|old| {
            let new = old & !SERVED;
            if new & WANTED != 0 {
                Self::give_away(new | PENDING)
            } else {
                (new | LISTED, Then::List)
            }
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
