// SPDX-License-Identifier: GPL-2.0
//! The driver's side of a split virtqueue.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{bail, ensure, Context, Result};
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use vm_memory::{Address, ByteValued, GuestAddress};

use crate::memory::{full_barrier, GuestMemory};

/// A descriptor as it stands in the table, little-endian.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

// SAFETY: All fields are integers and the layout has no padding, so every bit pattern is a value.
unsafe impl ByteValued for Descriptor {}

const _: () = assert!(size_of::<Descriptor>() == 16);

/// The descriptor's buffer is written by the device.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// The chain goes on with the descriptor's `next`.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// The descriptor's buffer is a table of descriptors.
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

impl Descriptor {
    /// A descriptor with these fields, well-formed or not.
    pub fn new(address: GuestAddress, length: u32, flags: u16, next: u16) -> Self {
        Self {
            address: address.raw_value().to_le(),
            length: length.to_le(),
            flags: flags.to_le(),
            next: next.to_le(),
        }
    }
}

/// An element of the used ring, little-endian.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct UsedElement {
    id: u32,
    length: u32,
}

// SAFETY: All fields are integers and the layout has no padding, so every bit pattern is a value.
unsafe impl ByteValued for UsedElement {}

/// Where the three parts of a ring are.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: GuestAddress,
    /// The available ring, which the driver writes.
    pub available: GuestAddress,
    /// The used ring, which the device writes.
    pub used: GuestAddress,
}

impl Layout {
    /// Finds room for a ring.
    pub fn allocate(memory: &GuestMemory, size: u16) -> Result<Self> {
        let entries = u64::from(size);
        Ok(Self {
            size,
            descriptors: memory.allocate(16 * entries, 16)?,
            // Flags and index before the entries, the event index after them.
            available: memory.allocate(4 + 2 * entries + 2, 2)?,
            used: memory.allocate(4 + 8 * entries + 2, 4)?,
        })
    }

    /// Where the available ring is, and its length.
    pub fn available_part(&self) -> (GuestAddress, u64) {
        let end = self.used_event().unchecked_add(2);
        (self.available, end.unchecked_offset_from(self.available))
    }

    /// Where the used ring is, and its length.
    pub fn used_part(&self) -> (GuestAddress, u64) {
        let end = self.available_event().unchecked_add(2);
        (self.used, end.unchecked_offset_from(self.used))
    }

    fn descriptor(&self, index: u16) -> GuestAddress {
        self.descriptors.unchecked_add(16 * u64::from(index))
    }

    fn available_flags(&self) -> GuestAddress {
        self.available
    }

    fn available_index(&self) -> GuestAddress {
        self.available.unchecked_add(2)
    }

    fn available_entry(&self, position: u16) -> GuestAddress {
        self.available
            .unchecked_add(4 + 2 * u64::from(position & (self.size - 1)))
    }

    fn used_event(&self) -> GuestAddress {
        self.available.unchecked_add(4 + 2 * u64::from(self.size))
    }

    fn used_flags(&self) -> GuestAddress {
        self.used
    }

    fn used_index(&self) -> GuestAddress {
        self.used.unchecked_add(2)
    }

    fn used_entry(&self, position: u16) -> GuestAddress {
        self.used
            .unchecked_add(4 + 8 * u64::from(position & (self.size - 1)))
    }

    fn available_event(&self) -> GuestAddress {
        self.used.unchecked_add(4 + 8 * u64::from(self.size))
    }
}

/// One piece of a buffer chain.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Start of the piece.
    pub address: GuestAddress,
    /// Its length.
    pub length: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

/// How a chain is laid out in descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chaining {
    /// One descriptor of the ring for each segment.
    Direct,
    /// One descriptor of the ring, which points to a table with the segments.
    Indirect,
}

/// A buffer chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's first descriptor, as [`SplitRing::add`] returned it.
    pub head: u16,
    /// Bytes that the device says it wrote.
    pub length: u32,
}

/// Segments that fit an indirect table of this driver.
const INDIRECT_CAPACITY: u16 = 16;

