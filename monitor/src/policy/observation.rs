// SPDX-License-Identifier: GPL-2.0

//! What a host looked like during one interval: all that a policy knows.

use serde::{Deserialize, Serialize};
use vhost_iocm_engine::engine::abi::{DeviceId, VirtqueueId, WorkerId};
use vhost_iocm_engine::engine::sched::polling::Mode;
use vhost_iocm_engine::engine::sched::standby::State;

/// A host during one interval. Counters are differences between the end of the interval and its
/// beginning, everything else is as it was at the end. All times are in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// When the interval ended, on a clock that never goes back.
    pub time: u64,
    /// How long the interval was. More than 0.
    pub interval: u64,
    /// The CPUs that are online, in the order of their numbers.
    pub cores: Vec<Core>,
    /// The workers, in the order of their numbers.
    pub workers: Vec<Worker>,
    /// The devices, in the order of their numbers.
    pub devices: Vec<Device>,
    /// What the plan may not go beyond.
    pub limits: Limits,
}

/// A logical CPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Core {
    /// Its number.
    pub cpu: u32,
    /// Its NUMA node.
    pub node: u32,
    /// The other CPUs that are hardware threads of the same core.
    pub siblings: Vec<u32>,
    /// What runs there.
    pub role: Role,
    /// The time for which something ran on it, that of a worker included.
    pub busy: u64,
    /// The time that runnable threads waited for it (`run_delay` of schedstat), the sum over
    /// threads. It may be more than the interval.
    pub waited: u64,
}

/// What a CPU is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Virtual CPUs of guests, and what belongs to them. The monitor may take it for I/O if it is
    /// in [`Limits::cpus`].
    Guests,
    /// A worker that is bound to it, and nothing else.
    Io(WorkerId),
    /// Something that is no business of the monitor.
    Reserved,
}

/// A worker: a thread that serves virtqueues.
#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    /// Its number.
    pub id: WorkerId,
    /// The CPU that it is bound to; `None` if it may run on several, so that it has no core of its
    /// own.
    pub cpu: Option<u32>,
    /// The NUMA node of that CPU.
    pub node: Option<u32>,
    /// Whether it serves, is parked, or was woken.
    pub state: State,
    /// Whether it takes no new devices.
    pub locked: bool,
    /// Time spent serving.
    pub busy: u64,
    /// Time spent looking at polled virtqueues that had nothing.
    pub polled_empty: u64,
    /// Time that passed for it: serving, looking, sleeping. An interval, unless it is younger.
    pub total: u64,
    /// The average age of work when its slice began; 0 if there was no slice.
    pub pending_average: u64,
}

/// A virtio-net device: one pair of virtqueues of a VM.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its number.
    pub id: DeviceId,
    /// The process that owns it. Devices of one VM have the same.
    pub vm: u32,
    /// The NUMA node of most of the VM's memory, if it is known.
    pub node: Option<u32>,
    /// Its share of its workers' time in relation to others.
    pub weight: u32,
    virtqueues: Vec<Virtqueue>,
    // What is asked for of all devices, more than once: those that do nothing are not touched beyond it.
    place: Option<Place>,
    served: u64,
    is_idle: bool,
    is_still: bool,
}

impl Device {
    /// A device with these virtqueues, in the order of their indices.
    pub fn new(
        id: DeviceId,
        vm: u32,
        node: Option<u32>,
        weight: u32,
        virtqueues: Vec<Virtqueue>,
    ) -> Self {
        let all = || virtqueues.iter();
        let first = virtqueues.first().map(|virtqueue| virtqueue.place);
        Self {
            id,
            vm,
            node,
            weight,
            place: first.filter(|first| all().all(|virtqueue| virtqueue.place == *first)),
            served: all()
                .map(|virtqueue| virtqueue.served)
                .fold(0, u64::saturating_add),
            is_idle: all().all(Virtqueue::is_idle),
            is_still: all().all(Virtqueue::is_still),
            virtqueues,
        }
    }

