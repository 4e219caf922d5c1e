// SPDX-License-Identifier: GPL-2.0

//! What a host looked like during an interval, from what it looked like at both ends.

use crate::failure::Result;
use crate::host::process::{Process, Thread};
use crate::host::snapshot::{self, Changes, Reader, Snapshot};
use crate::host::topology::{self, CpuSet, Topology, Usage};
use crate::host::Root;
use crate::policy::{Core, Device, Limits, Observation, Place, Role, Virtqueue, Worker};
use std::collections::BTreeMap;
use std::mem::{replace, take};
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

/// What a CPU is used for.
struct Use {
    /// Where there is no worker.
    role: Role,
    /// The part of the time for which something ran lately, and that for which threads waited.
    busy: f64,
    waited: f64,
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
    /// What CPUs are used for, in the order of [`Topology::cpus`].
    uses: Vec<Use>,
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
            uses: Vec::new(),
            observation: Observation::default(),
        };
        let owners = observer.snapshot.owners();
        observer.look_around(&owners, true);
        observer.lay_out(|_| (0.0, 0.0));
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
    pub fn observe(&mut self, limits: &Limits, taken: &[u32]) -> Result<&Observation> {
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
        // Its memory is used again.
        let mut observation = take(&mut self.observation);
        observation.time = now.duration_since(self.start).as_nanos() as u64;
        observation.interval = interval;
        observation.limits.clone_from(limits);
        self.cores(interval, taken, &mut observation.cores);
        observation.workers.clear();
        let workers = self.snapshot.workers.iter();
        observation
            .workers
            .extend(workers.map(|now| self.worker(now, self.changes.worker(now.id), interval)));
        self.devices(&mut observation.devices);
        self.end = now;
        self.observation = observation;
        Ok(&self.observation)
    }

    /// What was done for each device.
    fn devices(&self, devices: &mut Vec<Device>) {
        let (snapshot, changes) = (&self.snapshot, &self.changes);
        let (mut virtqueues, mut earlier) = (snapshot.by_device(), changes.by_device());
        let mut used = 0;
        for of in snapshot.devices.iter().filter(|device| device.owner > 0) {
            let before = earlier.of(of.id);
            let has_changed = !before.is_empty() || changes.has_device(of.id);
            match devices.get_mut(used) {
                // Most devices do nothing most of the time.
                Some(seen) if !has_changed && seen.id == DeviceId(of.id) && seen.is_still() => {}
                Some(seen) => {
                    let empty = device(of, &[], &[], Vec::new());
                    let room = replace(seen, empty).into_virtqueues();
                    *seen = device(of, virtqueues.of(of.id), before, room);
                }
                None => devices.push(device(of, virtqueues.of(of.id), before, Vec::new())),
            }
            used += 1;
        }
        devices.truncate(used);
    }

    /// Reads again what changes slowly, and what was used since the last time.
    fn follow(&mut self, owners: &[i32], passed: Duration, topology: bool) {
        let before_usage = take(&mut self.slow.usage);
        self.look_around(owners, topology);
        let passed = passed.as_nanos() as f64;
        let part = |now: u64, before: u64| now.saturating_sub(before) as f64 / passed;
        let now_usage = take(&mut self.slow.usage);
        self.lay_out(|cpu| {
            let (Some(now), Some(before)) = (now_usage.get(&cpu), before_usage.get(&cpu)) else {
                return (0.0, 0.0);
            };
            let busy = part(now.busy, before.busy).min(1.0);
            (busy, part(now.waited, before.waited))
        });
        self.slow.usage = now_usage;
    }

    /// Puts down what does not change until something slow is read again. `used` says for which parts of the
    /// time a CPU ran something and had threads waiting.
    fn lay_out(&mut self, used: impl Fn(u32) -> (f64, f64)) {
        let cpus = self.slow.topology.cpus.iter();
        self.uses.clear();
        self.uses.extend(cpus.clone().map(|cpu| {
            let (busy, waited) = used(cpu.cpu);
            let role = match self.slow.guests.contains(&cpu.cpu) {
                true => Role::Guests,
                false => Role::Reserved,
            };
            Use { role, busy, waited }
        }));
        let cores = cpus.map(|cpu| Core {
            cpu: cpu.cpu,
            node: cpu.node,
            siblings: cpu.siblings.clone(),
            role: Role::Reserved,
            busy: 0,
            waited: 0,
        });
        self.observation.cores = cores.collect();
    }

    /// What CPUs were used for, and for how long.
    fn cores(&self, interval: u64, taken: &[u32], cores: &mut [Core]) {
        for (core, of) in cores.iter_mut().zip(&self.uses) {
            core.role = of.role;
            core.busy = (of.busy * interval as f64) as u64;
            core.waited = (of.waited * interval as f64) as u64;
        }
        let mut set = |cpu: i64, role: Role| {
            if let Ok(place) = cores.binary_search_by_key(&cpu, |core| i64::from(core.cpu)) {
                cores[place].role = role;
            }
        };
        // A worker that is just being made has not said yet where it runs.
        for cpu in taken {
            set(i64::from(*cpu), Role::Reserved);
        }
        for worker in self.snapshot.workers.iter().rev() {
            if !worker.is_parked() {
                set(worker.cpu, Role::Io(WorkerId(worker.id)));
            }
        }
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
            // Whom a woken worker helps is the module's own business.
            state: match now.is_parked() {
                true => State::Parked,
                false => State::Active,
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
    let vm = u32::try_from(device.owner).unwrap_or(0);
    Device::new(DeviceId(device.id), vm, None, device.weight, virtqueues)
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
