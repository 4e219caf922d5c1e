// SPDX-License-Identifier: GPL-2.0
//! Packets that a device had taken when its backend was taken away: the tap has them again.

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::device::{RECEIVE, TRANSMIT};
use vhost_iocm_selftests::header::{NetHeader, MODERN_LENGTH};
use vhost_iocm_selftests::ktap::{Outcome, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::segment;
use vhost_iocm_selftests::tap::TapOptions;
use vhost_iocm_selftests::userfault::Holes;
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

use crate::offload::compare;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    for (name, header, length) in [
        ("short", segment::checksum_header(), 100),
        (
            "short, to be segmented",
            segment::segmentation_header(40),
            150,
        ),
        ("long", segment::checksum_header(), 1000),
    ] {
        for (before, count) in [("the first", 0), ("after others", 5)] {
            suite.case(
                format!(
                    "the tap gets packets back that wait for the memory of their buffers ({name}, {before})"
                ),
                move || wait_for_memory(options, header, length, count),
            );
        }
    }
}

/// The device's own thread, which may wait for memory, does so for a packet of the driver's. So packets to the
/// driver whose buffers have no memory stay with the device until it is stopped. As many `before` them arrive.
fn wait_for_memory(
    options: &Options,
    header: NetHeader,
    length: usize,
    before: u32,
) -> Result<Outcome> {
    const PACKETS: u32 = 4;
    if options.stock {
        return Ok(Outcome::Skip(
            "stopping a device of stock vhost waits for the memory".into(),
        ));
    }
    let control = Control::default();
    let nic = NicOptions {
        pages_apart: true,
        tap: TapOptions {
            offload: true,
            ..TapOptions::default()
        },
        ..NicOptions::default()
    };
    let (mut nic, device) = control.device_made_by(|| Nic::new(&options.node, nic))?;
    let counters = |index| Counters::of_virtqueue(&control, &virtqueue(&device, index));
    let mut wire = PacketSocket::with_header(nic.tap.name(), segment::ETHERTYPE)?;

    // Those before would be received at home, and by the tap, where memory is missing.
    nic.touch_buffers()?;
    for sequence in 0..before {
        let packet = segment::encode(sequence, length);
        ensure!(wire.send_with(&header, &packet)?, "the wire is full");
        nic.receive()?;
        nic.replenish()?;
    }

    let outgoing = segment::encode(PACKETS, length);
    ensure!(
        nic.add_transmit(&NetHeader::default(), &outgoing)?,
        "no room"
    );
    // A device that is polled finds it as soon as it is published.
    let mut holes = Holes::punch(&nic.memory, &nic.transmit.buffers_in_flight())?;
    nic.transmit.publish()?;
    holes.expect_fault()?;

    for (start, length) in nic.receive.buffers_in_flight() {
        for page in nic.memory.pages(start, length) {
            nic.memory.give_up_page(page)?;
        }
    }
    let counted = counters(RECEIVE)?;
    for sequence in 0..PACKETS {
        let packet = segment::encode(sequence, length);
        ensure!(wire.send_with(&header, &packet)?, "the wire is full");
    }
    wait::until("the memory of a buffer to be missing", || {
        Ok(counters(RECEIVE)?.since(&counted).get("left_fault")? > 0)
    })?;
    nic.stop_queue(&nic.receive)?;

    // Whoever reads the tap next gets the first, and the device has the others when it starts again.
    let bytes = nic.tap.expect()?;
    let arrived = NetHeader::decode(&bytes[..MODERN_LENGTH]).context("a header")?;
    let packet = segment::encode(0, length);
    compare((&header, &packet), (&arrived, &bytes[MODERN_LENGTH..])).context("from the tap")?;
    nic.start_queue(&nic.receive)?;
    holes.fill()?;
    for sequence in 1..PACKETS {
        let packet = segment::encode(sequence, length);
        let received = nic.receive()?;
        compare((&header, &packet), (&received.header, &received.packet))
            .with_context(|| format!("packet {sequence}"))?;
    }
    let (_, bytes) = wire.expect_with()?;
    ensure!(bytes == outgoing, "another packet was sent");
    nic.reclaim_all()?;
    for index in [RECEIVE, TRANSMIT] {
        let moved = counters(index)?;
        ensure!(moved.get("drops")? == 0, "{:?}", moved.moved());
    }
    Ok(Outcome::Pass)
}
