// SPDX-License-Identifier: GPL-2.0

//! The binary snapshot of all workers, devices and virtqueues: its layout, and how it is written and
//! read.
//!
//! The file is /sys/class/vhost/snapshot; sysfs-abi/testing/sysfs-class-vhost says where each word is.
//! It is made of words of 64 bits in the byte order of the machine. It is no copy: what is
//! counted is counted in it. It consists of pages of [`Header::page_size`] bytes. The first one is
//! the [`Header`]; each of the others begins with a [`PageHead`] and has records of one kind.
//!
//! A record begins with its description, the words before [`COUNTERS`], whose first word is a
//! [`Sequence`]; at [`COUNTERS`] the sequence of the counters follows, and the counters. Each
//! sequence has one writer at a time, which waits for nobody: a description is written by who makes
//! or changes the object, with the locks that exclude others, and counters by who has the object.
//! A reader takes both sequences, the words, and both sequences once more: see [`read_record`].
//!
//! [`VERSION`] changes when words change their place or their meaning. Words that are added to the
//! end of the counters, or where 0 is reserved, change nothing but [`PageHead::record_size`].

pub mod sequence;

pub use sequence::{read_record, Busy, Sequence};

use crate::atomics::AtomicU64;
use crate::engine::sched::share::Share;
use crate::engine::stats::{VirtqueueStats, WorkerStats};
use core::mem::{offset_of, size_of};
use core::ops::Deref;

/// Bytes of a word. Tests compile the engine with words that are larger.
const WORD: usize = size_of::<AtomicU64>();

/// The first word of a snapshot: "vhostioc".
pub const MAGIC: u64 = u64::from_le_bytes(*b"vhostioc");
/// The version of the layout.
pub const VERSION: u64 = 1;

/// Words of a page's head. Records follow, so they begin with a cache line.
pub const PAGE_HEAD: usize = 8;
/// The word of a record at which its counters begin, with their sequence.
pub const COUNTERS: usize = 16;
/// The most words of a record.
pub const RECORD_MAX: usize = 128;
/// Words to which the length of a record is rounded up: a cache line.
const LINE: usize = 8;

/// Copies a part of a page, from the byte `offset` on, as far as it and `bytes` go. Each record that
/// lies in it is copied as by [`read_record`]; one that is busy has an odd sequence. Returns the
/// number of bytes.
pub fn read_page(page: &[AtomicU64], offset: usize, bytes: &mut [u8]) -> usize {
    let size = page.len() * size_of::<u64>();
    let end = size.min(offset.saturating_add(bytes.len()));
    let record = (page[offset_of!(PageHead, record_size) / WORD].load() as usize)
        .checked_div(size_of::<u64>())
        .filter(|words| (COUNTERS + 1..=RECORD_MAX).contains(words));
    let records = page[offset_of!(PageHead, records) / WORD].load() as usize;
    let mut copy = [0; RECORD_MAX];
    let mut at = offset;
    while at < end {
        let word = at / size_of::<u64>();
        // What is copied at once: a record, or a single word of what is none.
        let (first, words) = match record {
            Some(words) if word >= PAGE_HEAD && (word - PAGE_HEAD) / words < records => {
                (word - (word - PAGE_HEAD) % words, words)
            }
            _ => (word, 1),
        };
        let Some(source) = page.get(first..first + words) else {
            break;
        };
        if words == 1 {
            copy[0] = source[0].load();
        } else {
            // That it is busy is said by its sequence.
            let _: Result<(), Busy> = read_record(source, &mut copy[..words]);
        }
        for (index, value) in copy[..words].iter().enumerate() {
            let place = (first + index) * size_of::<u64>();
            for (at, byte) in (place..).zip(value.to_ne_bytes()) {
                if (offset..end).contains(&at) {
                    bytes[at - offset] = byte;
                }
            }
        }
        at = (first + words) * size_of::<u64>();
    }
    end.saturating_sub(offset)
}

