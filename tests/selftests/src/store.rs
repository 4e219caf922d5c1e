// SPDX-License-Identifier: GPL-2.0
//! A file in a file system of user space (FUSE), whose server can be stopped.
//!
//! Whoever touches a page of it that is in no cache sleeps until the server goes on. That is what guest
//! memory on a network, or on a store that another process looks after, does to its host.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use nix::fcntl::{posix_fadvise, PosixFadviseAdvice};
use nix::mount::{umount2, MntFlags};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use vm_memory::GuestAddress;

use crate::memory::{GuestMemory, PAGE};
use crate::thread::Thread;
use crate::wait;

/// Name of the file.
pub const FILE: &str = "memory";
/// Its length in bytes.
pub const LENGTH: u64 = 4 << 20;

/// The server, a process that is killed when this goes out of scope.
pub struct Store {
    child: Child,
    directory: PathBuf,
}

impl Store {
    /// Starts the server.
    pub fn new() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("vhost-iocm-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let program = std::env::current_exe()?.with_file_name("store");
        let child = Command::new(&program)
            .arg(&directory)
            .spawn()
            .with_context(|| format!("run {}", program.display()))?;
        let store = Self { child, directory };
        wait::until("the file system to be mounted", || {
            Ok(store.file().exists())
        })?;
        Ok(store)
    }

    /// The path of the file.
    pub fn file(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, signal).with_context(|| format!("{signal} to the server"))
    }

    /// Stops the server. When this returns it answers nothing any more.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let thread = Thread::parse(&self.child.id().to_string())?;
        wait::until("the server to stop", || Ok(thread.state()? == 'T'))
    }

    /// Lets the server go on.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Its end ends the sleep of all who wait for it. What is left over does no harm but to the eye.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Lets every page that has a byte of these parts of the memory lie in the file from now on, which its
/// server alone has: who touches one has to wait for it, also to write, for a page that is shared is read
/// before it is written. This process must not touch them, either, until it wants to wait.
pub fn move_there(
    file: &PathBuf,
    memory: &GuestMemory,
    parts: &[(GuestAddress, u64)],
) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(file)
        .with_context(|| format!("open {}", file.display()))?;
    let mut pages: Vec<_> = parts
        .iter()
        .flat_map(|(start, length)| memory.pages(*start, *length))
        .collect();
    pages.sort();
    pages.dedup();
    for (page, offset) in pages.into_iter().zip((0..).step_by(PAGE as usize)) {
        memory.move_page(page, &file, offset)?;
    }
    file.sync_all().context("give the file to its server")?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .context("forget the pages of the file")?;
    Ok(file)
}
