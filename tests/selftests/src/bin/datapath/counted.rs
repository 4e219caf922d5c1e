// SPDX-License-Identifier: GPL-2.0
//! What the interface counts of the packets that its driver received, whoever copied them.

use std::fs::File;
use std::io::{Read, Seek};
use std::sync::mpsc;
use std::thread;

use anyhow::{ensure, Context, Result};
use nix::sched::{unshare, CloneFlags};
use vhost_iocm_selftests::device::{EVENT_IDX, MRG_RXBUF, VERSION_1};
use vhost_iocm_selftests::header::NetHeader;
use vhost_iocm_selftests::interface;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::Nic;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::segment;
use vhost_iocm_selftests::wire::PacketSocket;

use crate::offload::{compare, nic_options};

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    for (name, features) in [
        ("version 1", VERSION_1 | MRG_RXBUF | EVENT_IDX),
        ("legacy", 0),
    ] {
        suite.case(
            format!("the interface counts received packets of all kinds once, {name}"),
            move || all_kinds(options, features),
        );
    }
    suite.case(
        "an interface that moves to another namespace counts packets there",
        move || another_namespace(options),
    );
}

/// What the interfaces of one namespace count.
struct Counts(File);

impl Counts {
    /// In the namespace of this thread.
    fn here() -> Result<Self> {
        File::open("/proc/thread-self/net/dev")
            .map(Self)
            .context("open /proc/thread-self/net/dev")
    }

    /// Packets and bytes that the host has sent to this interface.
    fn sent_to(&mut self, interface: &str) -> Result<[u64; 2]> {
        let mut text = String::new();
        self.0.rewind()?;
        self.0.read_to_string(&mut text)?;
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))
            .with_context(|| format!("no {interface} in {text}"))?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        let field = |index: usize| -> Result<u64> {
            Ok(fields.get(index).context("too few fields")?.parse()?)
        };
        Ok([field(9)?, field(8)?])
    }
}

/// A packet for this header, which leaves its checksum open or not.
fn packet(header: &NetHeader, sequence: u32, length: usize) -> Vec<u8> {
    let mut packet = segment::encode(sequence, length);
    if *header == NetHeader::default() {
        segment::complete(&segment::checksum_header(), &mut packet);
    }
    packet
}

/// Packets of all kinds by turns, some alone and some together.
fn all_kinds(options: &Options, features: u64) -> Result<()> {
    const ROUNDS: u32 = 6;
    let kinds = [
        (NetHeader::default(), 60),
        (segment::segmentation_header(40), 150),
        (segment::checksum_header(), 100),
        (NetHeader::default(), 245),
        (NetHeader::default(), 1514),
        (segment::segmentation_header(1448), 32_000),
        (segment::checksum_header(), 1514),
    ];
    let mut nic = Nic::new(&options.node, nic_options(features))?;
    // Where memory is missing packets are received in another way.
    nic.touch_buffers()?;
    let wire = PacketSocket::with_header(nic.tap.name(), segment::ETHERTYPE)?;
    let mut counts = Counts::here()?;
    let mut expected = counts.sent_to(nic.tap.name())?;
    for round in 0..ROUNDS {
        let packet = |kind: usize| {
            let (header, length) = &kinds[kind];
            packet(header, round * 100 + kind as u32, *length)
        };
        let together = if round % 2 == 0 { 1 } else { kinds.len() };
        for first in (0..kinds.len()).step_by(together) {
            let part = first..first + together;
            for kind in part.clone() {
                ensure!(
                    wire.send_with(&kinds[kind].0, &packet(kind))?,
                    "the wire is full"
                );
            }
            for kind in part {
                let received = nic.receive()?;
                let sent = (&kinds[kind].0, packet(kind));
                compare((sent.0, &sent.1), (&received.header, &received.packet))
                    .with_context(|| format!("kind {kind} in round {round}"))?;
                expected[0] += 1;
                expected[1] += sent.1.len() as u64;
                nic.replenish()?;
            }
            // What the driver has seen is counted.
            let counted = counts.sent_to(nic.tap.name())?;
            ensure!(
                counted == expected,
                "packets and bytes: {counted:?}, expected {expected:?}, round {round}"
            );
        }
    }
    Ok(())
}

/// Who receives without asking the tap has known the interface in the namespace where it was made. It may miss
/// what it received before it noticed.
fn another_namespace(options: &Options) -> Result<()> {
    const PACKETS: u32 = 100;
    let mut nic = Nic::new(
        &options.node,
        nic_options(VERSION_1 | MRG_RXBUF | EVENT_IDX),
    )?;
    nic.touch_buffers()?;
    let name = nic.tap.name().to_owned();
    let mut pass = |wire: &PacketSocket, packets: u32| -> Result<()> {
        for sequence in 0..packets {
            let packet = packet(&NetHeader::default(), sequence, 100);
            ensure!(
                wire.send_with(&NetHeader::default(), &packet)?,
                "the wire is full"
            );
            let received = nic.receive()?;
            compare(
                (&NetHeader::default(), &packet),
                (&received.header, &received.packet),
            )?;
            nic.replenish()?;
        }
        Ok(())
    };
    pass(&PacketSocket::with_header(&name, segment::ETHERTYPE)?, 10)?;

    let (tell, told) = mpsc::channel();
    let (moved, is_moved) = mpsc::channel();
    let interface = name.clone();
    let elsewhere = thread::spawn(move || -> Result<(PacketSocket, Counts)> {
        unshare(CloneFlags::CLONE_NEWNET).context("a namespace")?;
        tell.send(nix::unistd::gettid())?;
        is_moved.recv()?;
        interface::bring_up(&interface)?;
        let wire = PacketSocket::with_header(&interface, segment::ETHERTYPE)?;
        Ok((wire, Counts::here()?))
    });
    let thread = told.recv().context("no namespace")?;
    interface::move_to_namespace(&name, thread)?;
    moved.send(())?;
    let (wire, mut counts) = elsewhere
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;

    pass(&wire, 1)?;
    let before = counts.sent_to(&name)?;
    pass(&wire, PACKETS)?;
    let counted = counts.sent_to(&name)?[0] - before[0];
    ensure!(
        counted == u64::from(PACKETS),
        "{counted} packets were counted of {PACKETS}, after {before:?}"
    );
    Ok(())
}
