// SPDX-License-Identifier: GPL-2.0

//! Taking descriptor chains from the available ring (virtio 1.3, 2.7.5, 2.7.6 and 2.7.13).

use super::{Ring, DESCRIPTOR_SIZE};
use crate::atomics;
use crate::engine::error::RingError;
use crate::engine::mem::{Access, RingMem, Segment};

/// The chain continues at `next` (2.7.5).
const NEXT: u16 = 1;
/// The buffer is device-writable.
const WRITE: u16 = 2;
/// The buffer is a table of descriptors (2.7.5.3).
const INDIRECT: u16 = 4;

/// Segments that an indirect table itself may be scattered over; stock vhost's limit.
const TABLE_SEGMENTS_MAX: usize = 1024;

/// Entries of an indirect table: as many as a 16-bit `next` field can name; stock vhost's limit.
const TABLE_ENTRIES_MAX: u64 = 1 << 16;

/// Descriptors that are read for one packet, and pieces in addition. A chain may name the same
/// table many times, a table may be full of empty buffers, and a packet may take many chains:
/// without this bound a guest could have 2^31 descriptors read for one of them.
///
/// A packet has at most 1024 segments, so a driver needs 2048 descriptors if each segment stands in
/// an indirect table of its own. As many again are for empty buffers, which no driver is known to
/// make, and for what regions divide.
const WORK_MAX: u32 = 1 << 12;

/// What [`Ring::pop`] took from the available ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The descriptor that heads the chain, which is how it is given back.
    pub head: u16,
    /// The number of device-readable segments, which come first.
    pub readable: usize,
    /// The number of device-writable segments.
    pub writable: usize,
    /// Bytes of all of them.
    pub len: usize,
}

/// A descriptor after its only read: the guest cannot change what is checked here.
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read<M: RingMem>(mem: &M, addr: u64) -> Result<Self, RingError> {
        Ok(Self::decode(mem.read_descriptor(addr)?))
    }

    fn read_indirect<M: RingMem>(mem: &M, addr: u64) -> Result<Self, RingError> {
        Ok(Self::decode(mem.read_indirect(addr)?))
    }

    fn decode(bytes: [u8; 16]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// The segments of a chain while it is read.
struct Collector<'a> {
    segments: &'a mut [Segment],
    readable: usize,
    writable: usize,
    /// Bytes of all segments. A descriptor's length has 32 bits, and no more than [`WORK_MAX`] of them
    /// are read.
    len: u64,
    /// As in [`Ring`].
    work: u32,
}

