// SPDX-License-Identifier: GPL-2.0

//! /sys/class/vhost and the files there that do not belong to one object.

use super::bindings as shim;
use super::snapshot::Snapshot;
use super::sysfs::{finish, Text};
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::Arc;

/// The files.
#[derive(Clone, Copy)]
pub enum File {
    /// epoch
    Epoch,
    /// cycles
    Cycles,
    /// nr_iocores
    NrIocores,
    /// iocores_utilization
    IocoresUtilization,
    /// worker/create
    WorkerCreate,
    /// worker/remove
    WorkerRemove,
    /// worker/default
    WorkerDefault,
    /// worker/placement
    WorkerPlacement,
}

impl File {
    fn from_number(number: i32) -> Result<Self> {
        Ok(match number as u32 {
            shim::iocm_file_IOCM_FILE_EPOCH => Self::Epoch,
            shim::iocm_file_IOCM_FILE_CYCLES => Self::Cycles,
            shim::iocm_file_IOCM_FILE_NR_IOCORES => Self::NrIocores,
            shim::iocm_file_IOCM_FILE_IOCORES_UTILIZATION => Self::IocoresUtilization,
            shim::iocm_file_IOCM_FILE_WORKER_CREATE => Self::WorkerCreate,
            shim::iocm_file_IOCM_FILE_WORKER_REMOVE => Self::WorkerRemove,
            shim::iocm_file_IOCM_FILE_WORKER_DEFAULT => Self::WorkerDefault,
            shim::iocm_file_IOCM_FILE_WORKER_PLACEMENT => Self::WorkerPlacement,
            _ => return Err(EIO),
        })
    }
}

/// Who answers for the files.
pub trait Files: Send + Sync + 'static {
    /// Prints the contents of `file`.
    fn show(self: &Arc<Self>, file: File, text: &mut Text<'_>) -> Result;

    /// Acts on what was written to `file`.
    fn store(self: &Arc<Self>, file: File, text: &[u8]) -> Result;

    /// What the binary file shows.
    fn snapshot(&self) -> &Snapshot;
}

/// The class, while it is registered. There can be one, so this is made once, by the module's
/// initialisation.
pub struct Control<F: Files> {
    _files: Pin<KBox<Arc<F>>>,
}

impl<F: Files> Control<F> {
    const OPERATIONS: shim::iocm_control_ops = shim::iocm_control_ops {
        show: Some(Self::show),
        store: Some(Self::store),
        snapshot_read: Some(Self::snapshot_read),
        snapshot_page: Some(Self::snapshot_page),
    };

    /// Registers the class.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `EEXIST` when another module has a class of this name.
    pub fn new(files: Arc<F>) -> Result<Self> {
        let files = KBox::pin(files, GFP_KERNEL)?;
        let context: *const Arc<F> = &*files;
        // SAFETY: The operations are constant and the context lives until the class is gone.
        to_result(unsafe { shim::iocm_control_register(&Self::OPERATIONS, context.cast()) })?;
        Ok(Self { _files: files })
    }

    /// # Safety
    ///
    /// Called by the shim with the context that was registered and the page of sysfs.
    unsafe extern "C" fn show(
        context: *const kernel::ffi::c_void,
        file: kernel::ffi::c_int,
        page: *mut kernel::ffi::c_char,
    ) -> isize {
        // SAFETY: The context is the one that was registered.
        let files = unsafe { &*context.cast::<Arc<F>>() };
        // SAFETY: The page is the one that sysfs passed.
        let mut text = unsafe { Text::from_page(page) };
        finish(
            File::from_number(file)
                .and_then(|file| files.show(file, &mut text))
                .map(|()| text.len()),
        )
    }

    /// # Safety
    ///
    /// Called by the shim with the context that was registered and the text of sysfs.
    unsafe extern "C" fn store(
        context: *const kernel::ffi::c_void,
        file: kernel::ffi::c_int,
        text: *const kernel::ffi::c_char,
        len: usize,
    ) -> isize {
        // SAFETY: The context is the one that was registered.
        let files = unsafe { &*context.cast::<Arc<F>>() };
        // SAFETY: sysfs passes a buffer of this length.
        let text = unsafe { core::slice::from_raw_parts(text.cast(), len) };
        finish(
            File::from_number(file)
                .and_then(|file| files.store(file, text))
                .map(|()| len),
        )
    }
}

impl<F: Files> Control<F> {
    /// # Safety
    ///
    /// Called by the shim with the context that was registered and a buffer of `len` bytes.
    unsafe extern "C" fn snapshot_read(
        context: *const kernel::ffi::c_void,
        position: u64,
        bytes: *mut kernel::ffi::c_char,
        len: usize,
    ) -> isize {
        // SAFETY: The context is the one that was registered.
        let files = unsafe { &*context.cast::<Arc<F>>() };
        // The buffer of sysfs is not initialised.
        // SAFETY: sysfs passes a buffer of this length.
        unsafe { bytes.write_bytes(0, len) };
        // SAFETY: As above; it is this call's alone.
        let bytes = unsafe { core::slice::from_raw_parts_mut(bytes.cast(), len) };
        finish(Ok(files.snapshot().read(position, bytes)))
    }

    /// # Safety
    ///
    /// Called by the shim with the context that was registered.
    unsafe extern "C" fn snapshot_page(
        context: *const kernel::ffi::c_void,
        index: usize,
    ) -> *mut kernel::bindings::page {
        // SAFETY: The context is the one that was registered.
        let files = unsafe { &*context.cast::<Arc<F>>() };
        files.snapshot().page(index)
    }
}

impl<F: Files> Drop for Control<F> {
    fn drop(&mut self) {
        // SAFETY: The class was registered when this was made.
        unsafe { shim::iocm_control_unregister() };
    }
}
