// SPDX-License-Identifier: GPL-2.0

//! Lists of what a worker has to serve.
//!
//! Both kinds link [`Served`] objects through a field of theirs and own one reference to each.
//! That an object is on one list at most is the meaning of the LISTED flag of
//! `engine::sched::ownership`: only who was told to list an object may push it.

use super::served::{Served, Service};
use super::thread;
use core::ptr;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::atomic::{Atomic, Full, Relaxed};
use kernel::sync::{Arc, SetOnce};
use kernel::task::Task;

/// What others hand to a worker: many push from any context, without locks; the worker takes all.
///
/// # Invariants
///
/// `newest` and `handed_over` head lists, linked by `Served::next` and ended by null, of pointers
/// that came from `Arc::into_raw`.
pub struct Inbox<S: Service> {
    newest: Atomic<*mut Served<S>>,
    /// What another reader has passed on.
    handed_over: Atomic<*mut Served<S>>,
    /// Slices that the reader has ended.
    slices: Atomic<u64>,
    /// How many these were when it took what was here last.
    taken: Atomic<u64>,
    /// Whether the reader is to look for objects on its lists that are another's now.
    look: Atomic<bool>,
    /// Whether a grace period has passed since the inbox was an object's.
    unused: Atomic<bool>,
    reader: SetOnce<ARef<Task>>,
}

// SAFETY: An inbox owns references to `Served` objects, which any thread may use and drop.
unsafe impl<S: Service> Send for Inbox<S> {}
// SAFETY: Its methods may be called by any thread at once.
unsafe impl<S: Service> Sync for Inbox<S> {}

impl<S: Service> Inbox<S> {
    /// An empty inbox that nobody reads yet.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Arc<Self>> {
        // INVARIANT: Null is the empty list.
        Ok(Arc::new(
            Self {
                newest: Atomic::new(ptr::null_mut()),
                handed_over: Atomic::new(ptr::null_mut()),
                slices: Atomic::new(0),
                taken: Atomic::new(0),
                look: Atomic::new(false),
                unused: Atomic::new(true),
                reader: SetOnce::new(),
            },
            GFP_KERNEL,
        )?)
    }

    /// Says which thread is to be woken. Only the first call counts.
    pub(super) fn set_reader(&self, task: ARef<Task>) {
        self.reader.populate(task);
    }

    /// Notes that the inbox is an object's from now on.
    pub(super) fn use_begins(&self) {
        self.unused.store(false, Relaxed);
    }

    /// Waits until nobody is about to push any more. The inbox is no object's now.
    pub(super) fn use_ends(&self) {
        thread::synchronize_rcu();
        self.unused.store(true, Relaxed);
    }

    /// Whether it is known which thread is to be woken.
    pub(super) fn has_reader(&self) -> bool {
        self.reader.as_ref().is_some()
    }

    /// The number of the thread that is to be woken, in the initial namespace.
    pub(super) fn reader_pid(&self) -> Option<i32> {
        self.reader.as_ref().map(|task| task.pid())
    }

    /// Wakes the reader, to which something else matters than what is in the inbox. Any context in
    /// which a thread may be woken.
    pub fn wake_reader(&self) {
        if let Some(reader) = self.reader.as_ref() {
            reader.wake_up();
        }
    }

    /// Asks the reader to look through its lists for objects that it has to pass on. A reader that
    /// sleeps has none, so it is not woken.
    pub(super) fn ask_to_look(&self) {
        // The full order pairs with the exchange in `was_asked`: the reader finds the request or
        // sees who serves the objects now.
        self.look.xchg(true, Full);
    }

    /// Whether the reader was asked to look through its lists since this was asked last.
    pub fn was_asked(&self) -> bool {
        self.look.load(Relaxed) && self.look.xchg(false, Full)
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.newest.load(Relaxed).is_null() && self.handed_over.load(Relaxed).is_null()
    }

    /// Whether a move waits for the reader: it has something to pass on, or something was handed
    /// over to it. The reader attends to that after every slice, so that a move takes one slice of
    /// the old reader and one of the new one at most.
    pub fn is_move_waiting(&self) -> bool {
        self.look.load(Relaxed) || !self.handed_over.load(Relaxed).is_null()
    }

    /// Whether something was handed to the reader in the usual way. It may be another's already, so
    /// the reader takes it after every slice, too.
    pub fn has_new(&self) -> bool {
        !self.newest.load(Relaxed).is_null()
    }

    /// Counts a slice. The caller is the reader, which has ended it.
    pub fn count_slice(&self) {
        let slices = self.slices.load(Relaxed);
        self.slices.store(slices.wrapping_add(1), Relaxed);
    }

    /// Slices that the reader has ended so far.
    pub(super) fn slices(&self) -> u64 {
        self.slices.load(Relaxed)
    }

    /// Hands `object` to the reader. The caller was told to list it. Any context.
    pub(super) fn push(&self, object: Arc<Served<S>>) {
        self.push_to(&self.newest, object);
    }

    /// Hands `object`, which waits on the list of another reader, to this one, which takes it before
    /// all that was handed to it in the usual way.
    pub(super) fn push_handed_over(&self, object: Arc<Served<S>>) {
        self.push_to(&self.handed_over, object);
    }

    /// Puts `object` at the head of one of the two lists.
    fn push_to(&self, list: &Atomic<*mut Served<S>>, object: Arc<Served<S>>) {
        let object = Arc::into_raw(object).cast_mut();
        let mut newest = list.load(Relaxed);
        loop {
            // SAFETY: The pointer was made from a reference that the list is about to own.
            unsafe { (*object).next.store(newest, Relaxed) };
            // INVARIANT: `object` heads what was the list, if the exchange succeeds.
            // The full order pairs with `Current::sleep_until`: who announces its sleep before
            // it looks here sees the object, or is seen asleep below.
            match list.cmpxchg(newest, object, Full) {
                Ok(_) => break,
                Err(current) => newest = current,
            }
        }
        // If there was something, whoever put it there has woken the reader.
        if newest.is_null() {
            self.wake_reader();
        }
    }
}

