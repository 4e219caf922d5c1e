// SPDX-License-Identifier: GPL-2.0

//! A virtqueue: what all may see of it, and what only its worker or an ioctl may touch.

use super::device::VIRTQUEUES;
use super::features::Features;
use crate::engine::abi::{VirtqueueId, WorkerId};
use crate::engine::mem::{Segment, UsedElem};
use crate::engine::ring::Ring;
use crate::engine::sched::credit::Credit;
use crate::engine::sched::polling::{Mode, Polling};
use crate::engine::sched::share::Share;
use crate::engine::stats::VirtqueueStats;
use crate::kern::cpu;
use crate::kern::eventfd::{EventFd, FileRef};
use crate::kern::inbox::Inbox;
use crate::kern::mm::{InMm, OwnerMm};
use crate::kern::parameters;
use crate::kern::pin::PinnedField;
use crate::kern::served::{Served, Service};
use crate::kern::tap::{Frames, Receiver, Socket, BATCH};
use crate::kern::trace;
use crate::kern::user::MemoryTable;
use crate::kern::watch::{Notify, Watch};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{barrier, Arc};

/// The most segments of one packet (`UIO_MAXIOV`), as stock vhost has it.
pub const SEGMENTS_MAX: usize = 1024;
/// The most buffers that one packet may fill, plus those that wait to be given back.
pub const HEADS_MAX: usize = SEGMENTS_MAX + BATCH;

/// Which way the packets of a virtqueue go, by its index in the device (virtio 1.3, 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the host to the guest: virtqueue 0.
    Receive,
    /// From the guest to the host: virtqueue 1.
    Transmit,
}

/// What the virtqueues of a device have in common.
pub struct Common {
    /// What the device may have of its workers' time.
    pub share: Share,
    /// Whether there was a worker for the device when it was made, or it was given one since.
    placed: Atomic<bool>,
    /// For each virtqueue, one more than the number of the worker on which it has work that waits,
    /// or 0. Its worker is the writer.
    backlog: [Atomic<u32>; VIRTQUEUES],
}

impl Common {
    /// What a new device has.
    pub fn new() -> Self {
        Self {
            share: Share::new(),
            placed: Atomic::new(true),
            backlog: [const { Atomic::new(0) }; VIRTQUEUES],
        }
    }

    /// Whether there is a worker for the device. If there is none it is served at home.
    pub fn is_placed(&self) -> bool {
        self.placed.load(Relaxed)
    }

    /// Sets that. It counts from the next slice on.
    pub fn set_placed(&self, placed: bool) {
        self.placed.store(placed, Relaxed);
    }
}

impl Default for Common {
    fn default() -> Self {
        Self::new()
    }
}

/// What all may see of a virtqueue.
pub struct Virtqueue {
    /// Its name in the control interface.
    pub id: VirtqueueId,
    /// What is counted.
    pub stats: VirtqueueStats,
    /// What it has in common with the device's others.
    pub common: Arc<Common>,
    /// Whether an event of the socket is to be served.
    armed: Atomic<bool>,
    /// When it is polled: a `Mode`.
    mode: Atomic<u32>,
    /// Whether user space wants it to be served by the home thread.
    home: Atomic<bool>,
    /// When the work that waits was announced, in nanoseconds; 0 if there is none, or it is not
    /// known.
    pending_since: Atomic<u64>,
}

impl Service for Virtqueue {
    type State = Queue;
}

