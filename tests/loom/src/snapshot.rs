// SPDX-License-Identifier: GPL-2.0

//! Records of the snapshot that are written while they are read.
//!
//! A record has two groups of words here, as it has in the kernel: a description and counters, each
//! with a sequence and a writer of its own. In each section of a group all of its words get the same
//! number, so a copy is torn when they differ.

use std::sync::Arc;

use loom::thread;

use crate::atomics::AtomicU64;
use crate::engine::snapshot::COUNTERS;
use crate::explore::{explore, failure};

/// Words of the record: two of the description after its sequence, and two counters after theirs.
const WORDS: usize = COUNTERS + 3;
/// Times that each group is written.
const WRITES: u64 = 2;

/// How records are written and read, by the engine or by a copy with a bug.
trait Protocol: 'static {
    fn write(sequence: &AtomicU64, words: impl FnOnce());
    fn read(record: &[AtomicU64], copy: &mut [u64]) -> bool;
}

/// Implements [`Protocol`] for the module `snapshot` of the engine or of a copy.
macro_rules! protocol {
    ($name:ident: $($module:tt)+) => {
        struct $name;

        impl Protocol for $name {
            fn write(sequence: &AtomicU64, words: impl FnOnce()) {
                use $($module)+ as copy;
                let _section = copy::sequence::Section::begin(sequence);
                words();
            }
            fn read(record: &[AtomicU64], copy: &mut [u64]) -> bool {
                use $($module)+ as copy;
                copy::sequence::copy_once(record, copy)
            }
        }
    };
}

protocol!(Engine: crate::engine::snapshot);

/// Writes a group, which begins at `first`, a few times.
fn write<P: Protocol>(record: &[AtomicU64; WORDS], first: usize) {
    for value in 1..=WRITES {
        P::write(&record[first], || {
            record[first + 1].store(value);
            record[first + 2].store(value);
        });
    }
}

/// Copies the record, and looks whether what counts as a copy of one moment is one.
fn read<P: Protocol>(record: &[AtomicU64; WORDS]) {
    let mut copy = [0; WORDS];
    let whole = P::read(record, &mut copy);
    for first in [0, COUNTERS].into_iter().filter(|_| whole) {
        assert_eq!(copy[first] % 2, 0, "a copy of what is being written");
        assert_eq!(copy[first + 1], copy[first + 2], "a torn copy");
        assert_eq!(copy[first] / 2, copy[first + 1], "a copy of another time");
    }
}

/// A reader beside a writer of the group that begins at `first`.
fn run<P: Protocol>(first: usize, preemptions: usize) -> usize {
    explore(preemptions, move || {
        let record: Arc<[AtomicU64; WORDS]> = Arc::new([const { AtomicU64::new(0) }; WORDS]);
        // Loom makes a word when it is touched for the first time, which is not shared yet.
        for word in record.iter() {
            word.load();
        }
        let writer = {
            let record = record.clone();
            thread::spawn(move || write::<P>(&record, first))
        };
        // A thread of its own: loom lets the first one run until it waits.
        let reader = thread::spawn(move || read::<P>(&record));
        for thread in [writer, reader] {
            thread.join().expect("a thread that ended");
        }
    })
}

#[test]
fn a_copy_is_of_one_moment_of_each_group() {
    for first in [0, COUNTERS] {
        println!("{} interleavings", run::<Engine>(first, 3));
    }
}

fn is_found<P: Protocol>() {
    let why = failure(|| {
        run::<P>(COUNTERS, 3);
        run::<P>(0, 3);
    });
    println!("{}", why.expect("a bug that is found"));
}

macro_rules! planted_bugs_are_found {
    ($($bug:ident)+) => {
        /// One test for each planted bug.
        mod finds {
            use super::{AtomicU64, Protocol};

            $(
                #[test]
                fn $bug() {
                    protocol!(Planted: crate::planted::snapshot::$bug);
                    super::is_found::<Planted>();
                }
            )+
        }
    };
}

crate::planted::planted_bugs!(snapshot, planted_bugs_are_found);
