// SPDX-License-Identifier: GPL-2.0

//! The data path: one slice of one virtqueue.

mod memory;
mod rx;
mod tx;

use super::features::Features;
use super::virtqueue::{Direction, End, Queue, Virtqueue};
use crate::engine::error::RingError;
use crate::engine::mem::{Segment, UsedElem};
use crate::engine::ring::Ring;
use crate::engine::sched::batch::Batches;
use crate::engine::sched::budget::Data;
use crate::engine::stats::Tally;
use crate::kern::eventfd::EventFd;
use crate::kern::frames::Frames;
use crate::kern::mm::InMm;
use crate::kern::trace;
use crate::kern::user::UserMemory;
use memory::Memory;

pub use memory::Mediated;

/// What is to be done with a virtqueue after a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until its guest kicks or its socket has an event.
    Wait,
    /// It is served again, after the others.
    Again,
    /// There is nothing to serve, and neither guest nor socket will say when there is: somebody
    /// has to look.
    Look,
    /// Guest memory is not resident: somebody has to go on who may wait for it.
    Fault,
}

/// How a slice is served.
pub struct How<'a> {
    /// By a worker that others share, which does not wait for memory.
    pub shared: bool,
    /// When there is nothing left somebody looks again; nobody has to notify.
    pub polling: bool,
    /// When the slice ends, in nanoseconds of the scheduler clock.
    pub end: u64,
    /// How much it moves.
    pub data: Data,
    /// Tells, at the time that it is given, whether somebody else is stuck, for whom the slice ends
    /// early.
    pub is_other_stuck: Option<&'a mut dyn FnMut(u64) -> bool>,
}

impl How<'_> {
    fn is_other_stuck(&mut self, now: u64) -> bool {
        self.is_other_stuck
            .as_mut()
            .is_some_and(|is_other_stuck| is_other_stuck(now))
    }
}

/// Why a slice ended before its time: the ring cannot be served any further.
type SliceResult = Result<Next, RingError>;

/// What a slice works with.
struct Slice<'a, 'b, M> {
    how: &'a mut How<'b>,
    virtqueue: &'a Virtqueue,
    ring: &'a mut Ring,
    features: Features,
    memory: M,
    call: Option<&'a EventFd>,
    segments: &'a mut [Segment],
    heads: &'a mut [UsedElem],
    /// How many chains each of `heads` stands for, when packets are received in order.
    chains: &'a mut [u16],
    /// How many of `heads` wait to be given back.
    waiting: &'a mut usize,
    frames: &'a mut Frames,
    batches: &'a mut Batches,
    starved: &'a mut bool,
    tally: &'a mut Tally,
}

impl<M: Memory> Slice<'_, '_, M> {
    /// Serves it; returns the memory as well, which has seen what was done.
    fn run(mut self, end: &mut End) -> (SliceResult, M) {
        self.virtqueue.disarm();
        let result = match end {
            End::Receive(receiver) => self.receive(receiver),
            End::Transmit(socket) => self.transmit(socket),
        };
        (result, self.memory)
    }

    /// Gives the chains in `heads` back to the driver, and interrupts it if it wants that. If the
    /// used ring cannot be written, they wait for the next slice.
    fn give_back(&mut self) -> Result<(), RingError> {
        if *self.waiting == 0 {
            return Ok(());
        }
        self.push_waiting()?;
        *self.waiting = 0;
        if let Some(call) = self.call {
            let sent = self.ring.needs_interrupt(&self.memory);
            if sent {
                call.signal();
                self.tally.interrupts += 1;
            }
            trace::interrupt(self.virtqueue.id, sent);
        }
        Ok(())
    }

    fn push_waiting(&mut self) -> Result<(), RingError> {
        let count = *self.waiting;
        let heads = &self.heads[..count];
        if !self.features.in_order() {
            return self.ring.push_used(&self.memory, heads);
        }
        let (heads, chains) = match self.virtqueue.direction() {
            Direction::Receive => (heads, &self.chains[..count]),
            // Nothing is written into them, so one element does for all.
            Direction::Transmit => (&heads[count - 1..], &[count as u16][..]),
        };
        self.ring.push_used_in_order(&self.memory, heads, chains)
    }

    /// Says what to do now that the ring has nothing: the driver is asked to notify, unless somebody
    /// looks. Returns `None` if the driver has added something meanwhile.
    fn await_driver(&mut self) -> Result<Option<Next>, RingError> {
        if self.how.polling {
            return Ok(Some(Next::Look));
        }
        if self.ring.enable_notify(&self.memory)? {
            self.ring.disable_notify(&self.memory)?;
            return Ok(None);
        }
        Ok(Some(Next::Wait))
    }
}

/// Serves one slice of a virtqueue, in the address space `mm` of its owner, and adds what it did to
/// `tally`.
pub fn serve(
    virtqueue: &Virtqueue,
    queue: &mut Queue,
    mm: &InMm<'_>,
    how: &mut How<'_>,
    tally: &mut Tally,
) -> Next {
    let shared = how.shared;
    let Queue {
        ring,
        features,
        memory: Some(table),
        iotlb,
        log,
        backend: Some(backend),
        call,
        buffers: Some(buffers),
        batches,
        starved,
        ..
    } = queue
    else {
        return Next::Wait;
    };
    if !ring.is_set_up() {
        return Next::Wait;
    }
    ring.begin_slice();

    let features = *features;
    let layout = ring.layout();
    let is_mediated = iotlb.is_some() || features.logs() || log.used.is_some();
    let user = UserMemory::new(table, mm);
    macro_rules! slice {
        ($memory:expr) => {
            Slice {
                how,
                virtqueue,
                ring,
                features,
                memory: $memory,
                call: call.as_ref(),
                segments: &mut buffers.segments,
                heads: &mut buffers.heads,
                chains: &mut buffers.chains,
                waiting: &mut buffers.waiting,
                frames: &mut buffers.frames,
                batches,
                starved,
                tally: &mut *tally,
            }
        };
    }
    let result = if is_mediated {
        let iotlb = iotlb.as_ref();
        let memory = Mediated::new(user, iotlb, log, features.logs(), layout, shared);
        let (result, memory) = if memory.has_all_of(ring) {
            slice!(memory).run(&mut backend.end)
        } else {
            (Ok(Next::Wait), memory)
        };
        if let Some(miss) = memory.finish(tally) {
            let index = virtqueue.id.index as usize;
            virtqueue.common.channel.post(index, miss);
        }
        result
    } else {
        slice!(user).run(&mut backend.end).0
    };
    match result {
        Ok(next) => next,
        Err(RingError::Fault) if shared => Next::Fault,
        // User space has been asked, and resumes the virtqueue with its answer.
        Err(RingError::Miss) => Next::Wait,
        Err(_) => {
            tally.errors += 1;
            Next::Wait
        }
    }
}
