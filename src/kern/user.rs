// SPDX-License-Identifier: GPL-2.0

//! User memory: arguments of ioctls, and the rings and buffers of a virtqueue.

use super::bindings as shim;
use super::mm::InMm;
use super::thread;
use crate::engine::error::RingError;
use crate::engine::log;
use crate::engine::mem::{self, Access, Order, Region, RingMem, Segment, UsedElem};
use kernel::bindings;
use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::transmute::{AsBytes, FromBytes};
use kernel::uaccess::{UserPtr, UserSlice};

/// The user pointer that an ioctl got as its argument.
#[derive(Clone, Copy)]
pub struct Argument(usize);

impl Argument {
    /// The argument as the system call passed it.
    pub fn new(address: usize) -> Self {
        Self(address)
    }

    /// The address `bytes` further on. It may wrap: the access check is made when it is used.
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// Copies a value from user space.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub fn read<T: FromBytes>(self) -> Result<T> {
        UserSlice::new(UserPtr::from_addr(self.0), size_of::<T>())
            .reader()
            .read()
    }

    /// Copies a value to user space.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub fn write<T: AsBytes>(self, value: &T) -> Result {
        UserSlice::new(UserPtr::from_addr(self.0), size_of::<T>())
            .writer()
            .write(value)
    }

    /// Zeroes `count` words of 8 bytes in user space.
    ///
    /// # Errors
    ///
    /// `EFAULT`, and `EINTR` when the process is being killed: user space chooses the length.
    pub fn zero_words(self, count: u64) -> Result {
        const ZEROES: [u8; 256] = [0; 256];
        let len = count.checked_mul(8).ok_or(EFAULT)?;
        if !access_ok(self.0 as u64, len) {
            return Err(EFAULT);
        }
        let mut writer = UserSlice::new(UserPtr::from_addr(self.0), len as usize).writer();
        while !writer.is_empty() {
            let now = writer.len().min(ZEROES.len());
            writer.write_slice(&ZEROES[..now])?;
            thread::check_killed()?;
        }
        Ok(())
    }

    /// Whether `count` words of 8 bytes in user space are all 0.
    ///
    /// # Errors
    ///
    /// `EFAULT`, and `EINTR` when the process is being killed: user space chooses the length.
    pub fn are_words_zero(self, count: u64) -> Result<bool> {
        let mut at = self;
        for _ in 0..count {
            if at.read::<u64>()? != 0 {
                return Ok(false);
            }
            at = at.offset(size_of::<u64>());
            thread::check_killed()?;
        }
        Ok(true)
    }
}

/// Whether `len` bytes at `address` lie in user space. What is mapped there may change at any
/// time, so accesses can still fail.
pub fn access_ok(address: u64, len: u64) -> bool {
    // SAFETY: The function only compares numbers.
    unsafe { shim::iocm_access_ok(address, len) }
}

/// Whether the part of the dirty log at `base` lies in user space that stands for `len` bytes at the
/// guest-physical address `address`.
pub fn log_access_ok(base: u64, address: u64, len: u64) -> bool {
    log::span(base, address, len).is_some_and(|(address, len)| access_ok(address, len))
}

/// The memory table of a device: where guest-physical memory lies in its owner's address space.
///
/// # Invariants
///
/// `regions` went through [`mem::sort_regions`], which returned `order`.
pub struct MemoryTable {
    regions: KVVec<Region>,
    order: Order,
}

impl MemoryTable {
    /// Reads the table of `count` regions that lies at `argument`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and `EFAULT` when the table cannot be read or a region is empty or wraps.
    pub fn read(argument: Argument, count: usize) -> Result<Arc<Self>> {
        let mut regions = KVVec::with_capacity(count, GFP_KERNEL)?;
        for index in 0..count {
            let region = argument
                .offset(index * size_of::<Region>())
                .read::<Region>()?;
            regions.push(region, GFP_KERNEL)?;
        }
        let order = mem::sort_regions(&mut regions).ok_or(EFAULT)?;
        // INVARIANT: Checked just now.
        Ok(Arc::new(Self { regions, order }, GFP_KERNEL)?)
    }

    /// Whether all regions lie in user space.
    pub fn is_accessible(&self) -> bool {
        self.regions
            .iter()
            .all(|region| access_ok(region.user_addr, region.size))
    }

    /// Whether the parts of the dirty log at `base` that stand for the regions lie in user space.
    pub fn is_log_accessible(&self, base: u64) -> bool {
        self.regions
            .iter()
            .all(|region| log_access_ok(base, region.guest_addr, region.size))
    }

    /// The number of regions.
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// A table without regions, as `VHOST_RESET_OWNER` leaves it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn empty() -> Result<Arc<Self>> {
        // INVARIANT: There is nothing to sort or to check.
        Ok(Arc::new(
            Self {
                regions: KVVec::new(),
                order: Order::Disjoint,
            },
            GFP_KERNEL,
        )?)
    }
}

// SAFETY: Four integers without padding: every bit pattern is a value.
unsafe impl FromBytes for Region {}
// SAFETY: Two integers without padding, all bytes of which are initialised.
unsafe impl AsBytes for UsedElem {}

/// Elements of the used ring as they lie in it.
pub fn used_bytes(elems: &[UsedElem]) -> &[u8] {
    // The elements are written as they are in memory.
    const _: () = assert!(cfg!(target_endian = "little"));
    elems.as_bytes()
}

const _: () = assert!(size_of::<Region>() == size_of::<super::vhost_abi::vhost_memory_region>());
const _: () = assert!(size_of::<Segment>() == size_of::<bindings::iovec>());
const _: () = assert!(align_of::<Segment>() == align_of::<bindings::iovec>());

