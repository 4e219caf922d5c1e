// SPDX-License-Identifier: GPL-2.0

//! What the arms work on: a host, or the model of one in tests.

use super::journal::{Journal, Who};
use crate::failure::{Failure, Result};
use crate::host::control::{Control, Object};
use crate::host::interrupt;
use crate::host::process::{Process, Thread};
use crate::host::snapshot::Reader;
use crate::host::topology::{cpu_list, format_cpus, CpuSet};
use crate::host::{is_gone, Root};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use vhost_iocm_engine::engine::abi::{DeviceId, VirtqueueId, WorkerId};

/// A worker, as far as the arms care.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerState {
    /// Its number.
    pub id: u32,
    /// Its thread.
    pub pid: i32,
    /// The CPU that it is bound to.
    pub cpu: Option<u32>,
    /// Whether it serves, which a parked worker does not.
    pub active: bool,
    /// Whether it takes no new devices.
    pub locked: bool,
}

/// Who can be moved off a CPU, or onto one, and where he is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Who.
    pub who: Who,
    /// What is set.
    pub text: String,
    /// The CPUs that this means.
    pub allowed: CpuSet,
}

/// Whom to look for. To look at all threads of all VMs takes some milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// Everybody.
    All,
    /// VMs that did not own a device when somebody was looked for the last time.
    New,
}

/// What can be done to a host. Everything may be done again without harm.
pub trait Ground {
    /// The workers, in the order of their numbers.
    fn workers(&mut self) -> Result<Vec<WorkerState>>;
    /// The worker that new devices get.
    fn default_worker(&mut self) -> Result<u32>;
    /// Creates a worker on a CPU.
    fn create(&mut self, cpu: u32) -> Result<u32>;
    /// Removes a worker; what it serves goes to another one first.
    fn remove(&mut self, worker: u32, heir: Option<u32>) -> Result<()>;
    /// Sets an attribute.
    fn set(&mut self, object: Object, attribute: &str, value: &str) -> Result<()>;
    /// Lets a worker serve something.
    fn move_to(&mut self, object: Object, worker: u32) -> Result<()>;
    /// What a worker serves.
    fn served_by(&mut self, worker: u32) -> Result<Vec<VirtqueueId>>;
    /// The VMs, and with `interrupts` the interrupts of network cards. Of those that are new, no
    /// interrupts. Threads of a process that is not in `noted` may be left out if none of them may run
    /// on one of the CPUs `kept`.
    fn find(
        &mut self,
        interrupts: bool,
        whom: Whom,
        kept: &CpuSet,
        noted: &BTreeSet<i32>,
    ) -> Result<Vec<Found>>;
    /// What is set for somebody, or `None` if he is gone.
    fn current(&mut self, who: &Who) -> Option<String>;
    /// Puts somebody on CPUs. Who is gone is no failure.
    fn place(&mut self, who: &Who, text: &str) -> Result<()>;
    /// What was saved last, if anything was.
    fn load(&mut self) -> Result<Option<Journal>>;
    /// Saves the journal so that it outlives the monitor: all of it or nothing.
    fn save(&mut self, journal: &Journal) -> Result<()>;
}

/// A host.
pub struct Host {
    root: Root,
    control: Control,
    reader: Reader,
    journal: PathBuf,
    /// The processes that owned devices when somebody was looked for.
    known: Vec<i32>,
    /// Held as long as this monitor runs.
    _lock: File,
}

/// Where the monitor keeps its journal.
const RUN: &str = "run/iocm";

impl Host {
    /// The host below this root, for one monitor at a time.
    ///
    /// # Errors
    ///
    /// No module, no permission, or [`Failure::Running`].
    pub fn open(root: &Root) -> Result<Self> {
        let control = Control::open(root)?;
        let directory = root.path(RUN);
        fs::create_dir_all(&directory)
            .map_err(|error| Failure::file("create", &directory, error))?;
        let path = directory.join("lock");
        let lock = File::create(&path).map_err(|error| Failure::file("create", &path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Failure::Running(path)),
            Err(fs::TryLockError::Error(error)) => return Err(Failure::file("lock", &path, error)),
        }
        Ok(Self {
            reader: Reader::open(root)?,
            known: Vec::new(),
            root: root.clone(),
            control,
            journal: directory.join("journal.json"),
            _lock: lock,
        })
    }

