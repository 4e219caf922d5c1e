// SPDX-License-Identifier: GPL-2.0

//! A look at a field of user memory from outside of its address space.

use super::bindings as shim;
use super::mm::InMm;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::page::PAGE_SIZE;

/// A 16-bit field in a page to which a reference is held.
///
/// User space may have mapped another page there meanwhile, so what is read says nothing about
/// what user space sees now: it is a hint, and who relies on it looks again in the address space
/// before long.
///
/// # Invariants
///
/// The pointer is valid and this object owns a reference to the page; `offset` is even and inside
/// of it.
pub struct PinnedField {
    page: NonNull<bindings::page>,
    offset: u32,
}

// SAFETY: A page belongs to no thread, and its references are counted.
unsafe impl Send for PinnedField {}

impl PinnedField {
    /// The field at `address` of the address space that the thread is in; `None` if its page is
    /// not resident, or the address is odd. Does not sleep.
    pub fn new(address: u64, _mm: &InMm<'_>) -> Option<Self> {
        if address % 2 != 0 {
            return None;
        }
        // SAFETY: Any address is good: it is looked up in the page tables of the thread.
        let page = NonNull::new(unsafe { shim::iocm_page_get(address) })?;
        // INVARIANT: The reference was taken just now, and the offset is what the address says.
        Some(Self {
            page,
            offset: (address % PAGE_SIZE as u64) as u32,
        })
    }

    /// Reads the field.
    pub fn read(&self) -> u16 {
        // SAFETY: By the type invariant the page is valid and the field is inside of it.
        unsafe { shim::iocm_page_read_u16(self.page.as_ptr(), self.offset) }
    }
}

impl Drop for PinnedField {
    fn drop(&mut self) {
        // SAFETY: By the type invariant there is a reference to give up.
        unsafe { shim::iocm_page_put(self.page.as_ptr()) };
    }
}
