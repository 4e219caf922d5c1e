// SPDX-License-Identifier: GPL-2.0
//! Threads of the kernel or of a process, as /proc shows them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

/// A thread, which may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its number in the initial namespace.
    pub id: i32,
}

impl Thread {
    /// The thread whose number a file of the control interface says.
    pub fn parse(text: &str) -> Result<Self> {
        let id = text.parse().with_context(|| format!("thread {text:?}"))?;
        Ok(Self { id })
    }

    fn file(self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.id.to_string()).join(name)
    }

    fn read(self, name: &str) -> Result<String> {
        let path = self.file(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Whether it is still there.
    pub fn exists(self) -> bool {
        self.file("").exists()
    }

    /// Its name.
    pub fn name(self) -> Result<String> {
        Ok(self.read("comm")?.trim_end().to_owned())
    }

    /// How long it has run, by the account of the scheduler.
    pub fn runtime(self) -> Result<Duration> {
        let statistics = self.read("schedstat")?;
        let first = statistics.split(' ').next().context("empty schedstat")?;
        Ok(Duration::from_nanos(first.parse()?))
    }

    /// How often it went to sleep.
    pub fn sleeps(self) -> Result<u64> {
        self.status_number("voluntary_ctxt_switches:")
    }

    /// How often it gave up its CPU, to sleep or for another thread.
    pub fn switches(self) -> Result<u64> {
        Ok(self.sleeps()? + self.status_number("nonvoluntary_ctxt_switches:")?)
    }

    fn status_number(self, name: &str) -> Result<u64> {
        let status = self.read("status")?;
        let number = status.lines().find_map(|line| line.strip_prefix(name));
        let number = number.with_context(|| format!("no {name}"))?;
        Ok(number.trim().parse()?)
    }

    /// Its state, a letter of proc(5): `D` when it sleeps and no signal wakes it, `T` when it is stopped.
    pub fn state(self) -> Result<char> {
        self.stat_field(3)
    }

    /// The list of CPUs on which it may run.
    pub fn allowed_cpus(self) -> Result<String> {
        let status = self.read("status")?;
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        Ok(list.context("no Cpus_allowed_list")?.trim().to_owned())
    }

    /// The number of its process's parent: 2 for all threads of the kernel.
    pub fn parent(self) -> Result<i32> {
        self.stat_field(4)
    }

    /// The CPU on which it ran last.
    pub fn last_cpu(self) -> Result<i32> {
        self.stat_field(39)
    }

    /// Its nice value.
    pub fn nice(self) -> Result<i32> {
        self.stat_field(19)
    }

    /// Its real-time priority, or 0.
    pub fn real_time_priority(self) -> Result<u32> {
        self.stat_field(40)
    }

    /// How it is scheduled: 0 is `SCHED_OTHER`, 1 is `SCHED_FIFO`.
    pub fn policy(self) -> Result<u32> {
        self.stat_field(41)
    }

    /// A field of `stat`, by its number in proc(5).
    fn stat_field<T: std::str::FromStr>(self, number: usize) -> Result<T> {
        let stat = self.read("stat")?;
        // The name in parentheses, the second field, may hold anything.
        let fields = stat.rsplit_once(") ").context("malformed stat")?.1;
        let field = fields.split_whitespace().nth(number - 3);
        field
            .and_then(|field| field.parse().ok())
            .with_context(|| format!("no field {number} in stat"))
    }
}

/// All threads of a process that have this name.
pub fn named(process: u32, name: &str) -> Result<Vec<Thread>> {
    let directory = format!("/proc/{process}/task");
    let mut threads = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("list {directory}"))? {
        let thread = Thread::parse(&entry?.file_name().to_string_lossy())?;
        // A thread may end between the list and the look.
        if thread.name().is_ok_and(|found| found == name) {
            threads.push(thread);
        }
    }
    Ok(threads)
}

/// The only thread of the kernel that has this name.
pub fn of_kernel(name: &str) -> Result<Thread> {
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let Ok(thread) = Thread::parse(&entry?.file_name().to_string_lossy()) else {
            continue;
        };
        if thread.name().is_ok_and(|found| found == name) {
            return Ok(thread);
        }
    }
    anyhow::bail!("there is no thread {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_thread() {
        let process = std::process::id();
        let thread = Thread::parse(&process.to_string()).unwrap();
        assert!(thread.exists());
        assert!(thread.last_cpu().unwrap() >= 0);
        assert!(!thread.allowed_cpus().unwrap().is_empty());
        assert!(thread.runtime().unwrap() > Duration::ZERO);
        let name = thread.name().unwrap();
        assert!(named(process, &name).unwrap().contains(&thread));
        assert!(Thread::parse("-").is_err());
    }
}
