// SPDX-License-Identifier: GPL-2.0

//! The memory of the binary snapshot, which user space may read and map; see `engine::snapshot` for
//! what is in it, and `shim/control.c` for the file.
//!
//! Pages are added as records are needed, and never taken away. Each is an allocation of its own
//! whose references are counted: a mapping that is older than the removal of the file keeps the
//! pages that it has, and nothing else.

use super::bindings as shim;
use crate::atomics::{smp_wmb, AtomicU64};
use crate::engine::snapshot::{
    self, DeviceRecord, Header, Kind, PageHead, Record, VirtqueueRecord, WorkerRecord, MAGIC,
    PAGE_HEAD, VERSION,
};
use core::mem::{align_of, size_of};
use core::ops::Deref;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::page::{Page, PAGE_SIZE};
use kernel::prelude::*;
use kernel::sync::{new_spinlock, Arc, SpinLock};

/// The most pages: 16 MiB with pages of 4 KiB, which is room for more than 10,000 devices. It bounds
/// what user space can make the module keep by opening devices.
const PAGES_MAX: usize = shim::IOCM_SNAPSHOT_PAGES_MAX as usize;

/// Words of a page.
const WORDS: usize = PAGE_SIZE / size_of::<AtomicU64>();

/// What may lie in a page of the snapshot.
///
/// # Safety
///
/// The type consists of `AtomicU64`, without anything in between.
pub unsafe trait Words {}

// SAFETY: By its declaration; its size is asserted where that is.
unsafe impl Words for Header {}
// SAFETY: As above.
unsafe impl Words for PageHead {}
// SAFETY: As above.
unsafe impl Words for WorkerRecord {}
// SAFETY: As above.
unsafe impl Words for DeviceRecord {}
// SAFETY: As above.
unsafe impl Words for VirtqueueRecord {}

/// A page of the snapshot.
///
/// # Invariants
///
/// `words` is the memory of `page`, which is initialised, and is accessed as `AtomicU64` alone.
struct SharedPage {
    page: Page,
    words: NonNull<AtomicU64>,
    /// What its records are about; `None` for the header.
    kind: Option<Kind>,
    /// The records that are used, a bit each.
    used: u64,
}

// SAFETY: The memory belongs to no thread, and is accessed atomically.
unsafe impl Send for SharedPage {}

impl SharedPage {
    /// A page of zeroes.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn new() -> Result<Self> {
        let page = Page::alloc_page(GFP_KERNEL | __GFP_ZERO)?;
        // SAFETY: The page was allocated just now, and is one that the kernel has mapped.
        let words = unsafe { shim::iocm_page_address(page.as_ptr()) };
        // INVARIANT: The memory is the page's, and zeroed.
        Ok(Self {
            page,
            words: NonNull::new(words.cast()).ok_or(ENOMEM)?,
            kind: None,
            used: 0,
        })
    }

    /// A page of records of one kind.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn of<R: Record + Words>() -> Result<Self> {
        let mut page = Self::new()?;
        page.kind = Some(R::KIND);
        let head = page.head();
        head.kind.store(R::KIND as u64);
        head.record_size.store(R::SIZE as u64);
        head.records.store(capacity::<R>() as u64);
        Ok(page)
    }

    fn head(&self) -> &PageHead {
        // SAFETY: By the type invariant; a page is larger than its head.
        unsafe { self.words.cast::<PageHead>().as_ref() }
    }
}

/// Records that fit into a page.
const fn capacity<R: Record>() -> usize {
    (WORDS - PAGE_HEAD) * size_of::<AtomicU64>() / R::SIZE
}

/// What the lock protects.
struct State {
    /// The pages, the header's first. There is room for all of them from the beginning.
    pages: KVVec<SharedPage>,
}

impl State {
    /// Takes a record that is not used; `None` if there is none. Returns its page and its number
    /// there.
    fn take<R: Record>(&mut self) -> Option<(usize, usize)> {
        for (number, page) in self.pages.iter_mut().enumerate() {
            let index = page.used.trailing_ones() as usize;
            if page.kind == Some(R::KIND) && index < capacity::<R>() {
                page.used |= 1 << index;
                return Some((number, index));
            }
        }
        None
    }
}

/// The snapshot.
#[pin_data]
pub struct Snapshot {
    /// The memory of the first page of `state`.
    header: NonNull<Header>,
    #[pin]
    state: SpinLock<State>,
}

// SAFETY: The header is accessed atomically, and the rest is behind a lock.
unsafe impl Send for Snapshot {}
// SAFETY: As for `Send`.
unsafe impl Sync for Snapshot {}

