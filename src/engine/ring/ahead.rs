// SPDX-License-Identifier: GPL-2.0

//! Reading the available ring and the descriptor table ahead: many entries with one access to memory of
//! user space, since entering that costs more than the few bytes of one entry.

use super::{Layout, DESCRIPTOR_SIZE};
use crate::engine::mem::RingMem;

/// Entries of the available ring that are read together.
const HEADS: usize = 32;
/// Descriptors that are read together.
const DESCRIPTORS: usize = 32;

/// What was read ahead.
///
/// All of it is of chains that the driver had made available when it was read, and those are the device's
/// until it gives them back (virtio 1.3, 2.7.13), so what is here is what would be read later. Whoever
/// learns of further chains forgets it: a descriptor that lies between those of such chains may have
/// been free when it was read, and may head one of the further ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    /// Entries of the available ring from index `first` on, as they lie in memory.
    heads: [[u8; 2]; HEADS],
    first: u16,
    heads_len: u16,
    /// Descriptors from number `lowest` on.
    descriptors: [[u8; DESCRIPTOR_SIZE as usize]; DESCRIPTORS],
    lowest: u16,
    descriptors_len: u16,
}

impl Ahead {
    /// Nothing was read.
    pub(super) const fn new() -> Self {
        Self {
            heads: [[0; 2]; HEADS],
            first: 0,
            heads_len: 0,
            descriptors: [[0; DESCRIPTOR_SIZE as usize]; DESCRIPTORS],
            lowest: 0,
            descriptors_len: 0,
        }
    }

    /// Forgets all.
    pub(super) fn forget(&mut self) {
        self.heads_len = 0;
        self.descriptors_len = 0;
    }

    /// The entry with `index`, if it was read.
    #[inline]
    pub(super) fn head(&self, index: u16) -> Option<u16> {
        let head = self.heads_from(index).first()?;
        Some(u16::from_le_bytes(*head))
    }

    /// Whether the descriptor with this number was read.
    #[inline]
    pub(super) fn has_descriptor(&self, number: u16) -> bool {
        number.wrapping_sub(self.lowest) < self.descriptors_len
    }

    /// The descriptor with this number, if it was read.
    #[inline]
    pub(super) fn descriptor(&self, number: u16) -> Option<[u8; 16]> {
        if !self.has_descriptor(number) {
            return None;
        }
        let place = usize::from(number.wrapping_sub(self.lowest));
        self.descriptors.get(place).copied()
    }

    /// Reads the entry with `index` at `address` and those behind it, of which there are `count` with
    /// it. One alone is not read, and neither are those that cannot be.
    pub(super) fn read_heads<M: RingMem>(&mut self, mem: &M, address: u64, index: u16, count: u16) {
        self.heads_len = 0;
        let count = usize::from(count).min(HEADS);
        if count > 1 && mem.read_ahead(address, self.heads[..count].as_flattened_mut()) {
            self.first = index;
            self.heads_len = count as u16;
        }
    }

    /// Reads the descriptor that heads the chain with `index` in the available ring, and those around it, twice
    /// as many as there are chains: those of chains that follow each other mostly lie close together, in
    /// whatever order the driver takes them. Where the next chain lies elsewhere, or there is none, nothing
    /// is read, and neither are those that cannot be.
    #[inline(never)]
    pub(super) fn read_descriptors<M: RingMem>(
        &mut self,
        mem: &M,
        layout: &Layout,
        num: u16,
        index: u16,
    ) {
        let heads = self.heads_from(index);
        let &[first, second, ..] = heads else {
            return;
        };
        let (first, second) = (u16::from_le_bytes(first), u16::from_le_bytes(second));
        // Both are powers of two, so with the first one all of them lie in the table.
        let count = (2 * heads.len()).next_power_of_two().min(DESCRIPTORS);
        let count = count.min(usize::from(num));
        let lowest = first & !(count as u16 - 1);
        if first >= num || second.wrapping_sub(lowest) >= count as u16 {
            return;
        }
        let bytes = self.descriptors[..count].as_flattened_mut();
        self.descriptors_len = 0;
        if mem.read_ahead(layout.descriptor(lowest), bytes) {
            self.lowest = lowest;
            self.descriptors_len = count as u16;
        }
    }

    /// Entries that were read, from `index` on.
    #[inline]
    fn heads_from(&self, index: u16) -> &[[u8; 2]] {
        let place = usize::from(index.wrapping_sub(self.first));
        self.heads[..usize::from(self.heads_len)]
            .get(place..)
            .unwrap_or(&[])
    }
}
