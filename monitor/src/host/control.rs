// SPDX-License-Identifier: GPL-2.0

//! The control interface of the module: files below /sys/class/vhost.

use super::Root;
use crate::failure::{Failure, Result};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use vhost_iocm_engine::engine::abi::{self, DeviceId, VirtqueueId, WorkerId};

/// Where the parameters of the module are.
const PARAMETERS: &str = "sys/module/vhost_iocm/parameters";

/// A worker, device or virtqueue by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// w.N
    Worker(WorkerId),
    /// d.N
    Device(DeviceId),
    /// vq.D.Q
    Virtqueue(VirtqueueId),
    /// The parameters of the module.
    Module,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Worker(id) => id.fmt(f),
            Self::Device(id) => id.fmt(f),
            Self::Virtqueue(id) => id.fmt(f),
            Self::Module => f.write_str("module"),
        }
    }
}

impl FromStr for Object {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let number = |digits: &str| abi::parse_group(digits.as_bytes()).ok();
        let object = if name == "module" {
            Some(Self::Module)
        } else if let Some(digits) = name.strip_prefix("w.") {
            number(digits).map(|id| Self::Worker(WorkerId(id)))
        } else if let Some(digits) = name.strip_prefix("d.") {
            number(digits).map(|id| Self::Device(DeviceId(id)))
        } else if let Some((device, index)) = name
            .strip_prefix("vq.")
            .and_then(|rest| rest.split_once('.'))
        {
            number(device).zip(number(index)).map(|(device, index)| {
                Self::Virtqueue(VirtqueueId {
                    device: DeviceId(device),
                    index,
                })
            })
        } else {
            None
        };
        object.ok_or_else(|| {
            format!("{name:?} is no name; names are w.N, d.N and vq.D.Q as `iocm status` shows them, or module")
        })
    }
}

/// Reads the name of a worker, for command lines.
///
/// # Errors
///
/// What is wrong with it.
pub fn worker_name(name: &str) -> std::result::Result<WorkerId, String> {
    match name.parse()? {
        Object::Worker(id) => Ok(id),
        _ => Err(format!("{name} is no worker; workers are called w.N")),
    }
}

impl Object {
    /// What it is called in messages.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Worker(_) => "worker",
            Self::Device(_) => "device",
            Self::Virtqueue(_) => "virtqueue",
            Self::Module => "module",
        }
    }

    /// Its directory below the root.
    fn directory(self) -> String {
        match self {
            Self::Worker(id) => format!("{CLASS}/worker/{id}"),
            Self::Device(id) => format!("{CLASS}/dev/{id}"),
            Self::Virtqueue(id) => format!("{CLASS}/vq/{id}"),
            Self::Module => PARAMETERS.to_owned(),
        }
    }

    /// What can be set, with the values that each takes.
    pub fn tunables(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Worker(_) => &[
                ("cpus", "a list of CPUs such as 3 or 2-3"),
                ("nice", "-20 to 19"),
                ("priority", "0 to 99; 0 is none"),
                ("locked", "0 or 1"),
                ("state", "active or parked"),
                ("group", "a number"),
                (
                    "work_list_max_stuck_cycles",
                    "0 to 1000000000 cycles; 0 is no limit",
                ),
                (
                    "max_disabled_soft_interrupts_cycles",
                    "0 to 1000000000 cycles; 0 is no limit",
                ),
            ],
            Self::Device(_) => &[
                ("worker", "w.N"),
                ("weight", "1 to 10000; 100 is usual"),
                ("max_time_share", "1 to 1000 thousandths of a worker"),
                ("home", "0 or 1"),
                ("delay_per_work", "0 to 1000000 cycles"),
                ("delay_per_kbyte", "0 to 1000000 cycles"),
            ],
            Self::Virtqueue(_) => &[
                ("worker", "w.N"),
                ("poll", "0, 1 or auto"),
                ("home", "0 or 1"),
                ("min_processed_data_limit", "0 to 524288 bytes"),
                ("max_processed_data_limit", "1 to 524288 bytes"),
                (
                    "max_stuck_pending_items",
                    "0 to 32768 buffers; 0 is no limit",
                ),
                ("max_stuck_cycles", "0 to 1000000000 cycles; 0 is no limit"),
                ("min_poll_rate", "0 to 100 ms, in cycles"),
            ],
            Self::Module => &[
                ("slice_us", "10 to 10000 microseconds"),
                ("poll", "0, 1 or auto"),
                ("poll_start_us", "1 to 1000000 microseconds"),
                ("poll_idle_us", "1 to 10000000 microseconds"),
                ("poll_recheck_us", "10 to 1000000 microseconds"),
                ("wake_pending_us", "10 to 1000000 microseconds"),
                ("balance_us", "100 to 1000000 microseconds"),
                ("park_load", "0 to 1000 thousandths"),
                ("park_after_us", "1000 to 60000000 microseconds"),
                ("max_woken", "0 to 1024 workers"),
                ("worker_nice", "-20 to 19"),
                ("worker_priority", "0 to 99; 0 is none"),
                ("placement", "default, least_loaded or least_loaded G"),
                ("default", "w.N"),
            ],
        }
    }
}

