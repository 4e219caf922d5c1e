// SPDX-License-Identifier: GPL-2.0

//! Translations that are lacking, and who waits for them.

use crate::engine::mem::Access;

/// An address whose translation is lacking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The address.
    pub addr: u64,
    /// What was to be done with it.
    pub access: Access,
}

/// What a virtqueue waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// Nothing.
    Idle,
    /// A translation that user space has not been asked for yet; the number says in which order.
    Unread(Miss, u64),
    /// A translation that user space knows of.
    Asked(Miss),
}

/// What each of `N` virtqueues waits for: one translation at most, whatever its guest does.
///
/// One that runs into another miss does not wait for the first any more. One that runs into the same
/// miss again asks again, if user space has read the first question: it may not have had an answer
/// then, and nobody tells when it has.
pub struct Misses<const N: usize> {
    slots: [Slot; N],
    /// The number of the next question.
    next: u64,
}

impl<const N: usize> Default for Misses<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Misses<N> {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self {
            slots: [Slot::Idle; N],
            next: 0,
        }
    }

    /// Lets a virtqueue wait for a translation. Returns whether there is something to be read that was
    /// not there before.
    pub fn post(&mut self, virtqueue: usize, miss: Miss) -> bool {
        let Some(slot) = self.slots.get_mut(virtqueue) else {
            return false;
        };
        if matches!(slot, Slot::Unread(unread, _) if *unread == miss) {
            return false;
        }
        *slot = Slot::Unread(miss, self.next);
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Whether there is something to be read.
    pub fn has_unread(&self) -> bool {
        self.slots
            .iter()
            .any(|slot| matches!(slot, Slot::Unread(..)))
    }

    /// Takes the oldest question for user space, and whose it is. From now on that virtqueue is
    /// resumed by an answer, so this comes before user space sees the question.
    pub fn take(&mut self) -> Option<(usize, Miss)> {
        let unread = |slot: &Slot| match slot {
            // How old it is, however often the numbers have wrapped.
            Slot::Unread(miss, number) => Some((self.next.wrapping_sub(*number), *miss)),
            _ => None,
        };
        let slots = self.slots.iter().enumerate();
        let questions = slots.filter_map(|(at, slot)| unread(slot).map(|found| (at, found)));
        let (at, (_, miss)) = questions.max_by_key(|(_, (age, _))| *age)?;
        self.slots[at] = Slot::Asked(miss);
        Some((at, miss))
    }

    /// Whether a virtqueue waits for an address from `first` to `last`; it does not any more. Whether
    /// user space has read the question does not matter.
    pub fn resolve(&mut self, virtqueue: usize, first: u64, last: u64) -> bool {
        let Some(slot) = self.slots.get_mut(virtqueue) else {
            return false;
        };
        let resolved = match slot {
            Slot::Unread(miss, _) | Slot::Asked(miss) => (first..=last).contains(&miss.addr),
            Slot::Idle => false,
        };
        if resolved {
            *slot = Slot::Idle;
        }
        resolved
    }

    /// Lets a virtqueue wait for nothing.
    pub fn forget(&mut self, virtqueue: usize) {
        if let Some(slot) = self.slots.get_mut(virtqueue) {
            *slot = Slot::Idle;
        }
    }
}
