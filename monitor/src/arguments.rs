// SPDX-License-Identifier: GPL-2.0

//! The command line.

use crate::failure::EXIT_STATUSES;
use crate::host::control::{worker_name, Object};
use clap::{Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;
use vhost_iocm_engine::engine::abi::WorkerId;

/// Sees, steers and automates the I/O cores of a host with vhost_iocm.
#[derive(Debug, Parser)]
#[command(name = "iocm", version, after_help = EXIT_STATUSES, propagate_version = true)]
pub struct Arguments {
    /// Find sys, proc, run and etc below this directory, for tests with a recorded host.
    #[arg(long, global = true, hide = true, default_value = "/")]
    pub root: PathBuf,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show workers, devices with their VMs, and virtqueues
    Status(Status),
    /// Watch and steer workers and devices in the terminal
    Top {
        /// Seconds between two looks
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
        interval: f64,
    },
    /// Create, remove, lock and pin workers
    #[command(subcommand)]
    Worker(Worker),
    /// Let another worker serve a device or a virtqueue, under traffic
    Move {
        /// d.N or vq.D.Q
        object: Object,
        /// w.N
        #[arg(value_parser = worker_name)]
        worker: WorkerId,
    },
    /// Set an attribute of a worker, device or virtqueue, or a parameter of the module
    ///
    /// Without attribute and value, says what can be set and how it is set now.
    Set {
        /// w.N, d.N, vq.D.Q or module
        object: Object,
        /// Its attribute, such as weight
        #[arg(requires = "value")]
        attribute: Option<String>,
        /// The new value
        #[arg(allow_hyphen_values = true)]
        value: Option<String>,
    },
    /// Look for what is wrong with the host, and say the command that mends it
    Doctor,
    /// Decide how many cores do I/O, and who is served where, again and again
    Monitor(Monitor),
    /// Try policies on a model of a host
    Simulate(crate::simulate::cli::Args),
    /// Check or show the configuration of `iocm monitor`
    #[command(subcommand)]
    Config(Config),
    /// Print completions for a shell
    Completions {
        /// Which one
        shell: Shell,
    },
    /// Print the manual page, or write all of them into a directory
    Man {
        /// The directory, which has to exist
        directory: Option<PathBuf>,
    },
}

/// Options of `iocm status`.
#[derive(Debug, Parser)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Repeat it, with rates since the time before
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub watch: Option<f64>,
}

/// Commands of `iocm worker`.
#[derive(Debug, Subcommand)]
pub enum Worker {
    /// List the workers
    List,
    /// Create a worker, and print its name
    Create {
        /// CPUs on which it runs, such as 3 or 2-3; -1: any
        #[arg(allow_hyphen_values = true, default_value = "-1")]
        cpus: String,
        /// It sleeps until work waits for too long elsewhere
        #[arg(long)]
        parked: bool,
    },
    /// Remove a worker
    Remove {
        /// w.N
        #[arg(value_parser = worker_name)]
        worker: WorkerId,
        /// The worker that gets what it serves
        #[arg(long, value_name = "WORKER", value_parser = worker_name)]
        to: Option<WorkerId>,
    },
    /// Let a worker take no new devices
    Lock {
        /// w.N
        #[arg(value_parser = worker_name)]
        worker: WorkerId,
    },
    /// Let a worker take new devices again
    Unlock {
        /// w.N
        #[arg(value_parser = worker_name)]
        worker: WorkerId,
    },
    /// Let a worker run on other CPUs
    Pin {
        /// w.N
        #[arg(value_parser = worker_name)]
        worker: WorkerId,
        /// CPUs, such as 3 or 2-3
        cpus: String,
    },
}

/// Options of `iocm monitor`.
#[derive(Debug, Parser)]
pub struct Monitor {
    /// The configuration; without it the defaults count, and those of /etc/iocm.toml if there is one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Do nothing but say what would be done and why
    #[arg(long)]
    pub dry_run: bool,
    /// Undo what a monitor has left behind, and end
    #[arg(long, conflicts_with = "dry_run")]
    pub restore: bool,
}

/// Commands of `iocm config`.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Say whether a configuration is right
    Check {
        /// The file
        #[arg(default_value = "/etc/iocm.toml")]
        file: PathBuf,
    },
    /// Print all keys with their values: those of the file, and defaults
    Show {
        /// The file; without it, the defaults
        file: Option<PathBuf>,
    },
}

/// Reads a time in seconds.
fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.01..=86_400.0).contains(seconds))
        .ok_or_else(|| format!("{text} is no time from 0.01 to 86400 seconds"))
}
