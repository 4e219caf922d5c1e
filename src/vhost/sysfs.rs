// SPDX-License-Identifier: GPL-2.0

//! The directories of workers, devices and virtqueues: one entry for each file that they have,
//! documented in sysfs-abi/testing/sysfs-class-vhost.

use super::device::{Device, Label, VIRTQUEUES};
use super::pool::Pool;
use super::virtqueue::{Common, Virtqueue};
use super::worker::Worker;
use crate::engine::abi::{self, VirtqueueId};
use crate::engine::sched::credit::{WEIGHT_MAX, WEIGHT_MIN};
use crate::engine::sched::limits::{Limits, WorkerLimits};
use crate::engine::sched::share::TIME_SHARE_MAX;
use crate::engine::stats::{Age, VirtqueueStats, WorkerStats};
use crate::engine::tunable::Tunable;
use crate::kern::cpu::{self, CpuList};
use crate::kern::error::malformed;
use crate::kern::served::Served;
use crate::kern::sysfs::{Attribute, Content, Directory, Parent, Text};
use crate::kern::thread::Thread;
use core::fmt::{self, Write};
use kernel::prelude::*;
use kernel::str::CStr;
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
        let directory = Directory::new(Parent::Worker, format_args!("{id}"), files)?;
        directory
            .thread
            .announce_displacement(&directory, c"displaced")?;
        Ok(Self {
            _directory: directory,
        })
    }
}

