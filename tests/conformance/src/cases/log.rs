// SPDX-License-Identifier: GPL-2.0
//! The dirty log: its checks, and which pages it names.

use std::os::fd::AsRawFd;

use anyhow::Result;

use crate::case::{Cases, Node};
use crate::device::{feature, long_words, request, words};
use crate::device::{RECEIVE, TRANSMIT, VIRTQUEUES};
use crate::event::Event;
use crate::log::Log;
use crate::memory::STARTS;
use crate::rig::{Rig, State, RINGS};
use crate::ring::{Descriptor, WRITE};
use crate::transcript::Transcript;

/// The pages that are marked.
fn pages(log: &Log) -> String {
    let pages: Vec<_> = log.pages().into_iter().collect();
    format!("pages {pages:x?}")
}

fn set_log(rig: &Rig, address: u64) -> crate::device::Answer {
    rig.device
        .set(request::SET_LOG_BASE, &long_words(&[address]))
}

const ADDRESSES: [(&str, u64); 6] = [
    ("zero", 0),
    ("odd", 0x1_0001),
    ("unmapped", 0x1000),
    ("the end of user space", 0x7fff_ffff_f000 - 8),
    ("the kernel", 0xffff_8000_0000_0000),
    ("the end of the address space", u64::MAX),
];

fn log_addresses(rig: &Rig, flags: u32) -> Vec<crate::device::Answer> {
    (0..VIRTQUEUES)
        .map(|index| {
            let mut addresses = rig.addresses(index);
            addresses.flags = flags;
            addresses.log = rig.queues[index].ring.used;
            rig.device.set(request::SET_VRING_ADDR, &addresses.bytes())
        })
        .collect()
}

fn traffic(rig: &Rig, position: u16) -> Result<()> {
    for (index, flags, length) in [(TRANSMIT, 0, 12 + 60), (RECEIVE, WRITE, 2000)] {
        let queue = &rig.queues[index];
        let descriptor = Descriptor {
            address: STARTS[2 * index] + RINGS + u64::from(position) * 0x3000,
            length,
            flags,
            next: 0,
        };
        queue.ring.describe(rig.arena(), position, descriptor);
        queue.ring.offer(rig.arena(), position, position);
        queue.ring.publish(rig.arena(), position + 1);
        queue.kick.signal()?;
    }
    rig.ground.wire.send(&[2; 1000])
}

fn settle(rig: &Rig, transcript: &mut Transcript<'_>, log: &Log) -> Result<()> {
    // The flush would unset the log's eventfd, so this is not looked at here.
    for index in [RECEIVE, TRANSMIT] {
        transcript.settle(&rig.device, || {
            Ok(format!("{} {}", rig.look(index)?, pages(log)))
        })?;
    }
    Ok(())
}

/// Adds the cases.
pub fn add(cases: &mut Cases) {
    for (name, address) in ADDRESSES {
        for (state_name, state) in [("stopped", State::Stopped), ("running", State::Running)] {
            for (order, features_first) in [("then LOG_ALL", false), ("after LOG_ALL", true)] {
                cases.add(
                    format!("SET_LOG_BASE to {name} {order} {state_name}"),
                    move |node: &Node, transcript| {
                        let rig = node.rig(state)?;
                        let features = feature::VERSION_1 | feature::LOG_ALL;
                        if features_first {
                            transcript.answer("features", &rig.device.set_features(features));
                        }
                        transcript.answer("log", &set_log(&rig, address));
                        if !features_first {
                            transcript.answer("features", &rig.device.set_features(features));
                        }
                        for answer in log_addresses(&rig, 1) {
                            transcript.answer("addresses", &answer);
                        }
                        for index in 0..VIRTQUEUES {
                            let answer = rig.set_backend(index, rig.ground.tap.as_raw_fd());
                            transcript.answer("start", &answer);
                        }
                        Ok(())
                    },
                );
            }
        }
    }
    cases.add(
        "the log names the pages that were written",
        |node: &Node, transcript| {
            let log = Log::new();
            let rig = node.rig(State::Running)?;
            // A virtqueue that was never served may say so in its flags or not.
            rig.queues[RECEIVE].kick.signal()?;
            settle(&rig, transcript, &log)?;
            traffic(&rig, 0)?;
            settle(&rig, transcript, &log)?;
            transcript.answer("log", &set_log(&rig, log.address()));
            let features = feature::VERSION_1 | feature::LOG_ALL;
            transcript.answer("features", &rig.device.set_features(features));
            settle(&rig, transcript, &log)?;
            traffic(&rig, 1)?;
            settle(&rig, transcript, &log)?;
            for answer in log_addresses(&rig, 1) {
                transcript.answer("addresses", &answer);
            }
            traffic(&rig, 2)?;
            settle(&rig, transcript, &log)?;
            transcript.answer("features", &rig.device.set_features(feature::VERSION_1));
            for answer in log_addresses(&rig, 0) {
                transcript.answer("addresses", &answer);
            }
            traffic(&rig, 3)?;
            settle(&rig, transcript, &log)?;
            rig.stop()?;
            transcript.note(pages(&log));
            Ok(())
        },
    );
    cases.add(
        "the log's eventfd is signalled",
        |node: &Node, transcript| {
            let log = Log::new();
            let rig = node.rig(State::Running)?;
            // A virtqueue that was never served may say so in its flags or not.
            rig.queues[RECEIVE].kick.signal()?;
            settle(&rig, transcript, &log)?;
            transcript.answer("log", &set_log(&rig, log.address()));
            let features = feature::VERSION_1 | feature::LOG_ALL;
            transcript.answer("features", &rig.device.set_features(features));
            let event = Event::new()?;
            let fd = words(&[event.as_raw_fd() as u32]);
            transcript.answer("eventfd", &rig.device.set(request::SET_LOG_FD, &fd));
            traffic(&rig, 0)?;
            // Waits for the packet, and only then flushes, which takes the eventfd away.
            let received = || rig.queues[RECEIVE].ring.used_index(rig.arena()) == 1;
            let end = std::time::Instant::now() + std::time::Duration::from_secs(3);
            while !received() && std::time::Instant::now() < end {
                std::thread::yield_now();
            }
            // What is said last: the log is written before the slice ends.
            rig.stop()?;
            transcript.note(format!("signalled {}", event.seen()?));
            Ok(())
        },
    );
}
