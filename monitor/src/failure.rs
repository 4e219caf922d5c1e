// SPDX-License-Identifier: GPL-2.0

//! What can go wrong, in words for who typed the command, and the exit status that it gives.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Something that `iocm` could not do. Its text is one sentence, with the way out.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for makes no sense, or the kernel refuses it as it is.
    #[error("{0}")]
    Refused(String),
    /// The module is not there.
    #[error("vhost_iocm is not loaded ({} does not exist); load it with `rmmod vhost_net; insmod vhost_iocm.ko`, or run `iocm doctor`", .0.display())]
    NoModule(PathBuf),
    /// The module went away in the middle.
    #[error("vhost_iocm was unloaded meanwhile; load it again and repeat the command")]
    ModuleGone,
    /// Only root may do that.
    #[error("no permission for {}; run the command as root, for instance with sudo", .0.display())]
    NoPermission(PathBuf),
    /// There is no such object.
    #[error("there is no {kind} {name}; `iocm status` lists what there is")]
    Unknown {
        /// worker, device, virtqueue.
        kind: &'static str,
        /// The name that was given.
        name: String,
    },
    /// The configuration is broken.
    #[error("{0}")]
    Configuration(String),
    /// `iocm doctor` found something.
    #[error("{0} of the checks found something to mend")]
    Unhealthy(usize),
    /// Another monitor runs.
    #[error("another monitor runs already (it holds {}); stop it first, for instance with `systemctl stop iocm`", .0.display())]
    Running(PathBuf),
    /// An operation of the system failed.
    #[error("{what}: {source}")]
    System {
        /// What was being done, with the file.
        what: String,
        /// How it failed.
        source: io::Error,
    },
}

/// What most functions return.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// An operation on a file failed.
    pub fn file(doing: &str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NoPermission(path.to_owned()),
            _ => Self::System {
                what: format!("cannot {doing} {}", path.display()),
                source,
            },
        }
    }

    /// The exit status, as [`EXIT_STATUSES`] says.
    pub fn status(&self) -> u8 {
        match self {
            Self::System { .. } => 1,
            // clap's own, for a command line that it does not understand.
            Self::Refused(_) => 2,
            Self::NoModule(_) | Self::ModuleGone => 3,
            Self::NoPermission(_) => 4,
            Self::Unknown { .. } => 5,
            Self::Configuration(_) => 6,
            Self::Unhealthy(_) => 7,
            Self::Running(_) => 8,
        }
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        failure.status().into()
    }
}

/// The exit statuses, for `--help` and the manual page.
pub const EXIT_STATUSES: &str = "\
Exit status:
  0  done
  1  the system failed in the middle; the message says where
  2  the command line, or a value, makes no sense or was refused
  3  vhost_iocm is not loaded
  4  no permission; most commands that change something need root
  5  there is no such worker, device or virtqueue
  6  the configuration is broken
  7  `iocm doctor` found something to mend
  8  another monitor runs already";