/// A line of a `status` file: its name, and how its number is read.
type Line<T> = (&'static CStr, fn(&T) -> u64);

/// Declares the counters of a kind of object: the array of their files, and the array of what the
/// lines of a `status` file print.
macro_rules! counters {
    ($files:ident, $lines:ident, $object:ty => $of:ty, $stats:expr, { $($name:literal: $value:expr,)* }) => {
        const $lines: &[Line<$of>] = &[$(($name, $value),)*];

        static $files: [Attribute<$object>; $lines.len()] = [$(
            Attribute::read_only($name, |object, text| {
                let stats: fn(&$object) -> &$of = $stats;
                let value: fn(&$of) -> u64 = $value;
                Ok(writeln!(text, "{}", value(stats(object)))?)
            }),
        )*];
    };
}

/// Declares the tunables of a kind of object: the array of their files, and the array of what the
/// lines of a `status` file print.
macro_rules! tunables {
    ($files:ident, $lines:ident, $object:ty => $of:ty, $tunables:expr, { $($name:literal: $tunable:expr,)* }) => {
        const $lines: &[Line<$of>] = &[$(($name, |of| {
            let tunable: fn(&$of) -> &Tunable = $tunable;
            tunable(of).get()
        }),)*];

        static $files: [Attribute<$object>; $lines.len()] = [$(
            Attribute::read_write(
                $name,
                |object, text| {
                    let of: fn(&$object) -> &$of = $tunables;
                    let tunable: fn(&$of) -> &Tunable = $tunable;
                    Ok(writeln!(text, "{}", tunable(of(object)).get())?)
                },
                |object, text| {
                    let of: fn(&$object) -> &$of = $tunables;
                    let tunable: fn(&$of) -> &Tunable = $tunable;
                    set_tunable(tunable(of(object)), text)
                },
            ),
        )*];
    };
}

/// Sets a tunable to what a text says.
///
/// # Errors
///
/// `EINVAL` for what is no number, `ERANGE` for one out of bounds.
fn set_tunable(tunable: &Tunable, text: &[u8]) -> Result {
    let value = abi::parse_number(text).map_err(malformed)?;
    if tunable.set(value) {
        Ok(())
    } else {
        Err(ERANGE)
    }
}

/// Prints the lines of a `status` file for counters; `value` applies what reads one.
fn write_lines<T>(
    text: &mut Text<'_>,
    lines: &[Line<T>],
    value: impl Fn(fn(&T) -> u64) -> u64,
) -> Result {
    for (name, read) in lines {
        let name = name.to_str().map_err(|_| EINVAL)?;
        writeln!(text, "{name}:{}", value(*read))?;
    }
    Ok(())
}

static WORKER_FILES: [Attribute<WorkerFiles>; 15] = [
    Attribute::read_only(c"cpu", |files, text| {
        Ok(writeln!(text, "{}", files.thread.cpu())?)
    }),
    Attribute::read_write(
        c"cpus",
        |files, text| {
            files.thread.write_cpus(text);
            Ok(())
        },
        |files, text| files.thread.set_cpus(&CpuList::parse(text)?),
    ),
    Attribute::read_only(c"wanted_cpus", |files, text| {
        files.thread.write_wanted_cpus(text);
        Ok(())
    }),
    Attribute::read_only(c"displaced", |files, text| {
        Ok(writeln!(text, "{}", u8::from(files.thread.is_displaced()))?)
    }),
    Attribute::read_only(c"node", |files, text| {
        Ok(writeln!(text, "{}", cpu::node(files.thread.cpu()))?)
    }),
    Attribute::read_only(c"pid", |files, text| {
        Ok(writeln!(text, "{}", files.thread.pid())?)
    }),
    Attribute::read_write(
        c"nice",
        |files, text| Ok(writeln!(text, "{}", files.thread.nice())?),
        |files, text| {
            let nice = abi::parse_signed(text).map_err(malformed)?;
            files.thread.set_nice(nice)
        },
    ),
    Attribute::read_write(
        c"priority",
        |files, text| Ok(writeln!(text, "{}", files.thread.priority())?),
        |files, text| {
            let priority = abi::parse_number(text).map_err(malformed)?;
            files.thread.set_priority(priority)
        },
    ),
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
    Attribute::read_write(
        c"state",
        |files, text| Ok(writeln!(text, "{}", files.pool.state_of(files.worker.id)?)?),
        |files, text| {
            let parked = abi::parse_parked(text).map_err(malformed)?;
            files.pool.set_parked(files.worker.id, parked)
        },
    ),
    Attribute::read_write(
        c"group",
        |files, text| Ok(writeln!(text, "{}", files.pool.group_of(files.worker.id)?)?),
        |files, text| {
            let group = abi::parse_group(text).map_err(malformed)?;
            files.pool.set_group(files.worker.id, group)
        },
    ),
    Attribute::read_only(c"load", |files, text| {
        Ok(writeln!(text, "{}", files.worker.load.share(cpu::now()))?)
    }),
    Attribute::read_only(c"pending_ns_now", |files, text| {
        let age = files.pool.waiting_time_of(files.worker.id);
        Ok(writeln!(text, "{age}")?)
    }),
    Attribute::read_only(c"dev_list", |files, text| {
        files.pool.write_devices_of(files.worker.id, text)
    }),
    Attribute::read_only(c"status", |files, text| files.write_status(text)),
];

counters!(WORKER_COUNTER_FILES, WORKER_COUNTERS, WorkerFiles => WorkerStats, |files| &files.worker.stats.stats, {
    c"loops": |stats| stats.loops.get(),
    c"last_loop_tsc_end": |stats| stats.last_loop.get(),
    c"empty_works": |stats| stats.empty_works.get(),
    c"pending_works": |stats| stats.pending_works.get(),
    c"stuck_works": |stats| stats.stuck_works.get(),
    c"noqueue_works": |stats| stats.noqueue_works.get(),
    c"works": |stats| stats.works.get(),
    c"mm_switches": |stats| stats.mm_switches.get(),
    c"wait": |stats| stats.wait.get(),
    c"busy_ns": |stats| stats.busy_time.get(),
    c"idle_ns": |stats| stats.idle_time.get(),
    c"stolen_ns": |stats| stats.stolen_time.get(),
    c"cycles": |stats| cpu::to_cycles(stats.spare_time.get()),
    c"enabled_interrupts": |stats| stats.enabled_interrupts.get(),
    c"ksoftirq_occurrences": |stats| stats.softirq_slices.get(),
    c"ksoftirqs": |stats| stats.softirqs.get(),
    c"ksoftirq_time": |stats| stats.softirq_time.get(),
    c"polls": |stats| stats.polls.get(),
    c"empty_polls": |stats| stats.empty_polls.get(),
    c"empty_poll_ns": |stats| stats.empty_poll_time.get(),
    c"polled": |stats| stats.polled.get(),
    c"total_work_cycles": |stats| cpu::to_cycles(stats.busy_time.get()),
    c"poll_cycles": |stats| cpu::to_cycles(stats.poll_time.get()),
    c"notif_cycles": |stats| cpu::to_cycles(stats.notif_time.get()),
    c"pending_ns_max": |stats| stats.pending.longest(),
    c"pending_ns_avg": |stats| stats.pending.average(),
    c"wakes": |stats| stats.wakes.get(),
});

tunables!(WORKER_TUNABLE_FILES, WORKER_TUNABLES, WorkerFiles => WorkerLimits, |files| &files.worker.limits, {
    c"work_list_max_stuck_cycles": |limits| &limits.work_list_max_stuck,
    c"max_disabled_soft_interrupts_cycles": |limits| &limits.max_disabled_soft_interrupts,
});

impl Content for WorkerFiles {
    const FILES: &'static [&'static [Attribute<Self>]] =
        &[&WORKER_FILES, &WORKER_TUNABLE_FILES, &WORKER_COUNTER_FILES];
}

