// SPDX-License-Identifier: GPL-2.0

//! Memory that changes while it is read, fails when it is told to, and remembers every access.

use std::cell::{Cell, RefCell};

use vhost_iocm_engine::engine::error::RingError;
use vhost_iocm_engine::engine::mem::{self, Order, Region, RingMem, UsedElem};
use vhost_iocm_engine::engine::ring::Layout;

/// Where memory begins in the address space of the device's owner. Far from [`GUEST`], so that an
/// address that was not translated does not work by accident, and where a process has nothing, so
/// that one can have this memory.
pub const OWNER: u64 = 0x2f12_3450_0000;
/// Where guest-physical memory begins, with the memory table of the beginning.
pub const GUEST: u64 = 0x8000_0000;
/// Bytes behind the ring for buffers and indirect tables.
const HEAP: u64 = 0x4000;

/// One access of the engine, with what came of it. Addresses are those of the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    ReadU16(u64, Option<u16>),
    ReadDescriptor(u64, Option<[u8; 16]>),
    WriteU16(u64, u16, bool),
    WriteUsed(u64, Vec<UsedElem>, bool),
}

impl Touch {
    pub(crate) fn failed(&self) -> bool {
        matches!(
            self,
            Self::ReadU16(_, None)
                | Self::ReadDescriptor(_, None)
                | Self::WriteU16(.., false)
                | Self::WriteUsed(.., false)
        )
    }
}

/// What guest or owner write from another CPU.
#[derive(Clone, Copy, Debug)]
pub struct Write {
    /// Where, in the owner's address space.
    pub addr: u64,
    pub(crate) bytes: [u8; 16],
    pub(crate) len: usize,
}

impl Write {
    /// What is written: a field of 2 bytes, or a descriptor.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn word(addr: u64, value: u16) -> Self {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&value.to_le_bytes());
        let len = 2;
        Self { addr, bytes, len }
    }

    pub(crate) fn descriptor(addr: u64, bytes: [u8; 16]) -> Self {
        let len = bytes.len();
        Self { addr, bytes, len }
    }
}

/// Two values that the same memory has in turn, changing before each access.
#[derive(Clone, Copy, Debug)]
struct Race([Write; 2]);

/// Memory of the owner, with the memory table that maps guest-physical addresses into it.
pub struct Memory {
    bytes: RefCell<Vec<u8>>,
    /// Where the heap begins, from the beginning of memory.
    heap: u64,
    /// As the owner gave them.
    given: Vec<Region>,
    regions: Vec<Region>,
    order: Order,
    /// What is written before which access, counted from the last [`begin`](Memory::begin).
    changes: RefCell<Vec<(usize, Write)>>,
    races: Vec<Race>,
    failing: Cell<Option<usize>>,
    touches: RefCell<Vec<Touch>>,
    translations: Cell<usize>,
    limit: Cell<usize>,
    changed: Cell<bool>,
}

