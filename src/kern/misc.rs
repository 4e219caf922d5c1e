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
use kernel::fs::File;
use kernel::iov::{IovIterDest, IovIterSource};
use kernel::prelude::*;
use kernel::str::CStr;
use kernel::sync::poll::{PollCondVar, PollTable};
use kernel::types::Opaque;

/// What stands behind the node.
pub trait Node: Send + Sync + Sized + 'static {
    /// What stands behind an open file of it. It is dropped when the last descriptor is closed.
    type File: Send + Sync;

    /// Opens the node.
    fn open(&self) -> Result<Self::File>;

    /// An ioctl; the result is returned to user space.
    fn ioctl(file: &Self::File, command: u32, argument: Argument) -> Result<u32>;

    /// Reads a message into `to`. Returns how many bytes.
    fn read(file: &Self::File, to: &mut IovIterDest<'_>, nonblocking: bool) -> Result<usize>;

    /// Takes a message from `from`. Returns how many bytes.
    fn write(file: &Self::File, from: &mut IovIterSource<'_>) -> Result<usize>;

    /// Whether there is a message to be read.
    ///
    /// # Errors
    ///
    /// Those for which who polls cannot be told when there is one.
    fn poll(file: &Self::File, poll: &Poll<'_>) -> Result<bool>;
}

/// A poll of an open file, as long as it is asked for its state.
pub struct Poll<'a> {
    file: &'a File,
    table: PollTable<'a>,
}

impl Poll<'_> {
    /// Lets who polls be told by `readers`.
    pub fn wait_on(&self, readers: &PollCondVar) {
        self.table.register_wait(self.file, readers);
    }
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
            write_iter: Some(Self::write_iter),
            poll: Some(Self::poll),
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
        // SAFETY: The kernel passes a valid iterator of memory to be written, for this call alone.
        let to = unsafe { IovIterDest::from_raw(to) };
        super::sysfs::finish(N::read(opened, to, nonblocking))
    }

    /// # Safety
    ///
    /// Called by the kernel for a file that `open` opened.
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        from: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: The kernel passes a valid kiocb of an open file.
        let file = unsafe { (*kiocb).ki_filp };
        // SAFETY: `open` stored the pointer, which is valid until `release`.
        let opened = unsafe { &*(*file).private_data.cast::<N::File>() };
        // SAFETY: The kernel passes a valid iterator of memory to be read, for this call alone.
        let from = unsafe { IovIterSource::from_raw(from) };
        super::sysfs::finish(N::write(opened, from))
    }

    /// # Safety
    ///
    /// Called by the kernel for a file that `open` opened.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: `open` stored the pointer, which is valid until `release`.
        let opened = unsafe { &*(*file).private_data.cast::<N::File>() };
        let poll = Poll {
            // SAFETY: The file is open during the call, and its position is not used.
            file: unsafe { File::from_raw_file(file) },
            // SAFETY: The kernel passes a table that is valid for the call, or none.
            table: unsafe { PollTable::from_raw(table) },
        };
        match N::poll(opened, &poll) {
            Ok(true) => shim::IOCM_POLLIN | shim::IOCM_POLLRDNORM,
            Ok(false) => 0,
            Err(_) => shim::IOCM_POLLERR,
        }
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
