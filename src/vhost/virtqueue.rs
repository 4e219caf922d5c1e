// SPDX-License-Identifier: GPL-2.0

//! A virtqueue: what all may see of it, and what only its worker or an ioctl may touch.

use super::channel::Channel;
use super::device::{Label, VIRTQUEUES};
use super::features::Features;
use super::log::Log;
use crate::engine::abi::{DeviceId, VirtqueueId, WorkerId};
use crate::engine::iotlb::map::{Entry, Map};
use crate::engine::mem::{Segment, UsedElem};
use crate::engine::ring::{Layout, Ring};
use crate::engine::sched::batch::Batches;
use crate::engine::sched::credit::{self, Credit};
use crate::engine::sched::delay::Delay;
use crate::engine::sched::limits::Limits;
use crate::engine::sched::polling::{Mode, Polling};
use crate::engine::snapshot::{DeviceRecord, VirtqueueRecord, NAME_SIZE};
use crate::engine::stats::Tally;
use crate::kern::cpu;
use crate::kern::eventfd::{EventFd, FileRef};
use crate::kern::frames::Frames;
use crate::kern::inbox::Inbox;
use crate::kern::mm::{InMm, OwnerMm};
use crate::kern::parameters;
use crate::kern::pin::PinnedField;
use crate::kern::receiver::Receiver;
use crate::kern::served::{Served, Service};
use crate::kern::snapshot::{Slot, Snapshot};
use crate::kern::socket::{Socket, BATCH};
use crate::kern::trace;
use crate::kern::user::{access_ok, MemoryTable};
use crate::kern::watch::{Notify, Watch};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{barrier, Arc};

/// The most segments of one packet (`UIO_MAXIOV`), as stock vhost has it.
pub const SEGMENTS_MAX: usize = 1024;
/// The most buffers that one packet may fill, plus those that wait to be given back.
pub const HEADS_MAX: usize = SEGMENTS_MAX + BATCH;

/// A device IOTLB.
pub type Iotlb = Map<KVVec<Entry>>;

/// An empty device IOTLB.
///
/// # Errors
///
/// `ENOMEM`.
pub fn new_iotlb() -> Result<Iotlb> {
    // The owner can have as many as it opens devices, so it pays for them.
    let entries = KVVec::from_elem(
        Entry::default(),
        parameters::translations_max(),
        GFP_KERNEL_ACCOUNT,
    )?;
    Ok(Map::new(entries))
}

/// The longest time for which a polled virtqueue may be kept from being served by a limit, in
/// nanoseconds: what a guest can stand without taking its device for dead.
const POLL_RATE_MAX: u64 = 100_000_000;

fn poll_rate_max() -> u32 {
    u32::try_from(cpu::to_cycles(POLL_RATE_MAX)).unwrap_or(u32::MAX)
}

/// What the snapshot says of the owner of a device that has none: -1.
const NO_OWNER: u64 = u64::MAX;

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
    /// What is set for the device and where it is served, and what the snapshot says beside that.
    pub record: Slot<DeviceRecord>,
    /// How long its slices are made to take, for experiments.
    pub delay: Delay,
    /// Where translations are asked for.
    pub channel: Arc<Channel>,
    /// For each virtqueue, one more than the number of the worker on which it has work that waits,
    /// or 0. Its worker is the writer.
    backlog: [Atomic<u32>; VIRTQUEUES],
}

impl Common {
    /// What a new device has.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `ENOSPC` when the snapshot has no room for it.
    pub fn new(id: DeviceId, snapshot: &Arc<Snapshot>) -> Result<Self> {
        let record = snapshot.take(|record: &DeviceRecord| {
            record.id.store(id.0.into());
            record.owner.store(NO_OWNER);
            record.placed.store(1);
            record.share.reset();
        })?;
        Ok(Self {
            record,
            delay: Delay::new(),
            channel: Channel::new()?,
            backlog: [const { Atomic::new(0) }; VIRTQUEUES],
        })
    }

