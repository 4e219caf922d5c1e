// SPDX-License-Identifier: GPL-2.0

//! Kernel threads.

use super::affinity::Affinity;
use super::bindings as shim;
use super::cpu::CpuList;
use super::inbox::Inbox;
use super::mm::Adopted;
use super::served::Service;
use super::sysfs::{Content, Directory, Text};
use kernel::bindings;
use kernel::error::{from_err_ptr, to_result};
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::aref::ARef;
use kernel::sync::{Arc, Completion};
use kernel::task::Task;

/// What a thread does.
pub trait Body: Send + Sync + 'static {
    /// What its inbox holds.
    type Service: Service;

    /// The inbox, of which the thread is the reader.
    fn inbox(&self) -> &Inbox<Self::Service>;

    /// Runs until [`Current::should_stop`] says so.
    fn run(&self, current: &mut Current);
}

/// The current thread, for the body that runs in it.
pub struct Current {
    /// The address space that the thread is in.
    pub mm: Adopted,
    affinity: Arc<Affinity>,
}

impl Current {
    /// Whether the thread is asked to end.
    pub fn should_stop(&self) -> bool {
        // SAFETY: The current thread was made by `kthread_create_on_node()`.
        unsafe { bindings::kthread_should_stop() }
    }

    /// Sleeps until something comes into `inbox`, the thread is asked to end, or, if there is a
    /// `timeout`, so many nanoseconds have passed.
    pub fn sleep_unless<S: Service>(&self, inbox: &Inbox<S>, timeout: Option<u64>) {
        self.sleep_until(|| !inbox.is_empty(), timeout);
    }

    /// Sleeps, unless `ready` holds, until the thread is woken, is asked to end, or, if there is a
    /// `timeout`, so many nanoseconds have passed.
    pub fn sleep_until(&self, ready: impl FnOnce() -> bool, timeout: Option<u64>) {
        // SAFETY: The announcement is taken back below.
        unsafe { shim::iocm_prepare_sleep() };
        if !ready() && !self.should_stop() {
            match timeout {
                // SAFETY: This thread holds no lock that forbids to sleep.
                None => unsafe { bindings::schedule() },
                // SAFETY: As above.
                Some(timeout) => unsafe { shim::iocm_sleep(timeout) },
            }
        }
        // SAFETY: Being awake needs no precondition.
        unsafe { shim::iocm_cancel_sleep() };
    }

    /// Lets the other hardware thread of the core run, in a loop that waits.
    pub fn relax(&self) {
        // SAFETY: The instruction has no precondition.
        unsafe { shim::iocm_relax() };
    }

    /// Lets others run, between two slices, and notes on which CPUs the thread may run now. Returns
    /// whether these have changed.
    pub fn breathe(&self) -> bool {
        // SAFETY: The affinity is this thread's, see `main`.
        let moved = unsafe { self.affinity.look() };
        // SAFETY: The thread holds neither locks nor an RCU read section between slices.
        unsafe { shim::iocm_breathe() };
        moved
    }

    /// The only CPU on which the thread may run, or -1 if there are several.
    pub fn cpu(&self) -> i32 {
        // SAFETY: The current thread's structure is valid.
        unsafe { shim::iocm_task_cpu(bindings::get_current()) }
    }
}

/// For how many nanoseconds the current thread was ready to run, in all, and its CPU ran something
/// else. It stays 0 in kernels that do not measure that (`CONFIG_SCHED_INFO`).
pub fn stolen_time() -> u64 {
    // SAFETY: The function reads a field of the current task.
    unsafe { shim::iocm_run_delay() }
}

/// How a thread competes with others for its CPU.
#[derive(Clone, Copy)]
pub struct Urgency {
    /// The nice value, from -20 to 19.
    pub nice: i32,
    /// The real-time priority, from 1 to 99, or 0 for none.
    pub priority: u32,
}

/// A kernel thread, which ends when this is dropped.
///
/// # Invariants
///
/// `task` is the thread, to which this object owns a reference; the thread borrows `shared` until
/// it has ended.
pub struct Thread<B: Body> {
    task: ARef<Task>,
    shared: Pin<KBox<Shared<B>>>,
}

