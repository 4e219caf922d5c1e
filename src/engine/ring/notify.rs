// SPDX-License-Identifier: GPL-2.0

//! Notifications between driver and device (virtio 1.3, 2.7.7, 2.7.9 and 2.7.10).

use super::Ring;
use crate::atomics;
use crate::engine::error::RingError;
use crate::engine::mem::RingMem;

/// In the used ring: the driver need not notify (2.7.9).
const NO_NOTIFY: u16 = 1;
/// In the available ring: the device need not interrupt (2.7.7).
const NO_INTERRUPT: u16 = 1;

impl Ring {
    pub(super) fn used_flags(&self) -> u16 {
        if self.quiet {
            NO_NOTIFY
        } else {
            0
        }
    }

    /// Asks the driver not to notify. With EVENT_IDX nothing is written: a stale available event
    /// does the same until the index has gone around.
    pub fn disable_notify<M: RingMem>(&mut self, mem: &M) -> Result<(), RingError> {
        if !self.quiet {
            if !self.event_idx {
                mem.write_u16(self.layout.used, NO_NOTIFY)?;
            }
            self.quiet = true;
        }
        Ok(())
    }

    /// Asks the driver to notify again, and looks once more.
    ///
    /// Returns true when entries appeared since the last look. It does not say whether the ring
    /// is empty: entries that were seen and left (too few buffers for a packet) are not news, and
    /// calling them so would make a worker spin on them.
    ///
    /// # Errors
    ///
    /// [`RingError::Fault`] when the driver cannot be asked; the device may try again.
    pub fn enable_notify<M: RingMem>(&mut self, mem: &M) -> Result<bool, RingError> {
        if !self.quiet {
            return Ok(false);
        }
        if self.event_idx {
            mem.write_u16(self.layout.avail_event(self.num), self.avail_idx)?;
        } else {
            mem.write_u16(self.layout.used, 0)?;
        }
        self.quiet = false;
        // Pairs with the driver's full barrier between its available index and its look at the
        // used flags or the available event (2.7.13.4.1). Without the two, the driver can miss
        // the request and the device the entry, and both wait for ever.
        atomics::smp_mb();
        self.refresh(mem)
    }

    /// Decides whether the driver is to be interrupted for what [`Ring::push_used`] gave back.
    ///
    /// A driver whose wishes cannot be read is interrupted.
    pub fn needs_interrupt<M: RingMem>(&mut self, mem: &M) -> bool {
        // Pairs with the driver's full barrier between asking for interrupts and its last look at
        // the used index (2.7.14.1): the index must be out before the wish is read.
        atomics::smp_mb();
        if self.notify_on_empty && self.avail_idx == self.next_avail {
            return true;
        }
        if !self.event_idx {
            return !matches!(mem.read_u16(self.layout.avail), Ok(flags) if flags & NO_INTERRUPT != 0);
        }
        let new = self.next_used;
        let Some(old) = self.signalled.replace(new) else {
            return true;
        };
        match mem.read_u16(self.layout.used_event(self.num)) {
            Ok(event) => event_passed(event, new, old),
            Err(_) => true,
        }
    }
}

/// Whether moving an index from `old` to `new` passed `event` (2.7.10).
pub fn event_passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