impl Virtqueue {
    /// Makes a virtqueue that the reader of `inbox` serves.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(
        id: VirtqueueId,
        common: Arc<Common>,
        inbox: Arc<Inbox<Self>>,
    ) -> Result<Arc<Served<Self>>> {
        Served::new(
            Self {
                id,
                stats: VirtqueueStats::new(),
                common,
                armed: Atomic::new(false),
                mode: Atomic::new(parameters::poll_mode() as u32),
                home: Atomic::new(false),
                pending_since: Atomic::new(0),
            },
            Queue::default(),
            inbox,
        )
    }

    /// When the virtqueue is polled.
    pub fn mode(&self) -> Mode {
        const NEVER: u32 = Mode::Never as u32;
        const ALWAYS: u32 = Mode::Always as u32;
        match self.mode.load(Relaxed) {
            NEVER => Mode::Never,
            ALWAYS => Mode::Always,
            _ => Mode::Auto,
        }
    }

    /// Sets when the virtqueue is polled. It counts from the next slice or look on.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u32, Relaxed);
    }

    /// Whether the virtqueue is to be served by the home thread.
    pub fn is_home(&self) -> bool {
        self.is_wanted_home() || !self.common.is_placed()
    }

    /// Whether user space wants that.
    pub fn is_wanted_home(&self) -> bool {
        self.home.load(Relaxed)
    }

    /// Sets that. It counts from the next slice on.
    pub fn set_home(&self, home: bool) {
        self.home.store(home, Relaxed);
    }

    /// Notes that work waits from now on, unless some has waited before.
    pub fn note_pending(&self) {
        if self.pending_since.load(Relaxed) == 0 {
            self.pending_since.store(cpu::now(), Relaxed);
        }
    }

    /// For how long work has waited, in nanoseconds, when its slice begins.
    pub fn take_pending_age(&self, now: u64) -> Option<u64> {
        let since = self.pending_since.load(Relaxed);
        self.pending_since.store(0, Relaxed);
        (since != 0).then(|| now.saturating_sub(since))
    }

    /// Notes whether work waits on `worker`.
    pub fn set_backlog(&self, worker: Option<WorkerId>) {
        let mark = worker.map_or(0, |worker| worker.0.wrapping_add(1));
        self.common.backlog[self.id.index as usize].store(mark, Relaxed);
    }

    /// How many virtqueues of the device have work that waits on `worker`, this one included.
    pub fn competitors(&self, worker: WorkerId) -> u32 {
        let mark = worker.0.wrapping_add(1);
        let others = self
            .common
            .backlog
            .iter()
            .enumerate()
            .filter(|(index, entry)| {
                *index != self.id.index as usize && entry.load(Relaxed) == mark
            });
        1 + others.count() as u32
    }

    /// Lets the next event of the socket bring about a slice. The caller looks at the socket once
    /// more afterwards, since an event that came before is not told.
    pub fn arm(&self) {
        self.armed.store(true, Relaxed);
        // Pairs with the full barrier in `wq_has_sleeper()`, between the sender's change to the
        // socket and its wake-up: the sender sees the flag or the caller sees the change.
        barrier::smp_mb();
    }

    /// Ignores events of the socket: a virtqueue that is being served looks by itself, and one
    /// that lacks buffers cannot do anything about packets.
    pub fn disarm(&self) {
        self.armed.store(false, Relaxed);
    }
}

/// Tells a virtqueue that its guest has kicked.
pub struct Kick(pub Arc<Served<Virtqueue>>);

impl Notify for Kick {
    fn notify(&self) {
        self.0.stats.kicks.add_shared();
        trace::kick(self.0.id);
        self.0.note_pending();
        self.0.as_arc_borrow().mark();
    }
}

/// Tells a virtqueue that its socket has packets, or room.
pub struct SocketEvent(pub Arc<Served<Virtqueue>>);

impl Notify for SocketEvent {
    fn notify(&self) {
        if self.0.armed.load(Relaxed) {
            self.0.note_pending();
            self.0.as_arc_borrow().mark();
        }
    }
}

/// The side of a socket that a virtqueue uses.
pub enum End {
    /// Packets come from here.
    Receive(Receiver),
    /// Packets go there.
    Transmit(Socket),
}

impl End {
    /// The socket.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Receive(receiver) => receiver.socket(),
            Self::Transmit(socket) => socket,
        }
    }
}

impl End {
    /// Whether nothing is lost when a packet cannot be copied at once.
    pub fn is_sharable(&self) -> bool {
        match self {
            Self::Receive(receiver) => receiver.has_ring(),
            Self::Transmit(_) => true,
        }
    }
}

/// Where the packets of a virtqueue come from or go to.
pub struct Backend {
    /// The socket.
    pub end: End,
    /// Tells of events, and keeps the virtqueue alive: whoever drops the device takes it away.
    pub _watch: Pin<KBox<Watch<SocketEvent>>>,
}

/// Memory that a slice works with, so that the data path allocates nothing but packets.
pub struct Buffers {
    /// The segments of a packet, [`SEGMENTS_MAX`] of them.
    pub segments: KVVec<Segment>,
    /// Chains that wait to be given back, [`HEADS_MAX`] of them.
    pub heads: KVVec<UsedElem>,
    /// How many of `heads` wait. None do between slices, unless the used ring could not be written.
    pub waiting: usize,
    /// Frames that wait to be sent.
    pub frames: Frames,
}