/// The first page. It has no sequence: each of its words says something by itself.
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU64,
    /// Bytes of a page, this one included.
    pub page_size: AtomicU64,
    /// The number of pages, this one included. It only grows.
    pub pages: AtomicU64,
    /// The most pages that there can be.
    pub pages_max: AtomicU64,
    /// Changes after a record came or went.
    pub generation: AtomicU64,
    /// The number of the worker that new devices get, unless a rule says otherwise.
    pub default_worker: AtomicU64,
}

/// The beginning of a page of records. It is written before the page is counted in
/// [`Header::pages`], and never again.
#[repr(C)]
pub struct PageHead {
    /// The [`Kind`] of the records.
    pub kind: AtomicU64,
    /// Bytes of a record.
    pub record_size: AtomicU64,
    /// The number of records, used or not.
    pub records: AtomicU64,
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    /// A [`WorkerRecord`].
    Worker = 1,
    /// A [`DeviceRecord`].
    Device = 2,
    /// A [`VirtqueueRecord`].
    Virtqueue = 3,
}

/// The beginning of a record.
#[repr(C)]
pub struct RecordHead {
    /// Changes with the words up to [`COUNTERS`].
    pub sequence: Sequence,
    /// How many objects have used the record: two objects with one record are told apart by it.
    pub generation: AtomicU64,
    /// 1 while there is an object; if it is 0 the rest says nothing.
    pub used: AtomicU64,
}

/// A kind of record.
pub trait Record: Sized {
    /// Which one.
    const KIND: Kind;
    /// Bytes of a record.
    const SIZE: usize = size_of::<Self>();

    /// The beginning of the record.
    fn head(&self) -> &RecordHead;
}

/// Clears a record for a new object, within a section of its description; sequences stay.
pub fn clear_record(record: &[AtomicU64]) {
    for (index, word) in record.iter().enumerate().skip(1) {
        if index != COUNTERS && index != offset_of!(RecordHead, generation) / WORD {
            word.store(0);
        }
    }
}

/// Words of a record whose counters are `T`.
const fn words<T>() -> usize {
    (COUNTERS + size_of::<T>() / WORD).next_multiple_of(LINE)
}

/// A word of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Where it is, in words from the beginning of its record or group of counters.
    pub word: usize,
    /// How many words it has.
    pub words: usize,
}