    /// Tells readers of the snapshot what `label` says. Its lock is held.
    pub fn note_label(&self, label: &Label) {
        const NOBODY: [u8; NAME_SIZE] = [0; NAME_SIZE];
        let [receive, transmit] = &label.backends;
        self.record.describe(|record| {
            let pid = label.owner.map(|owner| i64::from(owner.pid) as u64);
            record.owner.store(pid.unwrap_or(NO_OWNER));
            record
                .comm
                .set(&label.owner.map_or(NOBODY, |owner| owner.name));
            record
                .receive_backend
                .set(receive.as_ref().unwrap_or(&NOBODY));
            record
                .transmit_backend
                .set(transmit.as_ref().unwrap_or(&NOBODY));
        });
    }

    /// Whether there is a worker for the device. If there is none it is served at home.
    pub fn is_placed(&self) -> bool {
        self.record.placed.load() != 0
    }

    /// Sets that. It counts from the next slice on.
    pub fn set_placed(&self, placed: bool) {
        self.record.placed.store(placed.into());
    }
}

/// What all may see of a virtqueue.
pub struct Virtqueue {
    /// Its name in the control interface.
    pub id: VirtqueueId,
    /// What is counted and when it is polled, and what the snapshot says beside that.
    pub stats: Slot<VirtqueueRecord>,
    /// What it has in common with the device's others.
    pub common: Arc<Common>,
    /// How much of it is served at once, and how long it may wait.
    pub limits: Limits,
    /// Whether an event of the socket is to be served.
    armed: Atomic<bool>,
    /// When the work that waits was announced, in nanoseconds; 0 if there is none, or it is not
    /// known.
    pending_since: Atomic<u64>,
    /// When its worker looked at it last, in nanoseconds, while it is polled; 0 otherwise.
    looked: Atomic<u64>,
}

impl Service for Virtqueue {
    type State = Queue;

    fn note_move(&self, nanoseconds: u64, slices: u64) {
        let stats = &self.stats;
        let _section = stats.sequence.write();
        stats.moves.add(1);
        stats.move_time.add(nanoseconds);
        stats.move_slices.raise(slices);
    }
}

impl Virtqueue {
    /// Makes a virtqueue that `worker`, the reader of `inbox`, serves.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `ENOSPC` when the snapshot has no room for it.
    pub fn new(
        id: VirtqueueId,
        common: Arc<Common>,
        worker: WorkerId,
        inbox: Arc<Inbox<Self>>,
        snapshot: &Arc<Snapshot>,
    ) -> Result<Arc<Served<Self>>> {
        let stats = snapshot.take(|record: &VirtqueueRecord| {
            record.device.store(id.device.0.into());
            record.index.store(id.index.into());
            record.worker.store(worker.0.into());
            record.mode.store(parameters::poll_mode() as u64);
        })?;
        Served::new(
            Self {
                id,
                stats,
                common,
                limits: Limits::new(poll_rate_max()),
                armed: Atomic::new(false),
                pending_since: Atomic::new(0),
                looked: Atomic::new(0),
            },
            Queue::default(),
            inbox,
        )
    }

    /// Which way its packets go.
    pub fn direction(&self) -> Direction {
        if self.id.index == 0 {
            Direction::Receive
        } else {
            Direction::Transmit
        }
    }

    /// When the virtqueue is polled.
    pub fn mode(&self) -> Mode {
        const NEVER: u64 = Mode::Never as u64;
        const ALWAYS: u64 = Mode::Always as u64;
        match self.stats.mode.load() {
            NEVER => Mode::Never,
            ALWAYS => Mode::Always,
            _ => Mode::Auto,
        }
    }

    /// Sets when the virtqueue is polled. It counts from the next slice or look on.
    pub fn set_mode(&self, mode: Mode) {
        self.stats.mode.store(mode as u64);
    }

    /// Tells readers of the snapshot who serves the virtqueue. The pool's lock is held.
    pub fn note_worker(&self, worker: WorkerId) {
        self.stats
            .describe(|record| record.worker.store(worker.0.into()));
    }

    /// Whether the virtqueue is to be served by the home thread.
    pub fn is_home(&self) -> bool {
        self.is_wanted_home() || !self.common.is_placed()
    }

    /// Whether user space wants that.
    pub fn is_wanted_home(&self) -> bool {
        self.stats.home.load() != 0
    }

    /// Sets that. It counts from the next slice on.
    pub fn set_home(&self, home: bool) {
        self.stats.home.store(home.into());
    }

