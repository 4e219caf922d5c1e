// SPDX-License-Identifier: GPL-2.0
//! A program that drops whatever an interface receives, so that what is measured ends at the tap.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

/// `r0 = XDP_DROP; exit`, see linux/bpf.h.
const PROGRAM: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
const LICENCE: &[u8] = b"GPL\0";

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    program: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach: u32,
}

/// The same for `BPF_LINK_CREATE`.
#[repr(C)]
struct Link {
    program: u32,
    interface: u32,
    attach: u32,
    flags: u32,
}

/// Drops everything that `interface` receives until what this returns is dropped.
pub fn attach(interface: &str) -> Result<OwnedFd> {
    let load = Load {
        kind: BPF_PROG_TYPE_XDP,
        instructions: PROGRAM.len() as u32,
        program: PROGRAM.as_ptr() as u64,
        licence: LICENCE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"drop_all\0\0\0\0\0\0\0\0",
        interface: 0,
        expected_attach: BPF_XDP,
    };
    let program = bpf(BPF_PROG_LOAD, &load).context("load the program that drops packets")?;
    let link = Link {
        program: program.as_raw_fd() as u32,
        interface: if_nametoindex(interface)?,
        attach: BPF_XDP,
        flags: 0,
    };
    bpf(BPF_LINK_CREATE, &link).with_context(|| format!("attach it to {interface}"))
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: The kernel reads as many bytes as it is told, and the pointers in them are to
    // constants of the lengths that it is told.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    let descriptor = Errno::result(answer)?;
    // SAFETY: The system call has made it for this process.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}
