// SPDX-License-Identifier: GPL-2.0

//! Objects that one thread at a time serves, a worker or their home thread, and that control
//! operations take from it.
//!
//! The transitions are those of `engine::sched::ownership`. This file makes them safe to use: the
//! state of an object can be reached only through a [`Slice`] or a [`Hold`], which exist while the
//! state machine says so.

use super::hand_over::HandOver;
use super::inbox::Inbox;
use crate::engine::sched::ownership::{Ownership, Then};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::ptr;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Full};
use kernel::sync::{new_condvar, new_spinlock, rcu, Arc, ArcBorrow, CondVar, SpinLock};

/// What an object consists of.
pub trait Service: Sized + Send + Sync + 'static {
    /// The part that only who has the object may touch. The rest is shared by all.
    type State: Send;

    /// Notes that the object, which had waited on the list of another reader, has come to the
    /// caller's, `nanoseconds` after it was moved. Meanwhile so many `slices` of the one or the
    /// other had ended for which it had to wait.
    fn note_move(&self, nanoseconds: u64, slices: u64);
}

/// An object that is served.
///
/// # Invariants
///
/// - `inbox` came from `Arc::into_raw` and owns that reference; so does `home`, unless it is null.
/// - `state` is reached only through a `Slice`, which exists only while the object is SERVED, or a
///   `Hold`, which exists only while it is HELD and not GRANTED.
#[pin_data(PinnedDrop)]
pub struct Served<S: Service> {
    shared: S,
    ownership: Ownership,
    /// The link of the list on which the object is; see `super::inbox`.
    pub(super) next: Atomic<*mut Served<S>>,
    /// The worker's.
    inbox: Atomic<*mut Inbox<S>>,
    /// The home thread's, if there is one.
    home: Atomic<*mut Inbox<S>>,
    #[pin]
    hand_over: HandOver,
    #[pin]
    gate: SpinLock<()>,
    #[pin]
    free: CondVar,
    state: UnsafeCell<S::State>,
}

// SAFETY: The shared part is `Send`, the state is `Send`, and the pointers are owned references to
// objects that any thread may use.
unsafe impl<S: Service> Send for Served<S> {}
// SAFETY: The shared part is `Sync`, and by the type invariant one thread at a time reaches the
// state.
unsafe impl<S: Service> Sync for Served<S> {}