    /// Notes that work waits from now on, unless some has waited before.
    pub fn note_pending(&self) {
        if self.pending_since.load(Relaxed) == 0 {
            self.pending_since.store(cpu::now(), Relaxed);
        }
    }

    /// For how long work has waited, in nanoseconds, if there is any and that is known.
    pub fn pending_age(&self, now: u64) -> Option<u64> {
        let since = self.pending_since.load(Relaxed);
        (since != 0).then(|| now.saturating_sub(since))
    }

    /// For how long work has waited, in nanoseconds, when its slice begins.
    pub fn take_pending_age(&self, now: u64) -> Option<u64> {
        let age = self.pending_age(now);
        self.pending_since.store(0, Relaxed);
        age
    }

    /// Notes that the virtqueue was stuck, and had waited for so many nanoseconds.
    pub fn note_stuck(&self, waited: u64) {
        self.stats.stuck_times.add(1);
        self.stats.stuck_time.add(waited);
    }

    /// Whether `credit`, which is the virtqueue's, lets it be served in this round of `worker`.
    pub fn may_run(&self, credit: &mut Credit, worker: WorkerId, round: u64) -> bool {
        let weight = self.common.record.share.weight();
        let quantum = credit::quantum(parameters::slice(), weight, self.competitors(worker));
        credit.may_run(round, quantum)
    }

    /// Whether the virtqueue, which is polled, was served so short a time ago that what there is
    /// waits for what comes.
    pub fn is_too_soon(&self, queue: &Queue, now: u64) -> bool {
        self.limits.min_poll_rate.get() != 0
            && self
                .limits
                .is_too_soon(cpu::to_cycles(now.saturating_sub(queue.served)))
    }

    /// Forgets that work was announced, after a look has found that there is none: what a guest
    /// notified of while it was polled may have been served before.
    pub fn forget_pending(&self) {
        if self.pending_since.load(Relaxed) != 0 {
            self.pending_since.store(0, Relaxed);
        }
    }

    /// Notes when its worker looked at it, which polls it; 0 when it does not poll it any more.
    pub fn note_look(&self, now: u64) {
        self.looked.store(now, Relaxed);
    }