/// Where a ring of `num` entries lies when it is laid out as usual, and where it ends.
pub(crate) fn place(num: u16) -> (Layout, u64) {
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

/// Bytes of the memory of a guest whose ring has `num` entries in the beginning.
pub fn memory_size(num: u16) -> u64 {
    place(num).1 - OWNER + HEAP
}

impl Memory {
    /// Memory with room for a ring of `num` entries and the heap, mapped as one region.
    pub(crate) fn new(num: u16) -> Self {
        let heap = place(num).1 - OWNER;
        let whole = Region {
            guest_addr: GUEST,
            size: heap + HEAP,
            user_addr: OWNER,
            flags: 0,
        };
        Self {
            bytes: RefCell::new(vec![0; (heap + HEAP) as usize]),
            heap,
            given: vec![whole],
            regions: vec![whole],
            order: Order::Disjoint,
            changes: RefCell::default(),
            races: Vec::new(),
            failing: Cell::new(None),
            touches: RefCell::default(),
            translations: Cell::new(0),
            limit: Cell::new(usize::MAX),
            changed: Cell::new(false),
        }
    }

    /// Where the heap begins, guest-physical and with the memory table of the beginning.
    pub(crate) fn heap(&self) -> u64 {
        GUEST + self.heap
    }

    /// The owner's address of that.
    pub(crate) fn heap_owner(&self) -> u64 {
        OWNER + self.heap
    }

    /// One of the regions, whatever the number.
    pub(crate) fn region(&self, number: usize) -> Region {
        match self.given.len() {
            0 => Region::default(),
            len => self.given[number % len],
        }
    }

    pub(crate) fn overlaps(&self) -> bool {
        self.order == Order::Overlapping
    }

    /// Replaces the memory table, unless it is one that has to be refused. Returns whether it was
    /// accepted.
    pub(crate) fn set_table(&mut self, given: Vec<Region>) -> bool {
        let mut regions = given.clone();
        let order = mem::sort_regions(&mut regions);
        let usable = |region: &Region| {
            region.size > 0 && u128::from(region.guest_addr) + u128::from(region.size) <= 1 << 64
        };
        assert_eq!(order.is_some(), given.iter().all(usable), "{given:x?}");
        let Some(order) = order else {
            return false;
        };
        let overlap = |(at, one): (usize, &Region)| {
            given[..at].iter().any(|other| {
                one.guest_addr.max(other.guest_addr)
                    <= (one.guest_addr + (one.size - 1)).min(other.guest_addr + (other.size - 1))
            })
        };
        let overlaps = given.iter().enumerate().any(overlap);
        assert_eq!(order == Order::Overlapping, overlaps, "{given:x?}");
        (self.given, self.regions, self.order) = (given, regions, order);
        true
    }

    /// Where a guest-physical address lies and for how many bytes, by the definition of the memory
    /// table: in the region that begins first among those that hold the address, and of those that
    /// begin together in the one that was given first.
    pub(crate) fn lookup(&self, addr: u64) -> Option<(u64, u64)> {
        let holding = self
            .given
            .iter()
            .filter(|region| region.guest_addr <= addr && addr - region.guest_addr < region.size);
        holding.min_by_key(|region| region.guest_addr).map(|it| {
            let offset = addr - it.guest_addr;
            (it.user_addr.wrapping_add(offset), it.size - offset)
        })
    }

    /// Writes as the guest or the owner does. What lies outside of memory is not written.
    pub(crate) fn poke(&self, write: &Write) {
        if let Some(at) = self.at(write.addr, write.len) {
            let mut bytes = self.bytes.borrow_mut();
            bytes[at..at + write.len].copy_from_slice(&write.bytes[..write.len]);
        }
    }

    /// Reads without the engine.
    pub(crate) fn peek_u16(&self, addr: u64) -> Option<u16> {
        let at = self.at(addr, 2)?;
        let bytes = self.bytes.borrow();
        Some(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
    }

    /// Writes `write` as soon as the next call has touched memory `after` times.
    pub(crate) fn change(&mut self, after: usize, write: Write) {
        self.changes.get_mut().push((after, write));
    }

    /// Lets a place have the value of each of two writes in turn, until
    /// [`calm`](Memory::calm).
    pub(crate) fn race(&mut self, writes: [Write; 2]) {
        self.races.push(Race(writes));
    }

    pub(crate) fn racing(&self) -> usize {
        self.races.len()
    }

    pub(crate) fn calm(&mut self) {
        self.races.clear();
    }

    /// Makes an access of the next call fail.
    pub(crate) fn fail_after(&self, count: usize) {
        self.failing.set(Some(count));
    }

    /// Begins a call that may touch memory or translate an address `limit` times.
    pub(crate) fn begin(&self, limit: usize) {
        self.touches.borrow_mut().clear();
        self.translations.set(0);
        self.limit.set(limit);
        self.changed.set(false);
    }

    /// Ends a call; returns its accesses.
    pub(crate) fn end(&self) -> Calls {
        self.failing.set(None);
        // A change that came too late for this call comes before the next one.
        for (_, write) in self.changes.take() {
            self.poke(&write);
        }
        Calls {
            touches: self.touches.take(),
            translations: self.translations.get(),
            changed: self.changed.get(),
        }
    }

    fn at(&self, addr: u64, len: usize) -> Option<usize> {
        let at = usize::try_from(addr.checked_sub(OWNER)?).ok()?;
        (at.checked_add(len)? <= self.bytes.borrow().len()).then_some(at)
    }

    fn work(&self) -> usize {
        self.touches.borrow().len() + self.translations.get()
    }

    /// Lets the world change before an access; returns where it goes, unless it fails.
    fn access(&self, addr: u64, len: usize) -> Option<usize> {
        assert!(self.work() < self.limit.get(), "work without end");
        let now = self.touches.borrow().len();
        for Race(writes) in &self.races {
            self.poke(&writes[now % 2]);
            self.changed.set(true);
        }
        let due = |change: &mut (usize, Write)| change.0 <= now;
        let due: Vec<_> = self.changes.borrow_mut().extract_if(.., due).collect();
        for (_, write) in due {
            self.poke(&write);
            self.changed.set(now > 0);
        }
        if self.failing.get() == Some(now) {
            return None;
        }
        self.at(addr, len)
    }

    fn read<const LEN: usize>(&self, addr: u64) -> Option<[u8; LEN]> {
        let at = self.access(addr, LEN)?;
        let bytes = self.bytes.borrow();
        Some(std::array::from_fn(|offset| bytes[at + offset]))
    }

    fn touched(&self, touch: Touch) -> Result<(), RingError> {
        let result = if touch.failed() {
            Err(RingError::Fault)
        } else {
            Ok(())
        };
        self.touches.borrow_mut().push(touch);
        result
    }
}

/// What the engine did in one call.
pub(crate) struct Calls {
    pub(crate) touches: Vec<Touch>,
    pub(crate) translations: usize,
    /// Memory changed between two accesses of the call.
    pub(crate) changed: bool,
}

impl Calls {
    pub(crate) fn work(&self) -> usize {
        self.touches.len() + self.translations
    }
}

impl RingMem for Memory {
    fn read_u16(&self, addr: u64) -> Result<u16, RingError> {
        let value = self.read(addr).map(u16::from_le_bytes);
        self.touched(Touch::ReadU16(addr, value))?;
        value.ok_or(RingError::Fault)
    }

    fn write_u16(&self, addr: u64, value: u16) -> Result<(), RingError> {
        let at = self.access(addr, 2);
        if at.is_some() {
            self.poke(&Write::word(addr, value));
        }
        self.touched(Touch::WriteU16(addr, value, at.is_some()))
    }

    fn read_descriptor(&self, addr: u64) -> Result<[u8; 16], RingError> {
        let bytes = self.read(addr);
        self.touched(Touch::ReadDescriptor(addr, bytes))?;
        bytes.ok_or(RingError::Fault)
    }

    fn write_used(&self, addr: u64, elems: &[UsedElem]) -> Result<(), RingError> {
        let at = self.access(addr, 8 * elems.len());
        if let Some(at) = at {
            let mut bytes = self.bytes.borrow_mut();
            let slots = bytes[at..].chunks_exact_mut(8);
            for (slot, elem) in slots.zip(elems) {
                slot[..4].copy_from_slice(&elem.id.to_le_bytes());
                slot[4..].copy_from_slice(&elem.len.to_le_bytes());
            }
        }
        self.touched(Touch::WriteUsed(addr, elems.to_vec(), at.is_some()))
    }

    fn translate(&self, addr: u64, _access: mem::Access) -> Result<(u64, u64), RingError> {
        assert!(self.work() < self.limit.get(), "work without end");
        self.translations.set(self.translations.get() + 1);
        let found = mem::Lookup::new(&self.regions, self.order).translate(addr);
        assert_eq!(
            found.ok(),
            self.lookup(addr),
            "{addr:#x} in {:x?}",
            self.given
        );
        found
    }
}
