// SPDX-License-Identifier: GPL-2.0
//! Messages of the device IOTLB.

use anyhow::Result;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use std::os::fd::AsFd;

use crate::case::{Cases, Node};
use crate::device::{feature, request, Device, Message, IOTLB_MSG_V2, MESSAGE};
use crate::device::{RECEIVE, TRANSMIT, VIRTQUEUES};
use crate::memory::{REGION, STARTS};
use crate::rig::{done, Rig, State};
use crate::transcript::Transcript;

const MISS: u8 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

/// A device behind a vIOMMU, in this state, which has no mappings yet. The rings' addresses are those of
/// the guest.
pub(super) fn behind_iommu(node: &Node, format: u32) -> Result<Rig> {
    let rig = node.rig(State::Stopped)?;
    let features = if format == 2 { IOTLB_MSG_V2 } else { 0 };
    done(
        rig.device
            .set(request::SET_BACKEND_FEATURES, &features.to_ne_bytes()),
    )?;
    done(
        rig.device
            .set_features(feature::VERSION_1 | feature::ACCESS_PLATFORM),
    )?;
    for index in 0..VIRTQUEUES {
        let ring = rig.queues[index].ring;
        let mut addresses = rig.addresses(index);
        addresses.descriptors = ring.descriptors;
        addresses.available = ring.available;
        addresses.used = ring.used;
        done(rig.device.set(request::SET_VRING_ADDR, &addresses.bytes()))?;
    }
    Ok(rig)
}

/// Whether something can be read.
pub(super) fn readable(device: &Device) -> Result<String> {
    let mut entries = [PollFd::new(device.as_fd(), PollFlags::all())];
    poll(&mut entries, PollTimeout::ZERO)?;
    Ok(format!("{:?}", entries[0].revents()))
}

/// A message in words.
fn describe(bytes: &[u8]) -> String {
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let start = 8;
    match (word(start), word(start + 8), word(start + 16)) {
        (Some(iova), Some(size), Some(address)) if bytes.len() == MESSAGE => format!(
            "(format {:x?}, iova {iova:#x}, size {size:#x}, address {address:#x}, permission {}, \
             kind {}, then {:x})",
            &bytes[..start],
            bytes[start + 24],
            bytes[start + 25],
            crc32fast::hash(&bytes[start + 26..])
        ),
        _ => format!("{bytes:x?}"),
    }
}

/// The messages that wait.
pub(super) fn drain(device: &Device) -> Result<String> {
    let mut text = readable(device)?;
    loop {
        let (answer, bytes) = device.read(MESSAGE);
        match answer {
            Ok(length) => text += &format!(", {length} {}", describe(&bytes)),
            Err(errno) => return Ok(format!("{text}, {errno:?}")),
        }
    }
}

pub(super) fn update(rig: &Rig, format: u32, region: usize, permission: u8) -> Message {
    Message {
        format,
        iova: STARTS[region],
        size: REGION,
        address: rig.arena().host(STARTS[region]),
        permission,
        kind: UPDATE,
    }
}

type Change = fn(&mut Message);

const CHANGES: &[(&str, Change)] = &[
    ("update", |_| ()),
    ("update of size 0", |m| m.size = 0),
    ("update of one byte", |m| m.size = 1),
    ("update that wraps", |m| {
        (m.iova, m.size) = (u64::MAX - 4095, 8192)
    }),
    ("update that ends with the address space", |m| {
        (m.iova, m.size) = (u64::MAX - 4095, 4096)
    }),
    ("update of everything", |m| {
        (m.iova, m.size, m.address) = (0, u64::MAX, 0)
    }),
    ("update in the kernel", |m| {
        m.address = 0xffff_8000_0000_0000
    }),
    ("update where nothing is mapped", |m| {
        (m.address, m.size) = (0x1000, 4096)
    }),
    ("update without permission", |m| m.permission = 0),
    ("update to read", |m| m.permission = 1),
    ("update to write", |m| m.permission = 2),
    ("update with unknown permissions", |m| m.permission = 0xff),
    ("invalidation", |m| m.kind = INVALIDATE),
    ("invalidation of size 0", |m| {
        (m.kind, m.size) = (INVALIDATE, 0)
    }),
    ("invalidation of everything", |m| {
        (m.kind, m.iova, m.size) = (INVALIDATE, 0, 0)
    }),
    ("invalidation that wraps", |m| {
        (m.kind, m.iova) = (INVALIDATE, u64::MAX - 10)
    }),
    ("miss", |m| m.kind = MISS),
    ("access failure", |m| m.kind = 4),
    ("begin of a batch", |m| m.kind = 5),
    ("end of a batch", |m| m.kind = 6),
    ("kind 0", |m| m.kind = 0),
    ("kind 7", |m| m.kind = 7),
    ("kind 255", |m| m.kind = 255),
    ("format 0", |m| m.format = 0),
    ("format 3", |m| m.format = 3),
    ("format 2^32-1", |m| m.format = u32::MAX),
];

