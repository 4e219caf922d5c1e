// SPDX-License-Identifier: GPL-2.0

//! The directories of workers, devices and virtqueues: one entry for each file that they have,
//! documented in sysfs-abi/testing/sysfs-class-vhost.

use super::device::{Device, Label, VIRTQUEUES};
use super::pool::Pool;
use super::virtqueue::Virtqueue;
use super::worker::Worker;
use crate::engine::abi::{self, VirtqueueId};
use crate::engine::stats::{Counter, VirtqueueStats};
use crate::kern::error::malformed;
use crate::kern::served::Served;
use crate::kern::sysfs::{Attribute, Content, Directory, Parent, Text};
use crate::kern::thread::Thread;
use core::fmt::{self, Write};
use kernel::prelude::*;
use kernel::sync::Arc;

/// A name that user space or another part of the kernel chose, ended by a zero: printed so that it
/// cannot add lines of its own.
struct Name<'a>(&'a [u8]);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.iter().take_while(|byte| **byte != 0) {
            let printable = byte.is_ascii_graphic() || *byte == b' ';
            f.write_char(if printable { char::from(*byte) } else { '?' })?;
        }
        Ok(())
    }
}

/// w.N
pub struct WorkerFiles {
    pool: Arc<Pool>,
    worker: Arc<Worker>,
    thread: Arc<Thread<Worker>>,
}

/// The directory of a worker.
pub struct WorkerDirectory {
    _directory: Directory<WorkerFiles>,
}

impl WorkerDirectory {
    /// Creates the directory.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(pool: Arc<Pool>, worker: Arc<Worker>, thread: Arc<Thread<Worker>>) -> Result<Self> {
        let id = worker.id;
        let files = WorkerFiles {
            pool,
            worker,
            thread,
        };
        Ok(Self {
            _directory: Directory::new(Parent::Worker, format_args!("{id}"), files)?,
        })
    }
}

static WORKER_FILES: [Attribute<WorkerFiles>; 5] = [
    Attribute::read_only(c"cpu", |files, text| {
        Ok(writeln!(text, "{}", files.thread.cpu())?)
    }),
    Attribute::read_only(c"pid", |files, text| {
        Ok(writeln!(text, "{}", files.thread.pid())?)
    }),
    Attribute::read_write(
        c"locked",
        |files, text| {
            let locked = files.pool.is_locked(files.worker.id)?;
            Ok(writeln!(text, "{}", u8::from(locked))?)
        },
        |files, text| {
            let locked = abi::parse_flag(text).map_err(malformed)?;
            files.pool.set_locked(files.worker.id, locked)
        },
    ),
    Attribute::read_only(c"dev_list", |files, text| {
        files.pool.write_devices_of(files.worker.id, text)
    }),
    Attribute::read_only(c"status", |files, text| files.write_status(text)),
];

impl Content for WorkerFiles {
    const FILES: &'static [Attribute<Self>] = &WORKER_FILES;
}

impl WorkerFiles {
    fn write_status(&self, text: &mut Text<'_>) -> Result {
        let id = self.worker.id;
        let stats = &self.worker.stats;
        writeln!(text, "cpu:{}", self.thread.cpu())?;
        writeln!(text, "pid:{}", self.thread.pid())?;
        writeln!(text, "locked:{}", u8::from(self.pool.is_locked(id)?))?;
        writeln!(text, "default:{}", u8::from(self.pool.is_default(id)))?;
        writeln!(text, "loops:{}", stats.loops.get())?;
        writeln!(text, "works:{}", stats.works.get())?;
        writeln!(text, "mm_switches:{}", stats.mm_switches.get())?;
        writeln!(text, "wait:{}", stats.wait.get())?;
        // The list comes last, since it is the only line that can outgrow the page.
        write!(text, "dev_list:")?;
        let before = text.room();
        self.pool.write_devices_of(id, text)?;
        if text.room() == before {
            writeln!(text)?;
        }
        Ok(())
    }
}

/// d.N
pub struct DeviceFiles {
    pool: Arc<Pool>,
    device: Arc<Device>,
}

