// SPDX-License-Identifier: GPL-2.0

//! What a host looked like during an interval, from what it looked like at both ends.

use crate::failure::Result;
use crate::host::control::{Control, Object};
use crate::host::process::Process;
use crate::host::snapshot::{self, Reader, Snapshot};
use crate::host::topology::{self, CpuSet, Topology, Usage};
use crate::host::Root;
use crate::policy::{Core, Device, Limits, Observation, Place, Role, Virtqueue, Worker};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use vhost_iocm_engine::engine::abi::{DeviceId, VirtqueueId, WorkerId};
use vhost_iocm_engine::engine::sched::polling::Mode;
use vhost_iocm_engine::engine::sched::standby::State;

/// How often is read what changes slowly or costs much: CPUs, processes and what they used. What
/// they used in an interval is taken to be their part of that time.
const SLOW: Duration = Duration::from_millis(500);

/// The virtqueue for which the backend notifies and not the guest.
const RECEIVE: u32 = 0;

/// What is read now and then.
#[derive(Default)]
struct Slow {
    topology: Topology,
    /// CPUs on which virtual CPUs may run.
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
    slow: Slow,
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
            slow: Slow::default(),
            usage: BTreeMap::new(),
            runtime: BTreeMap::new(),
        };
        observer.slow = observer.look_around(&observer.before.1);
        Ok(observer)
    }

    /// Reads what changes slowly.
    fn look_around(&self, snapshot: &Snapshot) -> Slow {
        let topology = Topology::read(&self.root);
        let owners = snapshot.owners();
        let mut guests = CpuSet::new();
        let mut names = BTreeMap::new();
        for process in owners
            .iter()
            .filter_map(|pid| Process::read(&self.root, *pid))
        {
            // A process without virtual CPUs is a VM of another kind: all of its threads count.
            let some = process.threads.iter().any(|thread| thread.vcpu.is_some());
            let threads = process.threads.iter();
            for thread in threads.filter(|thread| !some || thread.vcpu.is_some()) {
                guests.extend(&thread.cpus);
            }
            names.insert(process.pid, process.name);
        }
        if guests.is_empty() {
            guests = topology.online();
        }
        for cpu in &topology.isolated {
            guests.remove(cpu);
        }
        Slow {
            usage: topology::usage(&self.root),
            runtime: owners
                .iter()
                .map(|pid| (*pid, Process::runtime(&self.root, *pid)))
                .collect(),
            topology,
            guests,
            names,
        }
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
            self.follow(&snapshot, passed);
            self.slow_at = now;
        }
        let interval = now.duration_since(self.before.0).as_nanos().max(1) as u64;
        let before = &self.before.1;
        let observation = Observation {
            time: now.duration_since(self.start).as_nanos() as u64,
            interval,
            cores: self.cores(&snapshot, interval, taken),
            workers: snapshot
                .workers
                .iter()
                .map(|worker| self.worker(worker, before.worker(worker.id), interval))
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

    /// Reads again what changes slowly, and what was used since the last time.
    fn follow(&mut self, snapshot: &Snapshot, passed: Duration) {
        let slow = self.look_around(snapshot);
        let passed = passed.as_nanos() as f64;
        let part = |now: u64, before: u64| now.saturating_sub(before) as f64 / passed;
        self.usage = slow
            .usage
            .iter()
            .filter_map(|(cpu, now)| {
                let before = self.slow.usage.get(cpu)?;
                let busy = part(now.busy, before.busy).min(1.0);
                Some((*cpu, (busy, part(now.waited, before.waited))))
            })
            .collect();
        self.runtime = slow
            .runtime
            .iter()
            .filter_map(|(pid, now)| Some((*pid, part(*now, *self.slow.runtime.get(pid)?))))
            .collect();
        self.slow = slow;
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
        let waits = self
            .control
            .read(Object::Worker(id), "pending_ns_now")
            .ok()
            .and_then(|age| age.parse().ok())
            .unwrap_or(0);
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