/// Tells the device about all three regions.
fn map_all(rig: &Rig, transcript: &mut Transcript<'_>, format: u32) {
    for region in 0..STARTS.len() {
        let answer = rig.device.write(&update(rig, format, region, 3).bytes());
        transcript.answer("update", &answer);
    }
}

/// Tells stock vhost about all regions until it has sent a packet. What it asks for between two updates was
/// not read when the second one comes, so that one does not resume it.
fn help_on(rig: &Rig, format: u32) -> Result<()> {
    for _ in 0..100 {
        rig.device.flush()?;
        if rig.queues[TRANSMIT].ring.used_index(rig.arena()) != 0 {
            break;
        }
        drain(&rig.device)?;
        for region in 0..STARTS.len() {
            done(rig.device.write(&update(rig, format, region, 3).bytes()))?;
        }
    }
    Ok(())
}

pub(super) fn settle(rig: &Rig, transcript: &mut Transcript<'_>, index: usize) -> Result<()> {
    transcript.settle(&rig.device, || rig.look(index))
}

pub(super) fn transmit_one(rig: &Rig, position: u16) -> Result<()> {
    let queue = &rig.queues[TRANSMIT];
    let descriptor = crate::ring::Descriptor {
        address: STARTS[2] + 0x1000,
        length: 12 + 60,
        flags: 0,
        next: 0,
    };
    queue.ring.describe(rig.arena(), position, descriptor);
    queue.ring.offer(rig.arena(), position, position);
    queue.ring.publish(rig.arena(), position + 1);
    queue.kick.signal()
}

