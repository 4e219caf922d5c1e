// SPDX-License-Identifier: GPL-2.0

//! Words of one moment, without a lock: a sequence count, one writer at a time, readers that never
//! make it wait.

use super::COUNTERS;
use crate::atomics::{smp_rmb, smp_wmb, AtomicU64};

/// How often a reader tries before it says that a record is busy. A section is a few dozen
/// instructions, so this is enough unless its writer was interrupted.
const TRIES: usize = 64;

/// Tells readers whether what they copied changed meanwhile: odd while it is being written.
#[derive(Default)]
pub struct Sequence(AtomicU64);

impl Sequence {
    /// Nothing was written yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Begins a section, in which the words that belong to the sequence are written. The caller is
    /// the only writer until the section is dropped, and does nothing else meanwhile that takes
    /// long.
    pub fn write(&self) -> Section<'_> {
        Section::begin(&self.0)
    }
}

/// The time in which words are written, until it is dropped.
pub struct Section<'a> {
    sequence: &'a AtomicU64,
    odd: u64,
}

impl<'a> Section<'a> {
    /// Begins one; `sequence` is the word of a [`Sequence`].
    pub fn begin(sequence: &'a AtomicU64) -> Self {
        let odd = sequence.load().wrapping_add(1);
        sequence.store(odd);
        // Pairs with the second barrier of `look_once`: who copied a word of this section finds
        // the sequence changed.
        smp_wmb();
        Self { sequence, odd }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        // Pairs with the first barrier of `look_once`: who found the sequence even reads what was
        // written before.
        smp_wmb();
        self.sequence.store(self.odd.wrapping_add(1));
    }
}

/// A record was written at each try, or its writer was interrupted. It can be read later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// Copies the words of a record so that all of its description, and all counters that change
/// together, are of one moment. `record` and `copy` have the same length, more than [`COUNTERS`].
///
/// Does not wait. Each of the counters that change by themselves is of some moment within the call.
///
/// # Errors
///
/// [`Busy`] after a bounded number of tries. `copy` holds words of different moments then, and an odd
/// sequence.
pub fn read_record(record: &[AtomicU64], copy: &mut [u64]) -> Result<(), Busy> {
    for _ in 0..TRIES {
        if copy_once(record, copy) {
            return Ok(());
        }
    }
    copy[0] |= 1;
    Err(Busy)
}

/// Calls `look` with a record, of which it may load what it needs: as [`read_record`], for who needs
/// a few words only. It is called again if what it has seen is not of one moment, so it has no effect
/// but its result.
///
/// # Errors
///
/// [`Busy`] after a bounded number of tries.
pub fn look<T>(record: &[AtomicU64], look: impl Fn(&[AtomicU64]) -> T) -> Result<T, Busy> {
    let mut tries = 0..TRIES;
    tries.find_map(|_| look_once(record, &look)).ok_or(Busy)
}

/// Copies the words of a record; returns whether they are of one moment.
pub fn copy_once(record: &[AtomicU64], copy: &mut [u64]) -> bool {
    let copied = look_once(record, |record| {
        for (word, copy) in record.iter().zip(copy.iter_mut()) {
            *copy = word.load();
        }
    });
    copied.is_some()
}

/// Calls `look` with a record; returns what it returned if what it has seen is of one moment.
fn look_once<T>(record: &[AtomicU64], look: impl FnOnce(&[AtomicU64]) -> T) -> Option<T> {
    let before = [record[0].load(), record[COUNTERS].load()];
    // Pairs with the barrier at the end of a section: what was written before the sequences became
    // even is seen.
    smp_rmb();
    let seen = look(record);
    // Pairs with the barrier at the beginning of a section: if a word was read that was written in
    // a later one, its sequence has changed.
    smp_rmb();
    let after = [record[0].load(), record[COUNTERS].load()];
    let is_whole = before == after && before.iter().all(|sequence| sequence % 2 == 0);
    is_whole.then_some(seen)
}
