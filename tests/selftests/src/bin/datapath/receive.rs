// SPDX-License-Identifier: GPL-2.0
//! Packets to the driver: too few buffers, too small buffers, many buffers.

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::device::{DEVICE_HEADER, EVENT_IDX, MRG_RXBUF, RECEIVE, VERSION_1};
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::header::{NetHeader, LEGACY_LENGTH, MODERN_LENGTH};
use vhost_iocm_selftests::interface::{self, Bridge, Pair};
use vhost_iocm_selftests::ktap::{Outcome, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::segment;
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

use crate::expect_idle;
use crate::offload::{compare, nic_options};

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    for (name, features) in [
        ("event index", VERSION_1 | MRG_RXBUF | EVENT_IDX),
        ("flags", VERSION_1 | MRG_RXBUF),
        ("single buffers", VERSION_1 | EVENT_IDX),
    ] {
        suite.case(
            format!("packets wait for buffers to be replenished, {name}"),
            move || few_buffers(options, features),
        );
    }

    suite.case(
        "a packet takes as many mergeable buffers as it needs",
        move || {
            let nic = NicOptions {
                receive_length: 64,
                segments: 1,
                ..NicOptions::default()
            };
            let mut nic = Nic::new(&options.node, nic)?;
            let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
            for (length, chains) in [
                (52 + 64, 2),
                (52 + 65, 3),
                (1514, 24),
                (60, 2),
                (64 * 3 - 12, 3),
            ] {
                ensure!(wire.send(&frame::encode(2, 0, length))?, "the wire is full");
                let received = nic.receive()?;
                frame::decode(&received.packet)?;
                ensure!(
                    received.chains == chains,
                    "frame of {length} bytes took {} buffers, expected {chains}",
                    received.chains
                );
                nic.replenish()?;
            }
            Ok(())
        },
    );

    suite.case(
        "a packet that is too large for a single buffer is dropped",
        move || single_buffers(options),
    );

    let features = NicOptions::default().features;
    for (name, length, nic) in [
        ("short", frame::MINIMUM, NicOptions::default()),
        (
            "short, in one piece with its header",
            frame::MINIMUM,
            NicOptions {
                segments: 1,
                ..NicOptions::default()
            },
        ),
        (
            "short, with a header of the device's",
            frame::MINIMUM,
            NicOptions {
                features: features | DEVICE_HEADER,
                ..NicOptions::default()
            },
        ),
        ("long", 1514, NicOptions::default()),
    ] {
        suite.case(
            format!("packets arrive although the memory of their buffers was given up ({name})"),
            move || missing_buffers(options, length, nic.clone()),
        );
    }

    suite.case(
        "a packet whose VLAN tag was taken out of it arrives with the tag",
        move || tagged(options),
    );

    for (name, length) in [("short", 100), ("long", 1514)] {
        suite.case(
            format!("a tap that changes its headers is asked for the kinds of packets that are new ({name})"),
            move || changed_headers(options, length),
        );
    }

    suite.case(
        "packets that wait in a stopped device arrive when it starts",
        move || {
            let mut nic = Nic::new(&options.node, NicOptions::default())?;
            let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
            let mut account = frame::Account::default();
            for sequence in 0..50 {
                ensure!(
                    wire.send(&frame::encode(2, sequence, 60))?,
                    "the wire is full"
                );
                if sequence == 10 || sequence == 40 {
                    nic.stop_queue(&nic.receive)?;
                }
                if sequence == 30 || sequence == 49 {
                    nic.start_queue(&nic.receive)?;
                }
            }
            while account.received < 50 {
                account.note(frame::decode(&nic.receive()?.packet)?.sequence);
                nic.replenish()?;
            }
            account.expect_all(50)
        },
    );
}