/// Where the control interface is.
pub const CLASS: &str = "sys/class/vhost";

/// The control interface.
#[derive(Clone, Debug)]
pub struct Control {
    root: Root,
}

impl Control {
    /// The interface below this root.
    ///
    /// # Errors
    ///
    /// [`Failure::NoModule`] if there is none.
    pub fn open(root: &Root) -> Result<Self> {
        let class = root.path(CLASS);
        if !class.join("worker").is_dir() {
            return Err(Failure::NoModule(class));
        }
        Ok(Self { root: root.clone() })
    }

    /// Where a file of an object is.
    pub fn path(&self, object: Object, attribute: &str) -> PathBuf {
        match (object, attribute) {
            (Object::Module, "placement" | "default") => {
                self.root.path(format!("{CLASS}/worker/{attribute}"))
            }
            _ => self.root.path(object.directory()).join(attribute),
        }
    }

    /// Whether an object is there.
    pub fn exists(&self, object: Object) -> bool {
        self.root.path(object.directory()).is_dir()
    }

    /// What a file of an object says, without the newline.
    ///
    /// # Errors
    ///
    /// [`Failure::Unknown`] if the object is gone, and whatever reading fails with.
    pub fn read(&self, object: Object, attribute: &str) -> Result<String> {
        let path = self.path(object, attribute);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim_end_matches('\n').to_owned()),
            Err(error) if super::is_gone(&error) => Err(self.absent(object)),
            Err(error) => Err(Failure::file("read", &path, error)),
        }
    }

    /// A value of an object's `status` by its name.
    ///
    /// # Errors
    ///
    /// As [`Self::read`], and [`Failure::Refused`] if there is no such line.
    pub fn status(&self, object: Object, name: &str) -> Result<String> {
        let status = self.read(object, "status")?;
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::to_owned)
            .ok_or_else(|| Failure::Refused(format!("{object} says nothing of {name}")))
    }

    /// The failure that says that an object is not there, or that nothing is.
    fn absent(&self, object: Object) -> Failure {
        match Self::open(&self.root) {
            Err(failure) => failure,
            Ok(_) => Failure::Unknown {
                kind: object.kind(),
                name: object.to_string(),
            },
        }
    }

    /// Sets a tunable of an object.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong: no such object or attribute, a value that the module
    /// refuses.
    pub fn set(&self, object: Object, attribute: &str, value: &str) -> Result<()> {
        let tunables = object.tunables();
        let Some((_, range)) = tunables.iter().find(|(name, _)| *name == attribute) else {
            let names: Vec<&str> = tunables.iter().map(|(name, _)| *name).collect();
            return Err(Failure::Refused(format!(
                "{object} has no attribute {attribute} that can be set; it has {}",
                names.join(", ")
            )));
        };
        if !self.exists(object) {
            return Err(self.absent(object));
        }
        let path = self.path(object, attribute);
        self.write(&path, value).map_err(|error| {
            self.explain(error, &path, || match error_code(attribute, value) {
                Some(reason) => reason,
                None => format!("{attribute} of {object} takes {range}, and not {value}"),
            })
        })
    }

    /// Writes a file in one write.
    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        use io::Write;
        fs::OpenOptions::new()
            .write(true)
            .open(path)?
            .write_all(value.as_bytes())
    }

    /// Makes a sentence of a refusal.
    fn explain(&self, error: io::Error, path: &Path, why: impl FnOnce() -> String) -> Failure {
        use nix::errno::Errno;
        let Some(code) = error.raw_os_error() else {
            return Failure::file("write", path, error);
        };
        match Errno::from_raw(code) {
            Errno::EINVAL | Errno::ERANGE | Errno::ENODEV => Failure::Refused(why()),
            Errno::ENOENT if Self::open(&self.root).is_err() => {
                Failure::NoModule(self.root.path(CLASS))
            }
            Errno::ENOENT => Failure::Refused(format!(
                "{}: what it names does not exist; `iocm status` lists what there is",
                why()
            )),
            Errno::EBUSY => Failure::Refused(format!(
                "{}: it is busy or locked",
                path.file_name()
                    .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
            )),
            _ => Failure::file("write", path, error),
        }
    }

    /// Lets another worker serve a device or a virtqueue, and takes it from its home thread if it
    /// was kept there.
    ///
    /// # Errors
    ///
    /// [`Failure::Unknown`] if one of them does not exist, [`Failure::Refused`] if the worker takes
    /// nothing.
    pub fn move_to(&self, object: Object, worker: WorkerId) -> Result<()> {
        for needed in [object, Object::Worker(worker)] {
            if !self.exists(needed) {
                return Err(self.absent(needed));
            }
        }
        let path = self.path(object, "worker");
        self.write(&path, &worker.to_string()).map_err(|error| {
            match error.raw_os_error().map(nix::errno::Errno::from_raw) {
                Some(nix::errno::Errno::EBUSY) => Failure::Refused(format!(
                    "{worker} takes nothing, for it is locked or not active; `iocm worker unlock {worker}` or `iocm set {worker} state active` changes that"
                )),
                Some(nix::errno::Errno::ENOENT) => self.absent(Object::Worker(worker)),
                Some(nix::errno::Errno::ENODEV) => Failure::Unknown {
                    kind: object.kind(),
                    name: object.to_string(),
                },
                _ => Failure::file("write", &path, error),
            }
        })?;
        // Served by its worker again only once home is 0. This order serves it all the time.
        if self.read(object, "home")? == "1" {
            self.set(object, "home", "0")?;
        }
        Ok(())
    }

    /// Creates a worker that runs on these CPUs (`-1`: on any), parked or not, and says which one
    /// it is.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] for CPUs that are none.
    pub fn create(&self, cpus: &str, parked: bool) -> Result<WorkerId> {
        let path = self.root.path(format!("{CLASS}/worker/create"));
        let before = self.workers();
        let suffix = if parked { " parked" } else { "" };
        self.write(&path, &format!("{cpus}{suffix}"))
            .map_err(|error| {
                self.explain(error, &path, || {
                    format!("no worker can run on CPUs {cpus}; give numbers of CPUs that are online such as 3 or 2-3, or -1 for any")
                })
            })?;
        // What reading `create` says is said once only, and the original's tools may want to know.
        self.workers()
            .into_iter()
            .filter(|id| !before.contains(id))
            .find(|id| {
                cpus == "-1"
                    || self
                        .read(Object::Worker(*id), "wanted_cpus")
                        .is_ok_and(|wanted| {
                            super::topology::cpu_list(&wanted) == super::topology::cpu_list(cpus)
                        })
            })
            .ok_or_else(|| Failure::Refused("the new worker was removed by somebody else".into()))
    }

    /// Removes a worker. What it serves goes to `heir` first; without one it must serve nothing.
    ///
    /// # Errors
    ///
    /// [`Failure::Unknown`], and [`Failure::Refused`] if it serves something.
    pub fn remove(&self, worker: WorkerId, heir: Option<WorkerId>) -> Result<()> {
        for needed in [Some(worker), heir].into_iter().flatten() {
            if !self.exists(Object::Worker(needed)) {
                return Err(self.absent(Object::Worker(needed)));
            }
        }
        let was_locked = self.read(Object::Worker(worker), "locked")? == "1";
        self.set(Object::Worker(worker), "locked", "1")?;
        let path = self.root.path(format!("{CLASS}/worker/remove"));
        let text = match heir {
            Some(heir) => format!("{worker} {heir}"),
            None => worker.to_string(),
        };
        self.write(&path, &text).map_err(|error| {
            if !was_locked {
                // The command changes nothing when it fails.
                let _ = self.set(Object::Worker(worker), "locked", "0");
            }
            match error.raw_os_error().map(nix::errno::Errno::from_raw) {
                Some(nix::errno::Errno::EBUSY) => Failure::Refused(match heir {
                    Some(heir) => format!("{heir} takes nothing, for it is locked or not active"),
                    None => format!("{worker} serves devices; `iocm worker remove {worker} --to w.N` moves them first"),
                }),
                Some(nix::errno::Errno::ENOENT) => self.absent(Object::Worker(worker)),
                _ => Failure::file("write", &path, error),
            }
        })
    }

    /// The workers, in the order of their numbers.
    pub fn workers(&self) -> Vec<WorkerId> {
        let mut ids: Vec<WorkerId> = self
            .root
            .names(format!("{CLASS}/worker"))
            .iter()
            .filter_map(|name| abi::parse_worker(name.as_bytes()).ok())
            .collect();
        ids.sort();
        ids
    }

    /// The worker that new devices get.
    ///
    /// # Errors
    ///
    /// Whatever reading fails with.
    pub fn default_worker(&self) -> Result<WorkerId> {
        let name = self.read(Object::Module, "default")?;
        worker_name(&name).map_err(Failure::Refused)
    }

    /// The files below which the interface lies.
    pub fn root(&self) -> &Root {
        &self.root
    }
}

/// Why a value is refused that has the right form.
fn error_code(attribute: &str, value: &str) -> Option<String> {
    (attribute == "cpus").then(|| format!("no worker can run on CPUs {value}; give numbers of CPUs that are online such as 3 or 2-3"))
}
