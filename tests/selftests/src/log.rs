// SPDX-License-Identifier: GPL-2.0
//! The dirty log: a bitmap in which the device marks the pages of the guest that it wrote.

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use nix::sys::mman::{mmap_anonymous, mprotect, munmap, MapFlags, ProtFlags};
use vm_memory::{Address, GuestAddress};

use crate::device::{Device, LOG_ALL};
use crate::memory::PAGE;
use crate::nic::{Nic, Queue};

/// Guest-physical addresses below this have a bit.
const LIMIT: u64 = 8 << 30;
/// Bytes of the log.
const LENGTH: usize = (LIMIT / PAGE / 8) as usize;

/// A log. None of its pages is there before something is written to it.
pub struct DirtyLog {
    start: NonNull<c_void>,
}

// SAFETY: The mapping belongs to no thread, and its words are reached by atomic accesses only.
unsafe impl Send for DirtyLog {}
// SAFETY: As for `Send`.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// A log without a mark.
    pub fn new() -> Result<Self> {
        let length = NonZeroUsize::new(LENGTH).context("no length")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: A private anonymous mapping at an address of the kernel's choice touches nothing.
        let start = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }
            .context("map the dirty log")?;
        Ok(Self { start })
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Allows or forbids to write to it.
    pub fn set_writable(&self, writable: bool) -> Result<()> {
        let access = if writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        // SAFETY: The mapping is this value's, and who writes to it expects that it may fail.
        unsafe { mprotect(self.start, LENGTH, access) }.context("protect the dirty log")
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: The mapping is as long as that, aligned to a page, and lives as long as this value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), LENGTH / 8) }
    }

    /// Takes the marks, as QEMU does: what is marked meanwhile is found the next time.
    pub fn take(&self) -> BTreeSet<GuestAddress> {
        let mut pages = BTreeSet::new();
        for (index, word) in self.words().iter().enumerate() {
            // Looking first leaves pages of the log alone that nobody has written.
            if word.load(Ordering::SeqCst) == 0 {
                continue;
            }
            let bits = word.swap(0, Ordering::SeqCst);
            pages.extend(
                (0..64)
                    .filter(|bit| bits & 1 << bit != 0)
                    .map(|bit| GuestAddress((index as u64 * 64 + bit) * PAGE)),
            );
        }
        pages
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        // SAFETY: The mapping is that of `new`; a device that still has its address gets an error.
        // A mapping that stays is no harm to a test.
        let _ = unsafe { munmap(self.start, LENGTH) };
    }
}

/// Switches the logging of a device, which may be running, on and off, as QEMU does for a migration.
/// It has no part in what the card does meanwhile.
pub struct Switch {
    device: Device,
    features: u64,
    addresses: [vhost::vhost_kern::vhost_binding::vhost_vring_addr; 2],
    used: [u64; 2],
}

impl Switch {
    /// The switch of a card.
    pub fn new(nic: &Nic) -> Result<Self> {
        let used = |queue: &Queue| queue.ring.layout().used.raw_value();
        Ok(Self {
            device: nic.device.try_clone()?,
            features: nic.options().features,
            addresses: [nic.addresses(&nic.receive)?, nic.addresses(&nic.transmit)?],
            used: [used(&nic.receive), used(&nic.transmit)],
        })
    }

    /// Lets buffers and used rings be logged.
    pub fn on(&self, log: &DirtyLog) -> Result<()> {
        self.device
            .set_log_base(log.address())
            .context("SET_LOG_BASE")?;
        self.set(true)
    }

    /// Ends that.
    pub fn off(&self) -> Result<()> {
        self.set(false)
    }

    fn set(&self, on: bool) -> Result<()> {
        let log_all = if on { LOG_ALL } else { 0 };
        self.device
            .set_features(self.features | log_all)
            .context("SET_FEATURES")?;
        for (addresses, used) in self.addresses.iter().zip(self.used) {
            let mut addresses = *addresses;
            addresses.flags = on.into();
            addresses.log_guest_addr = if on { used } else { 0 };
            self.device
                .set_addresses(addresses)
                .context("SET_VRING_ADDR")?;
        }
        Ok(())
    }
}

/// The pages of a card that its device writes and its driver does not, with what is in them now. The
/// card has pages of its own for everything.
pub struct Written {
    pages: Vec<(GuestAddress, Vec<u8>)>,
}

impl Written {
    /// Takes down what is in the pages.
    pub fn of(nic: &Nic) -> Result<Self> {
        let mut pages: BTreeSet<_> = nic.receive.buffer_pages(&nic.memory).into_iter().collect();
        for queue in [&nic.receive, &nic.transmit] {
            let (start, length) = queue.ring.layout().used_part();
            pages.extend(nic.memory.pages(start, length));
        }
        let pages = pages
            .into_iter()
            .map(|page| {
                let mut bytes = vec![0; PAGE as usize];
                nic.memory.read_bytes(page, &mut bytes)?;
                Ok((page, bytes))
            })
            .collect::<Result<_>>()?;
        Ok(Self { pages })
    }

    /// The pages.
    pub fn pages(&self) -> BTreeSet<GuestAddress> {
        self.pages.iter().map(|(page, _)| *page).collect()
    }

    /// The pages that have changed until `later`, which was taken down of the same card.
    pub fn changed(&self, later: &Self) -> BTreeSet<GuestAddress> {
        let pages = self.pages.iter().zip(&later.pages);
        pages
            .filter(|(before, after)| before != after)
            .map(|(before, _)| before.0)
            .collect()
    }
}
