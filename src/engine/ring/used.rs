// SPDX-License-Identifier: GPL-2.0

//! Giving chains back through the used ring (virtio 1.3, 2.7.8 and 2.7.14).

use super::Ring;
use crate::atomics;
use crate::engine::error::RingError;
use crate::engine::mem::{RingMem, UsedElem};

impl Ring {
    /// Writes `elems` to the used ring and publishes them with one update of the index.
    ///
    /// # Errors
    ///
    /// [`RingError::Fault`] when the used ring cannot be written. Nothing is given back then, so
    /// the same elements may be pushed again.
    pub fn push_used<M: RingMem>(&mut self, mem: &M, elems: &[UsedElem]) -> Result<(), RingError> {
        self.all_or_nothing(|ring| ring.write_used(mem, elems))
    }

    /// Gives batches of chains back with one element each, as a driver that knows that buffers are
    /// used in order expects it (2.7.9): `elems` name the last chain of each batch and what was
    /// written into it, `chains` says how many there are in it. An element lies in the slot of its
    /// batch's first chain, and the slots of the others are left as they are.
    ///
    /// # Errors
    ///
    /// As for [`Ring::push_used`].
    pub fn push_used_in_order<M: RingMem>(
        &mut self,
        mem: &M,
        elems: &[UsedElem],
        chains: &[u16],
    ) -> Result<(), RingError> {
        self.all_or_nothing(|ring| ring.write_batches(mem, elems, chains))
    }

    fn all_or_nothing(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<(), RingError>,
    ) -> Result<(), RingError> {
        let before = (self.next_used, self.signalled);
        let result = write(self);
        if result.is_err() {
            // What was written lies behind the published index, where nobody looks.
            (self.next_used, self.signalled) = before;
        }
        result
    }

    fn write_batches<M: RingMem>(
        &mut self,
        mem: &M,
        elems: &[UsedElem],
        chains: &[u16],
    ) -> Result<(), RingError> {
        for (elem, count) in elems.iter().zip(chains) {
            let slot = self.slot(self.next_used);
            mem.write_used(self.layout.used_entry(slot), core::slice::from_ref(elem))?;
            self.advance_used(*count);
        }
        self.publish_used(mem)
    }

    fn write_used<M: RingMem>(&mut self, mem: &M, elems: &[UsedElem]) -> Result<(), RingError> {
        let mut rest = elems;
        while !rest.is_empty() {
            let slot = self.slot(self.next_used);
            // A driver that makes entries available faster than they are given back can have more
            // of them outstanding than the ring has slots, hence a loop and not one wrap.
            let room = usize::from(self.num - slot).min(rest.len());
            let (now, later) = rest.split_at(room);
            mem.write_used(self.layout.used_entry(slot), now)?;
            self.advance_used(room as u16);
            rest = later;
        }
        self.publish_used(mem)
    }

    fn publish_used<M: RingMem>(&self, mem: &M) -> Result<(), RingError> {
        // Pairs with the driver's read barrier between the used index and the elements it covers
        // (2.7.14): an element must not become visible after the index.
        atomics::smp_wmb();
        mem.write_u16(self.layout.used_idx(), self.next_used)
    }

    fn advance_used(&mut self, count: u16) {
        let new = self.next_used.wrapping_add(count);
        // A driver that is not interrupted for 2^16 elements lets the index pass the remembered
        // one, and the distance between them means nothing any more.
        if let Some(signalled) = self.signalled {
            if new.wrapping_sub(signalled) < count {
                self.signalled = None;
            }
        }
        self.next_used = new;
    }
}
