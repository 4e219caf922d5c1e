// SPDX-License-Identifier: GPL-2.0
//! Becoming another program, with a device open and running.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, FdFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::unistd::execv;
use vhost_iocm_selftests::nic::NicOptions;

use crate::test::Test;
use crate::Card;

/// Bytes that begin as a program does, and are none.
const BROKEN: &[u8] = b"\x7fELF, but nothing more";

pub fn run(card: Card, ballast: usize, test: &Test) -> Result<()> {
    let nic = card.open(NicOptions::default())?;
    // Every page is touched, so the process has them.
    let memory = vec![1u8; ballast << 20];
    std::hint::black_box(&memory);
    test.tell_done()?;
    test.send_fd(nic.device.as_fd())?;

    test.wait()?;
    let mut file = std::fs::File::from(memfd_create("broken", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(BROKEN)?;
    // Not by the standard library, which takes what is no program for a script.
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let answer = execv(&path, &[&path]);
    ensure!(
        answer == Err(Errno::ENOEXEC),
        "a broken program gave {answer:?}"
    );
    // The process is what it was, and so is the device's owner.
    nic.device
        .base(0)
        .context("the device of a process that goes on")?;
    test.tell_done()?;

    test.wait()?;
    fcntl(&nic.device, FcntlArg::F_SETFD(FdFlag::empty())).context("keep the device open")?;
    let error = Command::new(std::env::current_exe()?).arg("linger").exec();
    Err(error).context("become another program")
}

/// What it becomes: a program that keeps what it was left open, and does nothing.
pub fn linger(test: &Test) -> Result<()> {
    test.tell_done()?;
    test.wait()
}
