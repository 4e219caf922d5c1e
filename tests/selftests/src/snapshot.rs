// SPDX-License-Identifier: GPL-2.0
//! The binary snapshot, mapped, with the engine's own reader and tables.

use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::{bail, ensure, Context, Result};
use nix::sys::mman::{mmap, munmap, MapFlags, ProtFlags};
use vhost_iocm_engine::atomics::{smp_rmb, AtomicU64};
use vhost_iocm_engine::engine::snapshot::{
    read_record, Busy, DeviceRecord, DeviceSettings, Field, Kind, VirtqueueRecord, WorkerRecord,
    COUNTERS, MAGIC, PAGE_HEAD, VERSION,
};
use vhost_iocm_engine::engine::stats::{VirtqueueStats, WorkerStats};

/// Where it is.
pub const PATH: &str = "/sys/class/vhost/snapshot";
/// Bytes of a page, as the header has to say.
pub const PAGE_SIZE: usize = 4096;
const WORDS: usize = PAGE_SIZE / size_of::<u64>();
/// How often a record that is being written is read before that is an error.
const TRIES: usize = 100_000;

/// A copy of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// What it is about.
    pub kind: Kind,
    /// Its words.
    pub words: Vec<u64>,
}

fn find(fields: &[Field], name: &str) -> Option<usize> {
    let field = fields.iter().find(|field| field.name == name)?;
    Some(field.word)
}

impl Copy {
    /// How many objects have used the record.
    pub fn generation(&self) -> u64 {
        self.words[1]
    }

    /// A word by its name in the engine's tables.
    pub fn get(&self, name: &str) -> Result<u64> {
        let (description, counters) = match self.kind {
            Kind::Worker => (WorkerRecord::FIELDS, WorkerStats::FIELDS),
            Kind::Device => (DeviceRecord::FIELDS, DeviceSettings::FIELDS),
            Kind::Virtqueue => (VirtqueueRecord::FIELDS, VirtqueueStats::FIELDS),
        };
        find(description, name)
            .or_else(|| find(counters, name).map(|word| COUNTERS + word))
            .and_then(|word| self.words.get(word).copied())
            .with_context(|| format!("{:?} has no word {name}", self.kind))
    }

    /// A name in it.
    pub fn name(&self, name: &str) -> Result<String> {
        let word = find(DeviceRecord::FIELDS, name).context("no such name")?;
        let bytes: Vec<u8> = self.words[word..word + 2]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .take_while(|byte| *byte != 0)
            .collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A mapping of the snapshot.
pub struct Snapshot {
    start: NonNull<AtomicU64>,
    pages: usize,
}

// SAFETY: The memory is mapped for the whole process, and accessed atomically.
unsafe impl Send for Snapshot {}
// SAFETY: As for `Send`.
unsafe impl Sync for Snapshot {}

impl Snapshot {
    /// Maps so many pages, of which not all have to be there yet.
    pub fn map(pages: usize) -> Result<Self> {
        let file = File::open(PATH).context(PATH)?;
        let length = NonZeroUsize::new(pages * PAGE_SIZE).context("no pages")?;
        // SAFETY: A new mapping is made, which nothing else refers to.
        let start = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                &file,
                0,
            )
        };
        Ok(Self {
            start: start.context("map the snapshot")?.cast(),
            pages,
        })
    }

    /// Maps all that is there.
    pub fn open() -> Result<Self> {
        let first = Self::map(1)?;
        ensure!(first.header(0) == MAGIC, "no snapshot");
        ensure!(
            first.header(1) == VERSION,
            "it has version {}",
            first.header(1)
        );
        ensure!(first.header(2) == PAGE_SIZE as u64, "its pages differ");
        let pages = first.pages();
        Self::map(pages)
    }

    /// Where the mapping begins.
    pub fn start(&self) -> NonNull<AtomicU64> {
        self.start
    }

