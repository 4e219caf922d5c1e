// SPDX-License-Identifier: GPL-2.0

//! The device side of a split virtqueue (virtio 1.3, section 2.7).
//!
//! [`chain`] reads descriptor chains, [`ahead`] many of them at once, [`used`] gives them back,
//! [`notify`] decides about notifications in both directions. All state of the device side is in
//! [`Ring`]; the ring itself lies in memory that a hostile guest writes at any time.

mod ahead;
pub mod chain;
pub mod notify;
pub mod used;

use crate::engine::error::RingError;
use crate::engine::mem::RingMem;
use ahead::Ahead;

/// Bytes of a descriptor (2.7.5).
pub const DESCRIPTOR_SIZE: u64 = 16;

/// Where the parts of the ring are, in the address space of the device's owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The descriptor table: `num` times 16 bytes.
    pub desc: u64,
    /// The available ring: flags, index, `num` heads, and the used event with EVENT_IDX.
    pub avail: u64,
    /// The used ring: flags, index, `num` elements, and the available event with EVENT_IDX.
    pub used: u64,
}

impl Layout {
    // Whoever sets a layout has checked that the parts lie in user space before a backend is set,
    // so these sums cannot overflow for a ring that is served. They wrap all the same, since
    // a layout may be stored unchecked while there is no backend.

    fn descriptor(&self, number: u16) -> u64 {
        self.desc.wrapping_add(DESCRIPTOR_SIZE * u64::from(number))
    }

    fn avail_idx(&self) -> u64 {
        self.avail.wrapping_add(2)
    }

    fn avail_entry(&self, slot: u16) -> u64 {
        self.avail.wrapping_add(4 + 2 * u64::from(slot))
    }

    fn used_event(&self, num: u16) -> u64 {
        self.avail_entry(num)
    }

    fn used_idx(&self) -> u64 {
        self.used.wrapping_add(2)
    }

    fn used_entry(&self, slot: u16) -> u64 {
        self.used.wrapping_add(4 + 8 * u64::from(slot))
    }

    fn avail_event(&self, num: u16) -> u64 {
        self.used_entry(num)
    }

    /// The three parts as (address, length in bytes), for access checks.
    pub fn parts(&self, num: u16, event_idx: bool) -> [(u64, u64); 3] {
        let event = if event_idx { 2 } else { 0 };
        let num = u64::from(num);
        [
            (self.desc, DESCRIPTOR_SIZE * num),
            (self.avail, 4 + 2 * num + event),
            (self.used, 4 + 8 * num + event),
        ]
    }
}

/// The device's view of one split virtqueue.
///
/// # Invariants
///
/// `num` is a power of two from 1 to 32768.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    layout: Layout,
    num: u16,
    event_idx: bool,
    notify_on_empty: bool,
    /// Index of the next available entry to take; what `VHOST_GET_VRING_BASE` reports.
    next_avail: u16,
    /// The driver's available index when it was last read.
    avail_idx: u16,
    /// The used index: entries given back so far.
    next_used: u16,
    /// The used index at the last decision to interrupt; `None` makes the next one unconditional.
    signalled: Option<u16>,
    /// Whether the driver is asked not to notify.
    quiet: bool,
    /// Work on the packet that is being made: descriptors that were read, and pieces in addition,
    /// since [`Ring::take_work`] was asked.
    work: u32,
    /// What was read ahead of the chains that are to be taken next.
    ahead: Ahead,
}

impl Default for Ring {
    fn default() -> Self {
        Self::new()
    }
}

impl Ring {
    /// A ring of size 1 without addresses, as after `open` and `VHOST_RESET_OWNER`.
    pub const fn new() -> Self {
        Self {
            layout: Layout {
                desc: 0,
                avail: 0,
                used: 0,
            },
            num: 1,
            event_idx: false,
            notify_on_empty: false,
            next_avail: 0,
            avail_idx: 0,
            next_used: 0,
            signalled: None,
            quiet: false,
            work: 0,
            ahead: Ahead::new(),
        }
    }

    /// How many descriptors were read since this was asked last, for who pays for the time. Pieces
    /// into which regions of the memory table divide a buffer or an indirect table count as such.
    ///
    /// To be asked after each packet, and before the first: [`Ring::pop`] refuses to do more than
    /// 4096 for one of them.
    pub fn take_work(&mut self) -> usize {
        core::mem::take(&mut self.work) as usize
    }

    /// Begins a slice: what was read for a packet that was not made before it is no work on the next
    /// one, and what was read ahead is read again, so that nothing is believed for longer than a slice.
    pub fn begin_slice(&mut self) {
        self.work = 0;
        self.ahead.forget();
    }

    /// Sets the ring size; returns false for one that the specification does not allow.
    pub fn set_num(&mut self, num: u32) -> bool {
        match u16::try_from(num) {
            Ok(num) if num.is_power_of_two() => {
                self.num = num;
                self.ahead.forget();
                true
            }
            _ => false,
        }
    }

    /// The number of entries.
    pub fn num(&self) -> u16 {
        self.num
    }

    /// Sets where the ring is.
    pub fn set_layout(&mut self, layout: Layout) {
        self.layout = layout;
        self.ahead.forget();
    }

    /// Where the ring is.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Sets the features that change how notifications work.
    pub fn set_features(&mut self, event_idx: bool, notify_on_empty: bool) {
        self.event_idx = event_idx;
        self.notify_on_empty = notify_on_empty;
    }

    /// Whether EVENT_IDX was negotiated.
    pub fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// Sets the next available entry to take and forgets the driver's index.
    pub fn set_base(&mut self, base: u16) {
        self.next_avail = base;
        self.avail_idx = base;
        self.ahead.forget();
    }

    /// How many entries wait when the driver's available index is `avail_idx`, at most as many as
    /// there are.
    pub fn pending(&self, avail_idx: u16) -> u16 {
        avail_idx.wrapping_sub(self.next_avail).min(self.num)
    }

    /// The next available entry to take.
    pub fn base(&self) -> u16 {
        self.next_avail
    }

    /// Where the driver publishes its available index, for who looks at it without taking chains.
    pub fn avail_idx_address(&self) -> u64 {
        self.layout.avail_idx()
    }

    /// Whether the driver's available index, which the caller has read, moved since the ring's
    /// last look.
    pub fn has_news(&self, avail_idx: u16) -> bool {
        avail_idx != self.avail_idx
    }

    /// Whether an address was ever set: with all of them 0 there is no ring to serve.
    pub fn is_set_up(&self) -> bool {
        self.layout != Layout::default()
    }

    /// Begins to use the ring: tells the driver how it shall notify and takes up the used index
    /// that is in memory, which defines it after a migration.
    pub fn start<M: RingMem>(&mut self, mem: &M) -> Result<(), RingError> {
        mem.write_u16(self.layout.used, self.used_flags())?;
        self.signalled = None;
        self.next_used = mem.read_u16(self.layout.used_idx())?;
        Ok(())
    }

    fn slot(&self, index: u16) -> u16 {
        index & (self.num - 1)
    }
}
