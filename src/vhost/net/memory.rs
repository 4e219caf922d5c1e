// SPDX-License-Identifier: GPL-2.0

//! Memory as the data path sees it: as it is, or with all writes told to the dirty log.
//!
//! The data path is compiled for both. What is off by default costs one branch in each slice.

use crate::atomics;
use crate::engine::error::RingError;
use crate::engine::log;
use crate::engine::mem::{Access, RingMem, Segment, UsedElem};
use crate::engine::ring::Layout;
use crate::engine::stats::Tally;
use crate::kern::user::UserMemory;
use crate::vhost::log::Log;
use core::cell::Cell;

/// What the data path needs from memory.
pub(super) trait Memory: RingMem {
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

/// Memory with a dirty log.
///
/// A bit is set after the page was written, since user space clears it before it reads the page.
/// Everything may be told to the log more than once, so a write that cannot be told by a worker is
/// repeated by the home thread.
pub struct Mediated<'a> {
    user: UserMemory<'a>,
    log: &'a Log,
    /// Whether buffers are logged.
    buffers: bool,
    /// Where the used ring is.
    used: u64,
    /// Whether somebody else goes on when the log cannot be written.
    shared: bool,
    /// Writes that could not be told.
    failures: Cell<u64>,
    /// Whether something was told.
    logged: Cell<bool>,
    work: Cell<usize>,
}

impl<'a> Mediated<'a> {
    /// The memory of a virtqueue whose ring lies at `layout`; `buffers` says whether writes to
    /// buffers are logged, `shared` whether a fault is left to somebody else.
    pub fn new(
        user: UserMemory<'a>,
        log: &'a Log,
        buffers: bool,
        layout: Layout,
        shared: bool,
    ) -> Self {
        Self {
            user,
            log,
            buffers,
            used: layout.used,
            shared,
            failures: Cell::new(0),
            logged: Cell::new(false),
            work: Cell::new(0),
        }
    }

    /// Tells who waits for the log, and counts what it could not be told.
    pub fn finish(self, tally: &mut Tally) {
        tally.log_errors += self.failures.get();
        if let Some(event) = self.log.event.as_ref().filter(|_| self.logged.get()) {
            event.signal();
        }
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

    /// Sets the bits for `len` bytes that were written at `address` of the used ring.
    fn log_used(&self, address: u64, len: u64) -> Result<(), RingError> {
        let Some(used) = self.log.used else {
            return Ok(());
        };
        self.order();
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
        self.user.read_u16(address)
    }

    fn write_u16(&self, address: u64, value: u16) -> Result<(), RingError> {
        self.user.write_u16(address, value)?;
        self.log_used(address, 2)
    }

    fn read_descriptor(&self, address: u64) -> Result<[u8; 16], RingError> {
        self.user.read_descriptor(address)
    }

    fn write_used(&self, address: u64, elems: &[UsedElem]) -> Result<(), RingError> {
        self.user.write_used(address, elems)?;
        self.log_used(address, size_of_val(elems) as u64)
    }

    fn translate(&self, address: u64, access: Access) -> Result<(u64, u64), RingError> {
        self.user.translate(address, access)
    }
}