/// The driver's view of a ring.
pub struct SplitRing {
    memory: Arc<GuestMemory>,
    layout: Layout,
    event_index: bool,
    /// Descriptors that belong to no chain.
    free: Vec<u16>,
    /// For each head in flight, the descriptors of its chain.
    chains: Vec<Option<Vec<u16>>>,
    /// For each descriptor, the indirect table that is its own, once it has needed one.
    tables: Vec<Option<GuestAddress>>,
    /// The available index that includes every chain added.
    next_available: u16,
    /// The available index that the device can see.
    published: u16,
    /// The used index up to which chains were taken back.
    next_used: u16,
    /// With buffers used in order, the heads in flight, and of the batch that is being taken back
    /// the last head and the bytes written into it.
    order: Option<VecDeque<u16>>,
    batch: Option<Used>,
    /// For each head in flight, the bytes that the device may write.
    writable: Vec<u32>,
}

/// Whether the step from `old` to `new` passes the event index: the formula of the specification.
fn passes_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl SplitRing {
    /// A ring without chains whose indices start at `start`, as after a migration.
    pub fn new(memory: Arc<GuestMemory>, size: u16, event_index: bool, start: u16) -> Result<Self> {
        ensure!(
            size.is_power_of_two(),
            "ring size {size} is no power of two"
        );
        let layout = Layout::allocate(&memory, size)?;
        let mut ring = Self {
            memory,
            layout,
            event_index,
            free: Vec::new(),
            chains: Vec::new(),
            tables: vec![None; size.into()],
            next_available: 0,
            published: 0,
            next_used: 0,
            order: None,
            batch: None,
            writable: vec![0; size.into()],
        };
        ring.restart(start)?;
        Ok(ring)
    }

    /// Lets the device give chains back in order, and several with one element.
    pub fn in_order(mut self) -> Self {
        self.order = Some(VecDeque::new());
        self.free.reverse();
        self
    }

    /// Forgets every chain and starts over at this index. The device must not be serving the ring.
    pub fn restart(&mut self, start: u16) -> Result<()> {
        self.free = (0..self.layout.size).rev().collect();
        if self.order.is_some() {
            self.free.reverse();
        }
        self.chains = vec![None; self.layout.size.into()];
        self.next_available = start;
        self.published = start;
        self.next_used = start;
        self.batch = None;
        if let Some(order) = &mut self.order {
            order.clear();
        }
        for field in [
            self.layout.available_flags(),
            self.layout.used_flags(),
            self.layout.used_event(),
            self.layout.available_event(),
        ] {
            self.memory.store(field, 0)?;
        }
        self.memory.store(self.layout.available_index(), start)?;
        self.memory.store(self.layout.used_index(), start)?;
        if self.event_index {
            self.memory.store(self.layout.used_event(), start)?;
            self.memory.store(self.layout.available_event(), start)?;
        }
        Ok(())
    }

    /// Where the ring is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Descriptors that no chain uses.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Chains that the device has not given back.
    pub fn in_flight(&self) -> u16 {
        self.next_available.wrapping_sub(self.next_used)
    }

    /// The available index that the device can see.
    pub fn published(&self) -> u16 {
        self.published
    }

    /// Adds a chain, which the device sees at the next [`publish`](Self::publish).
    ///
    /// Returns its head, or nothing when the ring has not enough free descriptors.
    pub fn add(&mut self, segments: &[Segment], chaining: Chaining) -> Result<Option<u16>> {
        ensure!(!segments.is_empty(), "a chain needs a segment");
        let needed = match chaining {
            Chaining::Direct => segments.len(),
            Chaining::Indirect => 1,
        };
        if self.free.len() < needed {
            return Ok(None);
        }
        // A driver that has agreed on order takes descriptors in order as well (virtio 1.3, 2.7.13).
        let chain = if self.order.is_some() {
            self.free.drain(..needed).collect()
        } else {
            self.free.split_off(self.free.len() - needed)
        };
        match chaining {
            Chaining::Direct => {
                for (position, segment) in segments.iter().enumerate() {
                    let next = chain.get(position + 1).copied();
                    self.write_descriptor(chain[position], descriptor(segment, next))?;
                }
            }
            Chaining::Indirect => {
                let table = self.table(chain[0])?;
                ensure!(
                    segments.len() <= INDIRECT_CAPACITY.into(),
                    "indirect table too small"
                );
                for (position, segment) in segments.iter().enumerate() {
                    let next = (position + 1 < segments.len()).then_some(position as u16 + 1);
                    self.memory.write(
                        table.unchecked_add(16 * position as u64),
                        descriptor(segment, next),
                    )?;
                }
                let length = 16 * segments.len() as u32;
                self.write_descriptor(chain[0], Descriptor::new(table, length, INDIRECT, 0))?;
            }
        }
        let head = chain[0];
        self.write_available_entry(self.next_available, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        if let Some(order) = &mut self.order {
            order.push_back(head);
        }
        let writable = segments.iter().filter(|segment| segment.writable);
        self.writable[usize::from(head)] = writable.map(|segment| segment.length).sum();
        self.chains[usize::from(head)] = Some(chain);
        Ok(Some(head))
    }

    fn table(&mut self, descriptor: u16) -> Result<GuestAddress> {
        let entry = &mut self.tables[usize::from(descriptor)];
        match *entry {
            Some(table) => Ok(table),
            None => {
                let table = self
                    .memory
                    .allocate(16 * u64::from(INDIRECT_CAPACITY), 16)?;
                Ok(*entry.insert(table))
            }
        }
    }

    /// Shows the device what was added, and returns whether it wants to be kicked for it.
    pub fn publish(&mut self) -> Result<bool> {
        let old = self.published;
        if old == self.next_available {
            return Ok(false);
        }
        self.published = self.next_available;
        self.memory
            .store(self.layout.available_index(), self.published)?;
        full_barrier();
        self.kick_for(old, self.published)
    }

    /// Whether the device wants to be kicked for the next chain.
    pub fn wants_kick(&self) -> Result<bool> {
        self.kick_for(self.published, self.published.wrapping_add(1))
    }

    /// Whether the device wants to be kicked for this step of the available index.
    fn kick_for(&self, old: u16, new: u16) -> Result<bool> {
        if self.event_index {
            let event = self.memory.load(self.layout.available_event())?;
            Ok(passes_event(event, new, old))
        } else {
            let flags = self.memory.load(self.layout.used_flags())?;
            Ok(flags & VRING_USED_F_NO_NOTIFY as u16 == 0)
        }
    }

    /// Whether the device has given back a chain that was not taken yet.
    pub fn has_used(&self) -> Result<bool> {
        Ok(self.memory.load(self.layout.used_index())? != self.next_used)
    }

    /// Takes back the next chain that the device is done with.
    ///
    /// # Errors
    ///
    /// Fails when the device gives back what it does not have.
    pub fn take_used(&mut self) -> Result<Option<Used>> {
        let index = self.memory.load(self.layout.used_index())?;
        let ready = index.wrapping_sub(self.next_used);
        if ready == 0 {
            return Ok(None);
        }
        let outstanding = self.published.wrapping_sub(self.next_used);
        ensure!(
            ready <= outstanding,
            "used index {index} gives back {ready} chains where {outstanding} are in flight"
        );
        let (id, length) = match self.next_in_order()? {
            Some(used) => (u32::from(used.head), used.length),
            None => self.used_element()?,
        };
        let chain = usize::try_from(id)
            .ok()
            .and_then(|id| self.chains.get_mut(id))
            .and_then(Option::take)
            .with_context(|| {
                format!(
                    "used entry {} names head {id}, which is not in flight",
                    self.next_used
                )
            })?;
        self.free.extend(chain);
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(Used {
            head: id as u16,
            length,
        }))
    }

    /// The element at the next used index: a head and the bytes written.
    fn used_element(&self) -> Result<(u32, u32)> {
        let element: UsedElement = self.memory.read(self.layout.used_entry(self.next_used))?;
        Ok((u32::from_le(element.id), u32::from_le(element.length)))
    }

    /// With buffers used in order, the next chain of the batch, all of which but the last are full.
    fn next_in_order(&mut self) -> Result<Option<Used>> {
        let Some(order) = &mut self.order else {
            return Ok(None);
        };
        let head = order.pop_front().context("no chain is in flight")?;
        let last = match self.batch.take() {
            Some(last) => last,
            None => {
                let (id, length) = self.used_element()?;
                let head = u16::try_from(id).with_context(|| format!("head {id}"))?;
                Used { head, length }
            }
        };
        if head == last.head {
            return Ok(Some(last));
        }
        self.batch = Some(last);
        let length = self.writable[usize::from(head)];
        Ok(Some(Used { head, length }))
    }

    /// Asks for a call at the next used chain, and returns whether one is there already.
    pub fn enable_call(&mut self) -> Result<bool> {
        self.call_after(1)
    }

    /// Asks for a call when `count` more chains are used, and returns whether they already are.
    ///
    /// A ring without event index cannot wait for more than one.
    pub fn call_after(&mut self, count: u16) -> Result<bool> {
        if self.event_index {
            let event = self.next_used.wrapping_add(count - 1);
            self.memory.store(self.layout.used_event(), event)?;
        } else {
            self.memory.store(self.layout.available_flags(), 0)?;
        }
        full_barrier();
        let used = self.memory.load(self.layout.used_index())?;
        Ok(used.wrapping_sub(self.next_used) >= count)
    }

    /// Asks for no call.
    pub fn disable_call(&mut self) -> Result<()> {
        if self.event_index {
            // No fewer than a whole ring of chains lies before an index just behind the last one.
            let event = self.next_used.wrapping_sub(1);
            self.memory.store(self.layout.used_event(), event)
        } else {
            let flags = VRING_AVAIL_F_NO_INTERRUPT as u16;
            self.memory.store(self.layout.available_flags(), flags)
        }
    }

    /// Writes a descriptor of the table as it is, for tests that break the ring.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) -> Result<()> {
        self.memory.write(self.layout.descriptor(index), descriptor)
    }

    /// Writes an entry of the available ring as it is, for tests that break the ring.
    pub fn write_available_entry(&self, position: u16, head: u16) -> Result<()> {
        self.memory
            .store(self.layout.available_entry(position), head)
    }

    /// Writes the available index as it is, for tests that break the ring.
    pub fn write_available_index(&self, index: u16) -> Result<()> {
        self.memory.store(self.layout.available_index(), index)
    }

    /// The device's used index.
    pub fn used_index(&self) -> Result<u16> {
        self.memory.load(self.layout.used_index())
    }

    /// Fails unless the device has given back everything.
    pub fn expect_idle(&self) -> Result<()> {
        match self.in_flight() {
            0 => Ok(()),
            chains => bail!("{chains} chains never came back"),
        }
    }
}