/// Adds the cases.
pub fn add(cases: &mut Cases) {
    for format in [1, 2] {
        for (name, change) in CHANGES {
            cases.add(
                format!("a message, {name}, in format {format}"),
                move |node: &Node, transcript| {
                    let rig = behind_iommu(node, format)?;
                    let mut message = update(&rig, format, 0, 3);
                    change(&mut message);
                    transcript.answer("write", &rig.device.write(&message.bytes()));
                    transcript.answer("again", &rig.device.write(&message.bytes()));
                    transcript.note(drain(&rig.device)?);
                    Ok(())
                },
            );
            if format == 1 {
                cases.add(
                    format!("a message, {name}, in format 1 as callers of 32 bits have it"),
                    move |node: &Node, transcript| {
                        let rig = behind_iommu(node, format)?;
                        let mut message = update(&rig, format, 0, 3);
                        change(&mut message);
                        let answer = rig.device.write(&message.bytes_of_32_bits());
                        transcript.answer("write", &answer);
                        transcript.note(drain(&rig.device)?);
                        Ok(())
                    },
                );
            }
            cases.add(
                format!("a message, {name}, in format {format} without IOTLB"),
                move |node: &Node, transcript| {
                    let rig = node.rig(State::Stopped)?;
                    let mut message = update(&rig, format, 0, 3);
                    change(&mut message);
                    transcript.answer("write", &rig.device.write(&message.bytes()));
                    Ok(())
                },
            );
        }
        cases.add(
            format!("a message of every length in format {format}"),
            move |node: &Node, transcript| {
                let rig = behind_iommu(node, format)?;
                let mut bytes = update(&rig, format, 0, 3).bytes();
                bytes.resize(160, 0);
                for length in 0..bytes.len() {
                    let answer = rig.device.write(&bytes[..length]);
                    transcript.answer(&length.to_string(), &answer);
                }
                Ok(())
            },
        );
        cases.add(
            format!("reads of every length in format {format}"),
            move |node: &Node, transcript| {
                let rig = behind_iommu(node, format)?;
                transcript.answer(
                    "used ring",
                    &rig.set_backend(TRANSMIT, {
                        use std::os::fd::AsRawFd;
                        rig.ground.tap.as_raw_fd()
                    }),
                );
                transcript.note(readable(&rig.device)?);
                for length in [0, 1, 4, 40, 68, 71, 72, 73, 144] {
                    let (answer, bytes) = rig.device.read(length);
                    transcript.answer(&length.to_string(), &answer);
                    transcript.note(describe(&bytes));
                }
                transcript.note(drain(&rig.device)?);
                Ok(())
            },
        );
        cases.add(
            format!("a miss of each ring, then updates, in format {format}"),
            move |node: &Node, transcript| {
                use std::os::fd::AsRawFd;
                let rig = behind_iommu(node, format)?;
                for index in [RECEIVE, TRANSMIT] {
                    let answer = rig.set_backend(index, rig.ground.tap.as_raw_fd());
                    transcript.answer("start", &answer);
                    transcript.note(drain(&rig.device)?);
                }
                let error = &rig.queues[TRANSMIT].error;
                transcript.note(format!(
                    "the refused start signals an error: {}",
                    error.seen()?
                ));
                error.forget()?;
                // The used ring has to be there before.
                let used = update(&rig, format, 1, 3);
                transcript.answer("update", &rig.device.write(&used.bytes()));
                transcript.answer(
                    "start",
                    &rig.set_backend(TRANSMIT, rig.ground.tap.as_raw_fd()),
                );
                transmit_one(&rig, 0)?;
                transcript.settle(&rig.device, || readable(&rig.device))?;
                settle(&rig, transcript, TRANSMIT)?;
                // Stock vhost goes on only for misses that were read, and tells the same one for each
                // attempt.
                drain(&rig.device)?;
                map_all(&rig, transcript, format);
                if transcript.is_of_stock() {
                    help_on(&rig, format)?;
                }
                settle(&rig, transcript, TRANSMIT)?;
                transcript.note(drain(&rig.device)?);
                Ok(())
            },
        );
        cases.add(
            format!("a buffer without permission in format {format}"),
            move |node: &Node, transcript| {
                let rig = behind_iommu(node, format)?;
                for (region, permission) in [(0, 3), (1, 3), (2, 2)] {
                    let message = update(&rig, format, region, permission);
                    transcript.answer("update", &rig.device.write(&message.bytes()));
                }
                rig.start_queue(TRANSMIT)?;
                transmit_one(&rig, 0)?;
                settle(&rig, transcript, TRANSMIT)?;
                transcript.note(drain(&rig.device)?);
                Ok(())
            },
        );
        cases.add(
            format!("a mapping that is taken away, in format {format}"),
            move |node: &Node, transcript| {
                let rig = behind_iommu(node, format)?;
                map_all(&rig, transcript, format);
                rig.start_queue(TRANSMIT)?;
                transmit_one(&rig, 0)?;
                settle(&rig, transcript, TRANSMIT)?;
                let mut message = update(&rig, format, 2, 3);
                message.kind = INVALIDATE;
                transcript.answer("invalidate", &rig.device.write(&message.bytes()));
                transmit_one(&rig, 1)?;
                transcript.settle(&rig.device, || readable(&rig.device))?;
                settle(&rig, transcript, TRANSMIT)?;
                // Stock vhost goes on only for misses that were read.
                transcript.note(drain(&rig.device)?);
                message.kind = UPDATE;
                transcript.answer("update", &rig.device.write(&message.bytes()));
                settle(&rig, transcript, TRANSMIT)
            },
        );
    }
    cases.add(
        "reads and polls without IOTLB",
        |node: &Node, transcript| {
            for state in [State::Fresh, State::Owned, State::Running, State::Reset] {
                let rig = node.rig(state)?;
                transcript.note(drain(&rig.device)?);
                let blocking = Device::open_with(&node.path, 0)?;
                for length in [0, 71, 72] {
                    transcript.answer("blocking", &blocking.read(length).0);
                }
            }
            Ok(())
        },
    );
    cases.add(
        "ACCESS_PLATFORM forgets addresses and mappings",
        |node: &Node, transcript| {
            use std::os::fd::AsRawFd;
            let rig = behind_iommu(node, 2)?;
            map_all(&rig, transcript, 2);
            transcript.answer(
                "again",
                &rig.device
                    .set_features(feature::VERSION_1 | feature::ACCESS_PLATFORM),
            );
            transcript.answer(
                "start",
                &rig.set_backend(TRANSMIT, rig.ground.tap.as_raw_fd()),
            );
            transcript.note(drain(&rig.device)?);
            transcript.answer("off", &rig.device.set_features(feature::VERSION_1));
            transcript.note(drain(&rig.device)?);
            transcript.answer(
                "start",
                &rig.set_backend(TRANSMIT, rig.ground.tap.as_raw_fd()),
            );
            transcript.answer("update", &rig.device.write(&update(&rig, 2, 0, 3).bytes()));
            Ok(())
        },
    );
    cases.add(
        "ACCESS_PLATFORM comes and goes while running",
        |node: &Node, transcript| {
            let rig = node.rig(State::Running)?;
            settle(&rig, transcript, TRANSMIT)?;
            for features in [feature::ACCESS_PLATFORM, 0, feature::ACCESS_PLATFORM, 0] {
                transcript.answer(
                    "set",
                    &rig.device.set_features(feature::VERSION_1 | features),
                );
                rig.queues[TRANSMIT].kick.signal()?;
                settle(&rig, transcript, TRANSMIT)?;
                transcript.note(drain(&rig.device)?);
            }
            Ok(())
        },
    );
    cases.add("3000 updates", |node: &Node, transcript| {
        let rig = behind_iommu(node, 2)?;
        let mut refused = 0;
        for number in 0..3000u64 {
            let mut message = update(&rig, 2, 0, 3);
            message.iova = number << 20;
            message.size = 4096;
            refused += usize::from(rig.device.write(&message.bytes()).is_err());
        }
        transcript.note(format!("{refused} refused"));
        Ok(())
    });
}
