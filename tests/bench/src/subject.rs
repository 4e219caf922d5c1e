// SPDX-License-Identifier: GPL-2.0
//! The two modules, and the threads that serve their devices.

use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use nix::unistd::Pid;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu::{self, Left};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::thread::{self, Thread};

/// Whose device is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// The kernel's vhost_net.
    Stock,
    /// vhost_iocm.
    Ours,
}

/// Both modules, loaded in the same kernel.
pub struct Subjects {
    /// The node of the kernel's vhost_net.
    pub stock: PathBuf,
    /// The node of vhost_iocm.
    pub ours: PathBuf,
    control: Control,
}

/// A device with a driver, and the thread that serves it.
pub struct Subject {
    /// The driver.
    pub nic: Nic,
    /// The thread.
    pub thread: Thread,
    /// The driver's leave of the CPU that the thread has for itself.
    _left: Option<Left>,
}

impl Subjects {
    /// The modules whose nodes these are.
    pub fn new(stock: &Path, ours: &Path) -> Result<Self> {
        for node in [stock, ours] {
            ensure!(node.exists(), "no node {}", node.display());
        }
        Ok(Self {
            stock: stock.to_owned(),
            ours: ours.to_owned(),
            control: Control::default(),
        })
    }

    /// Makes a device of `module`, of which ours is polled as `poll` says: `0`, `1` or `auto`.
    pub fn open(&self, module: Module, options: NicOptions, poll: &str) -> Result<Subject> {
        let nic = Nic::new(self.node(module), options)?;
        let thread = self.thread(module, std::process::id(), nic.tap.name(), poll)?;
        Ok(Subject {
            nic,
            thread,
            _left: None,
        })
    }

    /// The same with the last CPU for the thread alone, and the others for the driver.
    pub fn open_apart(&self, module: Module, options: NicOptions, poll: &str) -> Result<Subject> {
        let last = cpu::count()? - 1;
        ensure!(last > 0, "driver and serving thread need a CPU each");
        let left = cpu::leave(last)?;
        let subject = self.open(module, options, poll)?;
        cpu::place(Pid::from_raw(subject.thread.id), &[last])?;
        Ok(Subject {
            _left: Some(left),
            ..subject
        })
    }

    /// The node of a module.
    pub fn node(&self, module: Module) -> &Path {
        match module {
            Module::Stock => &self.stock,
            Module::Ours => &self.ours,
        }
    }

    /// The thread that serves the device of `process` whose tap this is, which is the last one that it made. Ours is
    /// polled as `poll` says from now on.
    pub fn thread(&self, module: Module, process: u32, tap: &str, poll: &str) -> Result<Thread> {
        match module {
            Module::Stock => {
                // Each device has one, and the last one made is the last device's.
                let threads = thread::named(process, &format!("vhost-{process}"))?;
                let newest = threads.into_iter().max_by_key(|thread| thread.id);
                newest.with_context(|| format!("no thread serves {tap}"))
            }
            Module::Ours => {
                let device = self.control.device_of(tap)?;
                self.control.set_poll_of_device(&device, poll)?;
                let worker = self.control.read_line(&format!("dev/{device}/worker"))?;
                let pid = self.control.read_line(&format!("worker/{worker}/pid"))?;
                Thread::parse(&pid).context("the worker's thread")
            }
        }
    }
}
