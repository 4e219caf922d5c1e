// SPDX-License-Identifier: GPL-2.0

//! The character device.
//!
//! The kernel crate's `MiscDevice` cannot have a fixed minor, sets no owner (so that the module
//! could be unloaded under an open file), and has no `llseek`.

use super::bindings as shim;
use super::user::Argument;
use core::pin::Pin;
use core::ptr;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::types::Opaque;

/// What stands behind the node.
pub trait Node: Send + Sync + Sized + 'static {
    /// What stands behind an open file of it. It is dropped when the last descriptor is closed.
    type File: Send + Sync;

    /// Opens the node.
    fn open(&self) -> Result<Self::File>;

    /// An ioctl; the result is returned to user space.
    fn ioctl(file: &Self::File, command: u32, argument: Argument) -> Result<u32>;

    /// Reads a message. `room` is what the reader has, in bytes.
    fn read(file: &Self::File, room: usize, nonblocking: bool) -> Result<usize>;
}

/// The name that module parameter `device` gives the node, or none.
pub fn device_name() -> Option<&'static CStr> {
    // SAFETY: The function reads a parameter that does not change after the module was loaded.
    let name = unsafe { shim::iocm_device_name() };
    if name.is_null() {
        return None;
    }
    // SAFETY: A text parameter ends in a zero, and is freed after the module's code has run for
    // the last time.
    Some(unsafe { CStr::from_char_ptr(name.cast()) })
}

/// A registered node.
#[pin_data(PinnedDrop)]
pub struct Registration<N: Node> {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    operations: bindings::file_operations,
    node: N,
}

// SAFETY: The registration locks itself, and `N` may be used by any thread.
unsafe impl<N: Node> Send for Registration<N> {}
// SAFETY: As for `Send`.
unsafe impl<N: Node> Sync for Registration<N> {}

impl<N: Node> Registration<N> {
    /// Registers the node `name`: with `minor`, or with one that is free.
    ///
    /// # Errors
    ///
    /// `EBUSY` when another driver has the minor, `EEXIST` when it has the name.
    pub fn new(
        name: &'static CStr,
        minor: Option<u32>,
        module: &'static ThisModule,
        node: N,
    ) -> Result<Pin<KBox<Self>>> {
        let registration = KBox::pin_init(
            pin_init!(Self {
                misc <- Opaque::zeroed(),
                operations: Self::operations(module),
                node,
            }),
            GFP_KERNEL,
        );
        // Nothing was registered yet, so nothing may be deregistered when something fails.
        let registration: Pin<KBox<Self>> = registration?;
        let misc = registration.misc.get();
        // SAFETY: The structure is this function's until it is registered.
        unsafe {
            *misc = bindings::miscdevice {
                minor: minor.map_or(bindings::MISC_DYNAMIC_MINOR as i32, |minor| minor as i32),
                name: name.as_char_ptr(),
                fops: &registration.operations,
                ..core::mem::zeroed()
            }
        };
        // SAFETY: The structure is filled in and pinned, and is deregistered before it goes.
        to_result(unsafe { bindings::misc_register(misc) }).inspect_err(|_| {
            // SAFETY: Nobody else has the structure; without operations it counts as not
            // registered.
            unsafe { (*misc).fops = ptr::null() };
        })?;
        Ok(registration)
    }

    fn operations(module: &'static ThisModule) -> bindings::file_operations {
        bindings::file_operations {
            owner: module.as_ptr(),
            open: Some(Self::open),
            release: Some(Self::release),
            read_iter: Some(Self::read_iter),
            unlocked_ioctl: Some(Self::ioctl),
            compat_ioctl: bindings::compat_ptr_ioctl,
            llseek: Some(bindings::noop_llseek),
            // SAFETY: All zeroes is a valid `struct file_operations`: it is what C leaves out of
            // its initialisers.
            ..unsafe { core::mem::zeroed() }
        }
    }

    /// # Safety
    ///
    /// Called by the kernel for a file of a registration's node that is being opened.
    unsafe extern "C" fn open(
        _inode: *mut bindings::inode,
        file: *mut bindings::file,
    ) -> kernel::ffi::c_int {
        // SAFETY: `misc_open()` has stored the miscdevice, and keeps it registered meanwhile.
        let misc: *mut Opaque<bindings::miscdevice> = unsafe { (*file).private_data }.cast();
        // SAFETY: The miscdevice is the field of a registration: no other has this operation.
        let registration: *mut Self = unsafe { kernel::container_of!(misc, Self, misc) };
        // SAFETY: As above.
        let registration = unsafe { &*registration };
        let opened = registration
            .node
            .open()
            .and_then(|opened| Ok(KBox::new(opened, GFP_KERNEL)?));
        match opened {
            Ok(opened) => {
                // SAFETY: While a file is being opened, its private data are the driver's.
                unsafe { (*file).private_data = KBox::into_raw(opened).cast() };
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called by the kernel for a file that `open` opened, when nobody uses it any more.
    unsafe extern "C" fn release(
        _inode: *mut bindings::inode,
        file: *mut bindings::file,
    ) -> kernel::ffi::c_int {
        // SAFETY: `open` stored the pointer, and nobody uses the file any more.
        let opened: *mut N::File = unsafe { (*file).private_data }.cast();
        // SAFETY: As above; it came from `KBox::into_raw`.
        drop(unsafe { KBox::from_raw(opened) });
        0
    }

    /// # Safety
    ///
    /// Called by the kernel for a file that `open` opened.
    unsafe extern "C" fn ioctl(
        file: *mut bindings::file,
        command: kernel::ffi::c_uint,
        argument: kernel::ffi::c_ulong,
    ) -> kernel::ffi::c_long {
        // SAFETY: `open` stored the pointer, which is valid until `release`.
        let opened = unsafe { &*(*file).private_data.cast::<N::File>() };
        match N::ioctl(opened, command, Argument::new(argument)) {
            Ok(value) => value as kernel::ffi::c_long,
            Err(error) => error.to_errno() as kernel::ffi::c_long,
        }
    }

    /// # Safety
    ///
    /// Called by the kernel for a file that `open` opened.
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        to: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: The kernel passes a valid kiocb of an open file.
        let file = unsafe { (*kiocb).ki_filp };
        // SAFETY: `open` stored the pointer, which is valid until `release`.
        let opened = unsafe { &*(*file).private_data.cast::<N::File>() };
        // SAFETY: The file is open.
        let nonblocking = unsafe { (*file).f_flags } & bindings::O_NONBLOCK != 0;
        // SAFETY: The kernel passes a valid iterator.
        let room = unsafe { kernel::iov::IovIterDest::from_raw(to) }.len();
        super::sysfs::finish(N::read(opened, room, nonblocking))
    }
}

#[pinned_drop]
impl<N: Node> PinnedDrop for Registration<N> {
    fn drop(self: Pin<&mut Self>) {
        let misc = self.misc.get();
        // SAFETY: The structure was filled in by `new`, or is still zeroed.
        if !unsafe { (*misc).fops }.is_null() {
            // SAFETY: It was registered.
            unsafe { bindings::misc_deregister(misc) };
        }
    }
}
