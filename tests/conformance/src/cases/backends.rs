// SPDX-License-Identifier: GPL-2.0
//! What may be a backend, and when.

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;

use anyhow::{Context, Result};
use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};

use crate::case::{Cases, Node};
use crate::device::{memory_table, request};
use crate::device::{RECEIVE, TRANSMIT};
use crate::event::Event;
use crate::rig::{Rig, State};
use crate::tap::{self, Tap};
use crate::transcript::Transcript;

fn with(rig: &Rig, transcript: &mut Transcript<'_>, what: &str, fd: RawFd) {
    for index in [RECEIVE, TRANSMIT] {
        transcript.answer(&format!("{what} for {index}"), &rig.set_backend(index, fd));
    }
}

type Make = fn(&Rig) -> Result<(RawFd, Box<dyn std::any::Any>)>;

fn kept<T: AsRawFd + 'static>(value: T) -> Result<(RawFd, Box<dyn std::any::Any>)> {
    Ok((value.as_raw_fd(), Box::new(value)))
}

fn raw_socket(family: AddressFamily, kind: SockType) -> Result<(RawFd, Box<dyn std::any::Any>)> {
    kept(socket(family, kind, SockFlag::SOCK_CLOEXEC, None).context("socket")?)
}

const TAP: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

const BACKENDS: &[(&str, Make)] = &[
    ("a closed descriptor", |_| Ok((123_456, Box::new(())))),
    ("-2", |_| Ok((-2, Box::new(())))),
    ("the smallest number", |_| Ok((i32::MIN, Box::new(())))),
    ("the largest number", |_| Ok((i32::MAX, Box::new(())))),
    ("a file", |_| kept(File::open("/proc/self/exe")?)),
    ("/dev/null", |_| kept(File::open("/dev/null")?)),
    ("the device itself", |rig| {
        Ok((rig.device.as_raw_fd(), Box::new(())))
    }),
    ("an eventfd", |_| kept(Event::new()?)),
    ("a TCP socket", |_| kept(TcpListener::bind("127.0.0.1:0")?)),
    ("a UDP socket", |_| kept(UdpSocket::bind("127.0.0.1:0")?)),
    ("a Unix socket", |_| kept(UnixDatagram::unbound()?)),
    ("a netlink socket", |_| {
        raw_socket(AddressFamily::Netlink, SockType::Raw)
    }),
    ("a raw IP socket", |_| {
        let flags = SockFlag::SOCK_CLOEXEC;
        let protocol = nix::sys::socket::SockProtocol::Raw;
        kept(socket(AddressFamily::Inet, SockType::Raw, flags, protocol).context("socket")?)
    }),
    ("a packet socket", |_| {
        raw_socket(AddressFamily::Packet, SockType::Datagram)
    }),
    ("a raw packet socket", |_| {
        raw_socket(AddressFamily::Packet, SockType::Raw)
    }),
    ("the wire", |rig| {
        Ok((rig.ground.wire.as_raw_fd(), Box::new(())))
    }),
    ("a tap", |rig| {
        Ok((rig.ground.tap.as_raw_fd(), Box::new(())))
    }),
    ("a tap of its own", |_| kept(Tap::new()?)),
    ("a tap without header", |_| {
        kept(Tap::with(libc::IFF_TAP | libc::IFF_NO_PI)?)
    }),
    ("a tap with packet information", |_| {
        kept(Tap::with(libc::IFF_TAP)?)
    }),
    ("a tun", |_| {
        kept(Tap::with(
            libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
        )?)
    }),
    ("a tap that is no interface", |_| kept(tap::bare()?)),
    ("a queue", |_| kept(Tap::with(TAP | libc::IFF_MULTI_QUEUE)?)),
    ("a queue that is detached", |_| {
        let queue = Tap::with(TAP | libc::IFF_MULTI_QUEUE)?;
        queue.attach(false)?;
        kept(queue)
    }),
    ("a second queue", |_| {
        let first = Tap::with(TAP | libc::IFF_MULTI_QUEUE)?;
        let second = first.queue()?;
        Ok((second.as_raw_fd(), Box::new((first, second))))
    }),
    ("a tap that is down", |_| {
        let tap = Tap::new()?;
        tap.set_up(false)?;
        kept(tap)
    }),
];

