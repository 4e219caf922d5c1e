// SPDX-License-Identifier: GPL-2.0
//! Limits and ends of the process that owns a device.

use anyhow::Context;
use nix::sys::resource::{setrlimit, Resource};
use nix::unistd::{setgid, setuid, Gid, Uid};

use crate::case::{Cases, Node};
use crate::child::in_child;
use crate::device::{describe, request, Device, RECEIVE};

/// A user who is nobody else's here, so that no process but the child counts.
const USER: u32 = 54_321;

/// What an owner may ask.
fn base(device: &Device) -> String {
    match device.state(request::GET_VRING_BASE, RECEIVE as u32) {
        Ok(base) => base.to_string(),
        Err(errno) => format!("{errno:?}"),
    }
}

/// Adds the cases.
pub fn add(cases: &mut Cases) {
    cases.add(
        "SET_OWNER where a limit forbids one more thread",
        |node: &Node, transcript| {
            let device = node.open()?;
            transcript.note(in_child(|| {
                setrlimit(Resource::RLIMIT_NPROC, 1, 1).context("RLIMIT_NPROC")?;
                setgid(Gid::from_raw(USER)).context("setgid")?;
                setuid(Uid::from_raw(USER)).context("setuid")?;
                let first = describe(&device.set_owner());
                Ok(format!("{first}, then {}", base(&device)))
            })?);
            // The refusal has left nothing.
            transcript.answer("by somebody else", &device.set_owner());
            transcript.note(base(&device));
            Ok(())
        },
    );
    cases.add(
        "the owner has ended, and another process has the device",
        |node: &Node, transcript| {
            let device = node.open()?;
            transcript.note(in_child(|| {
                let first = describe(&device.set_owner());
                Ok(format!("{first}, then {}", base(&device)))
            })?);
            transcript.note(base(&device));
            transcript.answer("own", &device.set_owner());
            transcript.answer("reset", &device.set(request::RESET_OWNER, &[]));
            transcript.answer("features", &device.set_features(0));
            Ok(())
        },
    );
}
