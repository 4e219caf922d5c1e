// SPDX-License-Identifier: GPL-2.0

//! What a host looked like during an interval, from what it looked like at both ends.

use crate::failure::Result;
use crate::host::control::{Control, Object};
use crate::host::process::Process;
use crate::host::snapshot::{self, Reader, Snapshot};
use crate::host::topology::{self, CpuSet, Topology, Usage};
use crate::host::Root;
use crate::policy::{Core, Device, Limits, Observation, Place, Role, Virtqueue, Worker};
use std::collections::btree_map::{BTreeMap, Entry};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use vhost_iocm_engine::engine::abi::{DeviceId, VirtqueueId, WorkerId};
use vhost_iocm_engine::engine::sched::polling::Mode;
use vhost_iocm_engine::engine::sched::standby::State;

/// How often is read what costs much: what CPUs and processes used, and who has come. What they used
/// in an interval is taken to be their part of that time.
const SLOW: Duration = Duration::from_millis(500);
/// How often is read what hardly ever changes: CPUs, and the names and threads of processes.
const SLOWEST: Duration = Duration::from_secs(10);

/// The virtqueue for which the backend notifies and not the guest.
const RECEIVE: u32 = 0;

/// What is read now and then.
#[derive(Default)]
struct Slow {
    topology: Topology,
    /// CPUs on which virtual CPUs may run: of each VM, and of all.
    cpus: BTreeMap<i32, CpuSet>,
    guests: CpuSet,
    usage: BTreeMap<u32, Usage>,
    runtime: BTreeMap<i32, u64>,
    names: BTreeMap<i32, String>,
}

/// Watches a host.
pub struct Observer {
    root: Root,
    control: Control,
    reader: Reader,
    start: Instant,
    before: (Instant, Snapshot),
    slow_at: Instant,
    slowest_at: Instant,
    slow: Slow,
    /// Files that say for how long a worker's work waits, open since they are read so often.
    waits: BTreeMap<u32, File>,
    /// What CPUs and processes used per nanosecond, lately.
    usage: BTreeMap<u32, (f64, f64)>,
    runtime: BTreeMap<i32, f64>,
}

impl Observer {
    /// Begins to watch.
    ///
    /// # Errors
    ///
    /// No module, and whatever mapping its snapshot fails with.
    pub fn new(root: &Root) -> Result<Self> {
        let mut reader = Reader::map(root)?;
        let now = Instant::now();
        let snapshot = reader.read()?;
        let mut observer = Self {
            root: root.clone(),
            control: Control::open(root)?,
            reader,
            start: now,
            before: (now, snapshot),
            slow_at: now,
            slowest_at: now,
            slow: Slow::default(),
            waits: BTreeMap::new(),
            usage: BTreeMap::new(),
            runtime: BTreeMap::new(),
        };
        let owners = observer.before.1.owners();
        observer.look_around(&owners, true);
        Ok(observer)
    }

    /// Reads what changes slowly, and what hardly ever changes of those that are new, or of all.
    fn look_around(&mut self, owners: &[i32], all: bool) {
        let slow = &mut self.slow;
        if all {
            slow.topology = Topology::read(&self.root);
            slow.cpus.clear();
        }
        slow.cpus.retain(|pid, _| owners.contains(pid));
        slow.names.retain(|pid, _| owners.contains(pid));
        for pid in owners {
            if slow.cpus.contains_key(pid) {
                continue;
            }
            let Some(process) = Process::read(&self.root, *pid) else {
                continue;
            };
            // A process without virtual CPUs is a VM of another kind: all of its threads count.
            let some = process.threads.iter().any(|thread| thread.vcpu.is_some());
            let threads = process.threads.iter();
            let cpus = threads
                .filter(|thread| !some || thread.vcpu.is_some())
                .flat_map(|thread| thread.cpus.iter().copied());
            slow.cpus.insert(*pid, cpus.collect());
            slow.names.insert(*pid, process.name);
        }
        slow.guests = slow.cpus.values().flatten().copied().collect();
        if slow.guests.is_empty() {
            slow.guests = slow.topology.online();
        }
        for cpu in &slow.topology.isolated {
            slow.guests.remove(cpu);
        }
        slow.usage = topology::usage(&self.root);
        let runtimes = owners.iter();
        slow.runtime = runtimes
            .map(|pid| (*pid, Process::runtime(&self.root, *pid)))
            .collect();
    }

