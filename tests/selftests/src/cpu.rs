// SPDX-License-Identifier: GPL-2.0
//! The machine's CPUs, and who runs on which.

use anyhow::{Context, Result};
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
