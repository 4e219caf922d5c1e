// SPDX-License-Identifier: GPL-2.0
//! Guest memory: a few memfd mappings behind guest-physical addresses.

use std::ffi::c_void;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{fence, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::mman::{
    madvise, mmap, mmap_anonymous, mremap, MRemapFlags, MapFlags, MmapAdvise, ProtFlags,
};
use vhost::vhost_kern::vhost_binding::vhost_memory_region;
use vm_memory::{
    Address, ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion,
};

/// Size of one region. Pages that nothing touches cost nothing.
const REGION_SIZE: u64 = 32 << 20;

/// Guest-physical starts of the regions.
///
/// The first two are neighbours to the guest while their mappings are not neighbours to the host,
/// so that one buffer can need two translations. The third is above 4 GiB, where an address that
/// was cut to 32 bits shows. None starts at zero, and none equals a host address.
const REGION_STARTS: [u64; 3] = [0x10_0000, 0x10_0000 + REGION_SIZE, 0x1_8000_0000];

/// Size of a page.
pub const PAGE: u64 = 4096;

/// The memory of a guest, and which parts of it have been given out.
pub struct GuestMemory {
    mapping: GuestMemoryMmap,
    allocator: Mutex<Allocator>,
}

/// Gives out addresses; nothing is ever taken back, as a test's memory lives as long as its device.
struct Allocator {
    /// Unused range of each region.
    unused: [(u64, u64); REGION_STARTS.len()],
    /// The region that the next allocation prefers.
    turn: usize,
    /// How far the next one after that is.
    step: usize,
    /// What every allocation is rounded to, in place and in length.
    grain: u64,
}

impl Allocator {
    fn new() -> Self {
        let mut unused = REGION_STARTS.map(|start| (start, start + REGION_SIZE));
        // The page on either side of the seam between the first two regions is kept for
        // `GuestMemory::across_regions`.
        unused[0].1 -= SEAM;
        unused[1].0 += SEAM;
        Self {
            unused,
            turn: 0,
            step: 1,
            grain: 1,
        }
    }

    fn allocate(&mut self, length: u64, alignment: u64) -> Option<u64> {
        let length = length.next_multiple_of(self.grain);
        let alignment = alignment.max(self.grain);
        for _ in 0..REGION_STARTS.len() {
            // Taking turns puts rings and buffers that belong together into different regions.
            let (start, end) = &mut self.unused[self.turn];
            let address = start.next_multiple_of(alignment);
            if address + length <= *end {
                *start = address + length;
                self.turn = (self.turn + self.step) % REGION_STARTS.len();
                return Some(address);
            }
            self.turn = (self.turn + 1) % REGION_STARTS.len();
        }
        None
    }
}

/// Bytes reserved on either side of the seam between two regions.
const SEAM: u64 = 64 << 10;

impl GuestMemory {
    /// Maps fresh memory, all zero.
    pub fn new() -> Result<Self> {
        let length = REGION_SIZE * REGION_STARTS.len() as u64;
        let file = File::from(memfd_create(c"guest-memory", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(length).context("size of the guest memory")?;
        let mut ranges = Vec::new();
        for (index, start) in REGION_STARTS.into_iter().enumerate() {
            // Offsets run backwards, so that neither the file nor its mappings continue from the
            // first region into the second.
            let offset = length - REGION_SIZE * (index as u64 + 1);
            let file = file.try_clone().context("guest memory file")?;
            ranges.push((
                GuestAddress(start),
                REGION_SIZE as usize,
                Some(FileOffset::new(file, offset)),
            ));
        }
        let mapping =
            GuestMemoryMmap::from_ranges_with_files(ranges).context("map the guest memory")?;
        Ok(Self {
            mapping,
            allocator: Mutex::new(Allocator::new()),
        })
    }

    /// From now on, gives out only pages that nothing else lies in, so that they can be taken away alone.
    pub fn keep_pages_apart(&self) {
        self.allocator().grain = PAGE;
    }

    /// From now on, fills one region before the next one is begun, as the memory of a guest is mostly
    /// one large region.
    pub fn fill_regions(&self) {
        self.allocator().step = 0;
    }

    /// The translation table as SET_MEM_TABLE takes it.
    pub fn table(&self) -> Result<Vec<vhost_memory_region>> {
        self.mapping
            .iter()
            .map(|region| {
                let address = region.start_addr();
                Ok(vhost_memory_region {
                    guest_phys_addr: address.raw_value(),
                    memory_size: region.len(),
                    userspace_addr: self.host_address(address)?,
                    flags_padding: 0,
                })
            })
            .collect()
    }

    /// Where the guest-physical address is in this process.
    pub fn host_address(&self, address: GuestAddress) -> Result<u64> {
        Ok(self.mapping.get_host_address(address)? as u64)
    }

    fn allocator(&self) -> MutexGuard<'_, Allocator> {
        self.allocator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives out a part of the memory that is nobody else's.
    pub fn allocate(&self, length: u64, alignment: u64) -> Result<GuestAddress> {
        self.allocator()
            .allocate(length, alignment)
            .map(GuestAddress)
            .with_context(|| format!("guest memory has no {length} bytes left"))
    }

    /// A buffer whose middle is the seam of two regions, so that it takes two translations.
    ///
    /// There is only one such place: everybody who asks gets it.
    pub fn across_regions(&self, length: u64) -> Result<GuestAddress> {
        ensure!(
            length <= 2 * SEAM,
            "{length} bytes do not fit across the seam"
        );
        Ok(GuestAddress(REGION_STARTS[1] - length / 2))
    }

    /// A guest-physical address that no region covers.
    pub fn unmapped(&self) -> GuestAddress {
        GuestAddress(0x7000_0000)
    }

    /// The pages that have a byte of this part of the memory.
    pub fn pages(&self, start: GuestAddress, length: u64) -> Vec<GuestAddress> {
        let first = start.raw_value() / PAGE * PAGE;
        (first..start.raw_value() + length)
            .step_by(PAGE as usize)
            .map(GuestAddress)
            .collect()
    }

    /// Where a page is in this process.
    fn page(&self, page: GuestAddress) -> Result<NonNull<c_void>> {
        ensure!(page.raw_value().is_multiple_of(PAGE), "{page:?} is no page");
        NonNull::new(self.mapping.get_host_address(page)?.cast()).context("page at zero")
    }

    /// Gives the page back to the kernel, as a balloon does. Who looks next finds zeros, unless
    /// somebody fills the hole.
    pub fn give_up_page(&self, page: GuestAddress) -> Result<()> {
        let (place, length) = (self.page(page)?, PAGE as usize);
        // SAFETY: The page is one of the mapping's, which is nothing but bytes to this process.
        let advise = |advice| unsafe { madvise(place, length, advice) };
        match advise(MmapAdvise::MADV_REMOVE) {
            // A page that was exchanged is in no file any more.
            Err(Errno::EINVAL) => advise(MmapAdvise::MADV_DONTNEED),
            result => result,
        }
        .with_context(|| format!("give up the page {page:?}"))
    }

    /// Puts another page with the same bytes in the place of this one, at once: nobody sees a third
    /// state. Nobody may write to the page meanwhile.
    pub fn exchange_page(&self, page: GuestAddress) -> Result<()> {
        let place = self.page(page)?;
        let length = NonZeroUsize::new(PAGE as usize).context("a page has no length")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: A new mapping at an address of the kernel's choice is in nobody's way.
        let copy = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }
            .context("map a page")?;
        let mut bytes = [0; PAGE as usize];
        self.read_bytes(page, &mut bytes)?;
        // SAFETY: The new page is as long as the bytes, and nobody else knows of it.
        unsafe { copy.cast().write(bytes) };
        let to_place = MRemapFlags::MREMAP_MAYMOVE | MRemapFlags::MREMAP_FIXED;
        // SAFETY: The mapping of the guest's memory keeps its extent and is still all bytes. The new page
        // becomes a part of it, and goes with it.
        unsafe { mremap(copy, PAGE as usize, PAGE as usize, to_place, Some(place)) }
            .with_context(|| format!("exchange the page {page:?}"))?;
        Ok(())
    }

    /// Lets the page lie in a file from now on, at this offset, with the same bytes. Nobody may write to
    /// the page meanwhile.
    pub fn move_page(&self, page: GuestAddress, file: &File, offset: u64) -> Result<()> {
        let mut bytes = [0; PAGE as usize];
        self.read_bytes(page, &mut bytes)?;
        file.write_all_at(&bytes, offset).context("write a page")?;
        let place = NonZeroUsize::new(self.page(page)?.as_ptr() as usize);
        let length = NonZeroUsize::new(PAGE as usize).context("a page has no length")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: The mapping of the guest's memory keeps its extent and is still all bytes. The page of
        // the file becomes a part of it, and goes with it.
        unsafe { mmap(place, length, access, flags, file, i64::try_from(offset)?) }
            .with_context(|| format!("map a page of a file at {page:?}"))?;
        Ok(())
    }

    /// Reads a value that the device does not write at the same time.
    pub fn read<T: ByteValued>(&self, address: GuestAddress) -> Result<T> {
        Ok(self.mapping.read_obj(address)?)
    }

    /// Writes a value that the device does not read at the same time.
    pub fn write<T: ByteValued>(&self, address: GuestAddress, value: T) -> Result<()> {
        Ok(self.mapping.write_obj(value, address)?)
    }

    /// Reads bytes, across regions where need be.
    pub fn read_bytes(&self, address: GuestAddress, bytes: &mut [u8]) -> Result<()> {
        Ok(self.mapping.read_slice(bytes, address)?)
    }

    /// Writes bytes, across regions where need be.
    pub fn write_bytes(&self, address: GuestAddress, bytes: &[u8]) -> Result<()> {
        Ok(self.mapping.write_slice(bytes, address)?)
    }

    /// Reads a ring field that the device may be writing, before everything that is read after it.
    pub fn load(&self, address: GuestAddress) -> Result<u16> {
        Ok(u16::from_le(self.mapping.load(address, Ordering::Acquire)?))
    }

    /// Writes a ring field that the device may be reading, after everything that was written before.
    pub fn store(&self, address: GuestAddress, value: u16) -> Result<()> {
        Ok(self
            .mapping
            .store(value.to_le(), address, Ordering::Release)?)
    }
}

/// Orders a store to a ring before a later load from it.
///
/// Its partner is the device's full barrier between its own store and load: without either, both
/// sides may decide that the other is awake.
pub fn full_barrier() {
    fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_aligned_and_apart() {
        let memory = GuestMemory::new().unwrap();
        let mut seen: Vec<(u64, u64)> = Vec::new();
        for length in [1, 100, 4096, 65536, 3] {
            let start = memory.allocate(length, 64).unwrap().raw_value();
            assert_eq!(start % 64, 0);
            assert!(seen
                .iter()
                .all(|(s, e)| start >= *e || start + length <= *s));
            seen.push((start, start + length));
        }
    }

    #[test]
    fn pages_are_shared_until_they_are_kept_apart() {
        let memory = GuestMemory::new().unwrap();
        let page = |length| {
            let start = memory.allocate(length, 2).unwrap();
            memory.pages(start, length)
        };
        let shared: Vec<_> = (0..2 * REGION_STARTS.len()).flat_map(|_| page(2)).collect();
        assert!(shared[..REGION_STARTS.len()].contains(&shared[REGION_STARTS.len()]));
        memory.keep_pages_apart();
        let mut apart: Vec<_> = [1, PAGE, PAGE + 1].into_iter().flat_map(page).collect();
        assert_eq!(apart.len(), 4);
        apart.extend(shared);
        apart.sort();
        apart.dedup();
        assert_eq!(apart.len(), 4 + REGION_STARTS.len());
    }

    #[test]
    fn exchanged_page_has_the_same_bytes() {
        let memory = GuestMemory::new().unwrap();
        memory.keep_pages_apart();
        let page = memory.allocate(PAGE, 1).unwrap();
        memory.write(page, 0x1234_5678u32).unwrap();
        let address = memory.host_address(page).unwrap();
        memory.exchange_page(page).unwrap();
        assert_eq!(memory.host_address(page).unwrap(), address);
        assert_eq!(memory.read::<u32>(page).unwrap(), 0x1234_5678);
        // It is no page of the file any more, and can be exchanged again.
        memory.exchange_page(page).unwrap();
        assert_eq!(memory.read::<u32>(page).unwrap(), 0x1234_5678);
    }

    #[test]
    fn page_given_up_is_empty() {
        let memory = GuestMemory::new().unwrap();
        let page = memory.allocate(PAGE, PAGE).unwrap();
        memory.write(page, 1u64).unwrap();
        memory.give_up_page(page).unwrap();
        assert_eq!(memory.read::<u64>(page).unwrap(), 0);
        memory.write(page, 2u64).unwrap();
        memory.exchange_page(page).unwrap();
        memory.give_up_page(page).unwrap();
        assert_eq!(memory.read::<u64>(page).unwrap(), 0);
    }

    #[test]
    fn exhaustion_is_an_error() {
        let memory = GuestMemory::new().unwrap();
        assert!(memory.allocate(REGION_SIZE + 1, 1).is_err());
    }

    #[test]
    fn table_translates() {
        let memory = GuestMemory::new().unwrap();
        let table = memory.table().unwrap();
        assert_eq!(table.len(), REGION_STARTS.len());
        for region in &table {
            assert_ne!({ region.guest_phys_addr }, { region.userspace_addr });
        }
        // The seam must be one for the guest only.
        assert_eq!(table[0].guest_phys_addr + table[0].memory_size, {
            table[1].guest_phys_addr
        });
        assert_ne!(table[0].userspace_addr + table[0].memory_size, {
            table[1].userspace_addr
        });
    }

    #[test]
    fn buffer_across_regions_reads_back() {
        let memory = GuestMemory::new().unwrap();
        let address = memory.across_regions(1000).unwrap();
        let bytes: Vec<u8> = (0..1000).map(|i| i as u8).collect();
        memory.write_bytes(address, &bytes).unwrap();
        let mut read = vec![0; 1000];
        memory.read_bytes(address, &mut read).unwrap();
        assert_eq!(read, bytes);
    }
}
