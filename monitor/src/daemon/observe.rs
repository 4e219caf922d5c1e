// SPDX-License-Identifier: GPL-2.0

//! What a host looked like during an interval, from what it looked like at both ends.

use crate::failure::Result;
use crate::host::process::{Process, Thread};
use crate::host::snapshot::{self, Changes, Reader, Snapshot};
use crate::host::topology::{self, CpuSet, Topology, Usage};
use crate::host::Root;
use crate::policy::{Core, Device, Limits, Observation, Place, Role, Virtqueue, Worker};
use std::collections::BTreeMap;
use std::mem::take;
use std::time::{Duration, Instant};
use vhost_iocm_engine::engine::abi::{DeviceId, VirtqueueId, WorkerId};
use vhost_iocm_engine::engine::sched::polling::Mode;
use vhost_iocm_engine::engine::sched::standby::State;

/// How often is read what costs much: what CPUs used, and who has come. What they used in an interval
/// is taken to be its part of that time.
const SLOW: Duration = Duration::from_millis(500);
/// How often is read what hardly ever changes: CPUs, names, and where virtual CPUs may run. VMs take turns, a
/// few each time that something slow is read, so that no interval has to wait for all of them.
const SLOWEST: Duration = Duration::from_secs(30);
/// Within so many slow looks all VMs have their turn.
const TURNS: usize = (SLOWEST.as_millis() / SLOW.as_millis()) as usize;

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
    names: BTreeMap<i32, String>,
    /// The VM that had its turn last.
    turn: i32,
    /// Turns that are owed to VMs, in parts of which `TURNS` are one.
    owed: usize,
}

/// Watches a host.
pub struct Observer {
    root: Root,
    reader: Reader,
    start: Instant,
    /// When the last interval ended, what everything looked like then, and what had changed within it.
    end: Instant,
    snapshot: Snapshot,
    changes: Changes,
    slow_at: Instant,
    slowest_at: Instant,
    slow: Slow,
    /// What CPUs used per nanosecond, lately.
    usage: BTreeMap<u32, (f64, f64)>,
    /// What was observed last. Its memory is used again.
    observation: Observation,
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
            reader,
            start: now,
            end: now,
            snapshot,
            changes: Changes::default(),
            slow_at: now,
            slowest_at: now,
            slow: Slow::default(),
            usage: BTreeMap::new(),
            observation: Observation::default(),
        };
        let owners = observer.snapshot.owners();
        observer.look_around(&owners, true);
        Ok(observer)
    }

    /// Reads what changes slowly: `owners` are the processes that own devices, in the order of their
    /// numbers. Those that are new have their turn at once. `topology` says whether CPUs are read.
    fn look_around(&mut self, owners: &[i32], topology: bool) {
        let slow = &mut self.slow;
        if topology {
            slow.topology = Topology::read(&self.root);
        }
        let is_owner = |pid: &i32| owners.binary_search(pid).is_ok();
        slow.cpus.retain(|pid, _| is_owner(pid));
        slow.names.retain(|pid, _| is_owner(pid));
        let next = owners.partition_point(|pid| *pid <= slow.turn);
        let turns = owners.iter().cycle().skip(next);
        slow.owed += owners.len();
        let count = (slow.owed / TURNS).max(1);
        let turns: Vec<i32> = turns.take(count.min(owners.len())).copied().collect();
        slow.owed %= TURNS;
        slow.turn = turns.last().copied().unwrap_or(slow.turn);
        for pid in owners {
            if slow.cpus.contains_key(pid) && !turns.contains(pid) {
                continue;
            }
            // It is read again as well: whoever opened the device may have become another program, or
            // another process may have its number.
            let Some(name) = Process::name(&self.root, *pid) else {
                continue;
            };
            slow.names.insert(*pid, name);
            let threads = Thread::all(&self.root, *pid);
            // A process without virtual CPUs is a VM of another kind: all of its threads count.
            let some = threads.iter().any(|thread| thread.vcpu.is_some());
            let cpus = threads
                .iter()
                .filter(|thread| !some || thread.vcpu.is_some())
                .flat_map(|thread| thread.cpus.iter().copied());
            slow.cpus.insert(*pid, cpus.collect());
        }
        slow.guests = slow.cpus.values().flatten().copied().collect();
        if slow.guests.is_empty() {
            slow.guests = slow.topology.online();
        }
        for cpu in &slow.topology.isolated {
            slow.guests.remove(cpu);
        }
        slow.usage = topology::usage(&self.root);
    }

    /// The names of the VMs, by their processes.
    pub fn names(&self) -> &BTreeMap<i32, String> {
        &self.slow.names
    }

    /// What everything looked like at the end of the last interval.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// What the host looked like since the last call. `taken` are the CPUs that the monitor keeps
    /// for I/O.
    ///
    /// # Errors
    ///
    /// Whatever reading fails with.
    pub fn observe(&mut self, limits: &Limits, taken: &CpuSet) -> Result<&Observation> {
        let now = Instant::now();
        self.reader.follow(&mut self.snapshot, &mut self.changes)?;
        let passed = now.duration_since(self.slow_at);
        if passed >= SLOW {
            let topology = now.duration_since(self.slowest_at) >= SLOWEST;
            if topology {
                self.slowest_at = now;
            }
            self.follow(&self.snapshot.owners(), passed, topology);
            self.slow_at = now;
        }
        let interval = now.duration_since(self.end).as_nanos().max(1) as u64;
        let (snapshot, changes) = (&self.snapshot, &self.changes);
        let (mut virtqueues, mut earlier) = (snapshot.by_device(), changes.by_device());
        let mut devices = take(&mut self.observation.devices);
        let mut used = 0;
        for of in snapshot.devices.iter().filter(|device| device.owner > 0) {
            let before = earlier.of(of.id);
            let has_changed = !before.is_empty() || changes.has_device(of.id);
            match devices.get_mut(used) {
                // Most devices do nothing most of the time.
                Some(seen) if !has_changed && seen.id == DeviceId(of.id) && seen.is_still() => {}
                Some(seen) => {
                    let room = take(&mut seen.virtqueues);
                    *seen = device(of, virtqueues.of(of.id), before, room);
                }
                None => devices.push(device(of, virtqueues.of(of.id), before, Vec::new())),
            }
            used += 1;
        }
        devices.truncate(used);
        let observation = Observation {
            time: now.duration_since(self.start).as_nanos() as u64,
            interval,
            cores: self.cores(interval, taken),
            workers: snapshot
                .workers
                .iter()
                .map(|now| self.worker(now, changes.worker(now.id), interval))
                .collect(),
            devices,
            limits: limits.clone(),
        };
        self.end = now;
        self.observation = observation;
        Ok(&self.observation)
    }

    /// Reads again what changes slowly, and what was used since the last time.
    fn follow(&mut self, owners: &[i32], passed: Duration, topology: bool) {
        let before_usage = take(&mut self.slow.usage);
        self.look_around(owners, topology);
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
    }

    fn cores(&self, interval: u64, taken: &CpuSet) -> Vec<Core> {
        let worker_on = |cpu: u32| {
            let mut workers = self.snapshot.workers.iter();
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
        let cpu = u32::try_from(now.cpu).ok();
        let (_, pending_average) = ages(
            (now.pending_max, now.pending_average, now.works),
            (before.pending_max, before.works),
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
            pending_average,
        }
    }
}

