// SPDX-License-Identifier: GPL-2.0
//! A device whose memory is missing for a while.

use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{ensure, Result};
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::header::NetHeader;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::process::{Part, STALLED_FRAMES, STALLED_STREAM};
use vhost_iocm_selftests::store;
use vhost_iocm_selftests::userfault::Holes;
use vm_memory::GuestAddress;

use crate::reflect::reflect;
use crate::test::Test;
use crate::Card;

pub fn run(card: Card, part: Part, file: Option<PathBuf>, test: &Test) -> Result<()> {
    let mut nic = card.open(NicOptions {
        pages_apart: true,
        ..NicOptions::default()
    })?;
    // What is missing later is what the test takes away, and nothing else.
    nic.touch_buffers()?;
    test.tell_done()?;
    test.wait()?;
    for sequence in 0..STALLED_FRAMES {
        let frame = frame::encode(STALLED_STREAM, sequence, frame::MINIMUM);
        let added = nic.add_transmit(&NetHeader::default(), &frame)?;
        ensure!(added, "no room for frame {sequence}");
    }
    // Without a kick: the device is to find the frames when the memory is gone, and this process could
    // not write to the available ring then.
    nic.transmit.ring.publish()?;
    let parts = parts(&nic, part);
    if let Some(file) = file {
        store::move_there(&file, &nic.memory, &parts)?;
        test.tell_done()?;
        test.wait()?;
        nic.transmit.kick()?;
        test.wait()?;
    } else if parts.is_empty() {
        nic.transmit.kick()?;
        test.wait()?;
    } else {
        let holes = Holes::punch(&nic.memory, &parts)?;
        nic.transmit.kick()?;
        test.send_fd(holes.as_fd())?;
        test.wait()?;
        holes.fill()?;
    }
    test.tell_done()?;
    reflect(&mut nic, test)
}

/// The parts of the memory that are to be missing.
fn parts(nic: &Nic, part: Part) -> Vec<(GuestAddress, u64)> {
    let ring = nic.transmit.ring.layout();
    match part {
        Part::ReceiveBuffers => nic.receive.buffers_in_flight(),
        Part::TransmitBuffers => nic.transmit.buffers_in_flight(),
        Part::Available => vec![ring.available_part()],
        Part::Used => vec![ring.used_part()],
        Part::Nothing => Vec::new(),
    }
}
