// SPDX-License-Identifier: GPL-2.0

//! Numbers out of the fuzzer's bytes.
//!
//! Each is made of few bytes, most of which choose among numbers that have a chance to matter, so
//! that one mutated byte leads from one interesting case to the next. All other numbers can be
//! said as well.

use crate::memory::{Memory, GUEST};

/// Flags of descriptors (virtio 1.3, 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// What the fuzzer made, as far as it was not read yet. Behind its end there are only zeros.
pub(crate) struct Input<'a>(&'a [u8]);

/// A descriptor as the guest writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    pub(crate) fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: [u8; 16]) -> Self {
        let field = |at: usize, len: usize| {
            let bytes = bytes[at..at + len].iter().rev();
            bytes.fold(0, |number: u64, byte| number << 8 | u64::from(*byte))
        };
        Self {
            addr: field(0, 8),
            len: field(8, 4) as u32,
            flags: field(12, 2) as u16,
            next: field(14, 2) as u16,
        }
    }

    pub(crate) fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    pub(crate) fn flip(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number below `count`, or 0.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    fn number(&mut self, bytes: u32) -> u64 {
        (0..bytes).fold(0, |number, at| number | u64::from(self.byte()) << (8 * at))
    }

    pub(crate) fn word(&mut self) -> u16 {
        self.number(2) as u16
    }

    pub(crate) fn long(&mut self) -> u32 {
        self.number(4) as u32
    }

    fn quad(&mut self) -> u64 {
        self.number(8)
    }

    /// How often something is done: mostly a few times, up to 65535.
    pub(crate) fn count(&mut self) -> u16 {
        match self.byte() {
            count @ 0..=0xef => u16::from(count) % 32,
            0xf0..=0xfe => 1 << (self.byte() % 16),
            0xff => self.word(),
        }
    }

    /// A guest-physical address.
    pub(crate) fn addr(&mut self, memory: &Memory) -> u64 {
        match self.byte() % 8 {
            0..=2 => memory.heap() + 16 * u64::from(self.byte()),
            3 => memory.heap() + u64::from(self.word()),
            4 => GUEST + u64::from(self.word()),
            5 => {
                // Around the end of a region, which may be the beginning of the next.
                let region = memory.region(self.byte().into());
                let around = i64::from(self.byte() as i8);
                (region.guest_addr.wrapping_add(region.size)).wrapping_add_signed(around)
            }
            6 => u64::MAX - u64::from(self.byte()),
            _ => self.quad(),
        }
    }

    /// A length in bytes.
    pub(crate) fn len(&mut self) -> u32 {
        match self.byte() % 8 {
            0 => 0,
            1 => self.byte().into(),
            2 | 3 => 16 * u32::from(self.byte()),
            4 => self.word().into(),
            5 => 32 * u32::from(self.word()),
            6 => u32::MAX - u32::from(self.byte()),
            _ => self.long(),
        }
    }

    pub(crate) fn descriptor(&mut self, memory: &Memory) -> Descriptor {
        let flags = match self.byte() {
            flags @ 0..=0xef => u16::from(flags) % 8,
            _ => self.word(),
        };
        Descriptor {
            addr: self.addr(memory),
            len: self.len(),
            flags,
            next: self.index(),
        }
    }

    /// The index of a descriptor.
    pub(crate) fn index(&mut self) -> u16 {
        match self.byte() {
            index @ 0..=0xdf => u16::from(index) % 16,
            index @ 0xe0..=0xf7 => index.into(),
            _ => self.word(),
        }
    }
}
