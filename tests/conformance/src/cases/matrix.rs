// SPDX-License-Identifier: GPL-2.0
//! Every request in every state, by owners and others, with every kind of argument.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};
use nix::fcntl::{fcntl, FcntlArg, FdFlag};

use crate::case::{Cases, Node};
use crate::child;
use crate::device::TRANSMIT;
use crate::device::{describe, feature, long_words, memory_table, request, words, Device};
use crate::memory::Edge;
use crate::rig::{Ground, Rig, State};
use crate::transcript::Transcript;

/// A request, and an argument that is good for a device that is all set. Where the request is about a
/// virtqueue, its number is the first word.
struct Row {
    name: &'static str,
    number: u32,
    argument: fn(&Rig) -> Vec<u8>,
}

fn nothing(_: &Rig) -> Vec<u8> {
    vec![]
}

fn state(rig: &Rig) -> Vec<u8> {
    words(&[TRANSMIT as u32, rig.queues[TRANSMIT].ring.size.into()])
}

fn zero(_: &Rig) -> Vec<u8> {
    words(&[TRANSMIT as u32, 0])
}

fn backend(rig: &Rig) -> Vec<u8> {
    words(&[TRANSMIT as u32, rig.ground.tap.as_raw_fd() as u32])
}

fn kick(rig: &Rig) -> Vec<u8> {
    words(&[
        TRANSMIT as u32,
        rig.queues[TRANSMIT].kick.as_raw_fd() as u32,
    ])
}

fn call(rig: &Rig) -> Vec<u8> {
    words(&[
        TRANSMIT as u32,
        rig.queues[TRANSMIT].call.as_raw_fd() as u32,
    ])
}

fn features_array(_: &Rig) -> Vec<u8> {
    long_words(&[2, feature::VERSION_1, 0])
}

macro_rules! rows {
    ($($name:ident $argument:expr,)*) => {
        &[$(Row { name: stringify!($name), number: request::$name, argument: $argument },)*]
    };
}

const ROWS: &[Row] = rows![
    GET_FEATURES | _ | long_words(&[0]),
    SET_FEATURES | _ | long_words(&[feature::VERSION_1]),
    GET_FEATURES_ARRAY features_array,
    SET_FEATURES_ARRAY features_array,
    GET_BACKEND_FEATURES | _ | long_words(&[0]),
    SET_BACKEND_FEATURES | _ | long_words(&[0]),
    SET_OWNER nothing,
    RESET_OWNER nothing,
    SET_MEM_TABLE | rig | memory_table(&rig.arena().regions()),
    SET_LOG_BASE | rig | long_words(&[rig.arena().regions()[0][2]]),
    SET_LOG_FD | rig | words(&[rig.queues[0].error.as_raw_fd() as u32]),
    SET_VRING_NUM state,
    SET_VRING_ADDR | rig | rig.addresses(TRANSMIT).bytes(),
    SET_VRING_BASE zero,
    GET_VRING_BASE zero,
    SET_VRING_ENDIAN zero,
    GET_VRING_ENDIAN zero,
    SET_VRING_KICK kick,
    SET_VRING_CALL call,
    SET_VRING_ERR call,
    SET_VRING_BUSYLOOP_TIMEOUT zero,
    GET_VRING_BUSYLOOP_TIMEOUT zero,
    NET_SET_BACKEND backend,
    SET_FORK_FROM_OWNER | _ | vec![1],
    GET_FORK_FROM_OWNER | _ | vec![0],
    NEW_WORKER zero,
    FREE_WORKER zero,
    ATTACH_VRING_WORKER zero,
    GET_VRING_WORKER zero,
    SCSI_SET_ENDPOINT zero,
    VSOCK_SET_GUEST_CID zero,
    VDPA_GET_DEVICE_ID zero,
];