impl<S: Service> Served<S> {
    /// Makes an object that the reader of `inbox` serves.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(shared: S, state: S::State, inbox: Arc<Inbox<S>>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                shared,
                ownership: Ownership::new(),
                next: Atomic::new(ptr::null_mut()),
                // INVARIANT: The reference is the object's from now on.
                inbox: Atomic::new(Self::give(inbox)),
                // INVARIANT: There is none.
                home: Atomic::new(ptr::null_mut()),
                hand_over <- HandOver::new(),
                gate <- new_spinlock!((), "vhost_iocm::Served::gate"),
                free <- new_condvar!("vhost_iocm::Served::free"),
                state: UnsafeCell::new(state),
            }),
            GFP_KERNEL,
        )
    }

    /// Says that there may be something to serve. Any context.
    pub fn mark(self: ArcBorrow<'_, Self>) {
        let then = self.ownership.mark();
        Self::follow(self, then);
    }

    fn follow(this: ArcBorrow<'_, Self>, then: Then) {
        match then {
            Then::Rest => (),
            Then::List => Self::list(Arc::from(this)),
            Then::Wake => this.wake(),
        }
    }

    /// Makes `inbox` an object's.
    fn give(inbox: Arc<Inbox<S>>) -> *mut Inbox<S> {
        inbox.use_begins();
        Arc::into_raw(inbox).cast_mut()
    }

    /// The inbox of who serves the object. It may be another one at any time; who wants to use it
    /// and not only to compare it is in an RCU read section.
    fn reader(&self) -> *mut Inbox<S> {
        if self.ownership.is_away() {
            let home = self.home.load(Acquire);
            if !home.is_null() {
                return home;
            }
        }
        self.inbox.load(Acquire)
    }

    /// Hands the object, which is LISTED, to who serves it.
    fn list(this: Arc<Self>) {
        let _guard = rcu::read_lock();
        let reader = this.reader();
        // SAFETY: An inbox that was this object's when the read section began is freed only after
        // it has ended, see `Drop for Inbox`.
        unsafe { (*reader).push(this) };
    }

    /// Whether the reader of `inbox` serves the object.
    pub(super) fn is_for(&self, inbox: &Inbox<S>) -> bool {
        ptr::eq(self.reader(), inbox)
    }

    /// Whether the home thread serves the object now, which may change at any time.
    pub fn is_at_home(&self) -> bool {
        self.ownership.is_away()
    }

    /// The number of the home thread in the initial namespace; `None` if there is none, or it has
    /// not run yet.
    pub fn home_pid(&self) -> Option<i32> {
        let _guard = rcu::read_lock();
        let home = self.home.load(Acquire);
        // SAFETY: As for `list`, if there is one.
        unsafe { home.as_ref() }.and_then(Inbox::reader_pid)
    }

    /// Passes the object on, which the caller, the reader of `from`, took from a list of its own, to
    /// who serves it now. It came to that list when the caller had ended `since` slices, or later.
    pub(super) fn forward(this: Arc<Self>, from: &Inbox<S>, since: u64) {
        // An object that was polled may not be pending, and the next one would not look at it. It
        // is LISTED, so there is nothing else to do.
        let _: Then = this.ownership.mark();
        // Given up after the read section has ended, since it may be the last one.
        let passed = this.clone();
        let _guard = rcu::read_lock();
        // SAFETY: As for `list`.
        let to = unsafe { &*this.reader() };
        passed
            .hand_over
            .pass_on(from, since, to, || to.push_handed_over(this));
    }

    /// Ends a move: the caller, the reader of `inbox`, has taken the object that was passed on.
    pub(super) fn arrive(&self, inbox: &Inbox<S>) {
        if let Some((nanoseconds, slices)) = self.hand_over.end(inbox) {
            self.shared.note_move(nanoseconds, slices);
        }
    }

    /// Gives the object to the worker that reads `inbox`. The old one passes it on between two
    /// slices, if it has it. One thread at a time does this.
    pub fn set_inbox(&self, inbox: Arc<Inbox<S>>) {
        // INVARIANT: The object owns the reference from now on.
        let new = Self::give(inbox);
        let old = self.inbox.xchg(new, Full);
        // SAFETY: By the type invariant the pointer came from `Arc::into_raw`, and the object has
        // just given it up.
        let old = unsafe { Arc::from_raw(old) };
        old.ask_to_look();
        // After the request: what keeps the caller before it is no matter of the readers. If they are
        // faster the move is not counted.
        if self.ownership.is_waiting() {
            self.hand_over.begin(&old, new);
        } else {
            // An earlier move may have begun while the object was served, and ended with nothing left.
            self.hand_over.cancel();
        }
    }

    /// Sets the inbox of the home thread, or that there is none.
    pub(super) fn set_home(&self, inbox: Option<Arc<Inbox<S>>>) {
        let new = inbox.map_or(ptr::null_mut(), Self::give);
        // INVARIANT: The object owns the reference from now on.
        let old = self.home.xchg(new, Full);
        if !old.is_null() {
            // SAFETY: As for `set_inbox`.
            drop(unsafe { Arc::from_raw(old) });
        }
    }

    /// Wakes those who wait to hold the object.
    fn wake(&self) {
        // Who waits is between its look at the state and its sleep only with the lock held.
        drop(self.gate.lock());
        self.free.notify_all();
    }

    /// Begins a slice, as the reader of `inbox`, which took the object from a list of its own;
    /// `polled` says that it was the list of what it polls.
    ///
    /// Returns `None` when there is nothing to serve, when a control operation has the object, and
    /// when it belongs to another reader now: that one gets it then.
    pub fn begin(self: Arc<Self>, inbox: &Inbox<S>, polled: bool) -> Option<Slice<S>> {
        if !self.is_for(inbox) {
            Self::forward(self, inbox, 0);
            return None;
        }
        let begun = if polled {
            self.ownership.begin_polled()
        } else {
            self.ownership.begin()
        };
        // Nothing that waited was passed on, if a move had begun.
        self.hand_over.cancel();
        // INVARIANT: It is served from now on.
        begun.then_some(Slice { served: self })
    }

    /// Takes the object from its worker, waiting for the end of the slice that it may be in.
    pub fn hold<'a>(self: ArcBorrow<'a, Self>) -> Hold<'a, S> {
        let mut guard = self.gate.lock();
        let mut waited = false;
        while !self.ownership.try_hold(waited) {
            self.free.wait(&mut guard);
            waited = true;
        }
        drop(guard);
        Hold { served: self }
    }
}

