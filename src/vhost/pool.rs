// SPDX-License-Identifier: GPL-2.0

//! All workers and devices, and which worker serves which device.

use super::device::Device;
use super::sysfs::WorkerDirectory;
use super::worker::Worker;
use crate::engine::abi::{self, DeviceId, WorkerId};
use crate::kern::control::{File, Files};
use crate::kern::cpu;
use crate::kern::error::malformed;
use crate::kern::sysfs::Text;
use crate::kern::thread::Thread;
use core::fmt::Write;
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
    // The directory goes first: its files show the thread.
    _directory: WorkerDirectory,
    _thread: Arc<Thread<Worker>>,
}

/// A device and who serves it.
struct Assigned {
    device: Arc<Device>,
    worker: WorkerId,
}

/// What the pool's lock protects.
struct State {
    workers: KVVec<Employed>,
    devices: KVVec<Assigned>,
    /// The worker that new devices get. It is not locked, and it exists from the first worker on.
    default: WorkerId,
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
            .filter(move |entry| entry.worker == id)
            .map(|entry| entry.device.id)
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
    #[pin]
    state: Mutex<State>,
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
            next_worker: 0,
            next_device: 0,
            created: KVec::with_capacity(CREATED_MAX, GFP_KERNEL)?,
            epoch: 0,
        };
        Arc::pin_init(
            pin_init!(Self {
                state <- new_mutex!(state, "vhost_iocm::Pool::state"),
            }),
            GFP_KERNEL,
        )
    }

    /// Creates a worker, on `cpu` only if there is one.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when there are too many, `ENOMEM`, `EINTR` when the process is being killed.
    pub fn create_worker(self: &Arc<Self>, cpu: Option<u32>) -> Result<WorkerId> {
        let id = {
            let mut state = self.state.lock();
            if state.workers.len() >= WORKERS_MAX {
                return Err(ENOSPC);
            }
            let id = state.next_worker;
            state.next_worker = id.checked_add(1).ok_or(ENOSPC)?;
            WorkerId(id)
        };
        let worker = Worker::new(id)?;
        let name = CString::try_from_fmt(format_args!("vhost-{id}"))?;
        let thread = Arc::new(Thread::spawn(&name, cpu, worker.clone())?, GFP_KERNEL)?;
        let directory = WorkerDirectory::new(self.clone(), worker.clone(), thread.clone())?;
        let entry = Employed {
            worker,
            locked: false,
            _directory: directory,
            _thread: thread,
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
        let id = self.create_worker(None)?;
        let mut state = self.state.lock();
        state.default = id;
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

    fn remove_worker(&self, id: WorkerId) -> Result {
        let entry = {
            let mut state = self.state.lock();
            let index = state
                .workers
                .iter()
                .position(|entry| entry.worker.id == id)
                .ok_or(ENOENT)?;
            if !state.workers[index].locked || state.devices_of(id).next().is_some() {
                return Err(EBUSY);
            }
            state.workers.remove(index).map_err(|_| ENOENT)?
        };
        // Its files want the lock, and dropping it waits for their readers.
        drop(entry);
        Ok(())
    }

    /// Lets a worker take new devices, or take none. If it is the default one, another takes over
    /// that part.
    pub fn set_locked(self: &Arc<Self>, id: WorkerId, locked: bool) -> Result {
        loop {
            let mut state = self.state.lock();
            state.worker(id).ok_or(ENODEV)?;
            if locked && state.default == id {
                let heir = state
                    .workers
                    .iter()
                    .filter(|entry| entry.worker.id != id && !entry.locked)
                    .map(|entry| entry.worker.id)
                    .min();
                match heir {
                    Some(heir) => state.default = heir,
                    None => {
                        drop(state);
                        self.create_worker(None)?;
                        continue;
                    }
                }
            }
            state.worker_mut(id).ok_or(ENODEV)?.locked = locked;
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
        if state.worker(id).ok_or(ENOENT)?.locked {
            return Err(EBUSY);
        }
        state.default = id;
        Ok(())
    }

    /// Prints the list of the devices that a worker serves.
    pub fn write_devices_of(&self, id: WorkerId, text: &mut Text<'_>) -> Result {
        Ok(abi::write_list(text, self.state.lock().devices_of(id))?)
    }

    /// Adds a device, which the default worker serves.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn add_device(&self) -> Result<Arc<Device>> {
        let mut state = self.state.lock();
        let worker = state.default;
        let inbox = state.worker(worker).ok_or(ENODEV)?.worker.inbox_ref();
        let id = state.next_device;
        let device = Device::new(DeviceId(id), inbox)?;
        let entry = Assigned {
            device: device.clone(),
            worker,
        };
        state.devices.push(entry, GFP_KERNEL)?;
        state.next_device = id.wrapping_add(1);
        Ok(device)
    }

    /// Forgets a device, which does nothing any more.
    pub fn remove_device(&self, id: DeviceId) {
        let entry = {
            let mut state = self.state.lock();
            let index = state.devices.iter().position(|entry| entry.device.id == id);
            index.and_then(|index| state.devices.remove(index).ok())
        };
        drop(entry);
    }

    /// The worker that serves a device.
    pub fn worker_of(&self, id: DeviceId) -> Result<WorkerId> {
        let state = self.state.lock();
        let entry = state.devices.iter().find(|entry| entry.device.id == id);
        Ok(entry.ok_or(ENODEV)?.worker)
    }

    /// Moves a device to another worker, under whatever traffic it has.
    ///
    /// # Errors
    ///
    /// `ENOENT` for an unknown worker, `EBUSY` for one that is locked, `ENODEV` when the device
    /// was closed meanwhile.
    pub fn move_device(&self, id: DeviceId, to: WorkerId) -> Result {
        let mut state = self.state.lock();
        let target = state.worker(to).ok_or(ENOENT)?;
        let (locked, inbox) = (target.locked, target.worker.inbox_ref());
        let entry = state
            .devices
            .iter_mut()
            .find(|entry| entry.device.id == id)
            .ok_or(ENODEV)?;
        if entry.worker == to {
            return Ok(());
        }
        if locked {
            return Err(EBUSY);
        }
        entry.device.set_inbox(&inbox);
        entry.worker = to;
        Ok(())
    }

    fn write_created(&self, text: &mut Text<'_>) -> Result {
        let mut state = self.state.lock();
        abi::write_list(text, state.created.iter())?;
        state.created.clear();
        Ok(())
    }
}

/// Reads the CPU of a new worker.
fn parse_cpu(text: &[u8]) -> Result<Option<u32>> {
    match abi::parse_cpu(text).map_err(malformed)? {
        -1 => Ok(None),
        number if !cpu::is_possible(number) => Err(ERANGE),
        number if !cpu::is_online(number) => Err(ENODEV),
        number => Ok(Some(number as u32)),
    }
}

impl Files for Pool {
    fn show(self: &Arc<Self>, file: File, text: &mut Text<'_>) -> Result {
        match file {
            File::Epoch => writeln!(text, "{}", self.state.lock().epoch)?,
            File::Cycles => writeln!(text, "{}", cpu::cycles())?,
            File::NrIocores => writeln!(text, "{}", self.state.lock().workers.len())?,
            File::WorkerCreate => self.write_created(text)?,
            File::WorkerDefault => writeln!(text, "{}", self.state.lock().default)?,
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
                self.create_worker(parse_cpu(text)?)?;
            }
            File::WorkerRemove => {
                self.remove_worker(abi::parse_worker(text).map_err(malformed)?)?;
            }
            File::WorkerDefault => {
                self.set_default(abi::parse_worker(text).map_err(malformed)?)?;
            }
            File::Cycles | File::NrIocores => return Err(EIO),
        }
        Ok(())
    }
}
