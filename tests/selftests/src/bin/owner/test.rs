// SPDX-License-Identifier: GPL-2.0
//! The test that started this process.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use nix::sys::socket::{recv, MsgFlags};
use vhost_iocm_selftests::process::send_fd;

/// The channel to the test, which is the standard input: a byte from here says that something is done, a
/// byte from there asks for the next thing, and the end of file for the end.
pub struct Test {
    channel: UnixStream,
}

impl AsFd for Test {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Test {
    pub fn new() -> Result<Self> {
        let channel = std::io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self {
            channel: channel.into(),
        })
    }

    /// Says that what the test waits for is done.
    pub fn tell_done(&self) -> Result<()> {
        (&self.channel).write_all(b"d").context("tell the test")
    }

    /// Hands a descriptor to the test.
    pub fn send_fd(&self, fd: BorrowedFd<'_>) -> Result<()> {
        send_fd(&self.channel, fd)
    }

    /// Waits until the test asks for the next thing.
    pub fn wait(&self) -> Result<()> {
        match (&self.channel)
            .read(&mut [0])
            .context("wait for the test")?
        {
            0 => exit(),
            _ => Ok(()),
        }
    }

    /// Ends the process if the test asks for that.
    pub fn check_end(&self) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        if recv(self.channel.as_raw_fd(), &mut [0], flags) == Ok(0) {
            exit();
        }
    }
}

/// Exits as a process that was not written for it: without closing anything before.
fn exit() -> ! {
    std::process::exit(0)
}