    /// The directory of a cgroup.
    fn cgroup(&self, name: &str) -> PathBuf {
        self.root.path(format!("sys/fs/cgroup/{name}"))
    }

    /// The cgroup that is the VM's own: nobody else is in it, and it can be given CPUs. libvirt and
    /// systemd make a scope for each VM, with directories for its threads below.
    fn own_cgroup(&self, pid: i32) -> Option<String> {
        let cgroup = Process::cgroup(&self.root, pid);
        let mut own = cgroup.as_str();
        if let Some(end) = own.find(".scope") {
            own = &own[..end + ".scope".len()];
        }
        if own.is_empty() {
            return None;
        }
        let directory = self.cgroup(own);
        if !directory.join("cpuset.cpus").exists() {
            return None;
        }
        let alone = own.ends_with(".scope") || {
            let processes = fs::read_to_string(directory.join("cgroup.procs")).ok()?;
            processes.lines().all(|other| other == pid.to_string())
        };
        alone.then(|| own.to_owned())
    }
}

/// When a thread was started: field 22 of its `stat`.
fn start_time(root: &Root, pid: i32, tid: i32) -> Option<u64> {
    let stat = root.read(format!("proc/{pid}/task/{tid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

impl Ground for Host {
    fn workers(&mut self) -> Result<Vec<WorkerState>> {
        let workers = self.reader.read()?.workers;
        // The snapshot follows a worker's CPU only when its loop turns; the file always does.
        Ok(workers
            .into_iter()
            .map(|worker| WorkerState {
                id: worker.id,
                pid: worker.pid,
                cpu: self
                    .control
                    .read(Object::Worker(WorkerId(worker.id)), "cpu")
                    .ok()
                    .and_then(|cpu| cpu.parse().ok()),
                active: !worker.is_parked(),
                locked: worker.locked,
            })
            .collect())
    }

    fn default_worker(&mut self) -> Result<u32> {
        Ok(self.control.default_worker()?.0)
    }

    fn create(&mut self, cpu: u32) -> Result<u32> {
        Ok(self.control.create(&cpu.to_string(), false)?.0)
    }

    fn remove(&mut self, worker: u32, heir: Option<u32>) -> Result<()> {
        self.control.remove(WorkerId(worker), heir.map(WorkerId))
    }

    fn set(&mut self, object: Object, attribute: &str, value: &str) -> Result<()> {
        self.control.set(object, attribute, value)
    }

    fn move_to(&mut self, object: Object, worker: u32) -> Result<()> {
        self.control.move_to(object, WorkerId(worker))
    }

    fn served_by(&mut self, worker: u32) -> Result<Vec<VirtqueueId>> {
        let virtqueues = self.reader.read()?.virtqueues.into_iter();
        Ok(virtqueues
            .filter(|virtqueue| virtqueue.worker == worker)
            .map(|virtqueue| VirtqueueId {
                device: DeviceId(virtqueue.device),
                index: virtqueue.index,
            })
            .collect())
    }

    fn find(
        &mut self,
        interrupts: bool,
        whom: Whom,
        kept: &CpuSet,
        noted: &BTreeSet<i32>,
    ) -> Result<Vec<Found>> {
        let owners = self.reader.read()?.owners();
        let known = std::mem::replace(&mut self.known, owners.clone());
        let mut found = Vec::new();
        let wanted = |pid: &i32| whom == Whom::All || !known.contains(pid);
        for pid in owners.into_iter().filter(wanted) {
            if let Some(cgroup) = self.own_cgroup(pid) {
                let directory = format!("sys/fs/cgroup/{cgroup}");
                let effective = self.root.read(format!("{directory}/cpuset.cpus.effective"));
                let text = self.root.read(format!("{directory}/cpuset.cpus"));
                if let Some((text, effective)) = text.zip(effective) {
                    found.push(Found {
                        who: Who::Cgroup(cgroup),
                        allowed: cpu_list(&effective).unwrap_or_default(),
                        text,
                    });
                    continue;
                }
            }
            let threads = Thread::all(&self.root, pid);
            let mut masks = threads.iter().map(|thread| &thread.cpus);
            if !noted.contains(&pid) && masks.all(|cpus| cpus.is_disjoint(kept)) {
                continue;
            }
            for Thread { tid, cpus, .. } in threads {
                let Some(start) = start_time(&self.root, pid, tid) else {
                    continue;
                };
                found.push(Found {
                    who: Who::Thread { pid, tid, start },
                    text: format_cpus(&cpus),
                    allowed: cpus,
                });
            }
        }
        if interrupts && whom == Whom::All && !interrupt::irqbalance_runs(&self.root) {
            for interrupt in interrupt::of_network_cards(&self.root) {
                found.push(Found {
                    who: Who::Interrupt(interrupt.number),
                    text: format_cpus(&interrupt.cpus),
                    allowed: interrupt.cpus,
                });
            }
        }
        Ok(found)
    }

    fn current(&mut self, who: &Who) -> Option<String> {
        match who {
            Who::Cgroup(name) => self.root.read(format!("sys/fs/cgroup/{name}/cpuset.cpus")),
            Who::Thread { pid, tid, start } => {
                if start_time(&self.root, *pid, *tid)? != *start {
                    return None;
                }
                let status = self.root.read(format!("proc/{pid}/task/{tid}/status"))?;
                status
                    .lines()
                    .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
                    .map(|cpus| cpus.trim().to_owned())
            }
            Who::Interrupt(number) => self
                .root
                .read(format!("proc/irq/{number}/smp_affinity_list")),
        }
    }

    fn place(&mut self, who: &Who, text: &str) -> Result<()> {
        let write = |path: &Path, text: &str| match fs::write(path, text) {
            Err(error) if !is_gone(&error) => Err(Failure::file("write", path, error)),
            _ => Ok(()),
        };
        match who {
            // Two newlines in one cpuset file are refused, and so is nothing at all.
            Who::Cgroup(name) => {
                write(&self.cgroup(name).join("cpuset.cpus"), &format!("{text}\n"))
            }
            Who::Interrupt(number) => {
                // Interrupts that the kernel manages itself cannot be moved (EIO, EPERM): they stay.
                let path = self
                    .root
                    .path(format!("proc/irq/{number}/smp_affinity_list"));
                if let Err(error) = fs::write(&path, text) {
                    tracing::debug!(%error, number, "an interrupt stays where it is");
                }
                Ok(())
            }
            Who::Thread { pid, tid, start } => {
                if self.root.path("") != Path::new("/") {
                    // A recorded host's numbers are those of other threads on this one.
                    return Err(Failure::Refused(
                        "threads move on the real host only".into(),
                    ));
                }
                // Numbers are used again: whoever has this one may not be the thread that was found.
                if start_time(&self.root, *pid, *tid) != Some(*start) {
                    return Ok(());
                }
                let mut set = nix::sched::CpuSet::new();
                for cpu in cpu_list(text).unwrap_or_default() {
                    set.set(cpu as usize)
                        .map_err(|errno| system("cpu set", errno))?;
                }
                match nix::sched::sched_setaffinity(Pid::from_raw(*tid), &set) {
                    Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
                    // A thread that the kernel has bound stays.
                    Err(nix::errno::Errno::EINVAL) => Ok(()),
                    Err(errno) => Err(system(&format!("cannot move thread {tid}"), errno)),
                }
            }
        }
    }

    fn load(&mut self) -> Result<Option<Journal>> {
        let text = match fs::read_to_string(&self.journal) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::file("read", &self.journal, error)),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Failure::Configuration(format!(
                "the journal {} is broken ({error}); remove it, and see with `iocm doctor` what is left to mend",
                self.journal.display()
            ))
        })
    }

    fn save(&mut self, journal: &Journal) -> Result<()> {
        let failed = |error| Failure::file("write", &self.journal, error);
        let text = serde_json::to_vec_pretty(journal).map_err(|error| failed(error.into()))?;
        let new = self.journal.with_extension("new");
        let mut file = File::create(&new).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&new, &self.journal).map_err(failed)?;
        // The new name has to be on the disk as well, should /run be on one.
        let directory = self.journal.parent().unwrap_or(Path::new("/"));
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)
    }
}

fn system(what: &str, errno: nix::errno::Errno) -> Failure {
    Failure::System {
        what: what.to_owned(),
        source: errno.into(),
    }
}