/// Declares a record: the words of its description, then its counters, and the table of the names
/// of the former.
macro_rules! record {
    (
        $(#[$doc:meta])*
        pub struct $name:ident($kind:ident) {
            $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
        }
        $(#[$counters_doc:meta])*
        $counters:ident: $stats:ty
    ) => {
        $(#[$doc])*
        #[repr(C)]
        pub struct $name {
            head: RecordHead,
            $($(#[$field_doc])* pub $field: $type,)*
            reserved: [AtomicU64; COUNTERS - (size_of::<RecordHead>() $(+ size_of::<$type>())*) / WORD],
            $(#[$counters_doc])*
            pub $counters: $stats,
            padding: [AtomicU64; words::<$stats>() - COUNTERS - size_of::<$stats>() / WORD],
        }

        impl $name {
            /// The words of the description and where they are in the record.
            pub const FIELDS: &'static [Field] = &[$(
                Field {
                    name: stringify!($field),
                    word: offset_of!(Self, $field) / WORD,
                    words: size_of::<$type>() / WORD,
                },
            )*];
        }

        impl Record for $name {
            const KIND: Kind = Kind::$kind;

            fn head(&self) -> &RecordHead {
                &self.head
            }
        }

        impl Deref for $name {
            type Target = $stats;

            fn deref(&self) -> &$stats {
                &self.$counters
            }
        }

        const _: () = assert!(offset_of!($name, $counters) == COUNTERS * WORD);
        const _: () = assert!(size_of::<$name>() == words::<$stats>() * WORD);
        const _: () = assert!(words::<$stats>() <= RECORD_MAX);
    };
}

record! {
    /// What the snapshot says of a worker.
    pub struct WorkerRecord(Worker) {
        /// Its number.
        id: AtomicU64,
        /// The number of its thread, or 0 as long as there is none.
        pid: AtomicU64,
        /// The only CPU on which it may run, in two's complement -1 if there are several, as it was
        /// in the last turn of its loop. A word by itself, written by the worker.
        cpu: AtomicU64,
        /// 1 if it takes no new devices. A word by itself.
        locked: AtomicU64,
        /// The group to which it belongs. A word by itself.
        group: AtomicU64,
        /// What it is there for: 0 active, 1 parked, 2 woken. A word by itself.
        state: AtomicU64,
    }
    /// What is counted.
    stats: WorkerStats
}

record! {
    /// What the snapshot says of a virtqueue.
    pub struct VirtqueueRecord(Virtqueue) {
        /// The number of its device.
        device: AtomicU64,
        /// Its index in the device.
        index: AtomicU64,
        /// The number of the worker that serves it.
        worker: AtomicU64,
        /// When it is polled: 0 never, 1 always, 2 when that pays. A word by itself.
        mode: AtomicU64,
        /// 1 if user space wants it to be served at home. A word by itself.
        home: AtomicU64,
    }
    /// What is counted.
    stats: VirtqueueStats
}

/// The length of the names in a [`DeviceRecord`], in bytes.
pub const NAME_SIZE: usize = 16;

/// A name, ended by a zero: whoever chose it may have chosen any bytes. Words are written one by one.
#[repr(C)]
#[derive(Default)]
pub struct Name([AtomicU64; NAME_SIZE / size_of::<u64>()]);

impl Name {
    /// Writes the name, within a section.
    pub fn set(&self, name: &[u8; NAME_SIZE]) {
        for (word, bytes) in self.0.iter().zip(name.chunks_exact(size_of::<u64>())) {
            let mut value = [0; size_of::<u64>()];
            value.copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(value));
        }
    }
}

record! {
    /// What the snapshot says of a device.
    pub struct DeviceRecord(Device) {
        /// Its number.
        id: AtomicU64,
        /// The number of the process that owns it, in two's complement -1 if there is none.
        owner: AtomicU64,
        /// The name of that process.
        comm: Name,
        /// The interface behind the receive virtqueue.
        receive_backend: Name,
        /// The interface behind the transmit virtqueue.
        transmit_backend: Name,
        /// 1 if there is a worker for it. A word by itself.
        placed: AtomicU64,
    }
    /// What it may have of its workers' time.
    settings: DeviceSettings
}

/// What is set for a device. The words change by themselves; the sequence never does, and is there
/// so that all records are read alike.
#[repr(C)]
#[derive(Default)]
pub struct DeviceSettings {
    sequence: Sequence,
    /// Weight and ceiling.
    pub share: Share,
}

impl DeviceSettings {
    /// The words and where they are, from the beginning of this group.
    pub const FIELDS: &'static [Field] = &[
        Self::field("weight", 0),
        Self::field("max_time_share", 1),
        Self::field("window", 2),
        Self::field("used_time", 3),
    ];

    /// The word of the share with this index.
    const fn field(name: &'static str, index: usize) -> Field {
        Field {
            name,
            word: offset_of!(Self, share) / WORD + index,
            words: 1,
        }
    }
}

const _: () = assert!(size_of::<Header>() == 7 * WORD);
const _: () = assert!(size_of::<PageHead>() <= PAGE_HEAD * WORD);
const _: () = assert!(size_of::<RecordHead>() == 3 * WORD);
const _: () = assert!(offset_of!(WorkerStats, sequence) == 0);
const _: () = assert!(offset_of!(VirtqueueStats, sequence) == 0);
const _: () = assert!(offset_of!(DeviceSettings, sequence) == 0);