    /// The names of the VMs, by their processes.
    pub fn names(&self) -> &BTreeMap<i32, String> {
        &self.slow.names
    }

    /// What everything looked like at the end of the last interval.
    pub fn snapshot(&self) -> &Snapshot {
        &self.before.1
    }

    /// What the host looked like since the last call. `taken` are the CPUs that the monitor keeps
    /// for I/O.
    ///
    /// # Errors
    ///
    /// Whatever reading fails with.
    pub fn observe(&mut self, limits: &Limits, taken: &CpuSet) -> Result<Observation> {
        let now = Instant::now();
        let snapshot = self.reader.read()?;
        let passed = now.duration_since(self.slow_at);
        if passed >= SLOW {
            let all = now.duration_since(self.slowest_at) >= SLOWEST;
            if all {
                self.slowest_at = now;
            }
            self.follow(&snapshot.owners(), passed, all);
            self.slow_at = now;
        }
        let waits: Vec<u64> = snapshot
            .workers
            .iter()
            .map(|worker| self.waits(worker.id))
            .collect();
        self.waits.retain(|id, _| snapshot.worker(*id).is_some());
        let interval = now.duration_since(self.before.0).as_nanos().max(1) as u64;
        let before = &self.before.1;
        let observation = Observation {
            time: now.duration_since(self.start).as_nanos() as u64,
            interval,
            cores: self.cores(&snapshot, interval, taken),
            workers: snapshot
                .workers
                .iter()
                .zip(waits)
                .map(|(now, waits)| self.worker(now, before.worker(now.id), waits, interval))
                .collect(),
            devices: snapshot
                .devices
                .iter()
                .filter(|device| device.owner > 0)
                .map(|device| self.device(device, &snapshot, interval))
                .collect(),
            limits: limits.clone(),
        };
        self.before = (now, snapshot);
        Ok(observation)
    }

