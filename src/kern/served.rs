// SPDX-License-Identifier: GPL-2.0

//! Objects that one worker at a time serves, and that control operations take from it.
//!
//! The transitions are those of `engine::sched::ownership`. This file makes them safe to use: the
//! state of an object can be reached only through a [`Slice`] or a [`Hold`], which exist while the
//! state machine says so.

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
}

/// An object that is served.
///
/// # Invariants
///
/// - `inbox` came from `Arc::into_raw` and owns that reference. It changes only while the object
///   is held.
/// - `state` is reached only through a `Slice`, which exists only while the object is SERVED, or a
///   `Hold`, which exists only while it is HELD and not GRANTED.
#[pin_data(PinnedDrop)]
pub struct Served<S: Service> {
    shared: S,
    ownership: Ownership,
    /// The link of the list on which the object is; see `super::inbox`.
    pub(super) next: Atomic<*mut Served<S>>,
    inbox: Atomic<*mut Inbox<S>>,
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
                inbox: Atomic::new(Arc::into_raw(inbox).cast_mut()),
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
            Then::List => this.list(Arc::from(this)),
            Then::Wake => this.wake(),
        }
    }

    /// Hands the object to its worker.
    fn list(&self, this: Arc<Self>) {
        let _guard = rcu::read_lock();
        let inbox = self.inbox.load(Acquire);
        // SAFETY: An inbox that was this object's when the read section began is freed only after
        // it has ended, see `Drop for Inbox`.
        unsafe { (*inbox).push(this) };
    }

    /// Wakes those who wait to hold the object.
    fn wake(&self) {
        // Who waits is between its look at the state and its sleep only with the lock held.
        drop(self.gate.lock());
        self.free.notify_all();
    }

    /// Begins a slice, as the reader of `inbox`, which took the object from its list.
    ///
    /// Returns `None` when there is nothing to serve, when a control operation has the object, and
    /// when another worker owns it now: that one gets it then.
    pub fn begin(self: Arc<Self>, inbox: &Inbox<S>) -> Option<Slice<S>> {
        if !self.ownership.begin() {
            return None;
        }
        let slice = Slice { served: self };
        // The owner cannot change any more: the object would have to be held.
        if ptr::eq(slice.served.inbox.load(Acquire), inbox) {
            return Some(slice);
        }
        if let Some(served) = slice.finish(true) {
            let this = served.clone();
            served.list(this);
        }
        None
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
    /// Ends the slice; `more` says that the object has to be served again. Returns the object if
    /// the caller has to put it on a list.
    #[must_use]
    pub fn finish(self, more: bool) -> Option<Arc<Served<S>>> {
        let served = self.served;
        match served.ownership.finish(more) {
            Then::Rest => None,
            Then::List => Some(served),
            Then::Wake => {
                served.wake();
                None
            }
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

impl<S: Service> Hold<'_, S> {
    /// Gives the object to the reader of `inbox`.
    pub fn set_inbox(&mut self, inbox: Arc<Inbox<S>>) {
        // INVARIANT: The object is held, and owns the reference from now on.
        let old = self
            .served
            .inbox
            .xchg(Arc::into_raw(inbox).cast_mut(), Full);
        // SAFETY: By the invariant of `Served` the pointer came from `Arc::into_raw`, and the
        // object has just given it up.
        drop(unsafe { Arc::from_raw(old) });
    }
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
