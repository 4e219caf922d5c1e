// SPDX-License-Identifier: GPL-2.0

//! A guest: memory that records how it is reached, and a driver that writes into it whatever a
//! test wants, well-formed or not.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use vhost_iocm_engine::engine::error::RingError;
use vhost_iocm_engine::engine::mem::{self, Order, Region, RingMem, Segment, UsedElem};
use vhost_iocm_engine::engine::ring::chain::Chain;
use vhost_iocm_engine::engine::ring::{Layout, Ring};

/// Where the byte array begins in the address space of the device's owner. Far from [`GUEST`], so
/// that an address that was not translated does not work by accident.
pub const OWNER: u64 = 0x7f12_3450_0000;
/// Where guest-physical memory begins, unless a test brings its own memory table.
pub const GUEST: u64 = 0x8000_0000;
/// Bytes behind the ring for buffers and indirect tables.
pub const HEAP: u64 = 0x4_0000;

/// Flags of descriptors (virtio 1.3, 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A descriptor as the driver writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub fn readable(addr: u64, len: u32) -> Self {
        Self {
            addr,
            len,
            ..Self::default()
        }
    }

    pub fn writable(addr: u64, len: u32) -> Self {
        Self {
            flags: WRITE,
            ..Self::readable(addr, len)
        }
    }

    /// An indirect table of `len` bytes.
    pub fn table(addr: u64, len: u32) -> Self {
        Self {
            flags: INDIRECT,
            ..Self::readable(addr, len)
        }
    }

    /// The same, continued at `next`.
    pub fn then(self, next: u16) -> Self {
        Self {
            flags: self.flags | NEXT,
            next,
            ..self
        }
    }

    pub fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// One call of the engine into [`RingMem`]. Addresses are those of the owner, and guest-physical
/// for translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadU16(u64),
    WriteU16(u64, u16),
    ReadDescriptor(u64),
    ReadAhead(u64, usize),
    WriteUsed(u64, usize),
    Translate(u64),
}

/// Memory of the owner, with the memory table that maps guest-physical addresses into it.
pub struct Memory {
    bytes: RefCell<Vec<u8>>,
    regions: Vec<Region>,
    order: Order,
    accesses: RefCell<Vec<Access>>,
    limit: Cell<usize>,
    broken: RefCell<Vec<Range<u64>>>,
    failing: Cell<Option<usize>>,
    ahead: Cell<bool>,
}

impl Memory {
    pub fn new(size: u64, mut regions: Vec<Region>) -> Self {
        let order = mem::sort_regions(&mut regions).expect("a memory table that can be used");
        Self {
            bytes: RefCell::new(vec![0; size as usize]),
            regions,
            order,
            accesses: RefCell::default(),
            limit: Cell::new(usize::MAX),
            broken: RefCell::default(),
            failing: Cell::new(None),
            ahead: Cell::new(false),
        }
    }

    /// Lets the engine read ahead.
    pub fn offer_ahead(&self) {
        self.ahead.set(true);
    }

