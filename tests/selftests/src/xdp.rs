// SPDX-License-Identifier: GPL-2.0
//! Programs of XDP, which see what an interface receives before anybody else.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

/// What becomes of each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Nobody sees it.
    Drop,
    /// The host gets it as if there were no program.
    Pass,
    /// It goes back to where it came from.
    SendBack,
    /// The host gets it, unchanged, if there is room for so many bytes before it, and nobody sees it
    /// otherwise. XDP is promised 256 (`XDP_PACKET_HEADROOM`, linux/bpf.h).
    PassWithRoom(u8),
}

/// `enum xdp_action` of linux/bpf.h.
const DROP: i32 = 1;
const PASS: i32 = 2;
const TX: i32 = 3;

/// The number of `bpf_xdp_adjust_head` among the helpers of linux/bpf.h.
const ADJUST_HEAD: i32 = 44;

/// `exit`.
const EXIT: u64 = 0x95;
/// `r6 = r1` and `r1 = r6`.
const KEEP: u64 = 0x16bf;
const TAKE: u64 = 0x61bf;
/// `if r0 != 0`, pass over five instructions.
const UNLESS_ZERO: u64 = 0x0005_0055;

/// `r0 =` and `r2 =` a number, and a call of a helper.
const fn answer(number: i32) -> u64 {
    0xb7 | (number as u32 as u64) << 32
}
const fn second(number: i32) -> u64 {
    0x02b7 | (number as u32 as u64) << 32
}
const fn call(helper: i32) -> u64 {
    0x85 | (helper as u32 as u64) << 32
}

impl Program {
    fn instructions(self) -> Vec<u64> {
        match self {
            Self::Drop => vec![answer(DROP), EXIT],
            Self::Pass => vec![answer(PASS), EXIT],
            Self::SendBack => vec![answer(TX), EXIT],
            Self::PassWithRoom(bytes) => vec![
                KEEP,
                second(-i32::from(bytes)),
                call(ADJUST_HEAD),
                UNLESS_ZERO,
                TAKE,
                second(bytes.into()),
                call(ADJUST_HEAD),
                answer(PASS),
                EXIT,
                answer(DROP),
                EXIT,
            ],
        }
    }
}

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

/// Runs the program for everything that `interface` receives, until what this returns is dropped.
pub fn attach(interface: &str, program: Program) -> Result<OwnedFd> {
    let program = program.instructions();
    let load = Load {
        kind: BPF_PROG_TYPE_XDP,
        instructions: program.len() as u32,
        program: program.as_ptr() as u64,
        licence: LICENCE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"selftests\0\0\0\0\0\0\0",
        interface: 0,
        expected_attach: BPF_XDP,
    };
    let program = bpf(BPF_PROG_LOAD, &load).context("load a program of XDP")?;
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
    // what lives as long as the callers and has the lengths that it is told.
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
