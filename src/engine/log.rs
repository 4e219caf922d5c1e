// SPDX-License-Identifier: GPL-2.0

//! The dirty log of live migration: a bitmap in the owner's memory, with a bit for each page of
//! guest-physical memory.

/// Bytes of guest-physical memory for which a bit stands (`VHOST_PAGE_SIZE`).
pub const PAGE_SIZE: u64 = 4096;

/// Pages that a byte of the log stands for.
const PAGES_PER_BYTE: u64 = 8;
/// Bytes of the words in which bits are set.
const WORD_SIZE: u64 = 4;
/// Bits of such a word.
const WORD_BITS: u64 = 8 * WORD_SIZE;

/// The part of a log does not lie in any address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

/// The first and the last page of `len` bytes, at least one, at `addr`.
fn pages(addr: u64, len: u64) -> Option<(u64, u64)> {
    let last = addr.checked_add(len.checked_sub(1)?)?;
    Some((addr / PAGE_SIZE, last / PAGE_SIZE))
}

/// Where the part of the log at `base` lies that stands for `len` bytes at the guest-physical
/// address `addr`: its address and its length in bytes. `None` if there is no such part, since an
/// address would not fit into 64 bits.
pub fn span(base: u64, addr: u64, len: u64) -> Option<(u64, u64)> {
    if len == 0 {
        return Some((base, 0));
    }
    let (first, last) = pages(addr, len)?;
    let begin = base.checked_add(first / PAGES_PER_BYTE)?;
    let end = base.checked_add(last / PAGES_PER_BYTE)?;
    Some((begin, end - begin + 1))
}

/// Calls `set` for each word of the log at `base` that has bits for some of the `len` bytes at the
/// guest-physical address `addr`: with the word's address, a multiple of 4, and these bits, where
/// bit 0 is that of the lowest value. The log may begin at any address, so bits of a word may belong
/// to what lies before it or behind it; these are never given.
///
/// # Errors
///
/// [`OutOfRange`], before `set` is called, and those of `set`, which end it.
pub fn for_each_word<E: From<OutOfRange>>(
    base: u64,
    addr: u64,
    len: u64,
    mut set: impl FnMut(u64, u32) -> Result<(), E>,
) -> Result<(), E> {
    if len == 0 {
        return Ok(());
    }
    let (Some((first, last)), Some(_)) = (pages(addr, len), span(base, addr, len)) else {
        return Err(OutOfRange.into());
    };
    let mut page = first;
    while page <= last {
        let byte = base + page / PAGES_PER_BYTE;
        let bit = byte % WORD_SIZE * 8 + page % PAGES_PER_BYTE;
        let count = (WORD_BITS - bit).min(last - page + 1);
        let bits = (u32::MAX >> (WORD_BITS - count)) << bit;
        set(byte - byte % WORD_SIZE, bits)?;
        page += count;
    }
    Ok(())
}