    /// Writes as the guest or the owner does: unseen by the record of accesses.
    pub fn poke(&self, addr: u64, bytes: &[u8]) {
        let at = (addr - OWNER) as usize;
        self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn peek<const LEN: usize>(&self, addr: u64) -> [u8; LEN] {
        let at = (addr - OWNER) as usize;
        let bytes = self.bytes.borrow();
        bytes[at..at + LEN].try_into().expect("as many bytes")
    }

    pub fn peek_u16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.peek(addr))
    }

    /// Where the byte at a guest-physical address lies, by the definition of the memory table:
    /// the region that begins first among those that hold the address.
    pub fn owner_addr(&self, addr: u64) -> Option<u64> {
        self.regions
            .iter()
            .filter(|region| region.guest_addr <= addr && addr - region.guest_addr < region.size)
            .min_by_key(|region| region.guest_addr)
            .map(|region| region.user_addr + (addr - region.guest_addr))
    }

    /// Writes to a guest-physical address, byte by byte, over any number of regions.
    pub fn poke_guest(&self, addr: u64, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            let owner = self.owner_addr(addr + offset as u64);
            self.poke(owner.expect("a mapped address"), &[*byte]);
        }
    }

    /// Makes every access to a range of the owner's addresses fail.
    pub fn break_range(&self, range: Range<u64>) {
        self.broken.borrow_mut().push(range);
    }

    /// Makes the access fail that follows `count` more of them.
    pub fn fail_after(&self, count: usize) {
        self.failing.set(Some(self.accesses.borrow().len() + count));
    }

    /// Ends what [`break_range`](Memory::break_range) and [`fail_after`](Memory::fail_after) began.
    pub fn repair(&self) {
        self.broken.borrow_mut().clear();
        self.failing.set(None);
    }

    /// Ends the test as failed when there are more than `count` accesses from here on.
    pub fn limit_accesses(&self, count: usize) {
        self.forget_accesses();
        self.limit.set(count);
    }

    pub fn forget_accesses(&self) {
        self.accesses.borrow_mut().clear();
    }

    pub fn accesses(&self) -> Vec<Access> {
        self.accesses.borrow().clone()
    }

    /// The accesses without translations: those that touch memory of the guest.
    pub fn touches(&self) -> Vec<Access> {
        let mut accesses = self.accesses();
        accesses.retain(|access| !matches!(access, Access::Translate(_)));
        accesses
    }

    /// How often each byte of memory was read, as a map from address to count.
    pub fn reads_per_byte(&self) -> std::collections::BTreeMap<u64, usize> {
        let mut counts = std::collections::BTreeMap::new();
        for access in self.accesses() {
            let (addr, len) = match access {
                Access::ReadU16(addr) => (addr, 2),
                Access::ReadDescriptor(addr) => (addr, 16),
                _ => continue,
            };
            for byte in addr..addr + len {
                *counts.entry(byte).or_default() += 1;
            }
        }
        counts
    }

    fn access(&self, access: Access, addr: u64, len: u64) -> Result<Range<usize>, RingError> {
        let mut accesses = self.accesses.borrow_mut();
        let fails = self.failing.get() == Some(accesses.len());
        accesses.push(access);
        assert!(
            accesses.len() <= self.limit.get(),
            "more than {} accesses",
            self.limit.get()
        );
        let end = addr.checked_add(len).ok_or(RingError::Fault)?;
        let broken = self.broken.borrow();
        if fails || broken.iter().any(|it| addr < it.end && it.start < end) {
            return Err(RingError::Fault);
        }
        let at = addr.checked_sub(OWNER).ok_or(RingError::Fault)?;
        if at + len > self.bytes.borrow().len() as u64 {
            return Err(RingError::Fault);
        }
        Ok(at as usize..(at + len) as usize)
    }
}

impl RingMem for Memory {
    fn read_u16(&self, addr: u64) -> Result<u16, RingError> {
        self.access(Access::ReadU16(addr), addr, 2)?;
        Ok(self.peek_u16(addr))
    }

    fn write_u16(&self, addr: u64, value: u16) -> Result<(), RingError> {
        self.access(Access::WriteU16(addr, value), addr, 2)?;
        self.poke(addr, &value.to_le_bytes());
        Ok(())
    }

    fn read_descriptor(&self, addr: u64) -> Result<[u8; 16], RingError> {
        self.access(Access::ReadDescriptor(addr), addr, 16)?;
        Ok(self.peek(addr))
    }

    fn read_ahead(&self, addr: u64, bytes: &mut [u8]) -> bool {
        let len = bytes.len();
        if !self.ahead.get()
            || self
                .access(Access::ReadAhead(addr, len), addr, len as u64)
                .is_err()
        {
            return false;
        }
        let at = (addr - OWNER) as usize;
        bytes.copy_from_slice(&self.bytes.borrow()[at..at + len]);
        true
    }

