// SPDX-License-Identifier: GPL-2.0
//! Cgroups of a test's own (version 2).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

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
        enter(&self.path)
    }
}

fn enter(path: &Path) -> Result<()> {
    fs::write(path.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("move to {}", path.display()))
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group that stays is found by who makes it again.
        let _ = enter(Path::new(ROOT));
        let _ = fs::remove_dir(&self.path);
    }
}