/// Adds the cases.
pub fn add(cases: &mut Cases) {
    for (name, make) in BACKENDS {
        cases.add(
            format!("SET_BACKEND to {name}"),
            move |node: &Node, transcript| {
                let rig = node.rig(State::Stopped)?;
                let (fd, _kept) = make(&rig)?;
                with(&rig, transcript, "set", fd);
                with(&rig, transcript, "set again", fd);
                with(&rig, transcript, "stop", -1);
                Ok(())
            },
        );
        cases.add(
            format!("SET_BACKEND to {name} while running"),
            move |node: &Node, transcript| {
                let rig = node.rig(State::Running)?;
                let (fd, _kept) = make(&rig)?;
                with(&rig, transcript, "set", fd);
                // A backend that was refused leaves the old one.
                transcript.answer("size", &rig.device.set_state(request::SET_VRING_NUM, 1, 64));
                with(&rig, transcript, "tap", rig.ground.tap.as_raw_fd());
                with(&rig, transcript, "stop", -1);
                transcript.answer("size", &rig.device.set_state(request::SET_VRING_NUM, 1, 64));
                Ok(())
            },
        );
    }
    cases.add(
        "SET_BACKEND before the memory table",
        |node: &Node, transcript| {
            let rig = node.rig(State::Owned)?;
            with(&rig, transcript, "tap", rig.ground.tap.as_raw_fd());
            with(&rig, transcript, "stop", -1);
            with(&rig, transcript, "closed", 123_456);
            Ok(())
        },
    );
    cases.add(
        "SET_BACKEND with an empty memory table",
        |node: &Node, transcript| {
            let rig = node.rig(State::Owned)?;
            transcript.answer(
                "table",
                &rig.device.set(request::SET_MEM_TABLE, &memory_table(&[])),
            );
            with(&rig, transcript, "tap", rig.ground.tap.as_raw_fd());
            with(&rig, transcript, "stop", -1);
            with(&rig, transcript, "closed", 123_456);
            Ok(())
        },
    );
    cases.add(
        "the order of checks of SET_BACKEND",
        |node: &Node, transcript| {
            let rig = node.rig(State::Owned)?;
            for (index, fd) in [(2, -1), (2, 123_456), (u32::MAX, -1), (0, 123_456)] {
                let answer = rig
                    .device
                    .set_state(request::NET_SET_BACKEND, index, fd as u32);
                transcript.answer(&format!("{index} {fd}"), &answer);
            }
            let stranger = node.open()?;
            for (index, fd) in [(2, -1), (0, -1), (0, 123_456)] {
                let answer = stranger.set_state(request::NET_SET_BACKEND, index, fd as u32);
                transcript.answer(&format!("{index} {fd}"), &answer);
            }
            Ok(())
        },
    );
    cases.add(
        "a tap is served by one device after the other",
        |node: &Node, transcript| {
            let rig = node.rig(State::Running)?;
            let other = Rig::new(&node.path, &rig.ground, State::Stopped)?;
            with(
                &other,
                transcript,
                "second device",
                rig.ground.tap.as_raw_fd(),
            );
            rig.stop()?;
            with(
                &other,
                transcript,
                "second device",
                rig.ground.tap.as_raw_fd(),
            );
            Ok(())
        },
    );
    cases.add(
        "starting writes the used ring's flags, and reads its index",
        |node: &Node, transcript| {
            let rig = node.rig(State::Stopped)?;
            for index in [RECEIVE, TRANSMIT] {
                let ring = rig.queues[index].ring;
                rig.arena().store(ring.used, 0xffff);
                ring.set_used_index(rig.arena(), 4711);
                rig.start_queue(index)?;
            }
            for index in [RECEIVE, TRANSMIT] {
                transcript.settle(&rig.device, || rig.look(index))?;
            }
            rig.stop()?;
            for index in [RECEIVE, TRANSMIT] {
                transcript.note(rig.look(index)?);
            }
            Ok(())
        },
    );
}
