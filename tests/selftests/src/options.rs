// SPDX-License-Identifier: GPL-2.0
//! The command line that all suites share.

use std::path::PathBuf;

use clap::Parser;

/// The kernel that the suites run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// A kernel as people run it.
    Plain,
    /// A kernel with sanitizers and lock checking, slower by an order of magnitude or more.
    Debug,
}

impl Flavour {
    /// The flavour that VHOST_IOCM_FLAVOUR names; plain when it names no other.
    pub fn of_environment() -> Self {
        match std::env::var("VHOST_IOCM_FLAVOUR").as_deref() {
            Ok("debug") => Self::Debug,
            _ => Self::Plain,
        }
    }
}

/// Whether the kernel is User Mode Linux, some of whose own accounts are missing.
pub fn in_user_mode_linux() -> bool {
    std::env::var("VHOST_IOCM_FLAVOUR").is_ok_and(|flavour| flavour.starts_with("uml"))
}

/// What a suite is told on its command line.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// Device node of the module under test.
    #[arg(long, env = "VHOST_IOCM_NODE", default_value = "/dev/vhost-net")]
    pub node: PathBuf,

    /// The node belongs to the kernel's own vhost_net: expect its features, and no control interface.
    #[arg(long)]
    pub stock: bool,

    /// Run only the cases whose claim contains one of these words.
    pub filters: Vec<String>,
}

impl Options {
    /// A volume of work that the kernel under test does in reasonable time.
    pub fn volume<T>(&self, plain: T, debug: T) -> T {
        match Flavour::of_environment() {
            Flavour::Plain => plain,
            Flavour::Debug => debug,
        }
    }
}
