// SPDX-License-Identifier: GPL-2.0

//! Receiving: packets of the socket go into buffers of the guest.

use super::memory::Memory;
use super::{Next, Slice, SliceResult};
use crate::engine::error::RingError;
use crate::engine::mem::UsedElem;
use crate::engine::sched::budget::Budget;
use crate::engine::vnet;
use crate::kern::cpu;
use crate::kern::receiver::{Keep, Received, Receiver};
use crate::kern::socket::BATCH;
use crate::vhost::virtqueue::SEGMENTS_MAX;

/// Buffers for a packet.
enum Room {
    /// This many chains with this many segments cover the packet.
    Enough { chains: u16, segments: usize },
    /// The ring has not enough buffers now. None was taken.
    TooFew,
    /// A packet may fill no more buffers than these, which do not cover it.
    TooSmall { chains: u16 },
}

impl<M: Memory> Slice<'_, '_, M> {
    /// Serves a receive virtqueue.
    pub(super) fn receive(&mut self, receiver: &mut Receiver) -> SliceResult {
        self.ring.disable_notify(&self.memory)?;
        let result = self.receive_packets(receiver);
        // What was received is given back also when the ring broke after it. A used ring that is not
        // resident comes before that: who may wait for it finds the ring broken, too.
        self.give_back_received(receiver).and(result)
    }

    fn receive_packets(&mut self, receiver: &mut Receiver) -> SliceResult {
        let vhost_header = self.features.vhost_header_len();
        let socket_header = self.features.socket_header_len();
        let mut budget = Budget::new(self.how.end, self.how.data);
        *self.starved = false;
        loop {
            let packet = receiver.peek();
            if packet == 0 {
                if self.how.polling {
                    return Ok(Next::Look);
                }
                self.virtqueue.arm();
                return Ok(if receiver.is_ready() {
                    Next::Again
                } else {
                    Next::Wait
                });
            }
            let from_socket = packet + socket_header;
            let needed = from_socket + vhost_header;
            match self.make_room(needed)? {
                Room::Enough { chains, segments } => {
                    if self.receive_packet(receiver, chains, segments, from_socket)? {
                        self.complete(chains);
                        self.tally.packets += 1;
                        self.tally.bytes += packet as u64;
                    } else {
                        self.ring.unpop(chains);
                        self.tally.drops += 1;
                    }
                }
                Room::TooFew => {
                    // Waiting for the socket would wake the worker for packets that still have no
                    // room, so nothing but a kick helps.
                    if let Some(next) = self.await_driver()? {
                        *self.starved = true;
                        self.tally.ring_full += 1;
                        return Ok(next);
                    }
                }
                Room::TooSmall { chains } => {
                    self.drop_packet(receiver, chains)?;
                }
            }
            if *self.waiting > BATCH {
                self.give_back_received(receiver)?;
            }
            let descriptors = self.ring.take_work() + self.memory.take_work();
            let is_other_stuck = |now| self.how.is_other_stuck(now);
            if !budget.charge(needed, descriptors, cpu::now, is_other_stuck) {
                return Ok(Next::Again);
            }
        }
    }

    /// Receives the next packet, of `len` bytes with the socket's header, into the first `segments`
    /// segments, which are `chains` buffers. Returns whether it is in them, and not lost. An error leaves
    /// buffers and packet where they were, as far as the socket can.
    fn receive_packet(
        &mut self,
        receiver: &mut Receiver,
        chains: u16,
        segments: usize,
        len: usize,
    ) -> Result<bool, RingError> {
        let header = self.features.vhost_header_len();
        let buffers = &self.segments[..segments];
        // Who must be told of what is written may not hear of it, and a header of ours may not be
        // written: the packet is kept until then.
        let is_last_step = !M::IS_TOLD && header == 0;
        let keep = match (self.how.shared, is_last_step) {
            (false, _) => Keep::Not,
            (true, true) => Keep::UntilWritten,
            (true, false) => Keep::UntilCompleted,
        };
        if self.how.shared && self.memory.note_written(buffers, header + len).is_err() {
            self.ring.unpop(chains);
            return Err(RingError::Fault);
        }
        let count = if header == 0 && self.features.counts_buffers() {
            chains
        } else {
            0
        };
        let received = receiver.receive(self.memory.user(), buffers, header, len, count, keep);
        match received {
            Received::Whole if is_last_step => return Ok(true),
            Received::Whole => (),
            Received::Fault => {
                self.ring.unpop(chains);
                return Err(RingError::Fault);
            }
            Received::Lost => return Ok(false),
        }
        let written = (header == 0 || self.write_header(chains).is_ok())
            && self.memory.note_written(buffers, header + len).is_ok();
        if written {
            receiver.complete();
            return Ok(true);
        }
        if self.how.shared && receiver.take_back() {
            self.ring.unpop(chains);
            return Err(RingError::Fault);
        }
        // The buffers cannot be written even by who may wait for them.
        receiver.complete();
        Ok(false)
    }

