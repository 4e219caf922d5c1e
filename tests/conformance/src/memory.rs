// SPDX-License-Identifier: GPL-2.0
//! Memory of a guest, and memory at whose edge a structure ends.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{fence, AtomicU16, Ordering};

use anyhow::{Context, Result};
use nix::sys::mman::{madvise, mmap_anonymous, mprotect, munmap, MapFlags, MmapAdvise, ProtFlags};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Bytes of one region.
pub const REGION: u64 = 256 << 10;

/// Guest-physical starts of the regions, in the order of their places in the mapping.
///
/// The first and the third are neighbours to the guest and not to the host, so that a buffer can need
/// two translations. The second is above 4 GiB.
pub const STARTS: [u64; 3] = [0x10_0000, 0x1_8000_0000, 0x10_0000 + REGION];

/// Where the first region meets the third.
pub const SEAM: u64 = STARTS[2];

/// A guest-physical address that no region covers.
pub const UNMAPPED: u64 = 0x7000_0000;

/// Private anonymous pages.
struct Mapping {
    start: NonNull<c_void>,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let size = NonZeroUsize::new(length).context("no length")?;
        // SAFETY: A new mapping at an address of the kernel's choice is in nobody's way.
        let start = unsafe { mmap_anonymous(None, size, protection, MapFlags::MAP_PRIVATE) }
            .context("map memory")?;
        Ok(Self { start, length })
    }

    /// A part of the mapping.
    fn part(&self, offset: usize, length: usize) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(
            end.is_some_and(|end| end <= self.length),
            "{length} bytes at {offset} are not in {} bytes",
            self.length
        );
        self.start.as_ptr().cast::<u8>().wrapping_add(offset)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping is this value's own, and nobody has a reference to it.
        // A mapping that stays is no harm to a test.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}

/// The memory of a guest.
pub struct Arena {
    mapping: Mapping,
}

impl Arena {
    /// Fresh memory, all zero.
    pub fn new() -> Result<Self> {
        let length = REGION as usize * STARTS.len();
        Ok(Self {
            mapping: Mapping::new(length)?,
        })
    }

    /// Makes all of it zero.
    pub fn clear(&self) -> Result<()> {
        let Mapping { start, length } = self.mapping;
        // SAFETY: The pages are private, anonymous, and nothing but bytes to this process.
        unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) }.context("clear memory")
    }

    /// The regions: guest-physical address, length and address in this process.
    pub fn regions(&self) -> Vec<[u64; 3]> {
        STARTS
            .iter()
            .map(|start| [*start, REGION, self.host(*start)])
            .collect()
    }

    /// The place of an address in the mapping, and how many bytes of its region follow.
    fn place(address: u64) -> (usize, usize) {
        for (number, start) in STARTS.iter().enumerate() {
            if let Some(offset) = address
                .checked_sub(*start)
                .filter(|offset| *offset < REGION)
            {
                return (
                    number * REGION as usize + offset as usize,
                    (REGION - offset) as usize,
                );
            }
        }
        panic!("no memory at {address:#x}");
    }

    /// Where a guest-physical address is in this process.
    pub fn host(&self, address: u64) -> u64 {
        self.mapping.part(Self::place(address).0, 1) as usize as u64
    }

    /// Writes bytes, across regions where need be. The device must not read them at the same time.
    pub fn write(&self, mut address: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (offset, room) = Self::place(address);
            let (here, rest) = bytes.split_at(bytes.len().min(room));
            // SAFETY: The part is as long as the bytes, and memory of this process that only a device
            // shares.
            unsafe {
                self.mapping
                    .part(offset, here.len())
                    .copy_from(here.as_ptr(), here.len())
            };
            address += here.len() as u64;
            bytes = rest;
        }
    }

    /// Reads bytes, across regions where need be.
    pub fn read(&self, mut address: u64, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let (offset, room) = Self::place(address);
            let here = room.min(length - bytes.len());
            let start = bytes.len();
            bytes.resize(start + here, 0);
            // SAFETY: As for writes.
            unsafe {
                bytes[start..]
                    .as_mut_ptr()
                    .copy_from(self.mapping.part(offset, here), here)
            };
            address += here as u64;
        }
        bytes
    }

    fn atomic(&self, address: u64) -> &AtomicU16 {
        let place = self.mapping.part(Self::place(address).0, 2).cast::<u16>();
        assert!(place.is_aligned(), "a field at {address:#x}");
        // SAFETY: The field is aligned, lives as long as the mapping, and is atomic to the device as well.
        unsafe { AtomicU16::from_ptr(place) }
    }

    /// Reads a field that the device may be writing.
    pub fn load(&self, address: u64) -> u16 {
        u16::from_le(self.atomic(address).load(Ordering::Acquire))
    }

    /// Writes a field that the device may be reading.
    pub fn store(&self, address: u64, value: u16) {
        self.atomic(address).store(value.to_le(), Ordering::Release);
        // The device's own full barrier is its partner: it sees the field, or the kick that follows.
        fence(Ordering::SeqCst);
    }

    /// A sum over all of it.
    pub fn checksum(&self) -> u32 {
        crc32fast::hash(&self.copy())
    }

    /// What is in all of it, region by region.
    pub fn copy(&self) -> Vec<u8> {
        let regions = STARTS.map(|start| self.read(start, REGION as usize));
        regions.concat()
    }
}

/// A page behind which nothing can be read or written.
pub struct Edge {
    mapping: Mapping,
}

impl Edge {
    /// Maps the page.
    pub fn new() -> Result<Self> {
        let mapping = Mapping::new(2 * PAGE)?;
        // SAFETY: The second page belongs to the mapping just made, which nobody else knows.
        unsafe { mprotect(mapping.start.byte_add(PAGE), PAGE, ProtFlags::PROT_NONE) }
            .context("protect a page")?;
        Ok(Self { mapping })
    }

    /// Puts bytes at the very end of the page and returns their address.
    pub fn put(&self, bytes: &[u8]) -> usize {
        let place = self.mapping.part(PAGE - bytes.len(), bytes.len());
        // SAFETY: The bytes fit the first page, which is writable and of this value alone.
        unsafe { place.copy_from(bytes.as_ptr(), bytes.len()) };
        place as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_across_the_seam_read_back() {
        let arena = Arena::new().expect("memory");
        let bytes: Vec<u8> = (0..100).collect();
        arena.write(SEAM - 50, &bytes);
        assert_eq!(arena.read(SEAM - 50, 100), bytes);
        assert_ne!(arena.host(SEAM - 1) + 1, arena.host(SEAM));
        let full = arena.checksum();
        arena.clear().expect("cleared");
        assert_ne!(arena.checksum(), full);
    }
}