impl<S: Service> Drop for Inbox<S> {
    fn drop(&mut self) {
        // Objects find their inboxes under RCU alone, see `Served::list`.
        if !self.unused.load(Relaxed) {
            thread::synchronize_rcu();
        }
    }
}

/// The worker's own list: first in, first out.
///
/// # Invariants
///
/// `first` heads a list, linked by `Served::next` and ended by null, of pointers that came from
/// `Arc::into_raw`; `last` is its last element, or null when there is none.
pub struct Fifo<S: Service> {
    first: *mut Served<S>,
    last: *mut Served<S>,
    len: usize,
}

impl<S: Service> Fifo<S> {
    /// An empty list.
    pub const fn new() -> Self {
        // INVARIANT: Null is the empty list.
        Self {
            first: ptr::null_mut(),
            last: ptr::null_mut(),
            len: 0,
        }
    }

    /// The number of objects.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    /// Appends `object`, which the caller was told to list.
    pub fn push(&mut self, object: Arc<Served<S>>) {
        let object = Arc::into_raw(object).cast_mut();
        // SAFETY: The pointer was made from a reference that the list is about to own.
        unsafe { (*object).next.store(ptr::null_mut(), Relaxed) };
        // INVARIANT: `object` is the new end.
        if self.last.is_null() {
            self.first = object;
        } else {
            // SAFETY: By the type invariant the list owns a reference to its last element.
            unsafe { (*self.last).next.store(object, Relaxed) };
        }
        self.last = object;
        self.len += 1;
    }

    /// What all may see of the object that has waited longest.
    pub fn first(&self) -> Option<&S> {
        // SAFETY: By the type invariant the list owns a reference to its first element, if there is
        // one, and it cannot give that up while it is borrowed.
        unsafe { self.first.as_ref() }.map(|object| &**object)
    }

