// SPDX-License-Identifier: GPL-2.0
//! Cgroups of a test's own (version 2).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::wait;

/// Where the tree of cgroups is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Whether there are cgroups.
pub fn exist() -> bool {
    Path::new(ROOT).join("cgroup.procs").exists()
}

/// The cgroup of a thread, as /proc says it.
pub fn of(thread: i32) -> Result<String> {
    let path = format!("/proc/{thread}/cgroup");
    fs::read_to_string(&path).with_context(|| format!("read {path}"))
}

/// A cgroup in which there is nobody but who entered it by this. When it is dropped this process goes back to
/// the root, and the cgroup ends.
pub struct Group {
    name: &'static str,
    path: PathBuf,
}

impl Group {
    /// Makes a cgroup.
    pub fn new(name: &'static str) -> Result<Self> {
        let path = Path::new(ROOT).join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { name, path })
    }

    /// Makes a cgroup and moves this process there.
    pub fn with_own_process(name: &'static str) -> Result<Self> {
        let group = Self::new(name)?;
        group.enter()?;
        Ok(group)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Moves this process there.
    pub fn enter(&self) -> Result<()> {
        admit(&self.path, std::process::id())
    }

    /// Moves a process there.
    pub fn admit(&self, process: u32) -> Result<()> {
        admit(&self.path, process)
    }

    /// Lets all that is there stand still, or go on, and waits until all of it does.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let number = u8::from(frozen);
        fs::write(self.path.join("cgroup.freeze"), number.to_string()).context("cgroup.freeze")?;
        let expected = format!("frozen {number}");
        wait::until(&format!("the cgroup to be {expected}"), || {
            let events = fs::read_to_string(self.path.join("cgroup.events"))?;
            Ok(events.lines().any(|line| line == expected))
        })
    }
}

fn admit(path: &Path, process: u32) -> Result<()> {
    fs::write(path.join("cgroup.procs"), process.to_string())
        .with_context(|| format!("move {process} to {}", path.display()))
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group that stays is found by who makes it again.
        let _ = admit(Path::new(ROOT), std::process::id());
        let _ = fs::remove_dir(&self.path);
    }
}
