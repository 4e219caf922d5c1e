// SPDX-License-Identifier: GPL-2.0

//! A virtqueue: what all may see of it, and what only its worker or an ioctl may touch.

use super::features::Features;
use crate::engine::abi::VirtqueueId;
use crate::engine::error::RingError;
use crate::engine::mem::{Segment, UsedElem};
use crate::engine::ring::Ring;
use crate::engine::stats::VirtqueueStats;
use crate::kern::eventfd::{EventFd, FileRef};
use crate::kern::inbox::Inbox;
use crate::kern::mm::OwnerMm;
use crate::kern::served::{Served, Service};
use crate::kern::tap::{Frames, Receiver, Socket, BATCH};
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

/// What all may see of a virtqueue.
pub struct Virtqueue {
    /// Its name in the control interface.
    pub id: VirtqueueId,
    /// What is counted.
    pub stats: VirtqueueStats,
    /// Whether an event of the socket is to be served.
    armed: Atomic<bool>,
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
    pub fn new(id: VirtqueueId, inbox: Arc<Inbox<Self>>) -> Result<Arc<Served<Self>>> {
        Served::new(
            Self {
                id,
                stats: VirtqueueStats::new(),
                armed: Atomic::new(false),
            },
            Queue::default(),
            inbox,
        )
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
        self.0.as_arc_borrow().mark();
    }
}

/// Tells a virtqueue that its socket has packets, or room.
pub struct SocketEvent(pub Arc<Served<Virtqueue>>);

impl Notify for SocketEvent {
    fn notify(&self) {
        if self.0.armed.load(Relaxed) {
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

    /// Reports that the ring cannot be served any further until the next kick.
    pub fn fail(&self, stats: &VirtqueueStats, _error: RingError) {
        stats.errors.add(1);
        if let Some(error) = &self.error {
            error.signal();
        }
    }
}
