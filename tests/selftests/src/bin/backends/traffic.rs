// SPDX-License-Identifier: GPL-2.0
//! Traffic through every kind of backend.

use std::os::fd::AsRawFd;

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::device::{
    Device, DEVICE_HEADER, EVENT_IDX, MRG_RXBUF, RECEIVE, TRANSMIT, VERSION_1,
};
use vhost_iocm_selftests::frame::{self, Account};
use vhost_iocm_selftests::interface::{Pair, TapOnTop};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::segment;
use vhost_iocm_selftests::tap::{Tap, TapOptions};
use vhost_iocm_selftests::traffic::{mixed_length, Direction, Traffic};
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

/// A card whose virtqueues have another backend than the card's own tap.
fn card(options: &Options, features: u64, backend: &dyn AsRawFd) -> Result<Nic> {
    let nic = NicOptions {
        features,
        ..NicOptions::default()
    };
    card_like(options, nic, backend)
}

fn card_like(options: &Options, nic: NicOptions, backend: &dyn AsRawFd) -> Result<Nic> {
    let nic = Nic::prepare(Device::open(&options.node)?, nic)?;
    for index in [RECEIVE, TRANSMIT] {
        nic.device
            .set_backend(index, Some(backend))
            .with_context(|| format!("set the backend of virtqueue {index}"))?;
    }
    Ok(nic)
}

/// Frames both ways between a card and the far end of a pair.
fn exchange(nic: &mut Nic, pair: &Pair, frames: u64) -> Result<()> {
    let wire = PacketSocket::new(&pair.far, frame::ETHERTYPE)?;
    Traffic::over(nic, wire, Direction::Both, mixed_length).run(frames)
}

const MODERN: u64 = VERSION_1 | MRG_RXBUF | EVENT_IDX;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    let frames = options.volume(2000, 64);

    suite.case("two-way traffic through a macvtap", move || {
        let pair = Pair::new("iocmv")?;
        let tap = TapOnTop::new(&pair, "macvtap", "passthru")?;
        exchange(&mut card(options, MODERN, &tap)?, &pair, frames)
    });

    suite.case(
        "large packets are transmitted through a macvtap",
        move || {
            let pair = Pair::new("iocml")?;
            let tap = TapOnTop::new(&pair, "macvtap", "passthru")?;
            let nic = NicOptions {
                transmit_length: 66_000,
                transmit_chains: Some(16),
                ..NicOptions::default()
            };
            let mut nic = card_like(options, nic, &tap)?;
            let mut wire = PacketSocket::with_header(&pair.far, segment::ETHERTYPE)?;
            let header = segment::segmentation_header(segment::SIZE);
            for (sequence, length) in [3000, 10_000, 32_000, 65_000]
                .into_iter()
                .cycle()
                .take(12)
                .enumerate()
            {
                let packet = segment::encode(sequence as u32, length);
                ensure!(nic.add_transmit(&header, &packet)?, "the ring is full");
                nic.transmit.publish()?;
                let (arrived, bytes) = wire.expect_with()?;
                ensure!(bytes == packet, "packet {sequence} was changed");
                ensure!(arrived.gso_size == header.gso_size, "{arrived:?}");
                nic.reclaim_all()?;
            }
            Ok(())
        },
    );

    suite.case("frames to all go through an ipvtap both ways", move || {
        let pair = Pair::new("iocmi")?;
        let tap = TapOnTop::new(&pair, "ipvtap", "l2")?;
        let mut nic = card(options, MODERN, &tap)?;
        let mut wire = PacketSocket::new(&pair.far, frame::ETHERTYPE)?;
        for sequence in 0..frames.min(100) {
            let mut frame = frame::encode(1, sequence, mixed_length(sequence));
            // It looks for IP addresses in what goes to one only.
            frame[..6].fill(0xff);
            ensure!(nic.transmit(&frame)?, "the ring is full");
            ensure!(wire.expect()? == frame, "frame {sequence} to the host");
            nic.reclaim_all()?;
            ensure!(wire.send(&frame)?, "the wire is full");
            let received = nic.receive()?;
            ensure!(received.packet == frame, "frame {sequence} to the driver");
            nic.replenish()?;
        }
        Ok(())
    });

    for (name, features, header) in [
        ("headers of its own", EVENT_IDX, true),
        ("headers of the device", MODERN | DEVICE_HEADER, false),
        ("legacy headers of the device", DEVICE_HEADER, false),
    ] {
        suite.case(
            format!("two-way traffic through a packet socket with {name}"),
            move || {
                let pair = Pair::new("iocmp")?;
                let socket = PacketSocket::as_backend(&pair.near, frame::ETHERTYPE, header)?;
                exchange(&mut card(options, features, &socket)?, &pair, frames)
            },
        );
    }

    suite.case(
        "each queue of a tap serves a device of its own",
        move || {
            let of_tap = queues_of_tap();
            let first = Tap::new(&of_tap)?;
            let mut queues = vec![first];
            while queues.len() < 4 {
                queues.push(queues[0].another_queue(&of_tap)?);
            }
            let mut cards = queues
                .iter()
                .map(|queue| card(options, MODERN, queue))
                .collect::<Result<Vec<_>>>()?;
            let name = queues[0].name().to_owned();
            for nic in &mut cards {
                let wire = PacketSocket::new(&name, frame::ETHERTYPE)?;
                Traffic::over(nic, wire, Direction::Transmit, mixed_length).run(frames / 4)?;
            }
            // The tap chooses the queue of each frame for the driver.
            let wire = PacketSocket::new(&name, frame::ETHERTYPE)?;
            let mut account = Account::default();
            for sequence in 0..frames / 4 {
                let frame = frame::encode(2, sequence, mixed_length(sequence));
                ensure!(wire.send(&frame)?, "the wire is full");
                wait::until("the frame to arrive at one of the devices", || {
                    for nic in &mut cards {
                        if let Some(received) = nic.take_received()? {
                            account.note(frame::decode(&received.packet)?.sequence);
                            nic.replenish()?;
                            return Ok(true);
                        }
                    }
                    Ok(false)
                })?;
            }
            account.expect_all(frames / 4)
        },
    );

    suite.case(
        "a queue of a tap that was detached meanwhile works again",
        move || {
            let of_tap = queues_of_tap();
            let first = Tap::new(&of_tap)?;
            let queue = first.another_queue(&of_tap)?;
            let mut nic = card(options, MODERN, &queue)?;
            let transmit = |nic: &mut Nic| {
                let wire = PacketSocket::new(first.name(), frame::ETHERTYPE)?;
                Traffic::over(nic, wire, Direction::Transmit, mixed_length).run(50)
            };
            transmit(&mut nic)?;
            queue.set_attached(false)?;
            // Whatever becomes of these, their chains come back.
            for _ in 0..10 {
                ensure!(nic.transmit(&frame::unheard(60))?, "the ring is full");
                nic.reclaim_all()?;
            }
            queue.set_attached(true)?;
            transmit(&mut nic)
        },
    );
}

fn queues_of_tap() -> TapOptions {
    TapOptions {
        multi_queue: true,
        ..TapOptions::default()
    }
}
