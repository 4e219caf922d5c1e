// SPDX-License-Identifier: GPL-2.0
//! Eventfds that are looked at without waiting.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd, and whether it was signalled since it was looked at anew.
pub struct Event {
    fd: EventFd,
    seen: Cell<bool>,
}

impl Event {
    /// A new one that is not signalled.
    pub fn new() -> Result<Self> {
        Self::with(0)
    }

    /// A new one with this count.
    pub fn with(count: u32) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let fd = EventFd::from_value_and_flags(count, flags).context("eventfd")?;
        Ok(Self {
            fd,
            seen: Cell::new(false),
        })
    }

    /// Signals it.
    pub fn signal(&self) -> Result<()> {
        self.fd.write(1).context("signal an eventfd").map(drop)
    }

    /// Adds to its count.
    pub fn add(&self, count: u64) -> Result<()> {
        self.fd.write(count).context("signal an eventfd").map(drop)
    }

    /// Takes its count, zero if it is not signalled.
    pub fn take(&self) -> Result<u64> {
        match self.fd.read() {
            Ok(count) => Ok(count),
            Err(Errno::EAGAIN) => Ok(0),
            Err(error) => Err(error).context("read an eventfd"),
        }
    }

    /// Whether it was signalled since the last [`Event::forget`].
    pub fn seen(&self) -> Result<bool> {
        if self.take()? > 0 {
            self.seen.set(true);
        }
        Ok(self.seen.get())
    }

    /// Starts to look anew.
    pub fn forget(&self) -> Result<()> {
        self.take()?;
        self.seen.set(false);
        Ok(())
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