impl<S: Service> Deref for Served<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.shared
    }
}

#[pinned_drop]
impl<S: Service> PinnedDrop for Served<S> {
    fn drop(self: Pin<&mut Self>) {
        let inbox = self.inbox.load(Acquire);
        // SAFETY: By the type invariant the pointer came from `Arc::into_raw`, and it is not used
        // again.
        drop(unsafe { Arc::from_raw(inbox) });
        self.set_home(None);
    }
}

/// The right to serve an object, and its state.
///
/// # Invariants
///
/// The object is SERVED, by whoever has this.
pub struct Slice<S: Service> {
    served: Arc<Served<S>>,
}

impl<S: Service> Slice<S> {
    /// Whether there is a home thread to leave the object to.
    pub fn has_home(&self) -> bool {
        !self.served.home.load(Acquire).is_null()
    }

    /// Ends the slice; `more` says that the object has to be served again. Returns the object if
    /// the caller has to put it on a list.
    #[must_use]
    pub fn finish(self, more: bool) -> Option<Arc<Served<S>>> {
        let then = self.served.ownership.finish(more);
        self.listed(then)
    }

    /// Ends the slice, after which the caller polls the object. Returns the object if the caller
    /// has to put it on its list.
    #[must_use]
    pub fn poll(self) -> Option<Arc<Served<S>>> {
        let then = self.served.ownership.poll();
        self.listed(then)
    }

    fn listed(self, then: Then) -> Option<Arc<Served<S>>> {
        match then {
            Then::Rest => None,
            Then::List => Some(self.served),
            Then::Wake => {
                self.served.wake();
                None
            }
        }
    }

    /// Ends the slice on a worker, which cannot go on: the home thread serves the rest.
    pub fn leave(self) {
        let then = self.served.ownership.leave();
        self.hand_over(then);
    }

    /// Ends the slice in the home thread; `more` says that the object has to be served again.
    /// `stay` says by whom: by the home thread, or by the worker.
    pub fn finish_at_home(self, more: bool, stay: bool) {
        let then = if stay {
            self.served.ownership.finish(more)
        } else {
            self.served.ownership.come_back(more)
        };
        self.hand_over(then);
    }

    fn hand_over(self, then: Then) {
        if let Some(served) = self.listed(then) {
            Served::list(served);
        }
    }

    /// The shared part and the state, both at once.
    pub fn split(&mut self) -> (&S, &mut S::State) {
        // SAFETY: By the type invariant nobody else reaches the state.
        (&self.served.shared, unsafe {
            &mut *self.served.state.get()
        })
    }
}

/// The right to change an object, and its state.
///
/// # Invariants
///
/// The object is HELD, by whoever has this.
pub struct Hold<'a, S: Service> {
    served: ArcBorrow<'a, Served<S>>,
}

impl<S: Service> Deref for Hold<'_, S> {
    type Target = S::State;

    fn deref(&self) -> &S::State {
        // SAFETY: By the type invariant nobody else reaches the state.
        unsafe { &*self.served.state.get() }
    }
}

impl<S: Service> DerefMut for Hold<'_, S> {
    fn deref_mut(&mut self) -> &mut S::State {
        // SAFETY: By the type invariant nobody else reaches the state.
        unsafe { &mut *self.served.state.get() }
    }
}

impl<S: Service> Drop for Hold<'_, S> {
    fn drop(&mut self) {
        let then = self.served.ownership.release();
        Served::follow(self.served, then);
    }
}