    /// Gives packets to the driver, after the interface has counted them.
    fn give_back_received(&mut self, receiver: &mut Receiver) -> Result<(), RingError> {
        receiver.account();
        self.give_back()
    }

    /// Lets the `chains` that the packet fills wait to be given back.
    fn complete(&mut self, chains: u16) {
        let first = *self.waiting;
        if self.features.in_order() {
            // All but the last are full, so one element says everything.
            self.heads[first] = self.heads[first + usize::from(chains) - 1];
            self.chains[first] = chains;
            *self.waiting += 1;
        } else {
            *self.waiting += usize::from(chains);
        }
    }

    /// Drops the next packet, for which the `chains` that were taken are too small. Its first byte may
    /// land in them. They stay in the ring.
    fn drop_packet(&mut self, receiver: &mut Receiver, chains: u16) -> Result<(), RingError> {
        self.ring.unpop(chains);
        let scratch = &self.segments[..1];
        if self.how.shared {
            // It may not be possible to write that byte now, or to tell who has to know.
            if !self.memory.user().probe(&scratch[0]) {
                return Err(RingError::Fault);
            }
            self.memory.note_written(scratch, 1)?;
        }
        receiver.drop_packet(self.memory.user(), &scratch[0]);
        self.tally.drops += 1;
        self.memory.note_written(scratch, 1)
    }

    /// Takes buffers for `needed` bytes. An error leaves all of them in the ring.
    fn make_room(&mut self, needed: usize) -> Result<Room, RingError> {
        let chains_max = if self.features.mergeable() {
            SEGMENTS_MAX as u16
        } else {
            1
        };
        let mut left = needed;
        let mut chains: u16 = 0;
        let mut segments = 0;
        while left > 0 && chains < chains_max {
            match self.take_buffer(usize::from(chains), segments, left) {
                Ok(Some((count, len))) => {
                    chains += 1;
                    segments += count;
                    left = left.saturating_sub(len);
                }
                Ok(None) => {
                    self.ring.unpop(chains);
                    return Ok(Room::TooFew);
                }
                Err(error) => {
                    self.ring.unpop(chains);
                    return Err(error);
                }
            }
        }
        Ok(if left > 0 {
            Room::TooSmall { chains }
        } else {
            Room::Enough { chains, segments }
        })
    }

    /// Takes one buffer for at most `left` bytes, the segments of which begin at `segments`.
    /// Returns their number and their length in bytes.
    fn take_buffer(
        &mut self,
        chain: usize,
        segments: usize,
        left: usize,
    ) -> Result<Option<(usize, usize)>, RingError> {
        let head = self
            .heads
            .get_mut(*self.waiting + chain)
            .ok_or(RingError::TooManySegments)?;
        let free = &mut self.segments[segments..];
        if free.is_empty() {
            return Err(RingError::TooManySegments);
        }
        let Some(taken) = self.ring.pop(&self.memory, free)? else {
            return Ok(None);
        };
        if taken.readable > 0 || taken.writable == 0 {
            self.ring.unpop(1);
            return Err(RingError::ReceiveChain);
        }
        *head = UsedElem {
            id: u32::from(taken.head),
            len: taken.len.min(left) as u32,
        };
        Ok(Some((taken.writable, taken.len)))
    }

    /// Writes the header of a packet that fills `chains` buffers, where the socket gives none.
    fn write_header(&self, chains: u16) -> kernel::error::Result {
        let mut header = [0; vnet::LEN];
        header[vnet::LEGACY_LEN..].copy_from_slice(&chains.to_le_bytes());
        let len = if self.features.counts_buffers() {
            vnet::LEN
        } else {
            vnet::LEGACY_LEN
        };
        // The buffers cover header and packet, so all of the segments may be passed: what lies
        // behind the packet is not reached.
        self.memory
            .user()
            .copy_to_segments(self.segments, 0, &header[..len])
    }
}
