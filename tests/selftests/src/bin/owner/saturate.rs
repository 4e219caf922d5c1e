// SPDX-License-Identifier: GPL-2.0
//! Keeping a device busy.

use std::os::fd::AsFd;

use anyhow::Result;
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::process::Packets;
use vhost_iocm_selftests::segment;
use vhost_iocm_selftests::wait;

use crate::test::Test;
use crate::Card;

/// The ring's size, and the length of the packet that fills it.
fn load(packets: Packets) -> (u16, usize) {
    match packets {
        // Many slices' worth, so that the device has work until the driver gets to run again.
        Packets::Frames | Packets::SingleFrames => (4096, frame::MAXIMUM),
        Packets::Segments => (64, segment::MAXIMUM),
    }
}

pub fn run(card: Card, packets: Packets, test: &Test) -> Result<()> {
    let (ring_size, length) = load(packets);
    let (header, packet) = segment::unheard(length);
    let length = length as u32;
    let mut nic = card.open(NicOptions {
        ring_size,
        segments: 1,
        transmit_length: length,
        ..NicOptions::default()
    })?;
    test.tell_done()?;
    test.wait()?;
    while nic.add_transmit(&header, &packet)? && packets != Packets::SingleFrames {}
    nic.transmit.publish()?;
    let enough = (nic.transmit.ring.in_flight() / 8).max(1);
    test.tell_done()?;
    loop {
        if !nic.transmit.ring.call_after(enough)? {
            wait::readable(&[nic.transmit.call_fd(), test.as_fd()], wait::patience())?;
            nic.transmit.calls()?;
        }
        nic.transmit_again(length)?;
        test.check_end();
    }
}
