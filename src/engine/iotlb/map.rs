// SPDX-License-Identifier: GPL-2.0

//! Translations by ranges of addresses, of a bounded number.

use crate::engine::mem::Access;
use core::ops::DerefMut;

/// What may be done with the memory behind a range, as bits of the ABI (`VHOST_ACCESS_RO`,
/// `VHOST_ACCESS_WO`). Others are kept and mean nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions(pub u8);

impl Permissions {
    /// The bit of one kind of access.
    pub const fn of(access: Access) -> Self {
        match access {
            Access::Read => Self(1),
            Access::Write => Self(2),
        }
    }

    /// Whether an access is allowed.
    pub fn allow(self, access: Access) -> bool {
        self.0 & Self::of(access).0 != 0
    }

    /// Whether any access is allowed.
    pub fn allow_any(self) -> bool {
        self.allow(Access::Read) || self.allow(Access::Write)
    }
}

/// The translation of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// First address.
    first: u64,
    /// Last address, not below the first.
    last: u64,
    /// Where the range begins in the owner's address space.
    user_addr: u64,
    permissions: Permissions,
    /// The greatest last address of this entry and all before it.
    reach: u64,
    /// When the entry was added: the number of those that were added before.
    added: u64,
}

/// Why an address has no translation for an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untranslated {
    /// No entry has it.
    Missing,
    /// The entry that has it does not allow the access.
    Forbidden,
}

/// Translations, as many as there is room for in `S`. When there is none left, a new one takes the
/// place of the oldest.
///
/// Ranges may overlap, since stock vhost does not look for that when one is added. The entry that
/// begins first counts, and of those that begin together the oldest.
///
/// # Invariants
///
/// The first `len` of `entries` are sorted by `first`, then by `added`, and have the right `reach`.
pub struct Map<S> {
    entries: S,
    len: usize,
    added: u64,
}

impl<S: DerefMut<Target = [Entry]>> Map<S> {
    /// No translations, and room for as many as `entries` has; what is in them does not matter.
    pub fn new(entries: S) -> Self {
        Self {
            entries,
            len: 0,
            added: 0,
        }
    }

    fn entries(&self) -> &[Entry] {
        &self.entries[..self.len]
    }

    /// The number of translations.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds the translation of `first` to `last`, which begin at `user_addr` in the owner's address
    /// space. `last` is not below `first`.
    pub fn insert(&mut self, first: u64, last: u64, user_addr: u64, permissions: Permissions) {
        if self.entries.is_empty() {
            return;
        }
        let mut changed = self.len;
        if self.len == self.entries.len() {
            changed = self.remove_oldest();
        }
        let at = self.entries().partition_point(|entry| entry.first <= first);
        self.entries.copy_within(at..self.len, at + 1);
        self.entries[at] = Entry {
            first,
            last,
            user_addr,
            permissions,
            reach: last,
            added: self.added,
        };
        self.added = self.added.wrapping_add(1);
        self.len += 1;
        self.reach_from(at.min(changed));
    }

    /// Removes the oldest entry, and returns where it was.
    fn remove_oldest(&mut self) -> usize {
        // The number that was added last is the greatest, however often the count has wrapped.
        let age = |entry: &Entry| self.added.wrapping_sub(entry.added);
        let entries = self.entries().iter().enumerate();
        let oldest = entries.max_by_key(|(_, entry)| age(entry));
        let at = oldest.map_or(0, |(at, _)| at);
        self.entries.copy_within(at + 1..self.len, at);
        self.len -= 1;
        at
    }

    /// Removes every translation that has an address in the range from `first` to `last`. If `last` is
    /// below `first`, those that have both are meant, as in stock vhost.
    pub fn remove(&mut self, first: u64, last: u64) {
        let mut kept = 0;
        for at in 0..self.len {
            let entry = self.entries[at];
            if entry.first > last || entry.last < first {
                self.entries[kept] = entry;
                kept += 1;
            }
        }
        self.len = kept;
        self.reach_from(0);
    }

    /// Corrects how far entries reach from number `at` on.
    fn reach_from(&mut self, at: usize) {
        let mut reach = match at.checked_sub(1) {
            Some(before) => self.entries[before].reach,
            None => 0,
        };
        for entry in &mut self.entries[at..self.len] {
            reach = reach.max(entry.last);
            entry.reach = reach;
        }
    }

    /// Finds where `addr` lies in the owner's address space, and for how many bytes from there the
    /// translation holds. That length is at least 1.
    pub fn translate(&self, addr: u64, access: Access) -> Result<(u64, u64), Untranslated> {
        // Entries before this one end before the address, and this one does not. If it begins
        // behind the address, so do all that follow.
        let at = self.entries().partition_point(|entry| entry.reach < addr);
        let entry = self.entries().get(at);
        let entry = entry
            .filter(|entry| entry.first <= addr)
            .ok_or(Untranslated::Missing)?;
        if !entry.permissions.allow(access) {
            return Err(Untranslated::Forbidden);
        }
        let run = (entry.last - addr).saturating_add(1);
        Ok((entry.user_addr.wrapping_add(addr - entry.first), run))
    }
}