    /// Its virtqueues, in the order of their indices.
    pub fn virtqueues(&self) -> &[Virtqueue] {
        &self.virtqueues
    }

    /// The same, to keep them or their memory.
    pub fn into_virtqueues(self) -> Vec<Virtqueue> {
        self.virtqueues
    }

    /// Who serves the device, if it is the same for all of its virtqueues.
    pub fn place(&self) -> Option<Place> {
        self.place
    }

    /// Whether nothing was done for it, and nobody asked for it.
    pub fn is_idle(&self) -> bool {
        self.is_idle
    }

    /// Whether nobody looked for work either.
    pub fn is_still(&self) -> bool {
        self.is_still
    }

    /// The time that was spent serving it.
    pub fn served(&self) -> u64 {
        self.served
    }
}

/// A virtqueue.
#[derive(Clone, Debug, PartialEq)]
pub struct Virtqueue {
    /// Its number.
    pub id: VirtqueueId,
    /// Who serves it.
    pub place: Place,
    /// Whether it may be polled, as it was set.
    pub poll: Mode,
    /// The time that was spent serving it.
    pub served: u64,
    /// Packets that were moved.
    pub packets: u64,
    /// Bytes that were moved.
    pub bytes: u64,
    /// Slices in which something was moved.
    pub slices: u64,
    /// Notifications that came from its guest or its backend.
    pub notifications: u64,
    /// Looks at it, while it was polled, that found nothing.
    pub polls_empty: u64,
    /// The greatest age of work when its slice began.
    pub pending_max: u64,
    /// The average age of work when its slice began; 0 if there was no slice.
    pub pending_average: u64,
}

impl Virtqueue {
    /// One for which nothing was done.
    pub fn idle(id: VirtqueueId, place: Place, poll: Mode) -> Self {
        Self {
            id,
            place,
            poll,
            served: 0,
            packets: 0,
            bytes: 0,
            slices: 0,
            notifications: 0,
            polls_empty: 0,
            pending_max: 0,
            pending_average: 0,
        }
    }

    /// Whether nothing was done for it, and nobody asked for it.
    pub fn is_idle(&self) -> bool {
        let counts = [self.packets, self.bytes, self.slices];
        counts == [0; 3] && self.notifications == 0 && self.served == 0
    }

    /// Whether nothing was done for it, nobody asked for it, and nobody looked.
    pub fn is_still(&self) -> bool {
        *self == Self::idle(self.id, self.place, self.poll)
    }
}

/// Who serves a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A worker.
    Worker(WorkerId),
    /// The home thread of its device, which runs where the VM runs: what stock vhost does.
    Home,
}

/// What a plan may not go beyond, whatever the load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The fewest CPUs that are kept for I/O. With 0 devices go home when no core is kept.
    pub cores_min: u32,
    /// The most CPUs that are kept for I/O.
    pub cores_max: u32,
    /// The CPUs that may be taken for I/O; empty: all of those that guests use.
    pub cpus: Vec<u32>,
    /// CPUs that guests keep in any case.
    pub guest_cores_min: u32,
    /// The most devices that move for the sake of balance in one interval. Devices that lose their
    /// worker, or are put on a new one, are not counted.
    pub moves_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cores_min: 0,
            cores_max: 8,
            cpus: Vec::new(),
            guest_cores_min: 1,
            moves_max: 4,
        }
    }
}

impl Observation {
    /// The CPUs that are kept for I/O: those with a worker of their own that is not parked.
    pub fn io_cores(&self) -> u32 {
        self.io_workers().count() as u32
    }

    /// The workers that have a CPU of their own and are not parked.
    pub fn io_workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers
            .iter()
            .filter(|worker| worker.cpu.is_some() && worker.state != State::Parked)
    }

    /// The CPUs that guests use.
    pub fn guest_cores(&self) -> impl Iterator<Item = &Core> {
        self.cores.iter().filter(|core| core.role == Role::Guests)
    }

    /// The CPU with this number.
    pub fn core(&self, cpu: u32) -> Option<&Core> {
        self.cores.iter().find(|core| core.cpu == cpu)
    }
}
