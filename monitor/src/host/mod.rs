// SPDX-License-Identifier: GPL-2.0

//! What there is on the host: the control interface of the module, processes, CPUs, interrupts.
//!
//! Everything is read below a root directory, `/` unless a test has recorded a tree. Whatever
//! vanishes while it is read was not there: VMs come and go.

pub mod control;
pub mod interrupt;
pub mod mapping;
pub mod name;
pub mod process;
pub mod snapshot;
pub mod topology;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes that few files of the kernel are longer than.
const USUAL: usize = 4096;

/// Where the files of the host are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self(PathBuf::from("/"))
    }
}

impl Root {
    /// The files below this directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// A file, by its path from the root without the first slash.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.0.join(relative)
    }

    /// What a file says without white space around it, or `None` if it cannot be read: it does not
    /// exist, or what it is about is gone.
    pub fn read(&self, relative: impl AsRef<Path>) -> Option<String> {
        // The kernel does not say how long its files are. `File` would be asked for it all the same, and what
        // takes from it is not; nearly all of them fit.
        let mut bytes = Vec::with_capacity(USUAL);
        let file = File::open(self.path(relative)).ok()?;
        file.take(u64::MAX).read_to_end(&mut bytes).ok()?;
        // Nearly all of it is UTF-8, which is much cheaper to check than to mend.
        let text = String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        Some(text.trim().to_owned())
    }

    /// The names in a directory in their order; none if it does not exist.
    pub fn names(&self, relative: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(relative)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }
}

/// A name that somebody else has chosen, without what a terminal would obey.
pub fn printable(name: &str) -> String {
    name.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

/// Whether an error says that what the file is about does not exist any more.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc_errno::ENOENT | libc_errno::ENODEV | libc_errno::ESRCH)
    )
}

/// The numbers, which are the same on all architectures of Linux.
mod libc_errno {
    use nix::errno::Errno;
    pub const ENOENT: i32 = Errno::ENOENT as i32;
    pub const ENODEV: i32 = Errno::ENODEV as i32;
    pub const ESRCH: i32 = Errno::ESRCH as i32;
}
