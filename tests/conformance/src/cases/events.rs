// SPDX-License-Identifier: GPL-2.0
//! Eventfds: kicks, calls, errors and the log's.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::Result;

use crate::case::{Cases, Node};
use crate::device::TRANSMIT;
use crate::device::{request, words};
use crate::event::Event;
use crate::rig::{Rig, State};
use crate::ring::Descriptor;
use crate::transcript::Transcript;

const REQUESTS: [(&str, u32); 3] = [
    ("SET_VRING_KICK", request::SET_VRING_KICK),
    ("SET_VRING_CALL", request::SET_VRING_CALL),
    ("SET_VRING_ERR", request::SET_VRING_ERR),
];

/// Offers a frame to transmit, without a kick.
fn offer(rig: &Rig, count: u16) {
    let ring = &rig.queues[TRANSMIT].ring;
    let address = crate::memory::STARTS[0] + crate::rig::RINGS;
    for position in count..=count {
        let descriptor = Descriptor {
            address,
            length: 12 + 60,
            flags: 0,
            next: 0,
        };
        ring.describe(rig.arena(), position, descriptor);
        ring.offer(rig.arena(), position, position);
        ring.publish(rig.arena(), position + 1);
    }
}

fn settle(rig: &Rig, transcript: &mut Transcript<'_>) -> Result<()> {
    transcript.settle(&rig.device, || rig.look(TRANSMIT))
}

