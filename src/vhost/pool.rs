// SPDX-License-Identifier: GPL-2.0

//! All workers and devices, and which worker serves which device.

mod balance;

use self::balance::Standing;
use super::device::{Device, VIRTQUEUES};
use super::fast_loop::Bell;
use super::sysfs::WorkerDirectory;
use super::virtqueue::Virtqueue;
use super::worker::Worker;
use crate::engine::abi::{self, DeviceId, VirtqueueId, WorkerId};
use crate::engine::sched::placement::{self, Candidate, Rule};
use crate::engine::sched::standby::{self, Activity};
use crate::kern::control::{File, Files};
use crate::kern::cpu::{self, CpuList};
use crate::kern::error::malformed;
use crate::kern::inbox::Inbox;
use crate::kern::parameters;
use crate::kern::snapshot::Snapshot;
use crate::kern::sysfs::Text;
use crate::kern::thread::{Thread, Urgency};
use crate::kern::trace;
use core::fmt::Write;
use core::ops::Range;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::{new_mutex, Arc, Mutex};

/// Workers that can exist at once. More than one for each CPU of a large machine makes no sense,
/// and an unbounded number would let a script that went wrong take the machine down.
const WORKERS_MAX: usize = 1024;

/// New workers that `worker/create` remembers for its next reader; the original's number.
const CREATED_MAX: usize = 32;

/// A worker with its thread and its directory.
struct Employed {
    worker: Arc<Worker>,
    locked: bool,
    /// The group to which it belongs for user space.
    group: u32,
    /// How many virtqueues it serves.
    virtqueues: u32,
    standing: Standing,
    // The directory goes first: its files show the thread.
    _directory: WorkerDirectory,
    thread: Arc<Thread<Worker>>,
}

/// A device and who serves its virtqueues.
struct Assigned {
    device: Arc<Device>,
    workers: [WorkerId; VIRTQUEUES],
    activity: [Activity; VIRTQUEUES],
}

impl Assigned {
    /// Moves a virtqueue, unless it is there; returns whether it was not.
    fn move_virtqueue(
        &mut self,
        index: usize,
        to: WorkerId,
        inbox: &Arc<Inbox<Virtqueue>>,
    ) -> bool {
        let moves = self.workers[index] != to;
        if moves {
            let virtqueue = &self.device.virtqueues()[index];
            trace::moved(virtqueue.id, self.workers[index], to);
            self.workers[index] = to;
            virtqueue.note_worker(to);
            virtqueue.set_inbox(inbox.clone());
        }
        moves
    }

    /// Moves the virtqueues of a worker; returns how many these were.
    fn move_all(&mut self, from: WorkerId, to: WorkerId, inbox: &Arc<Inbox<Virtqueue>>) -> u32 {
        (0..VIRTQUEUES)
            .map(|index| {
                u32::from(self.workers[index] == from && self.move_virtqueue(index, to, inbox))
            })
            .sum()
    }
}

/// What the pool's lock protects.
struct State {
    workers: KVVec<Employed>,
    devices: KVVec<Assigned>,
    /// The worker that new devices get, unless the rule says otherwise. It is active and not
    /// locked, and it exists from the first worker on.
    default: WorkerId,
    /// How the worker of a new device is chosen.
    rule: Rule,
    next_worker: u32,
    next_device: u32,
    /// Workers created since `worker/create` was read, oldest first.
    created: KVec<WorkerId>,
    epoch: u64,
}

impl State {
    fn worker(&self, id: WorkerId) -> Option<&Employed> {
        self.workers.iter().find(|entry| entry.worker.id == id)
    }

    fn worker_mut(&mut self, id: WorkerId) -> Option<&mut Employed> {
        self.workers.iter_mut().find(|entry| entry.worker.id == id)
    }