fn descriptor(segment: &Segment, next: Option<u16>) -> Descriptor {
    let write = if segment.writable { WRITE } else { 0 };
    let chained = if next.is_some() { NEXT } else { 0 };
    Descriptor::new(
        segment.address,
        segment.length,
        write | chained,
        next.unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays the device: uses the chain at this position of the available ring.
    fn use_chain(ring: &SplitRing, position: u16, length: u32) {
        let head = ring
            .memory
            .load(ring.layout.available_entry(position))
            .unwrap();
        let element = UsedElement {
            id: u32::from(head).to_le(),
            length: length.to_le(),
        };
        ring.memory
            .write(ring.layout.used_entry(position), element)
            .unwrap();
        ring.memory
            .store(ring.layout.used_index(), position.wrapping_add(1))
            .unwrap();
    }

    fn ring(size: u16, event_index: bool, start: u16) -> (SplitRing, Segment) {
        let memory = Arc::new(GuestMemory::new().unwrap());
        let address = memory.allocate(64, 1).unwrap();
        let ring = SplitRing::new(memory, size, event_index, start).unwrap();
        (
            ring,
            Segment {
                address,
                length: 64,
                writable: false,
            },
        )
    }

    #[test]
    fn parts_do_not_overlap() {
        let memory = GuestMemory::new().unwrap();
        let layout = Layout::allocate(&memory, 256).unwrap();
        let mut parts = [
            (layout.descriptors, layout.descriptor(255).unchecked_add(16)),
            (layout.available, layout.used_event().unchecked_add(2)),
            (layout.used, layout.available_event().unchecked_add(2)),
        ];
        parts.sort();
        assert!(parts.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert_eq!(layout.available_part(), (layout.available, 4 + 512 + 2));
        assert_eq!(layout.used_part(), (layout.used, 4 + 2048 + 2));
        assert_eq!(layout.available_entry(256), layout.available_entry(0));
        assert_eq!(layout.used_entry(300), layout.used_entry(44));
    }

    #[test]
    fn event_formula_matches_the_specification() {
        assert!(passes_event(5, 6, 5));
        assert!(!passes_event(6, 6, 5));
        assert!(passes_event(0xffff, 0, 0xffff));
        assert!(passes_event(0xfffe, 3, 0xfffd));
        assert!(!passes_event(3, 3, 0xfffd));
    }

    #[test]
    fn chains_come_back_across_the_index_wrap() {
        for chaining in [Chaining::Direct, Chaining::Indirect] {
            let (mut ring, segment) = ring(4, true, 0xfffe);
            for round in 0..8u16 {
                let head = ring.add(&[segment, segment], chaining).unwrap().unwrap();
                assert!(ring.publish().unwrap() || round > 0);
                assert_eq!(ring.take_used().unwrap(), None);
                use_chain(&ring, 0xfffeu16.wrapping_add(round), 7);
                assert_eq!(ring.take_used().unwrap(), Some(Used { head, length: 7 }));
            }
            ring.expect_idle().unwrap();
            assert_eq!(ring.free_descriptors(), 4);
        }
    }

    #[test]
    fn full_ring_takes_no_more() {
        let (mut ring, segment) = ring(4, false, 0);
        assert!(ring.add(&[segment; 3], Chaining::Direct).unwrap().is_some());
        assert!(ring.add(&[segment; 2], Chaining::Direct).unwrap().is_none());
        assert!(ring
            .add(&[segment; 2], Chaining::Indirect)
            .unwrap()
            .is_some());
        assert!(ring.add(&[segment], Chaining::Direct).unwrap().is_none());
    }

    #[test]
    fn kick_follows_the_flag_or_the_event_index() {
        let (mut plain, segment) = ring(4, false, 0);
        plain.memory.store(plain.layout.used_flags(), 1).unwrap();
        plain.add(&[segment], Chaining::Direct).unwrap();
        assert!(!plain.publish().unwrap());
        plain.memory.store(plain.layout.used_flags(), 0).unwrap();
        plain.add(&[segment], Chaining::Direct).unwrap();
        assert!(plain.publish().unwrap());

        let (mut event, segment) = ring(4, true, 0);
        event
            .memory
            .store(event.layout.available_event(), 1)
            .unwrap();
        event.add(&[segment], Chaining::Direct).unwrap();
        assert!(!event.publish().unwrap());
        event.add(&[segment], Chaining::Direct).unwrap();
        assert!(event.publish().unwrap());
    }

    #[test]
    fn wrong_completions_are_errors() {
        let (mut ring, segment) = ring(4, false, 0);
        ring.add(&[segment], Chaining::Direct).unwrap();
        ring.publish().unwrap();
        use_chain(&ring, 0, 0);
        assert!(ring.take_used().unwrap().is_some());
        // The same chain once more.
        use_chain(&ring, 1, 0);
        assert!(ring.take_used().is_err());
    }

    #[test]
    fn call_after_counts_from_the_last_taken() {
        let (mut ring, segment) = ring(8, true, 0);
        for _ in 0..4 {
            ring.add(&[segment], Chaining::Direct).unwrap();
        }
        ring.publish().unwrap();
        assert!(!ring.call_after(3).unwrap());
        assert_eq!(ring.memory.load(ring.layout.used_event()).unwrap(), 2);
        for position in 0..3 {
            use_chain(&ring, position, 0);
        }
        assert!(ring.call_after(3).unwrap());
        assert!(!ring.call_after(4).unwrap());
    }
}
