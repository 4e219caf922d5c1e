// SPDX-License-Identifier: GPL-2.0
//! Pages of guest memory that are missing until the test brings them back (userfaultfd).
//!
//! Whoever touches such a page sleeps, in the kernel or out of it, for as long as the test likes. That is
//! what the memory of a guest does to its host when it is being migrated, or comes from a slow store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{ensure, Context, Result};
use linux_raw_sys::general::{
    uffd_msg, uffdio_api, uffdio_copy, uffdio_range, uffdio_register, UFFDIO_REGISTER_MODE_MISSING,
    UFFD_API, UFFD_EVENT_PAGEFAULT, UFFD_FEATURE_THREAD_ID,
};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_COPY, UFFDIO_REGISTER};
use nix::errno::Errno;
use vm_memory::GuestAddress;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use crate::memory::{GuestMemory, PAGE};
use crate::thread::Thread;
use crate::wait;

/// The userfaultfd of missing pages, which tells who touches them.
///
/// As long as it is open in some process, nothing but [`Holes::fill`], or death, ends the sleep of those
/// who do.
pub struct Faults {
    file: File,
}

/// Missing pages.
pub struct Holes {
    faults: Faults,
    /// For each missing page, its address in this process and what was in it.
    contents: BTreeMap<u64, Vec<u8>>,
}

/// Somebody who touched a missing page, and sleeps.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The thread that sleeps.
    pub thread: Thread,
    /// What it touched, in this process.
    pub address: u64,
}

impl From<OwnedFd> for Faults {
    fn from(fd: OwnedFd) -> Self {
        Self { file: fd.into() }
    }
}

impl AsFd for Faults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Faults {
    fn new() -> Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: The system call takes nothing but flags.
        let answer = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let number = Errno::result(answer).context("userfaultfd")?;
        // SAFETY: The kernel has just made this descriptor for the caller.
        let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(number)?) };
        let faults = Self::from(fd);
        let mut request = uffdio_api {
            api: UFFD_API.into(),
            features: UFFD_FEATURE_THREAD_ID.into(),
            ioctls: 0,
        };
        faults
            .ioctl(UFFDIO_API, &mut request)
            .context("UFFDIO_API")?;
        Ok(faults)
    }

    fn ioctl<T>(&self, request: u32, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: The requests of this file are passed with the structure that they read and write.
        Errno::result(unsafe { ioctl_with_mut_ref(&self.file, request.into(), argument) }).map(drop)
    }

    fn register(&self, address: u64) -> Result<()> {
        let mut request = uffdio_register {
            range: uffdio_range {
                start: address,
                len: PAGE,
            },
            mode: UFFDIO_REGISTER_MODE_MISSING.into(),
            ioctls: 0,
        };
        self.ioctl(UFFDIO_REGISTER, &mut request)
            .with_context(|| format!("register the page at {address:#x}"))
    }

    /// Waits until somebody touches a missing page.
    pub fn expect(&mut self) -> Result<Fault> {
        let touched = wait::readable(&[self.as_fd()], wait::patience())?;
        ensure!(
            touched,
            "nobody touched a missing page within {:?}",
            wait::patience()
        );
        let mut bytes = [0; size_of::<uffd_msg>()];
        self.file.read_exact(&mut bytes).context("read a fault")?;
        // SAFETY: The kernel filled all bytes of the message, whose fields are integers.
        let message: uffd_msg = unsafe { std::mem::transmute(bytes) };
        ensure!(
            u32::from(message.event) == UFFD_EVENT_PAGEFAULT,
            "userfaultfd told of event {:#x}",
            message.event
        );
        // SAFETY: A message of a page fault carries this member of the union.
        let fault = unsafe { message.arg.pagefault };
        // SAFETY: The thread's number was asked for when the descriptor was made.
        let thread = unsafe { fault.feat.ptid };
        Ok(Fault {
            thread: Thread {
                id: i32::try_from(thread)?,
            },
            address: fault.address,
        })
    }
}

impl Holes {
    /// Takes away every page that has a byte of these parts of the memory. From now on, this process must
    /// not touch them either.
    pub fn punch(memory: &GuestMemory, parts: &[(GuestAddress, u64)]) -> Result<Self> {
        let mut holes = Self {
            faults: Faults::new()?,
            contents: BTreeMap::new(),
        };
        for (start, length) in parts {
            for page in memory.pages(*start, *length) {
                holes.take(memory, page)?;
            }
        }
        ensure!(!holes.contents.is_empty(), "no page to take away");
        Ok(holes)
    }

    fn take(&mut self, memory: &GuestMemory, page: GuestAddress) -> Result<()> {
        let address = memory.host_address(page)?;
        if self.contents.contains_key(&address) {
            return Ok(());
        }
        let mut content = vec![0; PAGE as usize];
        memory.read_bytes(page, &mut content)?;
        // First the trap, then the hole: nobody finds the page empty in between.
        self.faults.register(address)?;
        memory.give_up_page(page)?;
        self.contents.insert(address, content);
        Ok(())
    }

    /// Waits until somebody touches one of them.
    pub fn expect_fault(&mut self) -> Result<Fault> {
        self.faults.expect()
    }

    /// Brings all pages back as they were, and lets those who touched them go on.
    pub fn fill(self) -> Result<()> {
        for (address, content) in &self.contents {
            let mut request = uffdio_copy {
                dst: *address,
                src: content.as_ptr() as u64,
                len: PAGE,
                mode: 0,
                copy: 0,
            };
            self.faults
                .ioctl(UFFDIO_COPY, &mut request)
                .with_context(|| format!("bring back the page at {address:#x}"))?;
        }
        Ok(())
    }
}

impl AsFd for Holes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.faults.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hole_holds_back_who_touches_it_until_it_is_filled() {
        let memory = GuestMemory::new().unwrap();
        let page = memory.allocate(PAGE, PAGE).unwrap();
        memory.write(page, 7u64).unwrap();
        let holes = match Holes::punch(&memory, &[(page, 8)]) {
            // Kernels may be built without userfaultfd, or keep it to root.
            Err(error) if matches!(error.downcast_ref(), Some(Errno::ENOSYS | Errno::EPERM)) => {
                return
            }
            holes => holes.unwrap(),
        };
        let mut faults = Faults::from(holes.as_fd().try_clone_to_owned().unwrap());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| memory.read::<u64>(page).unwrap());
            let fault = faults.expect().unwrap();
            assert_eq!(fault.address, memory.host_address(page).unwrap());
            assert!(!reader.is_finished());
            holes.fill().unwrap();
            assert_eq!(reader.join().unwrap(), 7);
        });
    }
}