    fn devices_of(&self, id: WorkerId) -> impl Iterator<Item = DeviceId> + '_ {
        self.devices
            .iter()
            .filter(move |entry| entry.workers.contains(&id))
            .map(|entry| entry.device.id)
    }

    fn device_mut(&mut self, id: DeviceId) -> Option<&mut Assigned> {
        self.devices.iter_mut().find(|entry| entry.device.id == id)
    }

    /// The inbox of a worker that takes virtqueues.
    fn target(&self, id: WorkerId) -> Result<Arc<Inbox<Virtqueue>>> {
        let entry = self.worker(id).ok_or(ENOENT)?;
        if !entry.is_usable() {
            return Err(EBUSY);
        }
        Ok(entry.worker.inbox_ref())
    }

    /// Notes that a worker serves so many virtqueues more, or fewer if that is negative.
    fn add_virtqueues(&mut self, id: WorkerId, count: i32) {
        if let Some(entry) = self.worker_mut(id) {
            entry.virtqueues = entry.virtqueues.saturating_add_signed(count);
        }
    }

    /// Moves all that a worker serves to another; returns how many virtqueues these were.
    fn move_all(&mut self, from: WorkerId, to: WorkerId, inbox: &Arc<Inbox<Virtqueue>>) -> u32 {
        let moved = self
            .devices
            .iter_mut()
            .map(|entry| entry.move_all(from, to, inbox))
            .sum();
        self.add_virtqueues(from, -(moved as i32));
        self.add_virtqueues(to, moved as i32);
        moved
    }

    /// The worker of a new device by the rule, and whether there is one; if not, it is the one that
    /// the device is assigned to for the time being.
    fn place(&self) -> (WorkerId, bool) {
        if self.rule == Rule::Default {
            return (self.default, true);
        }
        let now = cpu::now();
        let candidates = self
            .workers
            .iter()
            .filter(|entry| entry.is_usable() && self.rule.considers(entry.group))
            .map(|entry| Candidate {
                worker: entry.worker.id,
                load: entry.worker.load.share(now),
                pending: entry.worker.stats.pending.average(),
                virtqueues: entry.virtqueues,
            });
        match placement::least_loaded(candidates) {
            Some(worker) => (worker, true),
            None => (self.default, false),
        }
    }

    fn note_created(&mut self, id: WorkerId) {
        if self.created.len() == CREATED_MAX {
            // The oldest one is forgotten; removing the first of a full list cannot fail.
            let _ = self.created.remove(0);
        }
        // There is room for all of them since the pool was made.
        let _ = self.created.push_within_capacity(id);
    }
}

/// All workers and devices.
#[pin_data]
pub struct Pool {
    snapshot: Arc<Snapshot>,
    #[pin]
    state: Mutex<State>,
    bell: Arc<Bell>,
}

