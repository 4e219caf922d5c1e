// SPDX-License-Identifier: GPL-2.0
//! The machine's CPUs, and who runs on which.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sched::{sched_getaffinity, sched_setaffinity, CpuSet};
use nix::unistd::{sysconf, Pid, SysconfVar};

/// How many CPUs are online, whichever of them this process may run on.
pub fn count() -> Result<usize> {
    let online =
        sysconf(SysconfVar::_NPROCESSORS_ONLN)?.context("the number of CPUs is unknown")?;
    Ok(usize::try_from(online)?)
}

/// Makes a thread run on these CPUs only.
pub fn place(thread: Pid, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(thread, &set).with_context(|| format!("place {thread} on CPUs {cpus:?}"))
}

/// The calling thread's right to run before all others, which it has until this is dropped.
pub struct First(());

/// Makes the calling thread run as soon as it can, whoever else wants its CPU. What it starts does not
/// inherit that. A thread that measures how long others take must not wait for third ones.
pub fn run_first() -> Result<First> {
    schedule(libc::SCHED_FIFO, 1).context("real-time priority")?;
    Ok(First(()))
}

impl Drop for First {
    fn drop(&mut self) {
        if let Err(error) = schedule(libc::SCHED_OTHER, 0) {
            crate::ktap::diagnostic(format!("cannot give up the real-time priority: {error}"));
        }
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) -> Result<(), Errno> {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: The parameters are those of this function, which the kernel reads.
    let answer =
        unsafe { libc::sched_setscheduler(0, policy | libc::SCHED_RESET_ON_FORK, &parameters) };
    Errno::result(answer).map(drop)
}

/// The CPU that the calling thread left to somebody else; it comes back when this is dropped.
pub struct Left {
    before: CpuSet,
}

/// Keeps the calling thread, and what it starts from now on, off a CPU, if there is another one.
pub fn leave(cpu: usize) -> Result<Left> {
    let before = sched_getaffinity(Pid::from_raw(0)).context("own CPUs")?;
    let others: Vec<_> = (0..count()?).filter(|other| *other != cpu).collect();
    if !others.is_empty() {
        place(Pid::from_raw(0), &others)?;
    }
    Ok(Left { before })
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Err(error) = sched_setaffinity(Pid::from_raw(0), &self.before) {
            crate::ktap::diagnostic(format!("cannot go back to all CPUs: {error}"));
        }
    }
}