/// Segments as the kernel's `iovec`: an address and a length, in this order.
pub(super) fn as_iovec(segments: &[Segment]) -> *const bindings::iovec {
    segments.as_ptr().cast()
}

/// Ring memory and buffers of a device whose owner's address space is current.
///
/// The accesses may sleep, and fail rather than reach anything but user memory.
pub struct UserMemory<'a> {
    table: &'a MemoryTable,
    lookup: mem::Lookup<'a>,
    _mm: &'a InMm<'a>,
}

impl<'a> UserMemory<'a> {
    /// The memory that `table` describes, in the address space that the thread is in.
    pub fn new(table: &'a MemoryTable, mm: &'a InMm<'a>) -> Self {
        Self {
            table,
            lookup: mem::Lookup::new(&table.regions, table.order),
            _mm: mm,
        }
    }

    /// Whether the first byte of `segment`, which is not empty, can be written without waiting. It stays as it was.
    pub fn probe(&self, segment: &Segment) -> bool {
        // SAFETY: What the segment points to is reached as user memory only.
        unsafe { shim::iocm_probe_byte(segment.base as u64) }
    }

    /// The memory table.
    pub fn table(&self) -> &MemoryTable {
        self.table
    }

    /// The guest-physical addresses of `len` bytes at `address`, see [`mem::guest_ranges`].
    pub fn guest_ranges(&self, address: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        mem::guest_ranges(&self.table.regions, address, len)
    }

    /// Copies what lies at `address`.
    #[inline]
    pub fn read_bytes(&self, address: u64, bytes: &mut [u8]) -> Result<(), RingError> {
        // SAFETY: `bytes` is valid for writes of its length; a bad user address is answered with
        // the number of bytes that were not copied.
        let left = unsafe {
            bindings::copy_from_user(
                bytes.as_mut_ptr().cast(),
                address as usize as *const kernel::ffi::c_void,
                bytes.len(),
            )
        };
        if left == 0 {
            Ok(())
        } else {
            Err(RingError::Fault)
        }
    }

    /// Copies `bytes` to `address`.
    #[inline]
    pub fn write_bytes(&self, address: u64, bytes: &[u8]) -> Result<(), RingError> {
        // SAFETY: `bytes` is valid for reads of its length; a bad user address is answered with the
        // number of bytes that were not copied.
        let left = unsafe {
            bindings::copy_to_user(
                address as usize as *mut kernel::ffi::c_void,
                bytes.as_ptr().cast(),
                bytes.len(),
            )
        };
        if left == 0 {
            Ok(())
        } else {
            Err(RingError::Fault)
        }
    }

    /// Sets `bits` of the 32-bit word at `address`, a multiple of 4, with one atomic access. Bit 0 is
    /// that of the lowest value in little-endian order.
    ///
    /// # Errors
    ///
    /// [`RingError::Fault`], also when others change the word so often that bits cannot be set.
    pub fn set_bits(&self, address: u64, bits: u32) -> Result<(), RingError> {
        // SAFETY: A bad user address is answered with an error.
        match unsafe { shim::iocm_set_user_bits(address, bits) } {
            0 => Ok(()),
            _ => Err(RingError::Fault),
        }
    }

    /// Copies `data` into `segments`, from `skip` bytes on.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub fn copy_to_segments(&self, segments: &[Segment], skip: usize, data: &[u8]) -> Result {
        // SAFETY: Both slices are valid for reads of their lengths, and segments have the layout
        // of `struct iovec`. What they point to is reached as user memory only.
        kernel::error::to_result(unsafe {
            shim::iocm_copy_to_segments(
                as_iovec(segments),
                segments.len() as u32,
                skip,
                data.as_ptr().cast(),
                data.len(),
            )
        })
    }
}

impl RingMem for UserMemory<'_> {
    #[inline]
    fn read_u16(&self, address: u64) -> Result<u16, RingError> {
        // SAFETY: A bad user address is answered with an error.
        let answer = unsafe { shim::iocm_get_u16(address) };
        // What is not an error has 16 bits.
        match answer {
            0.. => Ok(u16::from_le(answer as u16)),
            _ => Err(RingError::Fault),
        }
    }

    #[inline]
    fn write_u16(&self, address: u64, value: u16) -> Result<(), RingError> {
        // SAFETY: A bad user address is answered with an error.
        match unsafe { shim::iocm_put_u16(address, value.to_le()) } {
            0 => Ok(()),
            _ => Err(RingError::Fault),
        }
    }

    #[inline]
    fn read_descriptor(&self, address: u64) -> Result<[u8; 16], RingError> {
        let mut words = [0u64; 2];
        // SAFETY: The array is valid for writes; a bad user address is answered with an error.
        match unsafe { shim::iocm_get_descriptor(address, words.as_mut_ptr()) } {
            0 => {
                let [first, second] = words.map(u64::to_ne_bytes);
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&first);
                bytes[8..].copy_from_slice(&second);
                Ok(bytes)
            }
            _ => Err(RingError::Fault),
        }
    }

    #[inline]
    fn read_ahead(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.read_bytes(address, bytes).is_ok()
    }

    #[inline]
    fn write_used(&self, address: u64, elems: &[UsedElem]) -> Result<(), RingError> {
        self.write_bytes(address, used_bytes(elems))
    }

    #[inline]
    fn translate(&self, address: u64, _access: Access) -> Result<(u64, u64), RingError> {
        self.lookup.translate(address)
    }
}