impl Pool {
    /// A pool without workers. The class has to be registered before the first one is made.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Arc<Self>> {
        let state = State {
            workers: KVVec::new(),
            devices: KVVec::new(),
            default: WorkerId(0),
            rule: Rule::Default,
            next_worker: 0,
            next_device: 0,
            created: KVec::with_capacity(CREATED_MAX, GFP_KERNEL)?,
            epoch: 0,
        };
        let bell = Bell::new()?;
        Arc::pin_init(
            try_pin_init!(Self {
                snapshot: Snapshot::new()?,
                state <- new_mutex!(state, "vhost_iocm::Pool::state"),
                bell,
            }? Error),
            GFP_KERNEL,
        )
    }

    /// What workers wake the fast loop with.
    pub fn bell(&self) -> Arc<Bell> {
        self.bell.clone()
    }

    /// Creates a worker, on `cpus` only if there are any, which serves devices or is parked.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when there are too many, `ENOMEM`, `EINTR` when the process is being killed.
    pub fn create_worker(
        self: &Arc<Self>,
        cpus: Option<&CpuList>,
        state: standby::State,
    ) -> Result<WorkerId> {
        let standing = Standing::new(state);
        let id = {
            let mut state = self.state.lock();
            if state.workers.len() >= WORKERS_MAX {
                return Err(ENOSPC);
            }
            let id = state.next_worker;
            state.next_worker = id.checked_add(1).ok_or(ENOSPC)?;
            WorkerId(id)
        };
        let worker = Worker::new(id, self.bell(), &self.snapshot)?;
        let name = CString::try_from_fmt(format_args!("vhost-{id}"))?;
        let urgency = Urgency {
            nice: parameters::worker_nice(),
            priority: parameters::worker_priority(),
        };
        let thread = Thread::spawn(&name, cpus, urgency, worker.clone())?;
        let thread = Arc::new(thread, GFP_KERNEL)?;
        let pid = i64::from(thread.pid()) as u64;
        worker.stats.describe(|record| {
            record.pid.store(pid);
            record.state.store(state.number());
        });
        let directory = WorkerDirectory::new(self.clone(), worker.clone(), thread.clone())?;
        let entry = Employed {
            worker,
            locked: false,
            group: 0,
            virtqueues: 0,
            standing,
            _directory: directory,
            thread,
        };

        let mut state = self.state.lock();
        let refused = if state.workers.len() >= WORKERS_MAX {
            Err((entry, ENOSPC))
        } else if state.workers.reserve(1, GFP_KERNEL).is_err() {
            Err((entry, ENOMEM))
        } else {
            state
                .workers
                .push_within_capacity(entry)
                .map_err(|error| (error.0, ENOMEM))
        };
        match refused {
            Ok(()) => {
                state.note_created(id);
                state.note_helpers();
                Ok(id)
            }
            Err((entry, error)) => {
                // Its files want the lock, and dropping it waits for their readers.
                drop(state);
                drop(entry);
                Err(error)
            }
        }
    }

    /// Creates the worker that the first devices get, which nobody asked for.
    ///
    /// # Errors
    ///
    /// As for [`Pool::create_worker`].
    pub fn create_first_worker(self: &Arc<Self>) -> Result {
        let id = self.create_worker(None, standby::State::Active)?;
        let mut state = self.state.lock();
        self.make_default(&mut state, id);
        state.created.clear();
        Ok(())
    }

    /// Removes all workers. There are no devices any more.
    pub fn clear(&self) {
        loop {
            let entry = self.state.lock().workers.pop();
            if entry.is_none() {
                return;
            }
        }
    }

    /// Removes a worker that is locked and serves nothing, or whose virtqueues go to `heir`.
    fn remove_worker(&self, id: WorkerId, heir: Option<WorkerId>) -> Result {
        let entry = {
            let mut state = self.state.lock();
            let index = state
                .workers
                .iter()
                .position(|entry| entry.worker.id == id)
                .ok_or(ENOENT)?;
            if !state.workers[index].locked {
                return Err(EBUSY);
            }
            match heir {
                Some(heir) => {
                    let inbox = state.target(heir)?;
                    state.move_all(id, heir, &inbox);
                }
                None if state.workers[index].virtqueues > 0 => return Err(EBUSY),
                None => (),
            }
            let entry = state.workers.remove(index).map_err(|_| ENOENT)?;
            state.note_helpers();
            entry
        };
        // Its files want the lock, and dropping it waits for their readers.
        drop(entry);
        Ok(())
    }

    /// Lets a worker take new devices, or take none. If it is the default one, another takes over
    /// that part.
    pub fn set_locked(self: &Arc<Self>, id: WorkerId, locked: bool) -> Result {
        self.change_worker(id, locked, |entry| {
            entry.locked = locked;
            entry.worker.stats.locked.store(locked.into());
            Ok(())
        })
    }

    /// Changes a worker. If it is the default one and `retires`, another takes over that part,
    /// unless the change fails.
    fn change_worker(
        self: &Arc<Self>,
        id: WorkerId,
        retires: bool,
        change: impl Fn(&mut Employed) -> Result,
    ) -> Result {
        loop {
            let mut state = self.state.lock();
            state.worker(id).ok_or(ENODEV)?;
            let mut default = state.default;
            if retires && default == id {
                let heir = state
                    .workers
                    .iter()
                    .filter(|entry| entry.worker.id != id && entry.is_usable())
                    .map(|entry| entry.worker.id)
                    .min();
                match heir {
                    Some(heir) => default = heir,
                    None => {
                        drop(state);
                        self.create_worker(None, standby::State::Active)?;
                        continue;
                    }
                }
            }
            change(state.worker_mut(id).ok_or(ENODEV)?)?;
            self.make_default(&mut state, default);
            state.note_helpers();
            return Ok(());
        }
    }

    /// Whether a worker takes no new devices.
    pub fn is_locked(&self, id: WorkerId) -> Result<bool> {
        Ok(self.state.lock().worker(id).ok_or(ENODEV)?.locked)
    }

    /// Whether new devices get this worker.
    pub fn is_default(&self, id: WorkerId) -> bool {
        self.state.lock().default == id
    }

    fn set_default(&self, id: WorkerId) -> Result {
        let mut state = self.state.lock();
        state.target(id)?;
        self.make_default(&mut state, id);
        Ok(())
    }

    fn make_default(&self, state: &mut State, id: WorkerId) {
        state.default = id;
        self.snapshot.header().default_worker.store(id.0.into());
    }

    /// The group to which a worker belongs.
    pub fn group_of(&self, id: WorkerId) -> Result<u32> {
        Ok(self.state.lock().worker(id).ok_or(ENODEV)?.group)
    }

    /// Makes a worker belong to a group.
    pub fn set_group(&self, id: WorkerId, group: u32) -> Result {
        let mut state = self.state.lock();
        let entry = state.worker_mut(id).ok_or(ENODEV)?;
        entry.group = group;
        entry.worker.stats.group.store(group.into());
        state.note_helpers();
        Ok(())
    }

    /// Prints the list of the devices that a worker serves.
    pub fn write_devices_of(&self, id: WorkerId, text: &mut Text<'_>) -> Result {
        Ok(abi::write_list(text, self.state.lock().devices_of(id))?)
    }

    /// Adds a device, which a worker serves that the rule chooses. If there is none, it is served
    /// at home until it is moved to a worker.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `ENOSPC` when the snapshot has no room for it.
    pub fn add_device(&self) -> Result<Arc<Device>> {
        let mut state = self.state.lock();
        let (worker, placed) = state.place();
        let inbox = state.worker(worker).ok_or(ENODEV)?.worker.inbox_ref();
        let id = state.next_device;
        let device = Device::new(DeviceId(id), worker, inbox, &self.snapshot)?;
        device.common.set_placed(placed);
        let entry = Assigned {
            device: device.clone(),
            workers: [worker; VIRTQUEUES],
            activity: Default::default(),
        };
        state.devices.push(entry, GFP_KERNEL)?;
        state.add_virtqueues(worker, VIRTQUEUES as i32);
        state.next_device = id.wrapping_add(1);
        Ok(device)
    }

    /// Forgets a device, which does nothing any more.
    pub fn remove_device(&self, id: DeviceId) {
        let entry = {
            let mut state = self.state.lock();
            let index = state.devices.iter().position(|entry| entry.device.id == id);
            let entry = index.and_then(|index| state.devices.remove(index).ok());
            for worker in entry.iter().flat_map(|entry| entry.workers) {
                state.add_virtqueues(worker, -1);
            }
            entry
        };
        drop(entry);
    }

    /// Prints the list of the workers that serve a device: one, unless its virtqueues were moved one
    /// by one.
    pub fn write_workers_of(&self, id: DeviceId, text: &mut Text<'_>) -> Result {
        let workers = self.state.lock().device_mut(id).ok_or(ENODEV)?.workers;
        let [first, second] = workers;
        let count = if first == second { 1 } else { workers.len() };
        Ok(abi::write_list(text, &workers[..count])?)
    }

    /// The worker that serves a virtqueue.
    pub fn worker_of(&self, id: VirtqueueId) -> Result<WorkerId> {
        let mut state = self.state.lock();
        Ok(state.device_mut(id.device).ok_or(ENODEV)?.workers[id.index as usize])
    }

    /// Moves a device to another worker, under whatever traffic it has. Neither the old worker nor
    /// the home thread is waited for: whoever serves a virtqueue now hands it over after its slice.
    ///
    /// # Errors
    ///
    /// `ENOENT` for an unknown worker, `EBUSY` for one that is locked, `ENODEV` when the device
    /// was closed meanwhile.
    pub fn move_device(&self, id: DeviceId, to: WorkerId) -> Result {
        self.move_virtqueues(id, 0..VIRTQUEUES, to)
    }

    /// Moves a virtqueue to another worker; see [`Pool::move_device`].
    ///
    /// # Errors
    ///
    /// As for [`Pool::move_device`].
    pub fn move_virtqueue(&self, id: VirtqueueId, to: WorkerId) -> Result {
        let index = id.index as usize;
        self.move_virtqueues(id.device, index..index + 1, to)
    }

    fn move_virtqueues(&self, id: DeviceId, indices: Range<usize>, to: WorkerId) -> Result {
        let mut state = self.state.lock();
        state.worker(to).ok_or(ENOENT)?;
        let entry = state.device_mut(id).ok_or(ENODEV)?;
        let workers = entry.workers;
        let placed = entry.device.common.is_placed();
        if placed && workers[indices.clone()].iter().all(|worker| *worker == to) {
            return Ok(());
        }
        let inbox = state.target(to)?;
        for index in indices {
            let entry = state.device_mut(id).ok_or(ENODEV)?;
            entry.device.common.set_placed(true);
            if entry.move_virtqueue(index, to, &inbox) {
                state.add_virtqueues(workers[index], -1);
                state.add_virtqueues(to, 1);
            }
        }
        Ok(())
    }

    /// How many workers are not parked.
    fn count_awake(&self) -> usize {
        let state = self.state.lock();
        state
            .workers
            .iter()
            .filter(|entry| entry.is_awake())
            .count()
    }

    /// Prints what each worker that is bound to one CPU did with its time: a line with its CPU, its
    /// busy cycles and all of its cycles. Those that are parked have none.
    fn write_utilization(&self, text: &mut Text<'_>) -> Result {
        let now = cpu::now();
        for entry in self.state.lock().workers.iter() {
            let number = entry.thread.cpu();
            if number >= 0 && entry.is_awake() {
                let worker = &entry.worker;
                let busy = cpu::to_cycles(worker.stats.busy_time.get());
                let total = cpu::to_cycles(now.saturating_sub(worker.created));
                writeln!(text, "cpu{number} {busy} {total}")?;
            }
        }
        Ok(())
    }

    fn write_created(&self, text: &mut Text<'_>) -> Result {
        let mut state = self.state.lock();
        abi::write_list(text, state.created.iter())?;
        state.created.clear();
        Ok(())
    }
}