static DEVICE_FILES: [Attribute<DeviceFiles>; 4] = [
    Attribute::read_write(
        c"worker",
        |files, text| {
            let worker = files.pool.worker_of(files.device.id)?;
            Ok(writeln!(text, "{worker}")?)
        },
        |files, text| {
            let worker = abi::parse_worker(text).map_err(malformed)?;
            files.pool.move_device(files.device.id, worker)
        },
    ),
    Attribute::read_only(c"owner", |files, text| {
        Ok(writeln!(text, "{}", owner_pid(&files.device.label()))?)
    }),
    Attribute::read_only(c"vq_list", |files, text| {
        let ids = files
            .device
            .virtqueues()
            .iter()
            .map(|virtqueue| virtqueue.id);
        Ok(abi::write_list(text, ids)?)
    }),
    Attribute::read_only(c"status", |files, text| files.write_status(text)),
];

fn owner_pid(label: &Label) -> i32 {
    label.owner.map_or(-1, |owner| owner.pid)
}

impl Content for DeviceFiles {
    const FILES: &'static [Attribute<Self>] = &DEVICE_FILES;
}

impl DeviceFiles {
    fn write_status(&self, text: &mut Text<'_>) -> Result {
        let label = self.device.label();
        let name = label.owner.map_or([0; 16], |owner| owner.name);
        let backend = label.backends.iter().flatten().next();
        writeln!(text, "worker:{}", self.pool.worker_of(self.device.id)?)?;
        writeln!(text, "owner:{}", owner_pid(&label))?;
        writeln!(text, "comm:{}", Name(&name))?;
        writeln!(text, "backend:{}", Name(backend.map_or(&[], |name| name)))?;
        write_counters(text, |counter| {
            self.device
                .virtqueues()
                .iter()
                .map(|virtqueue| counter(&virtqueue.stats).get())
                .fold(0, u64::wrapping_add)
        })
    }
}

/// vq.D.Q
pub struct VirtqueueFiles {
    pool: Arc<Pool>,
    virtqueue: Arc<Served<Virtqueue>>,
}

static VIRTQUEUE_FILES: [Attribute<VirtqueueFiles>; 2] = [
    Attribute::read_only(c"dev", |files, text| {
        Ok(writeln!(text, "{}", files.virtqueue.id.device)?)
    }),
    Attribute::read_only(c"status", |files, text| files.write_status(text)),
];

impl Content for VirtqueueFiles {
    const FILES: &'static [Attribute<Self>] = &VIRTQUEUE_FILES;
}

impl VirtqueueFiles {
    fn write_status(&self, text: &mut Text<'_>) -> Result {
        let VirtqueueId { device, .. } = self.virtqueue.id;
        writeln!(text, "dev:{device}")?;
        writeln!(text, "worker:{}", self.pool.worker_of(device)?)?;
        write_counters(text, |counter| counter(&self.virtqueue.stats).get())
    }
}

/// Prints the counters of a virtqueue, or the sums of those of a device.
fn write_counters(
    text: &mut Text<'_>,
    value: impl Fn(fn(&VirtqueueStats) -> &Counter) -> u64,
) -> Result {
    writeln!(text, "handled_packets:{}", value(|stats| &stats.packets))?;
    writeln!(text, "handled_bytes:{}", value(|stats| &stats.bytes))?;
    writeln!(text, "kicks:{}", value(|stats| &stats.kicks))?;
    writeln!(text, "notif_works:{}", value(|stats| &stats.works))?;
    writeln!(text, "interrupts:{}", value(|stats| &stats.interrupts))?;
    writeln!(text, "errors:{}", value(|stats| &stats.errors))?;
    writeln!(text, "drops:{}", value(|stats| &stats.drops))?;
    Ok(())
}

/// The directories of a device and of its virtqueues.
pub struct DeviceDirectories {
    _device: Directory<DeviceFiles>,
    _virtqueues: [Directory<VirtqueueFiles>; VIRTQUEUES],
}

impl DeviceDirectories {
    /// Creates the directories.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(pool: &Arc<Pool>, device: &Arc<Device>) -> Result<Self> {
        let virtqueue = |virtqueue: &Arc<Served<Virtqueue>>| {
            let files = VirtqueueFiles {
                pool: pool.clone(),
                virtqueue: virtqueue.clone(),
            };
            Directory::new(Parent::Vq, format_args!("{}", virtqueue.id), files)
        };
        let [receive, transmit] = device.virtqueues();
        let virtqueues = [virtqueue(receive)?, virtqueue(transmit)?];
        let files = DeviceFiles {
            pool: pool.clone(),
            device: device.clone(),
        };
        // The device's own directory comes last and goes first: who finds it finds its virtqueues.
        let device = Directory::new(Parent::Dev, format_args!("{}", device.id), files)?;
        Ok(Self {
            _device: device,
            _virtqueues: virtqueues,
        })
    }
}