/// Adds the cases.
pub fn add(cases: &mut Cases) {
    for (name, request) in REQUESTS {
        for (state_name, state) in [("stopped", State::Stopped), ("running", State::Running)] {
            cases.add(
                format!("{name} to all sorts {state_name}"),
                move |node: &Node, transcript| {
                    let rig = node.rig(state)?;
                    let file = File::open("/dev/null")?;
                    let event = Event::new()?;
                    let mut set = |what: &str, fd: RawFd| {
                        let answer = rig.device.set_state(request, 1, fd as u32);
                        transcript.answer(what, &answer);
                    };
                    set("closed", 123_456);
                    set("-2", -2);
                    set("smallest", i32::MIN);
                    set("file", file.as_raw_fd());
                    set("tap", rig.ground.tap.as_raw_fd());
                    set("device", rig.device.as_raw_fd());
                    set("eventfd", event.as_raw_fd());
                    set("same eventfd", event.as_raw_fd());
                    set("none", -1);
                    set("none again", -1);
                    transcript.note(rig.look(TRANSMIT)?);
                    Ok(())
                },
            );
        }
    }
    cases.add("SET_LOG_FD to all sorts", |node: &Node, transcript| {
        let rig = node.rig(State::Stopped)?;
        let file = File::open("/dev/null")?;
        let event = Event::new()?;
        for fd in [
            123_456,
            -2,
            i32::MIN,
            file.as_raw_fd(),
            event.as_raw_fd(),
            event.as_raw_fd(),
            -1,
            -1,
        ] {
            let answer = rig.device.set(request::SET_LOG_FD, &words(&[fd as u32]));
            transcript.answer("set", &answer);
        }
        Ok(())
    });
    cases.add("a kick that came before", |node: &Node, transcript| {
        let rig = node.rig(State::Running)?;
        settle(&rig, transcript)?;
        offer(&rig, 0);
        let event = Event::with(1)?;
        let answer = rig
            .device
            .set_state(request::SET_VRING_KICK, 1, event.as_raw_fd() as u32);
        transcript.answer("set", &answer);
        settle(&rig, transcript)?;
        transcript.note(format!("count {}", event.take()?));
        Ok(())
    });
    cases.add("a kick eventfd that is full", |node: &Node, transcript| {
        let rig = node.rig(State::Running)?;
        settle(&rig, transcript)?;
        let event = Event::new()?;
        event.add(u64::MAX - 1)?;
        let answer = rig
            .device
            .set_state(request::SET_VRING_KICK, 1, event.as_raw_fd() as u32);
        transcript.answer("set", &answer);
        offer(&rig, 0);
        event.take()?;
        event.signal()?;
        settle(&rig, transcript)?;
        transcript.note(format!("count {}", event.take()?));
        Ok(())
    });
    cases.add("a kick is not read", |node: &Node, transcript| {
        let rig = node.rig(State::Running)?;
        settle(&rig, transcript)?;
        for count in 0..3 {
            offer(&rig, count);
            rig.queues[TRANSMIT].kick.signal()?;
            settle(&rig, transcript)?;
        }
        transcript.note(format!("count {}", rig.queues[TRANSMIT].kick.take()?));
        Ok(())
    });
    cases.add(
        "a kick of an eventfd that was replaced",
        |node: &Node, transcript| {
            let rig = node.rig(State::Running)?;
            settle(&rig, transcript)?;
            let event = Event::new()?;
            let answer = rig
                .device
                .set_state(request::SET_VRING_KICK, 1, event.as_raw_fd() as u32);
            transcript.answer("set", &answer);
            offer(&rig, 0);
            event.signal()?;
            settle(&rig, transcript)?;
            Ok(())
        },
    );
    cases.add(
        "a call eventfd of both virtqueues, and none",
        |node: &Node, transcript| {
            let rig = node.rig(State::Running)?;
            settle(&rig, transcript)?;
            let event = Event::new()?;
            for index in [0, 1] {
                let answer =
                    rig.device
                        .set_state(request::SET_VRING_CALL, index, event.as_raw_fd() as u32);
                transcript.answer("set", &answer);
            }
            offer(&rig, 0);
            rig.queues[TRANSMIT].kick.signal()?;
            settle(&rig, transcript)?;
            transcript.settle(&rig.device, || Ok(format!("called {}", event.seen()?)))?;
            event.forget()?;
            let answer = rig.device.set_state(request::SET_VRING_CALL, 1, u32::MAX);
            transcript.answer("unset", &answer);
            offer(&rig, 1);
            rig.queues[TRANSMIT].kick.signal()?;
            settle(&rig, transcript)?;
            transcript.note(format!("called {}", event.seen()?));
            Ok(())
        },
    );
    cases.add("a call eventfd that is full", |node: &Node, transcript| {
        let rig = node.rig(State::Running)?;
        settle(&rig, transcript)?;
        let event = Event::new()?;
        event.add(u64::MAX - 1)?;
        let answer = rig
            .device
            .set_state(request::SET_VRING_CALL, 1, event.as_raw_fd() as u32);
        transcript.answer("set", &answer);
        offer(&rig, 0);
        rig.queues[TRANSMIT].kick.signal()?;
        settle(&rig, transcript)?;
        offer(&rig, 1);
        rig.queues[TRANSMIT].kick.signal()?;
        settle(&rig, transcript)
    });
    cases.add(
        "an error without error eventfd",
        |node: &Node, transcript| {
            let rig = node.rig(State::Running)?;
            settle(&rig, transcript)?;
            let answer = rig.device.set_state(request::SET_VRING_ERR, 1, u32::MAX);
            transcript.answer("unset", &answer);
            rig.queues[TRANSMIT].ring.offer(rig.arena(), 0, 9999);
            rig.queues[TRANSMIT].ring.publish(rig.arena(), 1);
            rig.queues[TRANSMIT].kick.signal()?;
            settle(&rig, transcript)
        },
    );
    cases.add(
        "a virtqueue is set up after it was started",
        |node: &Node, transcript| {
            let rig = node.rig(State::Running)?;
            for (_, request) in REQUESTS {
                transcript.answer("unset", &rig.device.set_state(request, 1, u32::MAX));
            }
            settle(&rig, transcript)?;
            offer(&rig, 0);
            let queue = &rig.queues[TRANSMIT];
            queue.kick.signal()?;
            settle(&rig, transcript)?;
            let call = queue.call.as_raw_fd() as u32;
            transcript.answer(
                "call",
                &rig.device.set_state(request::SET_VRING_CALL, 1, call),
            );
            let kick = queue.kick.as_raw_fd() as u32;
            transcript.answer(
                "kick",
                &rig.device.set_state(request::SET_VRING_KICK, 1, kick),
            );
            settle(&rig, transcript)
        },
    );
}