/// A worker does not ask the tap for kinds of packets that it has received, until the backend is set again. What the
/// tap makes with headers of another length does not arrive.
fn changed_headers(options: &Options, length: usize) -> Result<Outcome> {
    if options.stock {
        return Ok(Outcome::Skip("stock vhost asks the tap each time".into()));
    }
    let control = Control::default();
    let card = nic_options(VERSION_1 | MRG_RXBUF | EVENT_IDX);
    let (mut nic, device) = control.device_made_by(|| Nic::new(&options.node, card))?;
    // Where memory is missing packets are received at home, which asks the tap.
    nic.touch_buffers()?;
    let wire = PacketSocket::with_header(nic.tap.name(), segment::ETHERTYPE)?;
    let virtqueue = virtqueue(&device, RECEIVE);
    let plain = NetHeader::default();
    let open = segment::checksum_header();
    let steps = [
        ("the first", MODERN_LENGTH, &plain, true),
        ("of a kind that was received", LEGACY_LENGTH, &plain, true),
        ("of a new kind", LEGACY_LENGTH, &open, false),
        ("of the old kind once more", LEGACY_LENGTH, &plain, true),
    ];
    let again = [
        ("after the backend was set", LEGACY_LENGTH, &plain, false),
        ("with headers as before", MODERN_LENGTH, &plain, true),
        ("of the other kind", MODERN_LENGTH, &open, true),
    ];
    let mut sequence = 0;
    for (part, steps) in [&steps[..], &again[..]].into_iter().enumerate() {
        if part > 0 {
            nic.stop()?;
            nic.start()?;
        }
        for (what, header_length, header, arrives) in steps {
            sequence += 1;
            nic.tap.set_header_length(*header_length)?;
            let mut packet = segment::encode(sequence, length);
            if **header == plain {
                segment::complete(&open, &mut packet);
            }
            let before = Counters::of_virtqueue(&control, &virtqueue)?;
            ensure!(wire.send_with(header, &packet)?, "the wire is full");
            if *arrives {
                let received = nic.receive()?;
                compare((header, &packet), (&received.header, &received.packet))
                    .with_context(|| format!("a packet {what}"))?;
                nic.replenish()?;
            } else {
                wait::until("a packet to be dropped", || {
                    let now = Counters::of_virtqueue(&control, &virtqueue)?;
                    Ok(now.since(&before).get("drops")? == 1)
                })
                .with_context(|| format!("a packet {what}"))?;
                ensure!(nic.take_received()?.is_none(), "a packet {what} arrived");
            }
        }
    }
    Ok(Outcome::Pass)
}

/// The host takes a tag out of each packet that it receives, and keeps it beside it until a tap, which takes tags
/// that are beside packets, puts it back.
fn tagged(options: &Options) -> Result<()> {
    const TAG: [u8; 4] = [0x81, 0x00, 0x20, 0x05];
    const ADDRESSES: usize = 12;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let pair = Pair::new("iocmg")?;
    let _bridge = Bridge::new("iocmgb", &[&pair.near, nic.tap.name()])?;
    let wire = PacketSocket::new(&pair.far, 0)?;
    for (sequence, length) in [60, 200, 260, 1000, 1500].into_iter().enumerate() {
        let frame = frame::encode(2, sequence as u64, length);
        let mut packet = frame[..ADDRESSES].to_vec();
        packet.extend_from_slice(&TAG);
        packet.extend_from_slice(&frame[ADDRESSES..]);
        ensure!(wire.send(&packet)?, "the wire is full");
        let received = nic.receive()?;
        ensure!(
            received.packet == packet,
            "{} bytes arrived as {}: {:02x?}",
            packet.len(),
            received.packet.len(),
            &received.packet[..20.min(received.packet.len())]
        );
        nic.replenish()?;
    }
    Ok(())
}

