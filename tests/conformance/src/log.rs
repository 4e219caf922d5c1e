// SPDX-License-Identifier: GPL-2.0
//! A dirty log: one bit for each page of guest-physical memory that the device wrote.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a log that covers all regions, whose last page is below 8 GiB.
const LENGTH: usize = (8 << 30) / 4096 / 8;

/// A dirty log.
pub struct Log {
    words: Vec<AtomicU64>,
}

impl Log {
    /// One in which nothing is marked.
    pub fn new() -> Self {
        Self {
            words: (0..LENGTH / 8).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Where it is in this process.
    pub fn address(&self) -> u64 {
        self.words.as_ptr() as usize as u64
    }

    /// The numbers of the pages that are marked.
    pub fn pages(&self) -> BTreeSet<u64> {
        self.look(|word| word.load(Ordering::Relaxed))
    }

    /// The same, and unmarks them, as who migrates a guest does.
    pub fn take(&self) -> BTreeSet<u64> {
        self.look(|word| word.swap(0, Ordering::SeqCst))
    }

    fn look(&self, mut value: impl FnMut(&AtomicU64) -> u64) -> BTreeSet<u64> {
        let mut pages = BTreeSet::new();
        for (at, word) in self.words.iter().enumerate() {
            let word = value(word);
            if word != 0 {
                let bits = (0..64).filter(|bit| word >> bit & 1 != 0);
                pages.extend(bits.map(|bit| 64 * at as u64 + bit));
            }
        }
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_taken_are_not_marked_any_more() {
        let log = Log::new();
        log.words[1].store(5, Ordering::Relaxed);
        assert_eq!(log.pages(), BTreeSet::from([64, 66]));
        assert_eq!(log.take(), BTreeSet::from([64, 66]));
        assert!(log.pages().is_empty());
    }
}