impl WorkerFiles {
    fn write_status(&self, text: &mut Text<'_>) -> Result {
        let id = self.worker.id;
        writeln!(text, "cpu:{}", self.thread.cpu())?;
        write!(text, "cpus:")?;
        self.thread.write_cpus(text);
        write!(text, "wanted_cpus:")?;
        self.thread.write_wanted_cpus(text);
        writeln!(text, "displaced:{}", u8::from(self.thread.is_displaced()))?;
        writeln!(text, "node:{}", cpu::node(self.thread.cpu()))?;
        writeln!(text, "pid:{}", self.thread.pid())?;
        writeln!(text, "nice:{}", self.thread.nice())?;
        writeln!(text, "priority:{}", self.thread.priority())?;
        writeln!(text, "locked:{}", u8::from(self.pool.is_locked(id)?))?;
        writeln!(text, "default:{}", u8::from(self.pool.is_default(id)))?;
        writeln!(text, "state:{}", self.pool.state_of(id)?)?;
        writeln!(text, "group:{}", self.pool.group_of(id)?)?;
        writeln!(text, "load:{}", self.worker.load.share(cpu::now()))?;
        write_lines(text, WORKER_TUNABLES, |read| read(&self.worker.limits))?;
        writeln!(text, "pending_ns_now:{}", self.pool.waiting_time_of(id))?;
        write_lines(text, WORKER_COUNTERS, |read| read(&self.worker.stats))?;
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

static DEVICE_FILES: [Attribute<DeviceFiles>; 8] = [
    Attribute::read_write(
        c"worker",
        |files, text| files.pool.write_workers_of(files.device.id, text),
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
    Attribute::read_write(
        c"weight",
        |files, text| {
            Ok(writeln!(
                text,
                "{}",
                files.device.common.record.share.weight()
            )?)
        },
        |files, text| {
            let weight = parse_bounded(text, WEIGHT_MIN, WEIGHT_MAX)?;
            files.device.common.record.share.set_weight(weight);
            Ok(())
        },
    ),
    Attribute::read_write(
        c"max_time_share",
        |files, text| {
            Ok(writeln!(
                text,
                "{}",
                files.device.common.record.share.ceiling()
            )?)
        },
        |files, text| {
            let ceiling = parse_bounded(text, 1, TIME_SHARE_MAX)?;
            files.device.common.record.share.set_ceiling(ceiling);
            Ok(())
        },
    ),
    Attribute::read_write(
        c"home",
        |files, text| {
            Ok(writeln!(
                text,
                "{}",
                u8::from(files.device.is_wanted_home())
            )?)
        },
        |files, text| {
            let home = abi::parse_flag(text).map_err(malformed)?;
            files.device.set_home(home);
            Ok(())
        },
    ),
    Attribute::read_only(c"placed", |files, text| {
        let placed = files.device.common.is_placed();
        Ok(writeln!(text, "{}", u8::from(placed))?)
    }),
    Attribute::read_only(c"status", |files, text| files.write_status(text)),
];

/// Reads a number between two bounds, both included.
///
/// # Errors
///
/// `EINVAL` for what is no number, `ERANGE` for one outside.
fn parse_bounded(text: &[u8], min: u32, max: u32) -> Result<u32> {
    let number = abi::parse_number(text).map_err(malformed)?;
    if (min..=max).contains(&number) {
        Ok(number)
    } else {
        Err(ERANGE)
    }
}

fn owner_pid(label: &Label) -> i32 {
    label.owner.map_or(-1, |owner| owner.pid)
}

tunables!(DEVICE_TUNABLE_FILES, DEVICE_TUNABLES, DeviceFiles => Common, |files| &files.device.common, {
    c"delay_per_work": |common| &common.delay.per_work,
    c"delay_per_kbyte": |common| &common.delay.per_kbyte,
});

impl Content for DeviceFiles {
    const FILES: &'static [&'static [Attribute<Self>]] = &[&DEVICE_FILES, &DEVICE_TUNABLE_FILES];
}

impl DeviceFiles {
    fn write_status(&self, text: &mut Text<'_>) -> Result {
        let label = self.device.label();
        let name = label.owner.map_or([0; 16], |owner| owner.name);
        let backend = label.backends.iter().flatten().next();
        let virtqueues = self.device.virtqueues();
        let common = &self.device.common;
        write!(text, "worker:")?;
        self.pool.write_workers_of(self.device.id, text)?;
        writeln!(text, "owner:{}", owner_pid(&label))?;
        writeln!(text, "comm:{}", Name(&name))?;
        writeln!(text, "home_pid:{}", virtqueues[0].home_pid().unwrap_or(-1))?;
        writeln!(text, "backend:{}", Name(backend.map_or(&[], |name| name)))?;
        writeln!(text, "weight:{}", common.record.share.weight())?;
        writeln!(text, "max_time_share:{}", common.record.share.ceiling())?;
        writeln!(text, "home:{}", u8::from(self.device.is_wanted_home()))?;
        writeln!(text, "placed:{}", u8::from(common.is_placed()))?;
        write_lines(text, DEVICE_TUNABLES, |read| read(common))?;
        // Ages do not add up: the older one counts.
        let oldest = |read: fn(&Age) -> u64| {
            let ages = virtqueues.iter().map(|virtqueue| &virtqueue.stats.pending);
            ages.map(read).max().unwrap_or(0)
        };
        writeln!(text, "pending_ns_max:{}", oldest(Age::longest))?;
        writeln!(text, "pending_ns_avg:{}", oldest(Age::average))?;
        write_lines(text, VIRTQUEUE_COUNTERS, |read| {
            virtqueues
                .iter()
                .map(|virtqueue| read(&virtqueue.stats))
                .fold(0, u64::wrapping_add)
        })
    }
}

/// vq.D.Q
pub struct VirtqueueFiles {
    pool: Arc<Pool>,
    device: Arc<Device>,
    virtqueue: Arc<Served<Virtqueue>>,
}

static VIRTQUEUE_FILES: [Attribute<VirtqueueFiles>; 12] = [
    Attribute::read_only(c"dev", |files, text| {
        Ok(writeln!(text, "{}", files.virtqueue.id.device)?)
    }),
    Attribute::read_write(
        c"worker",
        |files, text| {
            Ok(writeln!(
                text,
                "{}",
                files.pool.worker_of(files.virtqueue.id)?
            )?)
        },
        |files, text| {
            let worker = abi::parse_worker(text).map_err(malformed)?;
            files.pool.move_virtqueue(files.virtqueue.id, worker)
        },
    ),
    Attribute::read_write(
        c"poll",
        |files, text| Ok(writeln!(text, "{}", files.virtqueue.mode())?),
        |files, text| {
            let mode = abi::parse_mode(text).map_err(malformed)?;
            files.virtqueue.set_mode(mode);
            Ok(())
        },
    ),
    Attribute::read_write(
        c"home",
        |files, text| {
            Ok(writeln!(
                text,
                "{}",
                u8::from(files.virtqueue.is_wanted_home())
            )?)
        },
        |files, text| {
            let home = abi::parse_flag(text).map_err(malformed)?;
            files.virtqueue.set_home(home);
            Ok(())
        },
    ),
    Attribute::read_only(c"can_poll", |files, text| {
        Ok(writeln!(text, "{}", u8::from(files.can_poll()))?)
    }),
    Attribute::read_only(c"last_poll_cycles", |files, text| {
        Ok(writeln!(text, "{}", files.last_poll_cycles())?)
    }),
    Attribute::read_only(c"pending_ns_now", |files, text| {
        let age = files.virtqueue.waiting_time(cpu::now());
        Ok(writeln!(text, "{age}")?)
    }),
    Attribute::read_only(c"pending_ns_max", |files, text| {
        Ok(writeln!(
            text,
            "{}",
            files.virtqueue.stats.pending.longest()
        )?)
    }),
    Attribute::read_only(c"pending_ns_avg", |files, text| {
        Ok(writeln!(
            text,
            "{}",
            files.virtqueue.stats.pending.average()
        )?)
    }),
    Attribute::read_only(c"move_ns_max", |files, text| {
        let longest = files.virtqueue.stats.move_time.longest();
        Ok(writeln!(text, "{longest}")?)
    }),
    Attribute::read_only(c"move_slices_max", |files, text| {
        let most = files.virtqueue.stats.move_slices.get();
        Ok(writeln!(text, "{most}")?)
    }),
    Attribute::read_only(c"status", |files, text| files.write_status(text)),
];

counters!(VIRTQUEUE_COUNTER_FILES, VIRTQUEUE_COUNTERS, VirtqueueFiles => VirtqueueStats, |files| &files.virtqueue.stats.stats, {
    c"handled_packets": |stats| stats.packets.get(),
    c"handled_bytes": |stats| stats.bytes.get(),
    c"kicks": |stats| stats.kicks.get(),
    c"interrupts": |stats| stats.interrupts.get(),
    c"notif_works": |stats| stats.notif_works.get(),
    c"notif_cycles": |stats| cpu::to_cycles(stats.notif_time.get()),
    c"notif_bytes": |stats| stats.notif_bytes.get(),
    c"notif_limited": |stats| stats.notif_limited.get(),
    c"notif_wait": |stats| cpu::to_cycles(stats.notif_wait.get()),
    c"poll_kicks": |stats| stats.poll_kicks.get(),
    c"poll_cycles": |stats| cpu::to_cycles(stats.poll_time.get()),
    c"poll_bytes": |stats| stats.poll_bytes.get(),
    c"poll_limited": |stats| stats.poll_limited.get(),
    c"poll_wait": |stats| cpu::to_cycles(stats.poll_wait.get()),
    c"poll_pending_cycles": |stats| cpu::to_cycles(stats.poll_pending.get()),
    c"poll_coalesced": |stats| stats.poll_coalesced.get(),
    c"polls": |stats| stats.polls.get(),
    c"poll_empty": |stats| stats.poll_empty.get(),
    c"poll_empty_cycles": |stats| cpu::to_cycles(stats.poll_empty_time.get()),
    c"stuck_times": |stats| stats.stuck_times.get(),
    c"stuck_cycles": |stats| cpu::to_cycles(stats.stuck_time.get()),
    c"parks": |stats| stats.parks.get(),
    c"ring_full": |stats| stats.ring_full.get(),
    c"served_ns": |stats| stats.served_time.get(),
    c"home_ns": |stats| stats.home_time.get(),
    c"home_works": |stats| stats.home_works.get(),
    c"left_fault": |stats| stats.left_fault.get(),
    c"left_backend": |stats| stats.left_backend.get(),
    c"left_home": |stats| stats.left_home.get(),
    c"mm_switches": |stats| stats.mm_switches.get(),
    c"errors": |stats| stats.errors.get(),
    c"drops": |stats| stats.drops.get(),
    c"moves": |stats| stats.moves.get(),
    c"log_errors": |stats| stats.log_errors.get(),
});

tunables!(VIRTQUEUE_TUNABLE_FILES, VIRTQUEUE_TUNABLES, VirtqueueFiles => Limits, |files| &files.virtqueue.limits, {
    c"min_processed_data_limit": |limits| &limits.min_processed_data,
    c"max_processed_data_limit": |limits| &limits.max_processed_data,
    c"max_stuck_pending_items": |limits| &limits.max_stuck_pending_items,
    c"max_stuck_cycles": |limits| &limits.max_stuck_cycles,
    c"min_poll_rate": |limits| &limits.min_poll_rate,
});

impl Content for VirtqueueFiles {
    const FILES: &'static [&'static [Attribute<Self>]] = &[
        &VIRTQUEUE_FILES,
        &VIRTQUEUE_TUNABLE_FILES,
        &VIRTQUEUE_COUNTER_FILES,
    ];
}

impl VirtqueueFiles {
    fn can_poll(&self) -> bool {
        let label = self.device.label();
        label.shared[self.virtqueue.id.index as usize] && !self.virtqueue.is_home()
    }