impl Row {
    /// Calls with every kind of argument, the good one last.
    fn calls(&self, rig: &Rig) -> Result<Vec<String>> {
        let device = &rig.device;
        let mut lines = Vec::new();
        let mut note = |what: &str, answer| lines.push(format!("{what}: {}", describe(&answer)));
        let good = (self.argument)(rig);
        if !good.is_empty() {
            // Addresses that user space can never have, and one that it has not.
            for (what, address) in [("null", 0), ("last", usize::MAX), ("unmapped", 0x1000)] {
                // SAFETY: Nothing is mapped there.
                note(what, unsafe { device.call_at(self.number, address) });
            }
            let edge = Edge::new()?;
            for length in [1, 4, good.len() - 1] {
                let cut = edge.put(&good[..length.min(good.len() - 1)]);
                // SAFETY: What can be written there is the edge's own page.
                note("cut short", unsafe { device.call_at(self.number, cut) });
            }
            // Where the first word is a number of words of features, a large one would reach beyond the
            // argument.
            let array = matches!(
                self.number,
                request::GET_FEATURES_ARRAY | request::SET_FEATURES_ARRAY
            );
            let indices: &[u32] = if array {
                &[2, 3]
            } else {
                &[2, 3, 0x8000_0000, u32::MAX]
            };
            for index in indices {
                let mut argument = good.clone();
                let word = index.to_ne_bytes();
                if argument.len() < 4 {
                    argument.resize(4, 0);
                }
                argument[..4].copy_from_slice(&word);
                note("index", device.call(self.number, &mut argument));
            }
        }
        let mut argument = good;
        note("good", device.call(self.number, &mut argument));
        if !matches!(
            self.number,
            request::SET_VRING_ADDR
                | request::SET_MEM_TABLE
                | request::SET_LOG_BASE
                | request::SET_VRING_KICK
                | request::SET_VRING_CALL
                | request::SET_VRING_ERR
                | request::SET_LOG_FD
                | request::NET_SET_BACKEND
        ) {
            // Neither addresses nor descriptors, which no two runs have in common.
            lines.push(format!("argument: {argument:x?}"));
        }
        Ok(lines)
    }
}

/// Notes what a device is like after all this.
fn probe(rig: &Rig, transcript: &mut Transcript<'_>) -> Result<()> {
    let device = &rig.device;
    for index in 0..2 {
        transcript.note(format!("base of {index}: {}", rig.base(index)));
        transcript.answer(
            "size",
            &device.set_state(request::SET_VRING_NUM, index as u32, 128),
        );
    }
    transcript.answer("owner", &device.set_owner());
    Ok(())
}

/// Calls in a forked child, which is not the owner.
fn in_child(row: &Row, rig: &Rig) -> Result<Vec<String>> {
    let text = child::in_child(|| Ok(row.calls(rig)?.join("\n")))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Calls in another program, which was given the device.
fn in_program(row: usize, rig: &Rig) -> Result<Vec<String>> {
    let fd = rig.device.as_raw_fd();
    let inherit = |inherit: bool| {
        let flags = if inherit {
            FdFlag::empty()
        } else {
            FdFlag::FD_CLOEXEC
        };
        fcntl(&rig.device, FcntlArg::F_SETFD(flags)).context("F_SETFD")
    };
    inherit(true)?;
    let output = Command::new(std::env::current_exe()?)
        .args(["call", &fd.to_string(), &row.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .context("start another program");
    inherit(false)?;
    let output = output?;
    ensure!(
        output.status.success(),
        "the other program ended with {}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .map(str::to_owned)
        .collect())
}

/// Makes the calls of a row on a device that this program was given, and prints the answers.
pub fn call_as_other(fd: i32, row: usize) -> Result<()> {
    let row = ROWS.get(row).context("no such row")?;
    // SAFETY: Who started this program left the descriptor to it.
    let device = Device::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let rig = Rig::with(device, &Ground::new()?, State::Fresh)?;
    for line in row.calls(&rig)? {
        println!("{line}");
    }
    Ok(())
}

const STATES: &[(&str, State)] = &[
    ("without owner", State::Fresh),
    ("by the owner", State::Owned),
    ("by the owner of a device that is all set", State::Stopped),
    ("by the owner while running", State::Running),
    ("after RESET_OWNER", State::Reset),
];

/// Adds the cases.
pub fn add(cases: &mut Cases) {
    for row in ROWS {
        for (name, state) in STATES {
            cases.add(
                format!("{} {name}", row.name),
                move |node: &Node, transcript| {
                    let rig = node.rig(*state)?;
                    for line in row.calls(&rig)? {
                        transcript.note(line);
                    }
                    probe(&rig, transcript)
                },
            );
        }
    }
    for (number, row) in ROWS.iter().enumerate() {
        cases.add(
            format!("{} by a forked child", row.name),
            move |node, transcript| {
                let rig = node.rig(State::Running)?;
                for line in in_child(row, &rig)? {
                    transcript.note(line);
                }
                probe(&rig, transcript)
            },
        );
        cases.add(
            format!("{} by another program", row.name),
            move |node, transcript| {
                let rig = node.rig(State::Running)?;
                for line in in_program(number, &rig)? {
                    transcript.note(line);
                }
                probe(&rig, transcript)
            },
        );
    }
}