impl Collector<'_> {
    /// Counts a descriptor that is read, or a further piece of what regions of the memory table
    /// divide: a buffer, an indirect table or an entry of one.
    fn count(&mut self) -> Result<(), RingError> {
        if self.work >= WORK_MAX {
            return Err(RingError::TooManyDescriptors);
        }
        self.work += 1;
        Ok(())
    }

    /// Adds the buffer of one descriptor. A buffer that regions of the memory table divide
    /// becomes several segments; an empty one becomes none.
    ///
    /// What most descriptors need is inlined where they are read, and nothing else.
    #[inline(always)]
    fn add<M: RingMem>(&mut self, mem: &M, descriptor: &Descriptor) -> Result<(), RingError> {
        let used = self.readable + self.writable;
        let len = u64::from(descriptor.len);
        let access = if descriptor.has(WRITE) {
            Access::Write
        } else {
            Access::Read
        };
        let mut added = 0;
        if len > 0 {
            let segment = self
                .segments
                .get_mut(used)
                .ok_or(RingError::TooManySegments)?;
            let (base, run) = mem.translate(descriptor.addr, access)?;
            *segment = Segment {
                base: base as usize,
                len: len.min(run) as usize,
            };
            added = if run >= len {
                1
            } else {
                1 + self.add_rest(mem, descriptor, access, used + 1, run)?
            };
            self.len += len;
        }
        if descriptor.has(WRITE) {
            self.writable += added;
        } else if self.writable > 0 {
            return Err(RingError::ReadableAfterWritable);
        } else {
            self.readable += added;
        }
        Ok(())
    }

    /// Adds what lies behind the first `begun` bytes of a descriptor's buffer, as segments from `used`
    /// on. Returns their number.
    #[cold]
    fn add_rest<M: RingMem>(
        &mut self,
        mem: &M,
        descriptor: &Descriptor,
        access: Access,
        mut used: usize,
        begun: u64,
    ) -> Result<usize, RingError> {
        let begin = used;
        let mut addr = descriptor.addr;
        let mut left = u64::from(descriptor.len);
        let mut take = begun;
        while left > take {
            left -= take;
            self.count()?;
            addr = addr.checked_add(take).ok_or(RingError::Unmapped)?;
            let segment = self
                .segments
                .get_mut(used)
                .ok_or(RingError::TooManySegments)?;
            let (base, run) = mem.translate(addr, access)?;
            take = left.min(run);
            *segment = Segment {
                base: base as usize,
                len: take as usize,
            };
            used += 1;
        }
        Ok(used - begin)
    }

    /// Adds the buffers of an indirect table.
    ///
    /// The entries are taken in the order in which they lie in the table, as stock vhost does:
    /// drivers write them so, and `next` fields need no trust then.
    #[inline(never)]
    fn add_table<M: RingMem>(&mut self, mem: &M, table: &Descriptor) -> Result<(), RingError> {
        if u64::from(table.len) % DESCRIPTOR_SIZE != 0 {
            return Err(RingError::IndirectLength);
        }
        let run = self.check_mapped(mem, table)?;
        let count = u64::from(table.len) / DESCRIPTOR_SIZE;
        if count > TABLE_ENTRIES_MAX {
            return Err(RingError::IndirectTooLong);
        }
        for index in 0..count {
            self.count()?;
            let offset = index * DESCRIPTOR_SIZE;
            let entry = match run {
                Some(base) => Descriptor::read_indirect(mem, base.wrapping_add(offset))?,
                None => self.read_scattered(mem, table.addr.wrapping_add(offset))?,
            };
            if entry.has(INDIRECT) {
                return Err(RingError::IndirectNested);
            }
            self.add(mem, &entry)?;
            if !entry.has(NEXT) {
                return Ok(());
            }
        }
        Err(RingError::Loop)
    }

    /// Checks that the whole of an indirect table is mapped, before any entry is used. Returns its
    /// address when it lies in one piece.
    fn check_mapped<M: RingMem>(
        &mut self,
        mem: &M,
        table: &Descriptor,
    ) -> Result<Option<u64>, RingError> {
        let mut addr = table.addr;
        let mut left = u64::from(table.len);
        for pieces in 0..TABLE_SEGMENTS_MAX {
            if left == 0 {
                return Ok(None);
            }
            let (base, run) = mem.translate(addr, Access::Read)?;
            if run >= left {
                return Ok((pieces == 0).then_some(base));
            }
            self.count()?;
            left -= run;
            addr = addr.checked_add(run).ok_or(RingError::Unmapped)?;
        }
        Err(RingError::TooManySegments)
    }

    /// Reads an entry of an indirect table that is scattered over regions; the entry itself may be.
    fn read_scattered<M: RingMem>(&mut self, mem: &M, addr: u64) -> Result<Descriptor, RingError> {
        let (base, run) = mem.translate(addr, Access::Read)?;
        if run >= DESCRIPTOR_SIZE {
            return Descriptor::read_indirect(mem, base);
        }
        let mut bytes = [0; 16];
        // The alignment of guest memory regions makes this a case that only a hostile driver brings
        // about, so it may take 8 small reads.
        for (index, pair) in bytes.chunks_exact_mut(2).enumerate() {
            self.count()?;
            let (base, run) = mem.translate(addr.wrapping_add(2 * index as u64), Access::Read)?;
            if run < 2 {
                return Err(RingError::Unmapped);
            }
            pair.copy_from_slice(&mem.read_indirect_u16(base)?.to_le_bytes());
        }
        Ok(Descriptor::decode(bytes))
    }
}