    /// For how long work may have waited, in nanoseconds: since it was announced, or, as nobody
    /// announces the work of a virtqueue that is polled, since the last look at it.
    pub fn waiting_time(&self, now: u64) -> u64 {
        let looked = self.looked.load(Relaxed);
        let unseen = if looked == 0 {
            0
        } else {
            now.saturating_sub(looked)
        };
        self.pending_age(now).unwrap_or(0).max(unseen)
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
    /// that lacks buffers cannot do anything about packets. One whose ring lacks a translation is not
    /// served, so what was awaited of the socket still is.
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

    /// Leaves to the socket what it has. Returns the number of packets that are lost.
    pub fn leave(mut self) -> u64 {
        match &mut self {
            Self::Receive(receiver) => (!receiver.restore()).into(),
            Self::Transmit(_) => 0,
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
    /// For drivers that know that buffers are used in order: how many chains each of `heads` stands
    /// for, when packets are received.
    pub chains: KVVec<u16>,
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
            chains: KVVec::from_elem(0, HEADS_MAX, GFP_KERNEL)?,
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
    /// The device IOTLB, if addresses go through one. Each virtqueue has a copy, which is changed by
    /// who holds it, so that no lock is taken to look something up.
    pub iotlb: Option<Iotlb>,
    /// Where the dirty log is.
    pub log: Log,
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
    /// Memory for slices, as long as there is an owner.
    pub buffers: Option<Buffers>,
    /// The batches in which frames are handed to the socket.
    pub batches: Batches,
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
    /// Sets the features that count from the next slice on.
    pub fn set_features(&mut self, features: Features) {
        if features.in_order() != self.features.in_order() {
            // What waits to be given back was put together for the other kind of used ring. A
            // driver that works does not renegotiate while its buffers are in use.
            self.forget_waiting();
        }
        self.features = features;
        self.ring
            .set_features(features.event_idx(), features.notify_on_empty());
    }

    /// Sets the device IOTLB, or that there is none, and returns the old one. Addresses of the ring
    /// are of another kind then and have to be set again, unless there was one before.
    pub fn set_iotlb(&mut self, iotlb: Option<Iotlb>) -> Option<Iotlb> {
        if self.iotlb.is_some() != iotlb.is_some() {
            self.ring.set_layout(Layout::default());
            self.log.used = None;
        }
        self.avail_idx = None;
        core::mem::replace(&mut self.iotlb, iotlb)
    }

    /// When the virtqueue, whose state this is, is polled. One with a device IOTLB never is: looking
    /// at its ring takes translations.
    pub fn mode(&self, virtqueue: &Virtqueue) -> Mode {
        if self.iotlb.is_some() {
            Mode::Never
        } else {
            virtqueue.mode()
        }
    }

    fn forget_waiting(&mut self) {
        if let Some(buffers) = &mut self.buffers {
            buffers.waiting = 0;
        }
    }

    /// Takes the backend away, and forgets the chains that could not be given back: what they mean
    /// ends with the ring.
    pub fn take_backend(&mut self) -> Option<Backend> {
        self.forget_waiting();
        self.avail_idx = None;
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

    /// How many buffers to transmit wait, as far as can be seen from outside of the owner's address
    /// space. Packets to receive cannot be counted.
    pub fn pending_items(&self) -> u16 {
        let transmits = self
            .backend
            .as_ref()
            .is_some_and(|backend| matches!(backend.end, End::Transmit(_)));
        match &self.avail_idx {
            Some(avail_idx) if transmits => self.ring.pending(avail_idx.read()),
            _ => 0,
        }
    }

    /// Looks up where the driver publishes its available index, for [`Queue::has_work`]. Returns
    /// whether that can be seen from outside of the address space.
    pub fn look_up(&mut self, mm: &InMm<'_>, now: u64) -> bool {
        self.avail_idx = PinnedField::new(self.ring.avail_idx_address(), mm);
        self.looked_up = now;
        self.avail_idx.is_some()
    }

    /// Whether a dirty log at `base` could be told of all that is to be logged, and the guest's memory
    /// lies in user space. What is mapped there may change at any time, so writing may still fail.
    pub fn is_log_accessible(&self, base: u64) -> bool {
        self.memory
            .as_ref()
            .is_some_and(|memory| is_accessible(memory, self.features.logs().then_some(base)))
            && self.is_used_log_accessible(&self.log, base)
    }

    /// Whether the part of `log` at `base` that is told of the used ring lies in user space. With a
    /// device IOTLB that part depends on translations.
    pub fn is_used_log_accessible(&self, log: &Log, base: u64) -> bool {
        self.iotlb.is_some() || log.is_used_accessible(base, self.used_len())
    }

    /// Whether `ring` lies in user space. With a device IOTLB that depends on translations, and shows
    /// when it is used.
    pub fn is_ring_accessible(&self, ring: &Ring) -> bool {
        let parts = ring.layout().parts(ring.num(), ring.event_idx());
        self.iotlb.is_some() || parts.iter().all(|(address, len)| access_ok(*address, *len))
    }

    /// Bytes of the used ring.
    pub fn used_len(&self) -> u64 {
        let [_, _, (_, len)] = self
            .ring
            .layout()
            .parts(self.ring.num(), self.ring.event_idx());
        len
    }

    /// Whether memory, dirty log and ring lie in user space, as far as they are needed.
    pub fn is_accessible(&self) -> bool {
        self.is_log_accessible(self.log.base) && self.is_ring_accessible(&self.ring)
    }

    /// Reports that the ring cannot be served any further until the next kick, or that user space
    /// misses writes, if that happened in a slice that did this. Who is told finds the error counted,
    /// so that comes first.
    pub fn report(&self, tally: &Tally) {
        if tally.errors == 0 && tally.log_errors == 0 {
            return;
        }
        if let Some(error) = &self.error {
            error.signal();
        }
    }
}

/// Whether the regions of a memory table lie in user space, and so does what stands for them in a
/// dirty log at `log`.
pub fn is_accessible(memory: &MemoryTable, log: Option<u64>) -> bool {
    memory.is_accessible() && log.is_none_or(|base| memory.is_log_accessible(base))
}