    fn write_used(&self, addr: u64, elems: &[UsedElem]) -> Result<(), RingError> {
        let len = 8 * elems.len() as u64;
        self.access(Access::WriteUsed(addr, elems.len()), addr, len)?;
        for (index, elem) in elems.iter().enumerate() {
            let addr = addr + 8 * index as u64;
            self.poke(addr, &elem.id.to_le_bytes());
            self.poke(addr + 4, &elem.len.to_le_bytes());
        }
        Ok(())
    }

    fn translate(&self, addr: u64, _access: mem::Access) -> Result<(u64, u64), RingError> {
        // The translation itself touches no memory, so only its place in the record can make it
        // fail, and then in its own way.
        self.access(Access::Translate(addr), OWNER, 0)
            .map_err(|_| RingError::Unmapped)?;
        mem::Lookup::new(&self.regions, self.order).translate(addr)
    }
}

/// A virtqueue with its memory, the driver's side of it and the device's.
pub struct Guest {
    pub mem: Memory,
    pub ring: Ring,
    pub layout: Layout,
    pub num: u16,
    /// The driver's available index.
    pub avail_idx: u16,
}

/// Where the ring of `num` entries lies, and where it ends.
fn place(num: u16) -> (Layout, u64) {
    let num = u64::from(num);
    let avail = OWNER + 16 * num;
    let used = (avail + 6 + 2 * num).next_multiple_of(4);
    let layout = Layout {
        desc: OWNER,
        avail,
        used,
    };
    (layout, (used + 6 + 8 * num).next_multiple_of(4096))
}

impl Guest {
    /// A ring of `num` entries that begins at index 0, and all memory in one region.
    pub fn new(num: u16) -> Self {
        Self::with_table(num, |_| Vec::new())
    }

    /// The same with the regions that `table` makes for a heap at the given address of the owner.
    pub fn with_table(num: u16, table: impl FnOnce(u64) -> Vec<Region>) -> Self {
        let (layout, end) = place(num);
        let size = end - OWNER + HEAP;
        let mut regions = table(end);
        if regions.is_empty() {
            regions.push(region(GUEST, size, OWNER));
        }
        let mut ring = Ring::new();
        assert!(ring.set_num(num.into()));
        ring.set_layout(layout);
        Self {
            mem: Memory::new(size, regions),
            ring,
            layout,
            num,
            avail_idx: 0,
        }
    }

    /// Makes both indices begin at `base`, as after a migration.
    pub fn starting_at(mut self, base: u16) -> Self {
        self.avail_idx = base;
        self.mem.poke(self.layout.avail + 2, &base.to_le_bytes());
        self.mem.poke(self.layout.used + 2, &base.to_le_bytes());
        self.ring.set_base(base);
        self.ring.start(&self.mem).expect("a ring that is mapped");
        self.mem.forget_accesses();
        self
    }

    pub fn with_features(mut self, event_idx: bool, notify_on_empty: bool) -> Self {
        self.ring.set_features(event_idx, notify_on_empty);
        self
    }

    /// A guest-physical address in the heap, with the default memory table.
    pub fn heap(&self, offset: u64) -> u64 {
        place(self.num).1 - OWNER + GUEST + offset
    }

    /// The owner's address of that.
    pub fn heap_owner(&self, offset: u64) -> usize {
        (place(self.num).1 + offset) as usize
    }

    /// Writes a descriptor of the ring's table.
    pub fn put(&self, index: u16, descriptor: Descriptor) {
        let addr = self.layout.desc + 16 * u64::from(index);
        self.mem.poke(addr, &descriptor.bytes());
    }

    /// Writes an indirect table at a guest-physical address.
    pub fn put_table(&self, addr: u64, entries: &[Descriptor]) -> Descriptor {
        for (index, entry) in entries.iter().enumerate() {
            self.mem
                .poke_guest(addr + 16 * index as u64, &entry.bytes());
        }
        Descriptor::table(addr, 16 * entries.len() as u32)
    }

