// SPDX-License-Identifier: GPL-2.0
//! Checksums and segmentation that one side leaves to the other.

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::device::{EVENT_IDX, MRG_RXBUF, VERSION_1};
use vhost_iocm_selftests::header::NetHeader;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::ring::Chaining;
use vhost_iocm_selftests::segment;
use vhost_iocm_selftests::tap::TapOptions;
use vhost_iocm_selftests::wire::PacketSocket;

/// Payload of one TCP segment.
const SEGMENT: u16 = 1448;

/// The host cuts packets of more than this before it hands them to a network card.
const RECEIVE_MAXIMUM: usize = 65_535;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    for (name, features) in [
        ("version 1", VERSION_1 | MRG_RXBUF | EVENT_IDX),
        ("legacy", 0),
    ] {
        suite.case(
            format!("a transmitted packet keeps its open checksum, {name}"),
            move || {
                for length in [segment::HEADERS, 100, 1514] {
                    transmit(options, features, segment::checksum_header(), length)?;
                }
                Ok(())
            },
        );

        suite.case(
            format!("a 64 KiB packet is transmitted for segmentation, {name}"),
            move || {
                for length in [
                    segment::HEADERS + 2 * usize::from(SEGMENT),
                    32_000,
                    segment::MAXIMUM,
                ] {
                    transmit(
                        options,
                        features,
                        segment::segmentation_header(SEGMENT),
                        length,
                    )?;
                }
                Ok(())
            },
        );

        suite.case(
            format!("a received packet keeps its open checksum, {name}"),
            move || {
                for length in [segment::HEADERS + 10, 1514] {
                    receive(options, features, segment::checksum_header(), length)?;
                }
                Ok(())
            },
        );

        suite.case(
            format!("a 64 KiB packet is received before segmentation, {name}"),
            move || {
                for length in [
                    segment::HEADERS + 2 * usize::from(SEGMENT),
                    32_000,
                    RECEIVE_MAXIMUM,
                ] {
                    receive(
                        options,
                        features,
                        segment::segmentation_header(SEGMENT),
                        length,
                    )?;
                }
                Ok(())
            },
        );
    }

    suite.case(
        "large packets that wait for their receiver stay as they were sent",
        move || large_packets_wait(options),
    );

    suite.case(
        "a driver without offloads receives complete checksums",
        move || {
            let mut nic = Nic::new(&options.node, NicOptions::default())?;
            let wire = PacketSocket::with_header(nic.tap.name(), segment::ETHERTYPE)?;
            let packet = segment::encode(7, 1000);
            ensure!(
                wire.send_with(&segment::checksum_header(), &packet)?,
                "the wire is full"
            );
            let received = nic.receive()?;
            ensure!(
                received.header.flags & 1 == 0,
                "{:?} leaves the checksum open",
                received.header
            );
            segment::verify(&received.packet)
        },
    );
}

/// A card that leaves checksums and segmentation to the other side, with room for large packets.
pub fn nic_options(features: u64) -> NicOptions {
    let large = features & MRG_RXBUF == 0;
    NicOptions {
        features,
        chaining: Chaining::Indirect,
        ring_size: 64,
        receive_length: if large { 66_000 } else { 2048 },
        receive_chains: large.then_some(16),
        transmit_length: 66_000,
        transmit_chains: Some(16),
        segments: 4,
        tap: TapOptions {
            offload: true,
            ..TapOptions::default()
        },
        ..NicOptions::default()
    }
}

/// Checks a packet and its header as they arrived against what was sent.
pub fn compare(sent: (&NetHeader, &[u8]), arrived: (&NetHeader, &[u8])) -> Result<()> {
    let (header, got) = (sent.0, arrived.0);
    ensure!(
        arrived.1.len() == sent.1.len(),
        "sent {} bytes, {} arrived",
        sent.1.len(),
        arrived.1.len()
    );
    ensure!(arrived.1 == sent.1, "the packet was changed on its way");
    for (name, sent, arrived) in [
        ("flags", header.flags.into(), got.flags.into()),
        ("gso_type", header.gso_type.into(), got.gso_type.into()),
        ("gso_size", header.gso_size, got.gso_size),
        ("csum_start", header.checksum_start, got.checksum_start),
        ("csum_offset", header.checksum_offset, got.checksum_offset),
    ] {
        ensure!(sent == arrived, "{name} was {sent}, arrived as {arrived}");
    }
    // With the checksum filled in as the header says, the packet is a valid one.
    let mut complete = arrived.1.to_vec();
    segment::complete(got, &mut complete);
    segment::verify(&complete)
}

fn transmit(options: &Options, features: u64, header: NetHeader, length: usize) -> Result<()> {
    let mut nic = Nic::new(&options.node, nic_options(features))?;
    let mut wire = PacketSocket::with_header(nic.tap.name(), segment::ETHERTYPE)?;
    for sequence in 0..10 {
        let packet = segment::encode(sequence, length);
        ensure!(nic.add_transmit(&header, &packet)?, "no room");
        nic.transmit.publish()?;
        let (arrived, bytes) = wire.expect_with()?;
        compare((&header, &packet), (&arrived, &bytes))?;
        nic.reclaim_all()?;
    }
    Ok(())
}

/// Memory of a packet may be used for another one only when nobody has a part of it any more.
fn large_packets_wait(options: &Options) -> Result<()> {
    const ROUNDS: u32 = 5;
    const WAITING: u32 = 12;
    let mut nic = Nic::new(
        &options.node,
        nic_options(VERSION_1 | MRG_RXBUF | EVENT_IDX),
    )?;
    let mut wire = PacketSocket::with_header(nic.tap.name(), segment::ETHERTYPE)?;
    let header = segment::segmentation_header(SEGMENT);
    // Some fill what the ones before have left, and the longest need the most.
    let length = |sequence: u32| segment::MAXIMUM - (sequence % 4) as usize * 10_000;
    for round in 0..ROUNDS {
        let sequences = || (round * WAITING..).take(WAITING as usize);
        for sequence in sequences() {
            let packet = segment::encode(sequence, length(sequence));
            ensure!(nic.add_transmit(&header, &packet)?, "no room");
            nic.transmit.publish()?;
            // In half of the rounds they are served together.
            if round % 2 == 0 {
                nic.reclaim_all()?;
            }
        }
        nic.reclaim_all()?;
        for sequence in sequences() {
            let packet = segment::encode(sequence, length(sequence));
            let (arrived, bytes) = wire.expect_with()?;
            compare((&header, &packet), (&arrived, &bytes))
                .with_context(|| format!("packet {sequence}"))?;
        }
    }
    Ok(())
}

fn receive(options: &Options, features: u64, header: NetHeader, length: usize) -> Result<()> {
    let mut nic = Nic::new(&options.node, nic_options(features))?;
    let wire = PacketSocket::with_header(nic.tap.name(), segment::ETHERTYPE)?;
    for sequence in 0..10 {
        let packet = segment::encode(sequence, length);
        ensure!(wire.send_with(&header, &packet)?, "the wire is full");
        let received = nic.receive()?;
        compare((&header, &packet), (&received.header, &received.packet))?;
        nic.replenish()?;
    }
    Ok(())
}
