// SPDX-License-Identifier: GPL-2.0
//! A split virtqueue as it lies in memory, with every field to be written and read alone.

use crate::memory::Arena;

/// Another descriptor follows.
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// The driver wants no interrupts.
pub const NO_INTERRUPT: u16 = 1;

/// A descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Guest-physical address of its buffer.
    pub address: u64,
    /// Bytes of the buffer.
    pub length: u32,
    /// [`NEXT`], [`WRITE`] and [`INDIRECT`].
    pub flags: u16,
    /// The descriptor that follows.
    pub next: u16,
}

impl Descriptor {
    /// The descriptor as it stands in a table.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.address.to_le_bytes().to_vec();
        bytes.extend(self.length.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.next.to_le_bytes());
        bytes
    }
}

/// Where a ring lies: guest-physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
}

impl Ring {
    /// Writes a descriptor.
    pub fn describe(&self, arena: &Arena, index: u16, descriptor: Descriptor) {
        arena.write(
            self.descriptors + 16 * u64::from(index),
            &descriptor.bytes(),
        );
    }

    fn slot(&self, position: u16) -> u64 {
        u64::from(position & (self.size - 1))
    }

    /// Writes an entry of the available ring.
    pub fn offer(&self, arena: &Arena, position: u16, head: u16) {
        arena.store(self.available + 4 + 2 * self.slot(position), head);
    }

    /// Writes the available index.
    pub fn publish(&self, arena: &Arena, index: u16) {
        arena.store(self.available + 2, index);
    }

    /// Writes the flags of the available ring.
    pub fn set_flags(&self, arena: &Arena, flags: u16) {
        arena.store(self.available, flags);
    }

    /// Writes the event index of the driver.
    pub fn set_used_event(&self, arena: &Arena, index: u16) {
        arena.store(self.available + 4 + 2 * u64::from(self.size), index);
    }

    /// Writes the used index, as before a device takes over.
    pub fn set_used_index(&self, arena: &Arena, index: u16) {
        arena.store(self.used + 2, index);
    }

    /// The used index.
    pub fn used_index(&self, arena: &Arena) -> u16 {
        arena.load(self.used + 2)
    }

    /// The flags of the used ring.
    pub fn used_flags(&self, arena: &Arena) -> u16 {
        arena.load(self.used)
    }

    /// The event index of the device.
    pub fn available_event(&self, arena: &Arena) -> u16 {
        arena.load(self.used + 4 + 8 * u64::from(self.size))
    }

    /// An element of the used ring: the chain's head and the bytes that were written.
    pub fn used(&self, arena: &Arena, position: u16) -> (u32, u32) {
        let at = self.used + 4 + 8 * self.slot(position);
        let bytes = arena.read(at, 8);
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        (word(0), word(4))
    }
}
