// SPDX-License-Identifier: GPL-2.0

//! The data path: one slice of one virtqueue.

mod rx;
mod tx;

use super::features::Features;
use super::virtqueue::{End, Queue, Virtqueue};
use crate::engine::error::RingError;
use crate::engine::mem::{Segment, UsedElem};
use crate::engine::ring::Ring;
use crate::engine::stats::WorkerStats;
use crate::kern::eventfd::EventFd;
use crate::kern::mm::Adopted;
use crate::kern::tap::Frames;
use crate::kern::user::UserMemory;

/// What is to be done with a virtqueue after a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing, until its guest kicks or its socket has an event.
    Wait,
    /// It is served again, after the others.
    Again,
}

/// Why a slice ended before its time: the ring cannot be served any further.
type SliceResult = Result<Next, RingError>;

/// What a slice works with.
struct Slice<'a> {
    virtqueue: &'a Virtqueue,
    ring: &'a mut Ring,
    features: Features,
    memory: UserMemory<'a>,
    call: Option<&'a EventFd>,
    segments: &'a mut [Segment],
    heads: &'a mut [UsedElem],
    /// How many of `heads` wait to be given back.
    waiting: &'a mut usize,
    frames: &'a mut Frames,
}

impl Slice<'_> {
    /// Gives the chains in `heads` back to the driver, and interrupts it if it wants that. If the
    /// used ring cannot be written, they wait for the slice that the next kick brings about.
    fn give_back(&mut self) -> Result<(), RingError> {
        if *self.waiting == 0 {
            return Ok(());
        }
        let heads = &self.heads[..*self.waiting];
        self.ring.push_used(&self.memory, heads)?;
        *self.waiting = 0;
        if let Some(call) = self.call {
            if self.ring.needs_interrupt(&self.memory) {
                call.signal();
                self.virtqueue.stats.interrupts.add(1);
            }
        }
        Ok(())
    }

    /// Asks the driver to notify; returns whether it has added something meanwhile, in which case
    /// it is asked not to any more.
    fn await_driver(&mut self) -> Result<bool, RingError> {
        let news = self.ring.enable_notify(&self.memory)?;
        if news {
            self.ring.disable_notify(&self.memory)?;
        }
        Ok(news)
    }
}

/// Serves one slice of a virtqueue; returns whether it has to be served again.
pub fn serve(
    virtqueue: &Virtqueue,
    queue: &mut Queue,
    mm: &mut Adopted,
    worker: &WorkerStats,
) -> bool {
    let (Some(backend), Some(owner), Some(table), Some(buffers)) = (
        &mut queue.backend,
        &queue.owner,
        &queue.memory,
        &mut queue.buffers,
    ) else {
        return false;
    };
    if !queue.ring.is_set_up() {
        return false;
    }
    // A process that has ended has no memory to serve.
    let Some(mm) = mm.enter(owner) else {
        return false;
    };
    if mm.switched {
        worker.mm_switches.add(1);
    }
    virtqueue.stats.works.add(1);
    virtqueue.disarm();

    let mut slice = Slice {
        virtqueue,
        ring: &mut queue.ring,
        features: queue.features,
        memory: UserMemory::new(table, &mm),
        call: queue.call.as_ref(),
        segments: &mut buffers.segments,
        heads: &mut buffers.heads,
        waiting: &mut buffers.waiting,
        frames: &mut buffers.frames,
    };
    let result = match &mut backend.end {
        End::Receive(receiver) => slice.receive(receiver),
        End::Transmit(socket) => slice.transmit(socket),
    };
    match result {
        Ok(next) => next == Next::Again,
        Err(error) => {
            queue.fail(&virtqueue.stats, error);
            false
        }
    }
}
