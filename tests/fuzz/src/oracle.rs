// SPDX-License-Identifier: GPL-2.0

//! What a chain is, by the specification and from what the engine has read: the same walk once
//! more, over the accesses that were recorded.
//!
//! So it does not matter that the guest changes memory meanwhile: what the engine makes of a chain
//! has to fit together with the only values that it has seen, each of them read once and from
//! where it belongs.

use std::slice;

use vhost_iocm_engine::engine::error::RingError;
use vhost_iocm_engine::engine::mem::Segment;

use crate::input::{Descriptor, INDIRECT, NEXT, WRITE};
use crate::memory::{Memory, Touch};

/// Descriptors that are read for one packet, and further pieces of what regions divide.
pub(crate) const WORK_MAX: usize = 1 << 12;
/// Pieces that regions divide one indirect table into.
const PIECES_MAX: usize = 1024;

/// The accesses of a call, in order.
pub(crate) struct Replay<'a>(slice::Iter<'a, Touch>);

impl<'a> Replay<'a> {
    pub(crate) fn new(touches: &'a [Touch]) -> Self {
        Self(touches.iter())
    }

    pub(crate) fn next(&mut self) -> Option<&'a Touch> {
        self.0.next()
    }

    /// What came of reading a field at `addr`.
    pub(crate) fn read_u16(&mut self, addr: u64) -> Result<u16, RingError> {
        match self.0.next() {
            Some(&Touch::ReadU16(at, value)) if at == addr => value.ok_or(RingError::Fault),
            other => panic!("{other:x?} where {addr:#x} is to be read"),
        }
    }

    fn read_descriptor(&mut self, addr: u64) -> Result<Descriptor, RingError> {
        match self.0.next() {
            Some(&Touch::ReadDescriptor(at, bytes)) if at == addr => {
                bytes.map(Descriptor::decode).ok_or(RingError::Fault)
            }
            other => panic!("{other:x?} where the descriptor at {addr:#x} is to be read"),
        }
    }

    pub(crate) fn assert_end(mut self) {
        assert_eq!(self.0.next(), None, "an access more than needed");
    }
}

/// A walk over a chain that the engine has read.
pub(crate) struct Walk<'a> {
    memory: &'a Memory,
    /// Where the descriptors are, and how many.
    table: u64,
    num: u16,
    /// Segments that there is room for.
    room: usize,
    pub(crate) segments: Vec<Segment>,
    pub(crate) readable: usize,
    pub(crate) writable: usize,
    direct: usize,
    /// Descriptors that were read for the packet, and further pieces.
    pub(crate) work: usize,
    pub(crate) tables: usize,
    /// Entries of indirect tables that regions of the memory table divide.
    pub(crate) straddling: usize,
    /// Buffers that regions of the memory table divide.
    pub(crate) divided: usize,
}

impl<'a> Walk<'a> {
    /// A walk for a packet on which there was `work` before.
    pub(crate) fn new(memory: &'a Memory, table: u64, num: u16, room: usize, work: usize) -> Self {
        Self {
            memory,
            table,
            num,
            room,
            segments: Vec::new(),
            readable: 0,
            writable: 0,
            direct: 0,
            work,
            tables: 0,
            straddling: 0,
            divided: 0,
        }
    }

    /// Where a guest-physical address lies and for how long. Guest-physical memory ends at 2^64.
    fn lookup(&self, addr: u128) -> Result<(u64, u64), RingError> {
        let addr = u64::try_from(addr).ok();
        addr.and_then(|addr| self.memory.lookup(addr))
            .ok_or(RingError::Unmapped)
    }

    fn count(&mut self) -> Result<(), RingError> {
        if self.work == WORK_MAX {
            return Err(RingError::TooManyDescriptors);
        }
        self.work += 1;
        Ok(())
    }

    fn add(&mut self, descriptor: Descriptor) -> Result<(), RingError> {
        let before = self.segments.len();
        let mut addr = u128::from(descriptor.addr);
        let end = addr + u128::from(descriptor.len);
        while addr < end {
            if self.segments.len() == self.room {
                return Err(RingError::TooManySegments);
            }
            let (base, run) = self.lookup(addr)?;
            let len = (end - addr).min(run.into());
            self.segments.push(Segment {
                base: base as usize,
                len: len as usize,
            });
            addr += len;
            if addr < end {
                self.count()?;
                if addr > u128::from(u64::MAX) {
                    return Err(RingError::Unmapped);
                }
            }
        }
        let count = self.segments.len() - before;
        self.divided += usize::from(count > 1);
        if descriptor.has(WRITE) {
            self.writable += count;
        } else if self.writable > 0 {
            return Err(RingError::ReadableAfterWritable);
        } else {
            self.readable += count;
        }
        Ok(())
    }

    fn entry(&mut self, touches: &mut Replay<'_>, addr: u128) -> Result<Descriptor, RingError> {
        let (base, run) = self.lookup(addr)?;
        if run >= 16 {
            return touches.read_descriptor(base);
        }
        self.straddling += 1;
        let mut bytes = [0; 16];
        for (at, pair) in (0..).step_by(2).zip(bytes.chunks_exact_mut(2)) {
            self.count()?;
            let (base, run) = self.lookup(addr + at)?;
            if run == 1 {
                return Err(RingError::Unmapped);
            }
            pair.copy_from_slice(&touches.read_u16(base)?.to_le_bytes());
        }
        Ok(Descriptor::decode(bytes))
    }

    /// Looks whether the whole of a table is mapped.
    fn check_mapped(&mut self, table: Descriptor) -> Result<(), RingError> {
        let mut addr = u128::from(table.addr);
        let end = addr + u128::from(table.len);
        let mut pieces = 0;
        while addr < end {
            if pieces == PIECES_MAX {
                return Err(RingError::TooManySegments);
            }
            let (_, run) = self.lookup(addr)?;
            pieces += 1;
            addr += u128::from(run);
            if addr < end {
                self.count()?;
            }
        }
        Ok(())
    }

    fn add_table(&mut self, touches: &mut Replay<'_>, table: Descriptor) -> Result<(), RingError> {
        self.tables += 1;
        if !table.len.is_multiple_of(16) {
            return Err(RingError::IndirectLength);
        }
        self.check_mapped(table)?;
        let count = table.len / 16;
        if count > 1 << 16 {
            return Err(RingError::IndirectTooLong);
        }
        for index in 0..count {
            self.count()?;
            let addr = u128::from(table.addr) + 16 * u128::from(index);
            let entry = self.entry(touches, addr)?;
            if entry.has(INDIRECT) {
                return Err(RingError::IndirectNested);
            }
            self.add(entry)?;
            if !entry.has(NEXT) {
                return Ok(());
            }
        }
        Err(RingError::Loop)
    }

    /// Walks over the chain at `head`; returns why it has to be refused, if it does.
    pub(crate) fn run(&mut self, touches: &mut Replay<'_>, head: u16) -> Result<(), RingError> {
        let mut index = head;
        loop {
            if index >= self.num {
                return Err(RingError::DescriptorIndex);
            }
            if self.direct == self.num.into() {
                return Err(RingError::Loop);
            }
            self.count()?;
            let addr = self.table.wrapping_add(16 * u64::from(index));
            let descriptor = touches.read_descriptor(addr)?;
            self.direct += 1;
            if descriptor.has(INDIRECT) {
                self.add_table(touches, descriptor)?;
            } else {
                self.add(descriptor)?;
            }
            if !descriptor.has(NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
    }
}
