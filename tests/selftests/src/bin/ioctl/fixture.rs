// SPDX-License-Identifier: GPL-2.0
//! A device in a state of its life.

use std::cell::{RefCell, RefMut};
use std::num::NonZeroUsize;

use anyhow::{Context, Result};
use nix::sys::mman::{mmap_anonymous, mprotect, munmap, MapFlags, ProtFlags};
use vhost_iocm_selftests::device::Device;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;

/// How far a device has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Just opened.
    Fresh,
    /// Owned by this process, and nothing else.
    Owned,
    /// All set, but without backends.
    Stopped,
    /// Serving both virtqueues.
    Running,
    /// Given up by the owner after it was all set.
    Reset,
}

/// A card that is given one device after the other, as making a tap for each would take most of the
/// time.
pub struct Bench<'a> {
    options: &'a Options,
    nic: RefCell<Option<Nic>>,
}

impl<'a> Bench<'a> {
    /// A bench without card.
    pub fn new(options: &'a Options) -> Self {
        Self {
            options,
            nic: RefCell::new(None),
        }
    }

    /// The card, with a new device in this state. Its rings and eventfds are good for arguments
    /// whatever the state.
    pub fn card(&self, state: State) -> Result<RefMut<'_, Nic>> {
        let mut slot = self.nic.borrow_mut();
        let device = Device::open(&self.options.node)?;
        let nic = match slot.take() {
            None => Nic::prepare(device, NicOptions::default())?,
            Some(mut nic) => {
                nic.device = device;
                nic.set_up()?;
                nic
            }
        };
        let nic = slot.insert(nic);
        match state {
            State::Stopped => {}
            State::Running => nic.start()?,
            State::Reset => nic.device.reset_owner().context("RESET_OWNER")?,
            State::Fresh => nic.device = Device::open(&self.options.node)?,
            State::Owned => {
                nic.device = Device::open(&self.options.node)?;
                nic.device.set_owner().context("SET_OWNER")?;
            }
        }
        RefMut::filter_map(slot, Option::as_mut)
            .ok()
            .context("the bench has no card")
    }
}

/// An address where nothing is mapped.
pub const BAD_ADDRESS: u64 = 0x10;

/// A page behind which nothing can be read.
pub struct EdgePage {
    start: std::ptr::NonNull<std::ffi::c_void>,
}

const PAGE: usize = 4096;

impl EdgePage {
    /// Maps the page.
    pub fn new() -> Result<Self> {
        let length = NonZeroUsize::new(2 * PAGE).context("no length")?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: A private anonymous mapping at an address of the kernel's choice touches nothing.
        let start = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) }
            .context("map two pages")?;
        let page = Self { start };
        // SAFETY: The second page belongs to the mapping just made, which nobody else knows.
        unsafe { mprotect(start.byte_add(PAGE), PAGE, ProtFlags::PROT_NONE) }
            .context("protect the second page")?;
        Ok(page)
    }

    /// Puts bytes at the very end of the page and returns their address.
    pub fn put(&mut self, bytes: &[u8]) -> u64 {
        assert!(bytes.len() <= PAGE, "{} bytes on a page", bytes.len());
        // SAFETY: The bytes fit the first page, which is writable and of this value alone.
        unsafe {
            let at = self.start.cast::<u8>().add(PAGE - bytes.len());
            at.copy_from_nonoverlapping(std::ptr::NonNull::from(bytes).cast(), bytes.len());
            at.as_ptr() as u64
        }
    }
}

impl Drop for EdgePage {
    fn drop(&mut self) {
        // SAFETY: The mapping is that of `new`; addresses handed out are only ever read by the kernel.
        // A mapping that stays is no harm to a test.
        let _ = unsafe { munmap(self.start, 2 * PAGE) };
    }
}
