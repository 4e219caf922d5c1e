// SPDX-License-Identifier: GPL-2.0

//! Transmitting: packets of the guest go to the socket.

use super::memory::Memory;
use super::{Next, Slice, SliceResult};
use crate::engine::error::RingError;
use crate::engine::mem::UsedElem;
use crate::engine::sched::budget::Budget;
use crate::kern::cpu;
use crate::kern::error;
use crate::kern::frames::FrameError;
use crate::kern::socket::{Socket, BATCH};

/// Bytes of an Ethernet header. Tun and tap look at it before they check the length of a frame in
/// a batch (CVE-2024-41090, CVE-2024-41091), so shorter packets do not reach them.
const ETHERNET_HEADER: usize = 14;

/// What became of a packet.
enum Fate {
    /// It is in the batch, sent, or dropped: its chain is done.
    Done,
    /// The socket has no room for it: its chain stays in the ring.
    Refused,
}

/// The frames of the batch that is being made, for the counters.
#[derive(Default)]
struct Batch {
    packets: u64,
    bytes: u64,
}

impl<M: Memory> Slice<'_, '_, M> {
    /// Serves a transmit virtqueue.
    pub(super) fn transmit(&mut self, socket: &Socket) -> SliceResult {
        self.ring.disable_notify(&self.memory)?;
        let mut batch = Batch::default();
        let result = self.transmit_packets(socket, &mut batch);
        // What was taken is sent and given back also when the ring broke after it. A used ring that is
        // not resident comes before that: who may wait for it finds the ring broken, too.
        self.flush(socket, &mut batch).and(result)
    }

    fn transmit_packets(&mut self, socket: &Socket, batch: &mut Batch) -> SliceResult {
        let batching = socket.takes_batches();
        let header = self.features.vhost_header_len();
        let mut budget = Budget::new(self.how.end, self.how.data);
        let mut size = self.batches.size(BATCH);
        loop {
            if *self.waiting >= size {
                self.flush(socket, batch)?;
                size = self.batches.size(BATCH);
            }
            let mut len = 0;
            if let Some(chain) = self.ring.pop(&self.memory, self.segments)? {
                if chain.writable > 0 || chain.len <= header {
                    self.ring.unpop(1);
                    return Err(RingError::TransmitChain);
                }
                len = chain.len - header;
                match self.send(socket, batch, batching, chain.readable, len) {
                    Ok(Fate::Done) => {
                        self.heads[*self.waiting] = UsedElem {
                            id: u32::from(chain.head),
                            len: 0,
                        };
                        *self.waiting += 1;
                    }
                    Ok(Fate::Refused) => {
                        self.ring.unpop(1);
                        self.virtqueue.arm();
                        return Ok(if socket.is_writable() {
                            Next::Again
                        } else {
                            Next::Wait
                        });
                    }
                    Err(error) => {
                        self.ring.unpop(1);
                        return Err(error);
                    }
                }
            } else {
                // Everything is sent before the driver is asked to notify, or it would be
                // notified for packets that the batch still keeps.
                self.flush(socket, batch)?;
                if let Some(next) = self.await_driver()? {
                    return Ok(next);
                }
            }
            let descriptors = self.ring.take_work();
            let is_other_stuck = |now| self.how.is_other_stuck(now);
            if !budget.charge(len, descriptors, cpu::now, is_other_stuck) {
                return Ok(Next::Again);
            }
        }
    }

    /// Sends the packet of `len` bytes with the socket's header in the first `readable` segments,
    /// or puts it into the batch.
    fn send(
        &mut self,
        socket: &Socket,
        batch: &mut Batch,
        batching: bool,
        readable: usize,
        len: usize,
    ) -> Result<Fate, RingError> {
        let vhost_header = self.features.vhost_header_len();
        let socket_header = self.features.socket_header_len();
        let Some(packet) = len
            .checked_sub(socket_header)
            .filter(|packet| *packet >= ETHERNET_HEADER)
        else {
            self.tally.drops += 1;
            return Ok(Fate::Done);
        };
        if batching {
            let added = self.frames.add(
                socket,
                self.memory.user(),
                &self.segments[..readable],
                vhost_header,
                len,
                socket_header,
            );
            match added {
                Ok(full) => {
                    batch.packets += 1;
                    batch.bytes += packet as u64;
                    if full {
                        self.send_batch(socket, batch);
                    }
                    return Ok(Fate::Done);
                }
                Err(FrameError::Fault) if self.how.shared => return Err(RingError::Fault),
                Err(FrameError::Fault | FrameError::Dropped) => {
                    self.tally.drops += 1;
                    return Ok(Fate::Done);
                }
                // What is in the batch comes before this packet.
                Err(FrameError::Alone) => self.send_batch(socket, batch),
            }
        }
        let more = !batching && !self.ring.is_empty(&self.memory);
        let segments = &self.segments[..readable];
        let sent = socket.send(self.memory.user(), segments, vhost_header, len, more);
        self.batches.note_sent(1, None);
        match sent {
            Ok(()) => {
                self.tally.packets += 1;
                self.tally.bytes += packet as u64;
                Ok(Fate::Done)
            }
            Err(reason) if error::may_pass(reason) => Ok(Fate::Refused),
            Err(reason) if self.how.shared && error::is_fault(reason) => Err(RingError::Fault),
            Err(_) => {
                self.tally.drops += 1;
                Ok(Fate::Done)
            }
        }
    }

    /// Sends the batch. If the socket refuses it, its packets are lost but their chains are not.
    fn send_batch(&mut self, socket: &Socket, batch: &mut Batch) {
        let Batch { packets, bytes } = core::mem::take(batch);
        let begun = self.batches.is_limited().then(cpu::now);
        let sent = self.frames.send(socket);
        if packets > 0 {
            let took = begun.map(|begun| cpu::now().saturating_sub(begun));
            self.batches.note_sent(packets, took);
        }
        match sent {
            Ok(()) => {
                self.tally.packets += packets;
                self.tally.bytes += bytes;
            }
            Err(_) => self.tally.drops += packets,
        }
    }

    /// Sends the batch and gives the chains back.
    fn flush(&mut self, socket: &Socket, batch: &mut Batch) -> Result<(), RingError> {
        self.send_batch(socket, batch);
        self.give_back()
    }
}