impl Snapshot {
    /// A snapshot without records.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new() -> Result<Arc<Self>> {
        let mut pages = KVVec::with_capacity(PAGES_MAX, GFP_KERNEL)?;
        let first = SharedPage::new()?;
        let header = first.words.cast();
        pages.push(first, GFP_KERNEL)?;
        let snapshot = Arc::pin_init(
            pin_init!(Self {
                header,
                state <- new_spinlock!(State { pages }, "vhost_iocm::Snapshot::state"),
            }),
            GFP_KERNEL,
        )?;
        let header = snapshot.header();
        header.magic.store(MAGIC);
        header.version.store(VERSION);
        header.page_size.store(PAGE_SIZE as u64);
        header.pages.store(1);
        header.pages_max.store(PAGES_MAX as u64);
        Ok(snapshot)
    }

    /// The first page.
    pub fn header(&self) -> &Header {
        // SAFETY: Pages are kept as long as this object is, and the header is made of words.
        unsafe { self.header.as_ref() }
    }

    /// Takes a record, which `describe` fills in.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `ENOSPC` when there are too many.
    pub fn take<R: Record + Words>(self: &Arc<Self>, describe: impl FnOnce(&R)) -> Result<Slot<R>> {
        const { assert!(capacity::<R>() > 0 && capacity::<R>() < 64) };
        const { assert!(align_of::<R>() <= align_of::<AtomicU64>()) };
        let mut spare = None;
        let (page, index, words) = loop {
            {
                let mut state = self.state.lock();
                if let Some(page) = spare.take() {
                    // Somebody else may have added the last page that there can be.
                    if state.pages.push_within_capacity(page).is_err() {
                        return Err(ENOSPC);
                    }
                    // Pairs with the read barrier of a reader that has found the new number: it sees
                    // the head of the page.
                    smp_wmb();
                    self.header().pages.store(state.pages.len() as u64);
                }
                if let Some((page, index)) = state.take::<R>() {
                    break (page, index, state.pages[page].words);
                }
                if state.pages.len() == PAGES_MAX {
                    return Err(ENOSPC);
                }
            }
            spare = Some(SharedPage::of::<R>()?);
        };
        let first = PAGE_HEAD + index * R::SIZE / size_of::<AtomicU64>();
        // SAFETY: There are so many records in the page.
        let record = unsafe { words.add(first) };
        // INVARIANT: The record was not used before, and its page is kept with the snapshot.
        let slot = Slot {
            record: record.cast::<R>(),
            page,
            index,
            snapshot: self.clone(),
        };
        {
            let head = slot.head();
            let _section = head.sequence.write();
            snapshot::clear_record(slot.words());
            head.generation
                .store(head.generation.load().wrapping_add(1));
            head.used.store(1);
            describe(&slot);
        }
        self.changed();
        Ok(slot)
    }

    /// Tells readers that a record has come or gone.
    fn changed(&self) {
        // Pairs with the read barrier of a reader that has found the new generation: it sees whether
        // the record is used.
        smp_wmb();
        self.header().generation.fetch_add(1);
    }

    /// Copies what is at `position` of the file, as far as it and `bytes` go and a page at most.
    /// Returns the number of bytes.
    pub(super) fn read(&self, position: u64, bytes: &mut [u8]) -> usize {
        let Ok(position) = usize::try_from(position) else {
            return 0;
        };
        let words = {
            let state = self.state.lock();
            match state.pages.get(position / PAGE_SIZE) {
                Some(page) => page.words,
                None => return 0,
            }
        };
        // SAFETY: Pages are kept as long as this object is, and their memory is made of words.
        let words = unsafe { core::slice::from_raw_parts(words.as_ptr(), WORDS) };
        snapshot::read_page(words, position % PAGE_SIZE, bytes)
    }

    /// The page at `index`, for a mapping. The caller owns a reference to it; null if there is no
    /// such page.
    pub(super) fn page(&self, index: usize) -> *mut bindings::page {
        let state = self.state.lock();
        let Some(page) = state.pages.get(index) else {
            return core::ptr::null_mut();
        };
        // SAFETY: The page is valid, since there is a reference to it.
        unsafe { shim::iocm_page_take(page.page.as_ptr()) };
        page.page.as_ptr()
    }
}

/// A record of the snapshot, as long as this is there.
///
/// # Invariants
///
/// `record` lies in a page of `snapshot`, and nobody else has it.
pub struct Slot<R: Record + Words> {
    record: NonNull<R>,
    page: usize,
    index: usize,
    snapshot: Arc<Snapshot>,
}

// SAFETY: A record belongs to no thread, and is accessed atomically.
unsafe impl<R: Record + Words> Send for Slot<R> {}
// SAFETY: As for `Send`.
unsafe impl<R: Record + Words> Sync for Slot<R> {}

impl<R: Record + Words> Slot<R> {
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: By the type invariant, and since a record is made of words.
        unsafe {
            core::slice::from_raw_parts(
                self.record.as_ptr().cast(),
                R::SIZE / size_of::<AtomicU64>(),
            )
        }
    }

    /// Changes the description of the object, all of it at once for who reads. The caller excludes
    /// others who do.
    pub fn describe(&self, describe: impl FnOnce(&R)) {
        let _section = self.head().sequence.write();
        describe(self);
    }
}

impl<R: Record + Words> Deref for Slot<R> {
    type Target = R;

    fn deref(&self) -> &R {
        // SAFETY: By the type invariant.
        unsafe { self.record.as_ref() }
    }
}

impl<R: Record + Words> Drop for Slot<R> {
    fn drop(&mut self) {
        self.describe(|record| record.head().used.store(0));
        self.snapshot.changed();
        let mut state = self.snapshot.state.lock();
        if let Some(page) = state.pages.get_mut(self.page) {
            page.used &= !(1 << self.index);
        }
    }
}
