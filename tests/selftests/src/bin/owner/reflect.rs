// SPDX-License-Identifier: GPL-2.0
//! Sending back what is received.

use std::os::fd::AsFd;

use anyhow::Result;
use vhost_iocm_selftests::nic::{borrow, Nic, NicOptions};
use vhost_iocm_selftests::wait;

use crate::test::Test;
use crate::Card;

pub fn run(card: Card, lend: bool, test: &Test) -> Result<()> {
    let mut nic = card.open(NicOptions::default())?;
    test.tell_done()?;
    if lend {
        test.send_fd(nic.device.as_fd())?;
    }
    reflect(&mut nic, test)
}

/// Sends back every frame that the card receives, until the test ends the process.
pub fn reflect(nic: &mut Nic, test: &Test) -> Result<()> {
    loop {
        let mut moved = nic.reclaim()? > 0;
        while let Some(received) = nic.take_received()? {
            moved = true;
            while !nic.transmit(&received.packet)? {
                nic.reclaim_all()?;
            }
        }
        nic.replenish()?;
        if moved || nic.receive.ring.enable_call()? || nic.transmit.ring.enable_call()? {
            continue;
        }
        let descriptors = [
            borrow(&nic.receive.call),
            borrow(&nic.transmit.call),
            test.as_fd(),
        ];
        // The test may take as long as it likes between two frames.
        wait::readable(&descriptors, wait::patience())?;
        nic.receive.calls()?;
        nic.transmit.calls()?;
        test.check_end();
    }
}