/// The memory of buffers that the device has is given up again and again, all but that of headers in pages of
/// their own. The tap counts each packet, of `length` bytes, once, although it has to be received by who may wait
/// for memory.
fn missing_buffers(options: &Options, length: usize, nic: NicOptions) -> Result<()> {
    const ROUNDS: u64 = 3;
    /// Packets for which no memory is missing.
    const SETTLED: u64 = 300;
    const BURST: u64 = 100;
    let nic = NicOptions {
        pages_apart: true,
        ..nic
    };
    let mut nic = Nic::new(&options.node, nic)?;
    nic.touch_buffers()?;
    let control = Control::default();
    let left = |nic: &Nic| -> Result<u64> {
        if options.stock {
            return Ok(0);
        }
        let device = control.device_of(nic.tap.name())?;
        Counters::of_device(&control, &device)?.get("left_fault")
    };
    let tap = nic.tap.name().to_owned();
    let counted = || interface::counter(&tap, "tx_packets");
    let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
    let mut account = frame::Account::default();
    let mut sent = 0;
    let mut pass = |nic: &mut Nic, burst: u64| -> Result<()> {
        for _ in 0..burst {
            let frame = frame::encode(2, sent, length);
            ensure!(wire.send(&frame)?, "the wire is full");
            sent += 1;
        }
        for _ in 0..burst {
            account.note(frame::decode(&nic.receive()?.packet)?.sequence);
        }
        nic.replenish()
    };
    let (left_before, counted_before) = (left(&nic)?, counted()?);
    for _ in 0..ROUNDS {
        for _ in 0..SETTLED {
            pass(&mut nic, 1)?;
        }
        for (start, length) in nic.receive.buffers_in_flight() {
            for page in nic.memory.pages(start, length) {
                nic.memory.give_up_page(page)?;
            }
        }
        pass(&mut nic, BURST)?;
    }
    account.expect_all(ROUNDS * (SETTLED + BURST))?;
    let twice = counted()? - counted_before - ROUNDS * (SETTLED + BURST);
    ensure!(twice == 0, "{twice} packets were counted twice");
    if !options.stock {
        let faults = left(&nic)? - left_before;
        ensure!(faults >= ROUNDS, "memory was missing {faults} times only");
    }
    Ok(())
}

fn few_buffers(options: &Options, features: u64) -> Result<()> {
    const BUFFERS: u16 = 4;
    const FRAMES: u64 = 30;
    let nic = NicOptions {
        features,
        receive_chains: Some(BUFFERS),
        ..NicOptions::default()
    };
    let mut nic = Nic::new(&options.node, nic)?;
    let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
    for sequence in 0..FRAMES {
        ensure!(
            wire.send(&frame::encode(2, sequence, 60))?,
            "the wire is full"
        );
    }
    let mut account = frame::Account::default();
    for step in [1, 3, 4, 2, 1] {
        // The buffers that the device has fill up, and no more.
        while nic.receive.ring.in_flight() > 0 {
            account.note(frame::decode(&nic.receive()?.packet)?.sequence);
        }
        if !options.stock {
            expect_idle(&nic)?;
        }
        ensure!(!nic.receive.ring.has_used()?, "a packet without a buffer");
        nic.replenish_some(step)?;
    }
    while account.received < FRAMES {
        account.note(frame::decode(&nic.receive()?.packet)?.sequence);
        nic.replenish()?;
    }
    account.expect_all(FRAMES)
}

fn single_buffers(options: &Options) -> Result<()> {
    const ROOM: usize = 500;
    let nic = NicOptions {
        features: VERSION_1 | EVENT_IDX,
        receive_length: (12 + ROOM) as u32,
        ..NicOptions::default()
    };
    let mut nic = Nic::new(&options.node, nic)?;
    let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
    // An exact fit, one byte too much, far too much, and a small one behind them.
    for (sequence, length) in [ROOM, ROOM + 1, 1514, 60].into_iter().enumerate() {
        ensure!(
            wire.send(&frame::encode(2, sequence as u64, length))?,
            "the wire is full"
        );
    }
    for sequence in [0, 3] {
        let numbered = frame::decode(&nic.receive()?.packet)?;
        ensure!(
            numbered.sequence == sequence,
            "{numbered:?} came, expected {sequence}"
        );
    }
    if options.stock {
        return Ok(());
    }
    let control = Control::default();
    let device = control.device_of(nic.tap.name())?;
    let status = format!("vq/vq.{}.0/status", device.trim_start_matches("d."));
    for (name, expected) in [("drops", 2), ("handled_packets", 2), ("errors", 0)] {
        let counted = control.read_counter(&status, name)?;
        ensure!(
            counted == expected,
            "{name} is {counted}, expected {expected}"
        );
    }
    Ok(())
}