    /// Puts `object`, which the caller was told to list, before all others.
    pub fn push_first(&mut self, object: Arc<Served<S>>) {
        let object = Arc::into_raw(object).cast_mut();
        // SAFETY: The pointer was made from a reference that the list is about to own.
        unsafe { (*object).next.store(self.first, Relaxed) };
        // INVARIANT: `object` is the new beginning, and the end as well if it is alone.
        self.first = object;
        if self.last.is_null() {
            self.last = object;
        }
        self.len += 1;
    }

    /// Takes the object that has waited longest.
    pub fn pop(&mut self) -> Option<Arc<Served<S>>> {
        let object = self.first;
        if object.is_null() {
            return None;
        }
        // SAFETY: By the type invariant the list owns a reference to its first element.
        self.first = unsafe { (*object).next.load(Relaxed) };
        // INVARIANT: What followed the first element is the list now.
        if self.first.is_null() {
            self.last = ptr::null_mut();
        }
        self.len -= 1;
        // SAFETY: By the type invariant the pointer came from `Arc::into_raw`, and the list has
        // just given it up.
        Some(unsafe { Arc::from_raw(object) })
    }

    /// Appends everything that is in `other`, which is empty afterwards.
    pub fn append(&mut self, other: &mut Self) {
        while let Some(object) = other.pop() {
            self.push(object);
        }
    }

    /// Passes on what others serve now. The caller is the reader of `inbox`.
    pub fn forward_strangers(&mut self, inbox: &Inbox<S>) {
        for _ in 0..self.len {
            let Some(object) = self.pop() else { return };
            if object.is_for(inbox) {
                self.push(object);
            } else {
                Served::forward(object, inbox, 0);
            }
        }
    }

    /// Takes everything that is in `inbox`, of which the caller is the reader: what was handed over
    /// comes before all that is on this list, the rest after it, each oldest first.
    ///
    /// What was given to another reader while it was being pushed is passed on at once. The request to
    /// look for it may have been answered before it came, and it would wait for all before it.
    pub fn take_all(&mut self, inbox: &Inbox<S>) {
        let since = inbox.taken.load(Relaxed);
        inbox.taken.store(inbox.slices(), Relaxed);
        // INVARIANT: The inbox is empty, and its list is this function's. The full order pairs
        // with the exchange in `Inbox::push_to`: the links and the objects' contents are visible.
        let mut object = inbox.newest.xchg(ptr::null_mut(), Full);
        let mut older = ptr::null_mut();
        while !object.is_null() {
            // SAFETY: By the type invariant of the inbox, its list owned a reference.
            let link = unsafe { &(*object).next };
            let next = link.load(Relaxed);
            link.store(older, Relaxed);
            older = object;
            object = next;
        }
        while !older.is_null() {
            // SAFETY: As above; the list was turned around.
            let next = unsafe { (*older).next.load(Relaxed) };
            // SAFETY: The pointer came from `Arc::into_raw`, and the list has given it up.
            let taken = unsafe { Arc::from_raw(older) };
            if taken.is_for(inbox) {
                self.push(taken);
            } else {
                Served::forward(taken, inbox, since);
            }
            older = next;
        }
        // Looked at after the full exchange above, as that list is: see the end of a worker.
        if !inbox.handed_over.load(Relaxed).is_null() {
            self.take_handed_over(inbox);
        }
    }

    /// Takes what was handed over.
    fn take_handed_over(&mut self, inbox: &Inbox<S>) {
        // INVARIANT: As for `take_all`, as is the order.
        let mut object = inbox.handed_over.xchg(ptr::null_mut(), Full);
        while !object.is_null() {
            // SAFETY: By the type invariant of the inbox, its list owned a reference.
            let next = unsafe { (*object).next.load(Relaxed) };
            // SAFETY: The pointer came from `Arc::into_raw`, and the list has given it up.
            let taken = unsafe { Arc::from_raw(object) };
            taken.arrive(inbox);
            // The newest is the first here, so the oldest ends up before the others.
            self.push_first(taken);
            object = next;
        }
    }
}

impl<S: Service> Default for Fifo<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Service> Drop for Fifo<S> {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