    /// The words of a page that is there.
    pub fn page(&self, index: usize) -> &[AtomicU64] {
        assert!(index < self.pages, "page {index} is not mapped");
        // SAFETY: The page is mapped as long as this object is, and consists of such words.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(index * WORDS), WORDS) }
    }

    /// A word of the header.
    pub fn header(&self, word: usize) -> u64 {
        self.page(0)[word].load()
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        let pages = self.header(3) as usize;
        // Pairs with the write barrier before the number grows: heads of new pages are seen.
        smp_rmb();
        pages
    }

    /// The words of a record: page and number in it.
    pub fn record(&self, page: usize, index: usize) -> &[AtomicU64] {
        let page = self.page(page);
        let words = page[1].load() as usize / size_of::<u64>();
        &page[PAGE_HEAD + index * words..][..words]
    }

    /// The kind and the number of the records of a page.
    pub fn kind(&self, page: usize) -> Result<(Kind, usize)> {
        let head = self.page(page);
        let kinds = [Kind::Worker, Kind::Device, Kind::Virtqueue];
        let kind = kinds
            .into_iter()
            .find(|kind| *kind as u64 == head[0].load());
        let kind = kind.with_context(|| format!("page {page} has kind {}", head[0].load()))?;
        let (size, count) = (head[1].load() as usize, head[2].load() as usize);
        let room = PAGE_SIZE - PAGE_HEAD * size_of::<u64>();
        ensure!(
            size % 64 == 0 && size > COUNTERS * 8 && count > 0 && count * size <= room,
            "page {page} has {count} records of {size} bytes"
        );
        Ok((kind, count))
    }

    /// The records that are used and wanted, to be read again and again.
    pub fn places(
        &self,
        wanted: impl Fn(&Copy) -> Result<bool>,
    ) -> Result<Vec<(Kind, &[AtomicU64])>> {
        let mut places = Vec::new();
        for page in 1..self.pages() {
            let (kind, count) = self.kind(page)?;
            for index in 0..count {
                let record = self.record(page, index);
                let copy = read_patiently(kind, record)?;
                if copy.words[2] == 1 && wanted(&copy)? {
                    places.push((kind, record));
                }
            }
        }
        Ok(places)
    }

    /// Consistent copies of all records that are used, of a mapping that covers all pages.
    pub fn read(&self) -> Result<Vec<Copy>> {
        let mut copies = Vec::new();
        for page in 1..self.pages() {
            let (kind, count) = self.kind(page)?;
            for index in 0..count {
                let copy = read_patiently(kind, self.record(page, index))?;
                if copy.words[2] == 1 {
                    copies.push(copy);
                }
            }
        }
        Ok(copies)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // SAFETY: The mapping is this object's, and nothing refers to it any more.
        let _ = unsafe { munmap(self.start.cast(), self.pages * PAGE_SIZE) };
    }
}

/// A consistent copy of a record, however often that has to be tried.
pub fn read_patiently(kind: Kind, record: &[AtomicU64]) -> Result<Copy> {
    let mut words = vec![0; record.len()];
    for _ in 0..TRIES {
        match read_record(record, &mut words) {
            Ok(()) => return Ok(Copy { kind, words }),
            // The writer was interrupted: it may need this CPU.
            Err(Busy) => std::thread::yield_now(),
        }
    }
    bail!("a record was busy {TRIES} times")
}

/// The copies of one kind.
pub fn of(copies: &[Copy], kind: Kind) -> impl Iterator<Item = &Copy> {
    copies.iter().filter(move |copy| copy.kind == kind)
}

/// The copy of the record of this kind that has these values.
pub fn find_by<'a>(copies: &'a [Copy], kind: Kind, values: &[(&str, u64)]) -> Result<&'a Copy> {
    let mut found = of(copies, kind).filter(|copy| {
        values
            .iter()
            .all(|(name, value)| copy.get(name).ok() == Some(*value))
    });
    let copy = found
        .next()
        .with_context(|| format!("no {kind:?} with {values:?}"))?;
    ensure!(found.next().is_none(), "two of {kind:?} with {values:?}");
    Ok(copy)
}