/// Reads the CPUs of a new worker: -1 for any, or a list.
fn parse_cpus(text: &[u8]) -> Result<Option<CpuList>> {
    match abi::parse_signed(text) {
        Ok(-1) => Ok(None),
        Ok(..0) => Err(ERANGE),
        _ => CpuList::parse(text).map(Some),
    }
}

impl Files for Pool {
    fn show(self: &Arc<Self>, file: File, text: &mut Text<'_>) -> Result {
        match file {
            File::Epoch => writeln!(text, "{}", self.state.lock().epoch)?,
            File::Cycles => writeln!(text, "{}", cpu::cycles())?,
            File::NrIocores => writeln!(text, "{}", self.count_awake())?,
            File::IocoresUtilization => self.write_utilization(text)?,
            File::WorkerCreate => self.write_created(text)?,
            File::WorkerDefault => writeln!(text, "{}", self.state.lock().default)?,
            File::WorkerPlacement => writeln!(text, "{}", self.state.lock().rule)?,
            File::WorkerRemove => return Err(EIO),
        }
        Ok(())
    }

    fn store(self: &Arc<Self>, file: File, text: &[u8]) -> Result {
        match file {
            File::Epoch => {
                if !abi::parse_flag(text).map_err(malformed)? {
                    return Err(EINVAL);
                }
                let mut state = self.state.lock();
                state.epoch = state.epoch.wrapping_add(1);
            }
            File::WorkerCreate => {
                let (cpus, parked) = abi::split_creation(text);
                let state = if parked {
                    standby::State::Parked
                } else {
                    standby::State::Active
                };
                self.create_worker(parse_cpus(cpus)?.as_ref(), state)?;
            }
            File::WorkerRemove => {
                let (id, heir) = abi::parse_removal(text).map_err(malformed)?;
                self.remove_worker(id, heir)?;
            }
            File::WorkerDefault => {
                self.set_default(abi::parse_worker(text).map_err(malformed)?)?;
            }
            File::WorkerPlacement => {
                let rule = abi::parse_rule(text).map_err(malformed)?;
                self.state.lock().rule = rule;
            }
            File::Cycles | File::NrIocores | File::IocoresUtilization => return Err(EIO),
        }
        Ok(())
    }

    fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }
}