impl Ring {
    /// Takes the next chain from the available ring and describes its buffers in `segments`.
    ///
    /// Returns `None` when the ring is empty. What it costs counts as work on one packet, together
    /// with all that was done since [`Ring::take_work`] was asked, and that is bounded.
    ///
    /// # Errors
    ///
    /// Names what the driver or its owner did wrong. Nothing is taken then, so the same chain is
    /// found again after the next kick.
    pub fn pop<M: RingMem>(
        &mut self,
        mem: &M,
        segments: &mut [Segment],
    ) -> Result<Option<Chain>, RingError> {
        if self.avail_idx == self.next_avail && !self.refresh(mem)? {
            return Ok(None);
        }
        let head = match self.ahead.head(self.next_avail) {
            Some(head) => head,
            None => self.read_head(mem)?,
        };
        if !self.ahead.has_descriptor(head) {
            self.ahead
                .read_descriptors(mem, &self.layout, self.num, self.next_avail);
        }
        let mut collector = Collector {
            segments,
            readable: 0,
            writable: 0,
            len: 0,
            work: self.work,
        };
        let walked = self.walk(mem, head, &mut collector);
        self.work = collector.work;
        walked?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(Chain {
            head,
            readable: collector.readable,
            writable: collector.writable,
            len: usize::try_from(collector.len).unwrap_or(usize::MAX),
        }))
    }

    /// Reads the next entry of the available ring, and what may be read with it.
    #[inline(never)]
    fn read_head<M: RingMem>(&mut self, mem: &M) -> Result<u16, RingError> {
        let slot = self.slot(self.next_avail);
        let address = self.layout.avail_entry(slot);
        let count = self.pending(self.avail_idx).min(self.num - slot);
        self.ahead.read_heads(mem, address, self.next_avail, count);
        match self.ahead.head(self.next_avail) {
            Some(head) => Ok(head),
            None => mem.read_u16(address),
        }
    }

    /// Gives the last `count` chains back untouched, to be found again by [`Ring::pop`].
    pub fn unpop(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_sub(count);
    }

    /// Whether the ring is certainly empty. An error counts as work, which then reports it.
    pub fn is_empty<M: RingMem>(&mut self, mem: &M) -> bool {
        self.avail_idx == self.next_avail && matches!(self.refresh(mem), Ok(false))
    }

    /// Reads the driver's available index; returns whether it moved since the last look.
    pub(super) fn refresh<M: RingMem>(&mut self, mem: &M) -> Result<bool, RingError> {
        let avail_idx = mem.read_u16(self.layout.avail_idx())?;
        if avail_idx.wrapping_sub(self.next_avail) > self.num {
            return Err(RingError::AvailIndex);
        }
        if avail_idx == self.avail_idx {
            return Ok(false);
        }
        self.avail_idx = avail_idx;
        self.ahead.forget();
        // Pairs with the write barrier of the driver between an entry of the available ring and
        // the index that publishes it (2.7.13.3): no entry may be read before that index.
        atomics::smp_rmb();
        Ok(true)
    }

    fn walk<M: RingMem>(
        &self,
        mem: &M,
        head: u16,
        collector: &mut Collector<'_>,
    ) -> Result<(), RingError> {
        let mut index = head;
        for _ in 0..self.num {
            if index >= self.num {
                return Err(RingError::DescriptorIndex);
            }
            collector.count()?;
            let descriptor = match self.ahead.descriptor(index) {
                Some(bytes) => Descriptor::decode(bytes),
                None => Descriptor::read(mem, self.layout.descriptor(index))?,
            };
            if descriptor.has(INDIRECT) {
                collector.add_table(mem, &descriptor)?;
            } else {
                collector.add(mem, &descriptor)?;
            }
            if !descriptor.has(NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        // The chain goes on after as many descriptors as the table has. Which error it is still
        // depends on where it goes, for a `next` out of range is found first.
        Err(if index >= self.num {
            RingError::DescriptorIndex
        } else {
            RingError::Loop
        })
    }
}
