// SPDX-License-Identifier: GPL-2.0

//! Guest memory as the ring engine sees it.

use crate::engine::error::RingError;
use core::cell::Cell;

/// A contiguous piece of a buffer in the address space of the device's owner.
///
/// The layout is that of `struct iovec`, so that an array of segments can back an `iov_iter`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Address in the owner's address space.
    pub base: usize,
    /// Length in bytes.
    pub len: usize,
}

/// An entry of the used ring: `struct vring_used_elem` (virtio 1.3, 2.7.8), in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UsedElem {
    /// Head of the chain that is given back.
    pub id: u32,
    /// Bytes written into its device-writable part.
    pub len: u32,
}

/// What is done with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is read.
    Read,
    /// It is written.
    Write,
}

/// How ring memory and the descriptors' buffers are reached.
///
/// Addresses of ring memory are what `VHOST_SET_VRING_ADDR` sets: addresses of the owner's address
/// space, or I/O virtual ones with a device IOTLB. Addresses in descriptors are guest-physical or I/O
/// virtual and go through [`translate`](RingMem::translate). The memory is shared with a hostile
/// guest: every method reads or writes it once, and what is read has to be checked in the copy.
pub trait RingMem {
    /// Reads a 16-bit field with one access.
    fn read_u16(&self, addr: u64) -> Result<u16, RingError>;

    /// Writes a 16-bit field with one access.
    fn write_u16(&self, addr: u64, value: u16) -> Result<(), RingError>;

    /// Copies the 16 bytes of a descriptor.
    fn read_descriptor(&self, addr: u64) -> Result<[u8; 16], RingError>;

    /// Copies what lies at `addr` of the available ring or the descriptor table, before it is needed and
    /// more than may be needed. Returns whether all of it was read. If not, and by default, each field
    /// is read when it is needed.
    fn read_ahead(&self, _addr: u64, _bytes: &mut [u8]) -> bool {
        false
    }

    /// Copies `elems` into the used ring.
    fn write_used(&self, addr: u64, elems: &[UsedElem]) -> Result<(), RingError>;

    /// Finds where the address `addr` of a descriptor lies in the owner's address space, and for how
    /// many bytes from there the translation holds. That length is at least 1.
    fn translate(&self, addr: u64, access: Access) -> Result<(u64, u64), RingError>;

    /// Copies the 16 bytes of a descriptor in an indirect table, at an address of the owner's address
    /// space.
    fn read_indirect(&self, addr: u64) -> Result<[u8; 16], RingError> {
        self.read_descriptor(addr)
    }

    /// Reads 16 bits of such a descriptor.
    fn read_indirect_u16(&self, addr: u64) -> Result<u16, RingError> {
        self.read_u16(addr)
    }
}

/// One region of the memory table: `struct vhost_memory_region`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Region {
    /// First guest-physical address.
    pub guest_addr: u64,
    /// Length in bytes, never 0 in a table that [`sort_regions`] accepted.
    pub size: u64,
    /// Where the region begins in the owner's address space.
    pub user_addr: u64,
    /// `flags_padding` of the ABI: no flag is defined and user space may leave anything here.
    pub flags: u64,
}

impl Region {
    /// Where `addr` is, if it lies in the region, and for how many bytes from there.
    #[inline]
    fn translate(&self, addr: u64) -> Option<(u64, u64)> {
        let offset = addr.wrapping_sub(self.guest_addr);
        // Of what lies before the region the difference has wrapped: no region that was accepted
        // is so long.
        (offset < self.size).then(|| (self.user_addr.wrapping_add(offset), self.size - offset))
    }
}

/// How the regions of a sorted table lie to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// No two regions share an address, so a binary search finds the only candidate.
    Disjoint,
    /// Some regions overlap, which stock vhost accepts and this module therefore does too.
    Overlapping,
}

/// Brings `regions` into the order that [`Lookup`] needs.
///
/// Returns `None`, leaving the table unusable, when a region is empty or wraps around the end of
/// guest-physical memory. Where regions lie in the owner's address space is not looked at.
pub fn sort_regions(regions: &mut [Region]) -> Option<Order> {
    // Regions that begin at the same address stay as user space gave them, for the first of them
    // wins. The kernel's core library has no stable sort, and a table has few regions.
    for end in 1..regions.len() {
        let mut at = end;
        while at > 0 && regions[at - 1].guest_addr > regions[at].guest_addr {
            regions.swap(at - 1, at);
            at -= 1;
        }
    }
    let mut order = Order::Disjoint;
    let mut last = None;
    for region in regions.iter() {
        let offset = region.size.checked_sub(1)?;
        let end = region.guest_addr.checked_add(offset)?;
        if last.is_some_and(|last| last >= region.guest_addr) {
            order = Order::Overlapping;
        }
        last = last.max(Some(end));
    }
    Some(order)
}

/// A table that [`sort_regions`] accepted, and where something was found in it last: buffers that
/// follow each other mostly lie in the same region.
pub struct Lookup<'a> {
    regions: &'a [Region],
    order: Order,
    /// The region, or one that maps nothing: before the first, and where regions overlap, since
    /// another one may come first there.
    recent: Cell<Region>,
}

impl<'a> Lookup<'a> {
    /// Looks up in `regions`, for which [`sort_regions`] returned `order`.
    pub fn new(regions: &'a [Region], order: Order) -> Self {
        Self {
            regions,
            order,
            recent: Cell::new(Region::default()),
        }
    }

    /// Finds `addr`; see [`RingMem::translate`].
    ///
    /// Where regions overlap, the one that begins first wins, and of those that begin together the
    /// one that user space gave first, as in stock vhost's interval tree.
    #[inline(always)]
    pub fn translate(&self, addr: u64) -> Result<(u64, u64), RingError> {
        match self.recent.get().translate(addr) {
            Some(found) => Ok(found),
            None => self.search(addr),
        }
    }

    #[cold]
    fn search(&self, addr: u64) -> Result<(u64, u64), RingError> {
        let begun = self
            .regions
            .partition_point(|region| region.guest_addr <= addr);
        let candidates = match self.order {
            Order::Disjoint => begun.saturating_sub(1)..begun,
            Order::Overlapping => 0..begun,
        };
        for index in candidates {
            let region = self.regions[index];
            if let Some(found) = region.translate(addr) {
                if self.order == Order::Disjoint {
                    self.recent.set(region);
                }
                return Ok(found);
            }
        }
        Err(RingError::Unmapped)
    }
}

/// Finds the guest-physical addresses of `len` bytes at `addr` of the owner's address space: where
/// they begin and how many bytes there are from there. Several regions may show the same memory, and
/// it may be written through one of them and read through another.
pub fn guest_ranges(
    regions: &[Region],
    addr: u64,
    len: u64,
) -> impl Iterator<Item = (u64, u64)> + '_ {
    let end = addr.saturating_add(len);
    regions.iter().filter_map(move |region| {
        let begin = addr.max(region.user_addr);
        let end = end.min(region.user_addr.saturating_add(region.size));
        let len = end.checked_sub(begin).filter(|len| *len > 0)?;
        Some((region.guest_addr + (begin - region.user_addr), len))
    })
}
