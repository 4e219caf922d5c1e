// SPDX-License-Identifier: GPL-2.0

//! Home threads: one for each device that has an owner, which serves what workers cannot.
//!
//! It is what stock vhost's worker of a device is. What it waits for delays nobody but the device.

use super::bindings as shim;
use super::inbox::{Fifo, Inbox};
use super::mm::{InMm, OwnerMm};
use super::served::{Served, Service};
use super::thread::{self, Current, Thread, Urgency};
use core::ptr::NonNull;
use kernel::error::from_err_ptr;
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::aref::ARef;
use kernel::sync::Arc;
use kernel::task::Task;

/// Which thread a device has at home (`VHOST_SET_FORK_FROM_OWNER` in include/uapi/linux/vhost.h).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// `VHOST_FORK_OWNER_TASK`, a `vhost_task`: a thread of the owner, in its address space, its
    /// cgroups and its limits, which ends with it.
    #[default]
    Task,
    /// `VHOST_FORK_OWNER_KTHREAD`: a kernel thread, which enters the owner's address space for a
    /// slice, in the cgroups that the owner is in when it starts. No signal of user space reaches it.
    Kthread,
}

/// What a home thread does.
pub trait Body: Send + Sync + 'static {
    /// What its inbox holds.
    type Service: Service;

    /// The inbox, of which the thread is the reader.
    fn inbox(&self) -> &Arc<Inbox<Self::Service>>;

    /// The objects that the thread is home to.
    fn objects(&self) -> &[Arc<Served<Self::Service>>];

    /// Whose memory it serves.
    fn owner(&self) -> &OwnerMm;

    /// Serves an object from the inbox. There is no memory when the owner has ended.
    fn serve(&self, object: Arc<Served<Self::Service>>, mm: Option<InMm<'_>>);
}

/// A home thread, which ends when this is dropped, if it did not before with its process.
pub struct Home<B: Body> {
    // It goes first: a `vhost_task` borrows the body, which the residents keep, and a thread that has
    // ended takes nothing any more.
    thread: HomeThread<B>,
    _residents: Residents<B>,
}

/// The thread of either kind.
enum HomeThread<B: Body> {
    Task { _task: VhostTask },
    Kthread { thread: Thread<Kthread<B>> },
}

impl<B: Body> Home<B> {
    /// Starts a home thread for the current process.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EAGAIN` when a limit of the process forbids another thread, `EINTR` when it is
    /// being killed, and what a cgroup refuses a kernel thread.
    pub fn start(kind: Kind, name: &CStr, body: Arc<B>) -> Result<Self> {
        let thread = match kind {
            Kind::Task => HomeThread::Task {
                _task: VhostTask::start(name, &body)?,
            },
            Kind::Kthread => {
                let urgency = Urgency {
                    nice: 0,
                    priority: 0,
                };
                let thread = Kthread(body.clone());
                let thread = Thread::spawn(name, None, urgency, Arc::new(thread, GFP_KERNEL)?)?;
                thread.join_cgroups()?;
                HomeThread::Kthread { thread }
            }
        };
        Ok(Self {
            thread,
            _residents: Residents::new(body),
        })
    }

    /// Keeps the thread from waiting for memory, before this is dropped: no signal of the owner
    /// reaches a kernel thread, and it may wait for what the owner itself was to provide. A thread of
    /// the owner ends with it.
    pub fn interrupt(&self) {
        if let HomeThread::Kthread { thread } = &self.thread {
            thread.interrupt();
        }
    }
}

/// The objects of a body, which have a home as long as this lives.
struct Residents<B: Body>(Arc<B>);

impl<B: Body> Residents<B> {
    fn new(body: Arc<B>) -> Self {
        for object in body.objects() {
            object.set_home(Some(body.inbox().clone()));
        }
        Self(body)
    }
}

impl<B: Body> Drop for Residents<B> {
    fn drop(&mut self) {
        retire(&*self.0);
    }
}

/// Hands everything back to the workers.
fn retire<B: Body>(body: &B) {
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

/// A kernel thread at home.
struct Kthread<B: Body>(Arc<B>);

impl<B: Body> thread::Body for Kthread<B> {
    type Service = B::Service;

    fn inbox(&self) -> &Inbox<B::Service> {
        self.0.inbox()
    }

    fn run(&self, current: &mut Current) {
        let body = &*self.0;
        let mut list = Fifo::new();
        while !current.should_stop() {
            list.take_all(body.inbox());
            if list.is_empty() {
                // An owner that ends meanwhile is to get rid of its memory.
                current.mm.leave();
                current.sleep_unless(body.inbox(), None);
            }
            while let Some(object) = list.pop() {
                body.serve(object, current.mm.enter(body.owner()));
                current.breathe();
            }
        }
    }
}

/// A thread of the process that started it, which is stopped when this is dropped.
///
/// # Invariants
///
/// The task was started and not stopped.
struct VhostTask(NonNull<shim::vhost_task>);

// SAFETY: The task may be stopped by any thread.
unsafe impl Send for VhostTask {}
// SAFETY: Nothing can be done with a shared reference.
unsafe impl Sync for VhostTask {}

impl VhostTask {
    /// Starts one in the current process. `body` has to be kept until this is dropped.
    fn start<B: Body>(name: &CStr, body: &Arc<B>) -> Result<Self> {
        // SAFETY: Both functions accept a pointer to a body, which stays valid: `Home` keeps it
        // until the thread has ended. The name is copied.
        let task = from_err_ptr(unsafe {
            shim::vhost_task_create(
                Some(Self::main::<B>),
                Some(Self::killed::<B>),
                Arc::as_ptr(body).cast_mut().cast(),
                name.as_char_ptr(),
            )
        })?;
        let task = NonNull::new(task).ok_or(ENOMEM)?;
        // SAFETY: The task was created just now.
        unsafe { shim::vhost_task_start(task.as_ptr()) };
        // INVARIANT: Started just now.
        Ok(Self(task))
    }

    /// # Safety
    ///
    /// Called in the thread, with the pointer that `start` passed, asleep but for the call of
    /// `schedule()`. Returns whether there was something to do.
    unsafe extern "C" fn main<B: Body>(data: *mut kernel::ffi::c_void) -> bool {
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
            body.serve(object, body.owner().as_current());
            // SAFETY: The thread holds neither locks nor an RCU read section between slices.
            unsafe { shim::iocm_breathe() };
        }
        true
    }

    /// # Safety
    ///
    /// Called in the thread, with the pointer that `start` passed, when its process is killed. It
    /// does not run `main` any more.
    unsafe extern "C" fn killed<B: Body>(data: *mut kernel::ffi::c_void) {
        // SAFETY: `start` passes a body that is kept until this thread has ended.
        retire(unsafe { &*data.cast::<B>() });
    }
}

impl Drop for VhostTask {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the task was not stopped. When this returns it has ended,
        // by this request or with its process.
        unsafe { shim::vhost_task_stop(self.0.as_ptr()) };
    }
}