/// What a thread is given when it starts.
#[pin_data]
struct Shared<B: Body> {
    body: Arc<B>,
    affinity: Arc<Affinity>,
    /// Whether the thread runs, and others may say where.
    #[pin]
    started: Completion,
}

impl<B: Body> Thread<B> {
    /// Starts a thread that runs `body`, on `cpus` only if there are any.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EINTR` when the process is being killed, `ENODEV` when none of the CPUs is online
    /// any more.
    pub fn spawn(
        name: &CStr,
        cpus: Option<&CpuList>,
        urgency: Urgency,
        body: Arc<B>,
    ) -> Result<Self> {
        let affinity = Arc::new(Affinity::new()?, GFP_KERNEL)?;
        let shared = KBox::pin_init(
            pin_init!(Shared {
                body,
                affinity,
                started <- Completion::new(),
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: `main` accepts a pointer to what is shared, which stays valid: this object keeps
        // it until the thread has ended. The name is copied.
        let task = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(Self::main),
                (&raw const *shared).cast_mut().cast(),
                bindings::NUMA_NO_NODE,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        })?;
        // SAFETY: The thread lives, since it was not woken yet.
        let task = unsafe { &*task.cast::<Task>() };
        let task: ARef<Task> = task.into();
        shared.body.inbox().set_reader(task.clone());
        // INVARIANT: A reference was taken above, and `shared` is kept here.
        let thread = Self { task, shared };
        // SAFETY: The thread was made above, and its structure is valid as long as this object is,
        // which leaves it alone before it goes.
        unsafe { thread.shared.affinity.begin(&thread.task, cpus) }?;
        thread.set_nice(urgency.nice)?;
        thread.set_priority(urgency.priority)?;
        thread.task.wake_up();
        // Until it has run, nobody but this module may move it.
        thread.shared.started.wait_for_completion();
        Ok(thread)
    }

    /// Moves the thread into the cgroups of the current process.
    ///
    /// # Errors
    ///
    /// What their controllers refuse.
    pub(super) fn join_cgroups(&self) -> Result {
        // SAFETY: By the type invariant the thread's structure is valid.
        to_result(unsafe { shim::iocm_join_cgroups(self.task.as_ptr()) })
    }

    /// Keeps the thread from waiting for user memory: what is not there is missing. It does not sleep
    /// any more either, so it is to be dropped then.
    pub(super) fn interrupt(&self) {
        // SAFETY: By the type invariant the thread's structure is valid.
        unsafe { shim::iocm_interrupt(self.task.as_ptr()) };
    }

    /// The thread's number in the initial namespace.
    pub fn pid(&self) -> i32 {
        self.task.pid()
    }

    /// The only CPU on which the thread may run, or -1 if there are several.
    pub fn cpu(&self) -> i32 {
        // SAFETY: By the type invariant the thread's structure is valid.
        unsafe { shim::iocm_task_cpu(self.task.as_ptr()) }
    }

    /// The CPUs on which the thread may run, as a list of ranges.
    pub fn write_cpus(&self, text: &mut Text<'_>) {
        // SAFETY: By the type invariant the thread's structure is valid; what is written fits
        // into the buffer whose size is passed.
        text.fill(|buffer, size| unsafe { shim::iocm_task_cpus(self.task.as_ptr(), buffer, size) });
    }

    /// Sets the CPUs on which the thread may run.
    ///
    /// # Errors
    ///
    /// `ENODEV` when none of them is online any more.
    pub fn set_cpus(&self, cpus: &CpuList) -> Result {
        self.shared.affinity.set(cpus)?;
        // One that sleeps notes it now.
        self.task.wake_up();
        Ok(())
    }

    /// Whether none of the CPUs is online on which the thread is to run, so that it runs on
    /// others until one comes back.
    pub fn is_displaced(&self) -> bool {
        self.shared.affinity.is_displaced()
    }

    /// The CPUs on which the thread is to run, as a list of ranges.
    pub fn write_wanted_cpus(&self, text: &mut Text<'_>) {
        self.shared.affinity.write_wanted(text);
    }

    /// Wakes those who poll a file of `directory` when what [`Thread::is_displaced`] says
    /// changes.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is no such file.
    pub fn announce_displacement<T: Content>(
        &self,
        directory: &Directory<T>,
        file: &CStr,
    ) -> Result {
        self.shared.affinity.announce(directory, file)
    }

    /// The nice value, from -20 to 19. It counts while there is no real-time priority.
    pub fn nice(&self) -> i32 {
        // SAFETY: By the type invariant the thread's structure is valid.
        unsafe { shim::iocm_task_nice(self.task.as_ptr()) }
    }

    /// Sets the nice value.
    ///
    /// # Errors
    ///
    /// `ERANGE` when it is not between -20 and 19.
    pub fn set_nice(&self, nice: i32) -> Result {
        if !(bindings::MIN_NICE..=bindings::MAX_NICE as i32).contains(&nice) {
            return Err(ERANGE);
        }
        // SAFETY: By the type invariant the thread's structure is valid; the value is in range.
        unsafe { shim::iocm_task_set_nice(self.task.as_ptr(), nice) };
        Ok(())
    }

    /// The real-time priority, from 1 to 99, or 0 if there is none.
    pub fn priority(&self) -> u32 {
        // SAFETY: By the type invariant the thread's structure is valid.
        unsafe { shim::iocm_task_priority(self.task.as_ptr()) }
    }

    /// Sets the real-time priority, first in, first out, or takes it away with 0.
    ///
    /// # Errors
    ///
    /// `ERANGE` when it is greater than 99, and what the scheduler refuses.
    pub fn set_priority(&self, priority: u32) -> Result {
        if priority >= bindings::MAX_RT_PRIO {
            return Err(ERANGE);
        }
        if priority == self.priority() {
            return Ok(());
        }
        // SAFETY: By the type invariant the thread's structure is valid; the value is in range.
        to_result(unsafe { shim::iocm_task_set_priority(self.task.as_ptr(), priority) })
    }

    /// # Safety
    ///
    /// Called by the kernel as the function of a thread, with the pointer that `spawn` passed.
    unsafe extern "C" fn main(data: *mut kernel::ffi::c_void) -> kernel::ffi::c_int {
        // SAFETY: `spawn` passes what is kept until this thread has ended.
        let shared = unsafe { &*data.cast::<Shared<B>>() };
        // SAFETY: The function changes a flag of the current thread under its lock.
        unsafe { shim::iocm_allow_affinity() };
        // Before anybody has the thread, for what is sent earlier is lost.
        // SAFETY: The current thread is a kernel thread.
        unsafe { shim::iocm_allow_interrupt() };
        shared.started.complete_all();
        let mut current = Current {
            // SAFETY: A thread of this module has no address space of its own, and this is the
            // only place where its way into others is made.
            mm: unsafe { Adopted::new() },
            affinity: shared.affinity.clone(),
        };
        shared.body.run(&mut current);
        0
    }
}

impl<B: Body> Drop for Thread<B> {
    fn drop(&mut self) {
        self.shared.affinity.end();
        // Whoever found the inbox before the last object left it has pushed when this returns, so
        // the thread finds it when it looks for the last time.
        self.shared.body.inbox().use_ends();
        // SAFETY: By the type invariant the structure is valid. A thread that was never run does
        // not run any more, one that runs has ended when this returns.
        unsafe { bindings::kthread_stop(self.task.as_ptr()) };
    }
}

/// Waits until every RCU read section that runs now has ended.
pub(super) fn synchronize_rcu() {
    // SAFETY: The callers may sleep: they drop what was shared.
    unsafe { bindings::synchronize_rcu() };
}

/// Fails with `EINTR` when the current process is being killed, so that a loop whose length user
/// space chose can end.
pub(super) fn check_killed() -> Result {
    // SAFETY: The function looks at the current task.
    if unsafe { shim::iocm_killed() } {
        return Err(EINTR);
    }
    Ok(())
}