impl Buffers {
    /// Allocates what a virtqueue needs.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Self> {
        Ok(Self {
            segments: KVVec::from_elem(Segment::default(), SEGMENTS_MAX, GFP_KERNEL)?,
            heads: KVVec::from_elem(UsedElem::default(), HEADS_MAX, GFP_KERNEL)?,
            waiting: 0,
            frames: Frames::new()?,
        })
    }
}

/// What only the worker of a virtqueue, or an ioctl that holds it, may touch.
#[derive(Default)]
pub struct Queue {
    /// The ring.
    pub ring: Ring,
    /// The features that count.
    pub features: Features,
    /// Whose memory the ring is in.
    pub owner: Option<OwnerMm>,
    /// Where guest-physical memory is.
    pub memory: Option<Arc<MemoryTable>>,
    /// Where packets come from or go to; without it the virtqueue is not served.
    pub backend: Option<Backend>,
    /// The eventfd that the guest kicks.
    pub kick: Option<FileRef>,
    /// Tells of kicks, and keeps the virtqueue alive: whoever drops the device takes it away.
    pub kick_watch: Option<Pin<KBox<Watch<Kick>>>>,
    /// The eventfd that interrupts the guest.
    pub call: Option<EventFd>,
    /// The eventfd that is signalled for ring errors.
    pub error: Option<EventFd>,
    /// What `VHOST_SET_VRING_BUSYLOOP_TIMEOUT` set, in units of 1.024 microseconds. It is kept for
    /// who reads it: workers do not spin for a single virtqueue.
    pub busyloop_timeout: u32,
    /// Memory for slices, as long as there is an owner.
    pub buffers: Option<Buffers>,
    /// What it may still use of its worker's time.
    pub credit: Credit,
    /// Whether it is polled.
    pub polling: Polling,
    /// The driver's available index, while the virtqueue is polled.
    pub avail_idx: Option<PinnedField>,
    /// When that was looked up, in nanoseconds.
    pub looked_up: u64,
    /// Whether the guest had no buffers for a packet that waits.
    pub starved: bool,
    /// When a worker's slice ended last, in nanoseconds; a look that found nothing does not count.
    pub served: u64,
    /// When it was seen last, while the virtqueue is polled, that there is no work, in nanoseconds.
    pub workless: u64,
}

impl Queue {
    /// Takes the backend away, and forgets the chains that could not be given back: what they mean
    /// ends with the ring.
    pub fn take_backend(&mut self) -> Option<Backend> {
        if let Some(buffers) = &mut self.buffers {
            buffers.waiting = 0;
        }
        self.backend.take()
    }

    /// Whether a worker may serve the virtqueue: its backend loses nothing there.
    pub fn is_sharable(&self) -> bool {
        match &self.backend {
            Some(backend) => backend.end.is_sharable(),
            None => true,
        }
    }

    /// Whether the virtqueue has what it takes to be served.
    pub fn is_servable(&self) -> bool {
        self.owner.is_some() && self.backend.is_some() && self.ring.is_set_up()
    }

    /// Whether there is something to serve, as far as can be seen from outside of the owner's
    /// address space.
    pub fn has_work(&mut self) -> bool {
        let Some(backend) = &mut self.backend else {
            return false;
        };
        if let End::Receive(receiver) = &mut backend.end {
            if !receiver.is_ready() {
                return false;
            }
            if !self.starved {
                return true;
            }
        }
        match &self.avail_idx {
            Some(avail_idx) => self.ring.has_news(avail_idx.read()),
            None => true,
        }
    }

    /// Looks up where the driver publishes its available index, for [`Queue::has_work`]. Returns
    /// whether that can be seen from outside of the address space.
    pub fn look_up(&mut self, mm: &InMm<'_>, now: u64) -> bool {
        self.avail_idx = PinnedField::new(self.ring.avail_idx_address(), mm);
        self.looked_up = now;
        self.avail_idx.is_some()
    }

    /// Reports that the ring cannot be served any further until the next kick.
    pub fn fail(&self, stats: &VirtqueueStats) {
        stats.errors.add(1);
        if let Some(error) = &self.error {
            error.signal();
        }
    }
}