/// A device, whose virtqueues are these now; those that have changed were those before. `virtqueues` is a
/// vector to use.
fn device(
    device: &snapshot::Device,
    now: &[snapshot::Virtqueue],
    before: &[snapshot::Virtqueue],
    mut virtqueues: Vec<Virtqueue>,
) -> Device {
    virtqueues.clear();
    virtqueues.extend(now.iter().map(|now| {
        let mut before = before.iter();
        let before = before.find(|before| before.index == now.index);
        virtqueue(now, before, device.placed)
    }));
    Device {
        id: DeviceId(device.id),
        vm: u32::try_from(device.owner).unwrap_or(0),
        node: None,
        weight: device.weight,
        virtqueues,
    }
}

fn virtqueue(
    now: &snapshot::Virtqueue,
    before: Option<&snapshot::Virtqueue>,
    placed: bool,
) -> Virtqueue {
    let id = VirtqueueId {
        device: DeviceId(now.device),
        index: now.index,
    };
    let place = if now.home || !placed {
        Place::Home
    } else {
        Place::Worker(WorkerId(now.worker))
    };
    let poll = match now.mode {
        0 => Mode::Never,
        1 => Mode::Always,
        _ => Mode::Auto,
    };
    let Some(before) = before else {
        return Virtqueue::idle(id, place, poll);
    };
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
    );
    Virtqueue {
        id,
        place,
        poll,
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

/// The greatest and the average age of work in an interval. `now` and `before` have the greatest
/// age since ever and the number of slices, `now` also the moving average. The greatest age of an
/// interval is known exactly if it is the greatest ever; otherwise the average stands for it.
fn ages(now: (u64, u64, u64), before: (u64, u64)) -> (u64, u64) {
    let average = if now.2 > before.1 { now.1 } else { 0 };
    let greatest = if now.0 > before.0 { now.0 } else { average };
    (greatest, average)
}