    /// Makes a chain available that begins at `head`.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.num);
        self.mem
            .poke(self.layout.avail + 4 + 2 * slot, &head.to_le_bytes());
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.write_avail_idx(self.avail_idx);
    }

    /// Writes chains of one descriptor each at descriptors 0, 1, ... and makes them available.
    pub fn post_singles(&mut self, count: u16) {
        for index in 0..count {
            self.put(
                index,
                Descriptor::readable(self.heap(0), 1 + u32::from(index)),
            );
            self.publish(index);
        }
    }

    /// Writes the available index alone.
    pub fn write_avail_idx(&self, index: u16) {
        self.mem.poke(self.layout.avail + 2, &index.to_le_bytes());
    }

    pub fn write_avail_flags(&self, flags: u16) {
        self.mem.poke(self.layout.avail, &flags.to_le_bytes());
    }

    pub fn write_used_event(&self, event: u16) {
        let addr = self.layout.avail + 4 + 2 * u64::from(self.num);
        self.mem.poke(addr, &event.to_le_bytes());
    }

    pub fn used_flags(&self) -> u16 {
        self.mem.peek_u16(self.layout.used)
    }

    pub fn used_idx(&self) -> u16 {
        self.mem.peek_u16(self.layout.used + 2)
    }

    pub fn avail_event(&self) -> u16 {
        let addr = self.layout.used + 4 + 8 * u64::from(self.num);
        self.mem.peek_u16(addr)
    }

    /// The element of the used ring at a slot.
    pub fn used_elem(&self, slot: u16) -> UsedElem {
        let addr = self.layout.used + 4 + 8 * u64::from(slot);
        UsedElem {
            id: u32::from_le_bytes(self.mem.peek(addr)),
            len: u32::from_le_bytes(self.mem.peek(addr + 4)),
        }
    }

    /// Takes a chain with room for 1024 segments; returns it with the segments that it has.
    pub fn pop(&mut self) -> Result<Option<(Chain, Vec<Segment>)>, RingError> {
        self.pop_with_room(1024)
    }

    pub fn pop_with_room(
        &mut self,
        room: usize,
    ) -> Result<Option<(Chain, Vec<Segment>)>, RingError> {
        let mut segments = vec![Segment::default(); room];
        let chain = self.ring.pop(&self.mem, &mut segments)?;
        Ok(chain.map(|chain| {
            segments.truncate(chain.readable + chain.writable);
            let len: usize = segments.iter().map(|segment| segment.len).sum();
            assert_eq!(chain.len, len);
            (chain, segments)
        }))
    }

    /// The head of the next chain, if there is one.
    pub fn pop_head(&mut self) -> Option<u16> {
        let popped = self.pop().expect("a well-formed ring");
        popped.map(|(chain, _)| chain.head)
    }

    /// The heads of all chains that are available.
    pub fn drain(&mut self) -> Vec<u16> {
        let mut heads = Vec::new();
        while let Some(head) = self.pop_head() {
            heads.push(head);
            self.ring.take_work();
            assert!(heads.len() <= self.num.into(), "more chains than entries");
        }
        heads
    }

    /// Why the next chain cannot be taken.
    pub fn pop_error(&mut self) -> RingError {
        self.pop().expect_err("a chain that is refused")
    }

    /// Gives back `count` chains in one batch, with ids that count up from 0.
    pub fn push(&mut self, count: u32) {
        let elems: Vec<_> = (0..count).map(|id| UsedElem { id, len: 0 }).collect();
        self.ring
            .push_used(&self.mem, &elems)
            .expect("a used ring that is mapped");
    }

    pub fn needs_interrupt(&mut self) -> bool {
        self.ring.needs_interrupt(&self.mem)
    }

    pub fn enable_notify(&mut self) -> Result<bool, RingError> {
        self.ring.enable_notify(&self.mem)
    }

    pub fn disable_notify(&mut self) {
        self.ring
            .disable_notify(&self.mem)
            .expect("a used ring that is mapped");
    }
}

/// A region of the memory table.
pub fn region(guest_addr: u64, size: u64, user_addr: u64) -> Region {
    Region {
        guest_addr,
        size,
        user_addr,
        flags: 0,
    }
}
