// SPDX-License-Identifier: GPL-2.0

//! Memory as the data path sees it: as it is, or with addresses that go through the device IOTLB and
//! writes that are told to the dirty log.
//!
//! The data path is compiled for both. What is off by default costs one branch in each slice.

use crate::atomics;
use crate::engine::error::RingError;
use crate::engine::iotlb::map::Untranslated;
use crate::engine::iotlb::misses::Miss;
use crate::engine::log;
use crate::engine::mem::{Access, RingMem, Segment, UsedElem};
use crate::engine::ring::{Layout, Ring};
use crate::engine::stats::Tally;
use crate::kern::user::{used_bytes, UserMemory};
use crate::vhost::log::Log;
use crate::vhost::virtqueue::Iotlb;
use core::cell::Cell;
use core::ops::Range;

/// What the data path needs from memory.
pub(super) trait Memory: RingMem {
    /// Whether [`note_written`](Memory::note_written) tells anybody.
    const IS_TOLD: bool;

    /// The memory without more.
    fn user(&self) -> &UserMemory<'_>;

    /// Tells who has to know that the first `len` bytes of `segments` were written.
    ///
    /// # Errors
    ///
    /// [`RingError::Fault`] when that has to be done by who may wait for memory. The same may be
    /// told again.
    fn note_written(&self, segments: &[Segment], len: usize) -> Result<(), RingError>;

    /// How much work that was since this was asked last, for who pays for the time, in descriptors
    /// that could have been read meanwhile.
    fn take_work(&self) -> usize;
}

impl Memory for UserMemory<'_> {
    const IS_TOLD: bool = false;

    #[inline]
    fn user(&self) -> &UserMemory<'_> {
        self
    }

    #[inline]
    fn note_written(&self, _segments: &[Segment], _len: usize) -> Result<(), RingError> {
        Ok(())
    }

    #[inline]
    fn take_work(&self) -> usize {
        0
    }
}

/// Regions that are compared with a written piece in the time that a descriptor takes to be read.
const REGIONS_PER_DESCRIPTOR: usize = 16;

/// Memory with a device IOTLB or a dirty log or both.
///
/// A bit is set after the page was written, since user space clears it before it reads the page.
/// Everything may be told to the log more than once, so a write that cannot be told by a worker is
/// repeated by the home thread.
pub struct Mediated<'a> {
    user: UserMemory<'a>,
    iotlb: Option<&'a Iotlb>,
    log: &'a Log,
    /// Whether buffers are logged.
    buffers: bool,
    /// Where the used ring is, as the addresses of the ring have it.
    used: u64,
    /// Whether somebody else goes on when the log cannot be written.
    shared: bool,
    /// Writes that could not be told.
    failures: Cell<u64>,
    /// Whether something was told.
    logged: Cell<bool>,
    work: Cell<usize>,
    /// The translation that was lacking.
    miss: Cell<Option<Miss>>,
}

impl<'a> Mediated<'a> {
    /// The memory of a virtqueue whose ring lies at `layout`; `buffers` says whether writes to
    /// buffers are logged, `shared` whether a fault is left to somebody else.
    pub fn new(
        user: UserMemory<'a>,
        iotlb: Option<&'a Iotlb>,
        log: &'a Log,
        buffers: bool,
        layout: Layout,
        shared: bool,
    ) -> Self {
        Self {
            user,
            iotlb,
            log,
            buffers,
            used: layout.used,
            shared,
            failures: Cell::new(0),
            logged: Cell::new(false),
            work: Cell::new(0),
            miss: Cell::new(None),
        }
    }

    /// Tells who waits for the log, and counts what it could not be told. Returns the translation that
    /// was lacking, if that is why a slice ended.
    pub fn finish(self, tally: &mut Tally) -> Option<Miss> {
        tally.log_errors += self.failures.get();
        if let Some(event) = self.log.event.as_ref().filter(|_| self.logged.get()) {
            event.signal();
        }
        self.miss.get()
    }

    /// Whether all parts of `ring` have translations, so that none is lacking in the middle of a slice.
    /// Without a device IOTLB that is so. A part that may not be used as it has to be does not say so,
    /// as in stock vhost.
    pub fn has_all_of(&self, ring: &Ring) -> bool {
        let Some(iotlb) = self.iotlb else {
            return true;
        };
        let parts = ring.layout().parts(ring.num(), ring.event_idx());
        let accesses = [Access::Read, Access::Read, Access::Write];
        parts
            .iter()
            .zip(accesses)
            .all(|((address, len), access)| self.has_all(iotlb, *address, *len, access))
    }

    fn has_all(&self, iotlb: &Iotlb, mut address: u64, mut len: u64, access: Access) -> bool {
        while len > 0 {
            let Ok((_, run)) = self.look_up(iotlb, address, access) else {
                return false;
            };
            let run = run.min(len);
            len -= run;
            address = address.wrapping_add(run);
        }
        true
    }

    /// Translates an address, and remembers that it could not.
    fn look_up(
        &self,
        iotlb: &Iotlb,
        address: u64,
        access: Access,
    ) -> Result<(u64, u64), RingError> {
        iotlb
            .translate(address, access)
            .map_err(|reason| match reason {
                Untranslated::Forbidden => RingError::Forbidden,
                Untranslated::Missing => {
                    self.miss.set(Some(Miss {
                        addr: address,
                        access,
                    }));
                    RingError::Miss
                }
            })
    }

    /// Where a field of two bytes of the ring lies in the owner's address space. It is accessed at
    /// once, so it must not be divided.
    fn field(&self, address: u64, access: Access) -> Result<u64, RingError> {
        let Some(iotlb) = self.iotlb else {
            return Ok(address);
        };
        match self.look_up(iotlb, address, access)? {
            (_, 1) => Err(RingError::Fault),
            (user, _) => Ok(user),
        }
    }

