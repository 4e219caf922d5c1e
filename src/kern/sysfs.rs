// SPDX-License-Identifier: GPL-2.0

//! Directories in sysfs that show one object each.

use super::bindings as shim;
use core::fmt;
use core::ops::Deref;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Completion;
use kernel::types::Opaque;

/// The page into which a file is printed.
pub struct Text<'a> {
    page: &'a mut [u8],
    len: usize,
}

impl<'a> Text<'a> {
    /// # Safety
    ///
    /// `page` is the buffer that sysfs passed to a show operation.
    pub(super) unsafe fn from_page(page: *mut kernel::ffi::c_char) -> Self {
        // SAFETY: sysfs passes a page that is this call's alone, and zeroed.
        let page = unsafe { core::slice::from_raw_parts_mut(page.cast(), kernel::page::PAGE_SIZE) };
        Self { page, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Lets `print` write into what is left of the page, of which it gets the address and the size
    /// in bytes; it returns how many bytes it wrote.
    pub(super) fn fill(&mut self, print: impl FnOnce(*mut kernel::ffi::c_char, usize) -> usize) {
        let rest = &mut self.page[self.len..];
        let room = rest.len();
        self.len += print(rest.as_mut_ptr().cast(), room).min(room);
    }

    /// What is left of the page.
    pub fn room(&self) -> usize {
        self.page.len() - self.len
    }
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.page
            .get_mut(self.len..end)
            .ok_or(fmt::Error)?
            .copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Prints the contents of a file.
pub type Show<T> = fn(&T, &mut Text<'_>) -> Result;
/// Acts on what was written to a file.
pub type Store<T> = fn(&T, &[u8]) -> Result;

/// A file in the directory of a `T`.
#[repr(C)]
pub struct Attribute<T> {
    attribute: Opaque<bindings::attribute>,
    show: Option<Show<T>>,
    store: Option<Store<T>>,
}

// SAFETY: The kernel writes to an attribute only for lockdep, which locks itself.
unsafe impl<T> Sync for Attribute<T> {}

impl<T> Attribute<T> {
    const fn new(
        name: &'static CStr,
        mode: u16,
        show: Option<Show<T>>,
        store: Option<Store<T>>,
    ) -> Self {
        // SAFETY: All zeroes is a valid `struct attribute`: it is what C leaves out of its
        // initialisers.
        let mut attribute: bindings::attribute = unsafe { core::mem::zeroed() };
        attribute.name = kernel::str::as_char_ptr_in_const_context(name);
        attribute.mode = mode;
        Self {
            attribute: Opaque::new(attribute),
            show,
            store,
        }
    }

    /// A file that all may read.
    pub const fn read_only(name: &'static CStr, show: Show<T>) -> Self {
        Self::new(name, 0o444, Some(show), None)
    }

    /// A file that all may read and root may write.
    pub const fn read_write(name: &'static CStr, show: Show<T>, store: Store<T>) -> Self {
        Self::new(name, 0o644, Some(show), Some(store))
    }
}

/// An object that has a directory.
pub trait Content: Send + Sync + Sized + 'static {
    /// The files in it, in groups.
    const FILES: &'static [&'static [Attribute<Self>]];
}

/// Where a directory is created.
#[derive(Clone, Copy)]
pub enum Parent {
    /// /sys/class/vhost/worker
    Worker,
    /// /sys/class/vhost/dev
    Dev,
    /// /sys/class/vhost/vq
    Vq,
}

/// A directory. Dropping it removes it, after the last operation on its files has returned; so
/// nothing may be locked then that such an operation locks.
pub struct Directory<T: Content>(Pin<KBox<Node<T>>>);

impl<T: Content> Directory<T> {
    /// Creates the directory `name`, whose files show `content`. The class exists.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(parent: Parent, name: fmt::Arguments<'_>, content: T) -> Result<Self> {
        let name = CString::try_from_fmt(name)?;
        let parent = match parent {
            Parent::Worker => shim::iocm_directory_IOCM_DIRECTORY_WORKER,
            Parent::Dev => shim::iocm_directory_IOCM_DIRECTORY_DEV,
            Parent::Vq => shim::iocm_directory_IOCM_DIRECTORY_VQ,
        };
        // SAFETY: The class is registered before anything that has a directory is made, and
        // unregistered after it is gone.
        let parent = unsafe { shim::iocm_control_directory(parent) };
        let node = KBox::pin_init(
            pin_init!(Node {
                kobject <- Opaque::zeroed(),
                released <- Completion::new(),
                content,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The object is zeroed and pinned, its type is constant, the parent lives, and the
        // name is copied.
        let err = unsafe {
            bindings::kobject_init_and_add(
                node.kobject.get(),
                &Node::<T>::KTYPE,
                parent,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        };
        // From here on the object has to be put, which dropping the directory does.
        let directory = Self(node);
        to_result(err)?;
        for file in T::FILES.iter().copied().flatten() {
            // SAFETY: The object is in sysfs, and the attribute is static.
            to_result(unsafe {
                bindings::sysfs_create_file_ns(
                    directory.0.kobject.get(),
                    file.attribute.get(),
                    core::ptr::null_mut(),
                )
            })?;
        }
        Ok(directory)
    }
}

impl<T: Content> Directory<T> {
    pub(super) fn kobject(&self) -> *mut bindings::kobject {
        self.0.kobject.get()
    }
}

impl<T: Content> Deref for Directory<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.content
    }
}

impl<T: Content> Drop for Directory<T> {
    fn drop(&mut self) {
        let kobject = self.0.kobject.get();
        // SAFETY: The object was initialised; removing what was not added does nothing.
        unsafe { bindings::kobject_del(kobject) };
        // SAFETY: This is the reference that the initialisation made.
        unsafe { bindings::kobject_put(kobject) };
        // Others may have references; the memory is theirs until they give them up.
        self.0.released.wait_for_completion();
    }
}

/// What the kernel has of a directory.
#[pin_data]
struct Node<T: Content> {
    #[pin]
    kobject: Opaque<bindings::kobject>,
    #[pin]
    released: Completion,
    content: T,
}

// SAFETY: The kernel object locks itself, and `T` may be used by any thread.
unsafe impl<T: Content> Send for Node<T> {}
// SAFETY: As for `Send`.
unsafe impl<T: Content> Sync for Node<T> {}

impl<T: Content> Node<T> {
    const OPERATIONS: bindings::sysfs_ops = bindings::sysfs_ops {
        show: Some(Self::show),
        store: Some(Self::store),
    };

    const KTYPE: bindings::kobj_type = bindings::kobj_type {
        release: Some(Self::release),
        sysfs_ops: &Self::OPERATIONS,
        // SAFETY: All zeroes is a valid `struct kobj_type`: it is what C leaves out of its
        // initialisers.
        ..unsafe { core::mem::zeroed() }
    };

    /// # Safety
    ///
    /// `kobject` is the field of a node.
    unsafe fn from_kobject<'a>(kobject: *mut bindings::kobject) -> &'a Self {
        let kobject: *mut Opaque<bindings::kobject> = kobject.cast();
        // SAFETY: By the caller's promise.
        let node: *mut Self = unsafe { kernel::container_of!(kobject, Self, kobject) };
        // SAFETY: A node lives until its object was released.
        unsafe { &*node }
    }

    /// # Safety
    ///
    /// Called by the kernel when the last reference to a node's object is gone.
    unsafe extern "C" fn release(kobject: *mut bindings::kobject) {
        // SAFETY: Only nodes have this type.
        let node = unsafe { Self::from_kobject(kobject) };
        node.released.complete_all();
    }

    /// # Safety
    ///
    /// Called by sysfs for a file of a node's directory, with a zeroed page.
    unsafe extern "C" fn show(
        kobject: *mut bindings::kobject,
        attribute: *mut bindings::attribute,
        page: *mut kernel::ffi::c_char,
    ) -> isize {
        // SAFETY: Only nodes have this type, and sysfs removes files before the object goes.
        let node = unsafe { Self::from_kobject(kobject) };
        // SAFETY: The attribute is the first field of a static `Attribute<T>`: a directory of this
        // type has no other files.
        let file = unsafe { &*attribute.cast::<Attribute<T>>() };
        // SAFETY: The page is the one that sysfs passed.
        let mut text = unsafe { Text::from_page(page) };
        let Some(show) = file.show else {
            return EIO.to_errno() as isize;
        };
        finish(show(&node.content, &mut text).map(|()| text.len()))
    }

    /// # Safety
    ///
    /// Called by sysfs for a file of a node's directory, with a text of `len` bytes.
    unsafe extern "C" fn store(
        kobject: *mut bindings::kobject,
        attribute: *mut bindings::attribute,
        text: *const kernel::ffi::c_char,
        len: usize,
    ) -> isize {
        // SAFETY: As for `show`.
        let node = unsafe { Self::from_kobject(kobject) };
        // SAFETY: As for `show`.
        let file = unsafe { &*attribute.cast::<Attribute<T>>() };
        // SAFETY: sysfs passes a buffer of this length.
        let text = unsafe { core::slice::from_raw_parts(text.cast(), len) };
        let Some(store) = file.store else {
            return EIO.to_errno() as isize;
        };
        finish(store(&node.content, text).map(|()| len))
    }
}

/// The result of an operation as sysfs wants it.
pub(super) fn finish(result: Result<usize>) -> isize {
    match result {
        Ok(len) => len as isize,
        Err(error) => error.to_errno() as isize,
    }
}