    /// How long ago a worker looked at the virtqueue; 0 if none did yet.
    fn last_poll_cycles(&self) -> u64 {
        match self.virtqueue.stats.last_poll.get() {
            0 => 0,
            last => cpu::to_cycles(cpu::now().saturating_sub(last)),
        }
    }

    fn write_status(&self, text: &mut Text<'_>) -> Result {
        let VirtqueueId { device, .. } = self.virtqueue.id;
        let stats = &self.virtqueue.stats;
        writeln!(text, "dev:{device}")?;
        writeln!(text, "worker:{}", self.pool.worker_of(self.virtqueue.id)?)?;
        writeln!(text, "poll:{}", self.virtqueue.mode())?;
        writeln!(text, "home:{}", u8::from(self.virtqueue.is_wanted_home()))?;
        writeln!(text, "can_poll:{}", u8::from(self.can_poll()))?;
        writeln!(text, "last_poll_cycles:{}", self.last_poll_cycles())?;
        writeln!(
            text,
            "pending_ns_now:{}",
            self.virtqueue.waiting_time(cpu::now())
        )?;
        writeln!(text, "pending_ns_max:{}", stats.pending.longest())?;
        writeln!(text, "pending_ns_avg:{}", stats.pending.average())?;
        writeln!(text, "move_ns_max:{}", stats.move_time.longest())?;
        writeln!(text, "move_slices_max:{}", stats.move_slices.get())?;
        write_lines(text, VIRTQUEUE_TUNABLES, |read| {
            read(&self.virtqueue.limits)
        })?;
        write_lines(text, VIRTQUEUE_COUNTERS, |read| read(stats))
    }
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
                device: device.clone(),
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