    /// For how long the oldest work of a worker waits now, in nanoseconds.
    fn waits(&mut self, id: u32) -> u64 {
        let mut bytes = [0; 24];
        for _ in 0..2 {
            let file = match self.waits.entry(id) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let worker = Object::Worker(WorkerId(id));
                    match File::open(self.control.path(worker, "pending_ns_now")) {
                        Ok(file) => entry.insert(file),
                        Err(_) => return 0,
                    }
                }
            };
            if let Ok(length) = file.read_at(&mut bytes, 0) {
                let text = String::from_utf8_lossy(&bytes[..length]);
                return text.trim().parse().unwrap_or(0);
            }
            // It was that of another worker with this number.
            self.waits.remove(&id);
        }
        0
    }

    /// Reads again what changes slowly, and what was used since the last time.
    fn follow(&mut self, owners: &[i32], passed: Duration, all: bool) {
        let before_usage = std::mem::take(&mut self.slow.usage);
        let before_runtime = std::mem::take(&mut self.slow.runtime);
        self.look_around(owners, all);
        let passed = passed.as_nanos() as f64;
        let part = |now: u64, before: u64| now.saturating_sub(before) as f64 / passed;
        self.usage = self
            .slow
            .usage
            .iter()
            .filter_map(|(cpu, now)| {
                let before = before_usage.get(cpu)?;
                let busy = part(now.busy, before.busy).min(1.0);
                Some((*cpu, (busy, part(now.waited, before.waited))))
            })
            .collect();
        self.runtime = self
            .slow
            .runtime
            .iter()
            .filter_map(|(pid, now)| Some((*pid, part(*now, *before_runtime.get(pid)?))))
            .collect();
    }

    fn cores(&self, snapshot: &Snapshot, interval: u64, taken: &CpuSet) -> Vec<Core> {
        let worker_on = |cpu: u32| {
            let mut workers = snapshot.workers.iter();
            workers.find(|worker| worker.cpu == i64::from(cpu) && worker.state != 1)
        };
        let cpus = self.slow.topology.cpus.iter();
        cpus.map(|cpu| {
            let role = match worker_on(cpu.cpu) {
                Some(worker) => Role::Io(WorkerId(worker.id)),
                // A worker that is just being made has not said yet where it runs.
                None if taken.contains(&cpu.cpu) => Role::Reserved,
                None if self.slow.guests.contains(&cpu.cpu) => Role::Guests,
                None => Role::Reserved,
            };
            let (busy, waited) = self.usage.get(&cpu.cpu).copied().unwrap_or_default();
            Core {
                cpu: cpu.cpu,
                node: cpu.node,
                siblings: cpu.siblings.clone(),
                role,
                busy: (busy * interval as f64) as u64,
                waited: (waited * interval as f64) as u64,
            }
        })
        .collect()
    }

    fn worker(
        &self,
        now: &snapshot::Worker,
        before: Option<&snapshot::Worker>,
        waits: u64,
        interval: u64,
    ) -> Worker {
        let zero = snapshot::Worker::default();
        let (total, before) = match before {
            Some(before) => (interval, before),
            None => (
                now.busy_time
                    .saturating_add(now.spare_time)
                    .saturating_add(now.idle_time)
                    .min(interval),
                &zero,
            ),
        };
        let id = WorkerId(now.id);
        let cpu = u32::try_from(now.cpu).ok();
        let (pending_max, pending_average) = ages(
            (now.pending_max, now.pending_average, now.works),
            (before.pending_max, before.works),
            waits,
        );
        Worker {
            id,
            cpu,
            node: cpu.and_then(|cpu| Some(self.slow.topology.cpu(cpu)?.node)),
            state: match now.state {
                1 => State::Parked,
                // Whom a woken worker helps is the module's own business.
                _ => State::Active,
            },
            locked: now.locked,
            busy: now.busy_time.saturating_sub(before.busy_time),
            polled_empty: now.empty_poll_time.saturating_sub(before.empty_poll_time),
            total,
            pending_max,
            pending_average,
        }
    }

    fn device(&self, device: &snapshot::Device, now: &Snapshot, interval: u64) -> Device {
        let pid = i32::try_from(device.owner).unwrap_or(0);
        let runtime = self.runtime.get(&pid).copied().unwrap_or(0.0);
        Device {
            id: DeviceId(device.id),
            vm: pid.unsigned_abs(),
            node: None,
            weight: device.weight,
            guest_busy: (runtime * interval as f64) as u64,
            virtqueues: now
                .of_device(device.id)
                .map(|virtqueue| self.virtqueue(virtqueue, device.placed))
                .collect(),
        }
    }

    fn virtqueue(&self, now: &snapshot::Virtqueue, placed: bool) -> Virtqueue {
        let zero = snapshot::Virtqueue::default();
        let mut earlier = self.before.1.of_device(now.device);
        let before = earlier
            .find(|before| before.index == now.index)
            .unwrap_or(&zero);
        // Events of the backend are not counted. Each begins a slice, unless one is going on.
        let notifications = |virtqueue: &snapshot::Virtqueue| match virtqueue.index {
            RECEIVE => virtqueue.notif_works + virtqueue.home_works,
            _ => virtqueue.kicks,
        };
        let slices = |virtqueue: &snapshot::Virtqueue| {
            virtqueue.notif_works + virtqueue.poll_kicks + virtqueue.home_works
        };
        let served = |virtqueue: &snapshot::Virtqueue| virtqueue.served_time + virtqueue.home_time;
        let (pending_max, pending_average) = ages(
            (now.pending_max, now.pending_average, slices(now)),
            (before.pending_max, slices(before)),
            0,
        );
        Virtqueue {
            id: VirtqueueId {
                device: DeviceId(now.device),
                index: now.index,
            },
            place: if now.home || !placed {
                Place::Home
            } else {
                Place::Worker(WorkerId(now.worker))
            },
            poll: match now.mode {
                0 => Mode::Never,
                1 => Mode::Always,
                _ => Mode::Auto,
            },
            served: served(now).saturating_sub(served(before)),
            packets: now.packets.saturating_sub(before.packets),
            bytes: now.bytes.saturating_sub(before.bytes),
            slices: slices(now).saturating_sub(slices(before)),
            notifications: notifications(now).saturating_sub(notifications(before)),
            polls_empty: now.poll_empty.saturating_sub(before.poll_empty),
            pending_max,
            pending_average,
        }
    }
}

/// The greatest and the average age of work in an interval. `now` and `before` have the greatest
/// age since ever and the number of slices, `now` also the moving average; `waits` is the age of
/// what waits at the end. The greatest age of an interval is known exactly if it is the greatest
/// ever; otherwise the average, and what waits, stand for it.
fn ages(now: (u64, u64, u64), before: (u64, u64), waits: u64) -> (u64, u64) {
    let average = if now.2 > before.1 { now.1 } else { 0 };
    let greatest = if now.0 > before.0 { now.0 } else { average };
    (greatest.max(waits), average)
}