    /// Calls `each` for each piece of `len` bytes of the ring: with its address in the owner's address
    /// space, and the place of its bytes among the others.
    fn for_each_piece(
        &self,
        iotlb: &Iotlb,
        address: u64,
        len: usize,
        access: Access,
        mut each: impl FnMut(u64, Range<usize>) -> Result<(), RingError>,
    ) -> Result<(), RingError> {
        let mut begin = 0;
        while begin < len {
            let at = address.wrapping_add(begin as u64);
            let (user, run) = self.look_up(iotlb, at, access)?;
            let end = len.min(begin.saturating_add(run as usize));
            each(user, begin..end)?;
            begin = end;
        }
        Ok(())
    }

    /// Takes down that the log could not be told of a write, unless somebody else will try again.
    fn fail(&self) -> Result<(), RingError> {
        if self.shared {
            return Err(RingError::Fault);
        }
        self.failures.set(self.failures.get() + 1);
        Ok(())
    }

    /// Sets the bits for `len` bytes at a guest-physical address.
    fn log_guest(&self, address: u64, len: u64) -> Result<(), RingError> {
        let set = |word, bits| self.user.set_bits(word, bits);
        if log::for_each_word(self.log.base, address, len, set).is_err() {
            return self.fail();
        }
        self.logged.set(true);
        Ok(())
    }

    /// Sets the bits for all places in guest-physical memory where `len` bytes of the owner's address
    /// space are seen.
    fn log_user(&self, address: u64, len: u64) -> Result<(), RingError> {
        let mut found = false;
        for (address, len) in self.user.guest_ranges(address, len) {
            found = true;
            self.log_guest(address, len)?;
        }
        if found {
            Ok(())
        } else {
            self.fail()
        }
    }

    /// Sets the bits for `len` bytes that were written at `address` of the used ring, which is `user` in
    /// the owner's address space.
    fn log_used(&self, address: u64, user: u64, len: u64) -> Result<(), RingError> {
        let Some(used) = self.log.used else {
            return Ok(());
        };
        self.order();
        // With a device IOTLB user space does not know where the ring is in guest-physical memory.
        if self.iotlb.is_some() {
            return self.log_user(user, len);
        }
        self.log_guest(used.wrapping_add(address.wrapping_sub(self.used)), len)
    }

    /// Lets what was written be seen before a bit of the log is looked at.
    fn order(&self) {
        // Pairs with the exchange by which user space takes a word of the log and clears it, before
        // it reads the pages: if the bit is found set and left alone, it was set before user space
        // took it, so user space sees the write.
        atomics::smp_mb();
    }
}

impl Memory for Mediated<'_> {
    const IS_TOLD: bool = true;

    fn user(&self) -> &UserMemory<'_> {
        &self.user
    }

    fn note_written(&self, segments: &[Segment], len: usize) -> Result<(), RingError> {
        if !self.buffers {
            return Ok(());
        }
        self.order();
        let mut left = len;
        let mut compared = 0;
        for segment in segments {
            if left == 0 {
                break;
            }
            let now = left.min(segment.len);
            left -= now;
            compared += self.user.table().len();
            self.log_user(segment.base as u64, now as u64)?;
        }
        let work = self.work.get() + compared / REGIONS_PER_DESCRIPTOR;
        self.work.set(work);
        Ok(())
    }

    fn take_work(&self) -> usize {
        self.work.take()
    }
}

impl RingMem for Mediated<'_> {
    fn read_u16(&self, address: u64) -> Result<u16, RingError> {
        self.user.read_u16(self.field(address, Access::Read)?)
    }

    fn write_u16(&self, address: u64, value: u16) -> Result<(), RingError> {
        let user = self.field(address, Access::Write)?;
        self.user.write_u16(user, value)?;
        self.log_used(address, user, 2)
    }

    fn read_descriptor(&self, address: u64) -> Result<[u8; 16], RingError> {
        let Some(iotlb) = self.iotlb else {
            return self.user.read_descriptor(address);
        };
        let mut bytes = [0; 16];
        self.for_each_piece(iotlb, address, 16, Access::Read, |user, piece| {
            self.user.read_bytes(user, &mut bytes[piece])
        })?;
        Ok(bytes)
    }

    fn read_ahead(&self, address: u64, bytes: &mut [u8]) -> bool {
        // What is read ahead may lie in several pieces.
        self.iotlb.is_none() && self.user.read_ahead(address, bytes)
    }

    fn write_used(&self, address: u64, elems: &[UsedElem]) -> Result<(), RingError> {
        let bytes = used_bytes(elems);
        let Some(iotlb) = self.iotlb else {
            self.user.write_bytes(address, bytes)?;
            return self.log_used(address, address, bytes.len() as u64);
        };
        self.for_each_piece(iotlb, address, bytes.len(), Access::Write, |user, piece| {
            let at = address.wrapping_add(piece.start as u64);
            let piece = &bytes[piece];
            self.user.write_bytes(user, piece)?;
            self.log_used(at, user, piece.len() as u64)
        })
    }

    fn translate(&self, address: u64, access: Access) -> Result<(u64, u64), RingError> {
        match self.iotlb {
            Some(iotlb) => self.look_up(iotlb, address, access),
            None => self.user.translate(address, access),
        }
    }

    fn read_indirect(&self, address: u64) -> Result<[u8; 16], RingError> {
        self.user.read_descriptor(address)
    }

    fn read_indirect_u16(&self, address: u64) -> Result<u16, RingError> {
        self.user.read_u16(address)
    }
}
