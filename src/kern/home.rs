// SPDX-License-Identifier: GPL-2.0

//! Home threads: a thread in the process that owns a device, which serves what workers cannot.
//!
//! It is a `vhost_task`, as stock vhost has one for each device: a thread of the owner, in its
//! address space, its cgroups and its limits. What it waits for delays nobody but its own process.

use super::bindings as shim;
use super::inbox::{Fifo, Inbox};
use super::served::{Served, Service};
use core::ptr::NonNull;
use kernel::error::from_err_ptr;
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::aref::ARef;
use kernel::sync::Arc;
use kernel::task::Task;

/// What a home thread does.
pub trait Body: Send + Sync + 'static {
    /// What its inbox holds.
    type Service: Service;

    /// The inbox, of which the thread is the reader.
    fn inbox(&self) -> &Arc<Inbox<Self::Service>>;

    /// The objects that the thread is home to.
    fn objects(&self) -> &[Arc<Served<Self::Service>>];

    /// Serves an object from the inbox.
    fn serve(&self, object: Arc<Served<Self::Service>>);
}

/// A home thread, which ends when this is dropped, if it did not before with its process.
///
/// # Invariants
///
/// `task` was started and not stopped; the thread borrows `body` until it has ended.
pub struct Home<B: Body> {
    task: NonNull<shim::vhost_task>,
    body: Arc<B>,
}

// SAFETY: The task may be stopped by any thread; the body may be used by any.
unsafe impl<B: Body> Send for Home<B> {}
// SAFETY: Nothing can be done with a shared reference.
unsafe impl<B: Body> Sync for Home<B> {}

impl<B: Body> Home<B> {
    /// Starts a home thread in the current process.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and `EAGAIN` when a limit of the process forbids another thread.
    pub fn start(name: &CStr, body: Arc<B>) -> Result<Self> {
        // SAFETY: Both functions accept a pointer to a body, which stays valid: this object keeps
        // it until the thread has ended. The name is copied.
        let task = from_err_ptr(unsafe {
            shim::vhost_task_create(
                Some(Self::main),
                Some(Self::killed),
                Arc::as_ptr(&body).cast_mut().cast(),
                name.as_char_ptr(),
            )
        })?;
        let task = NonNull::new(task).ok_or(ENOMEM)?;
        // SAFETY: The task was created just now.
        unsafe { shim::vhost_task_start(task.as_ptr()) };
        for object in body.objects() {
            object.set_home(Some(body.inbox().clone()));
        }
        // INVARIANT: Started just now, and `body` is kept here.
        Ok(Self { task, body })
    }

    /// # Safety
    ///
    /// Called in the thread, with the pointer that `start` passed, asleep but for the call of
    /// `schedule()`. Returns whether there was something to do.
    unsafe extern "C" fn main(data: *mut kernel::ffi::c_void) -> bool {
        // SAFETY: `start` passes a body that is kept until this thread has ended.
        let body = unsafe { &*data.cast::<B>() };
        let inbox = body.inbox();
        if !inbox.has_reader() {
            let current = current!();
            let task: &Task = current;
            inbox.set_reader(ARef::from(task));
        }
        let mut list = Fifo::new();
        // Who pushes before this sees the reader, or its object is taken here: both sides'
        // exchanges are fully ordered.
        list.take_all(inbox);
        if list.is_empty() {
            return false;
        }
        // SAFETY: Being awake needs no precondition.
        unsafe { shim::iocm_cancel_sleep() };
        while let Some(object) = list.pop() {
            body.serve(object);
            // SAFETY: The thread holds neither locks nor an RCU read section between slices.
            unsafe { shim::iocm_breathe() };
        }
        true
    }

    /// # Safety
    ///
    /// Called in the thread, with the pointer that `start` passed, when its process is killed. It
    /// does not run `main` any more.
    unsafe extern "C" fn killed(data: *mut kernel::ffi::c_void) {
        // SAFETY: `start` passes a body that is kept until this thread has ended.
        Self::retire(unsafe { &*data.cast::<B>() });
    }

    /// Hands everything back to the workers.
    fn retire(body: &B) {
        for object in body.objects() {
            object.set_home(None);
        }
        // Whoever found the inbox before has pushed when this returns.
        body.inbox().use_ends();
        let mut list = Fifo::new();
        list.take_all(body.inbox());
        // What was handed in the usual way was passed on as it was taken, for nothing is this inbox's any
        // more. What workers had handed over is on the list, which must not take it along.
        while let Some(object) = list.pop() {
            Served::forward(object, body.inbox(), 0);
        }
    }
}

impl<B: Body> Drop for Home<B> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the task was not stopped. When this returns it has ended,
        // by this request or with its process.
        unsafe { shim::vhost_task_stop(self.task.as_ptr()) };
        Self::retire(&self.body);
    }
}
