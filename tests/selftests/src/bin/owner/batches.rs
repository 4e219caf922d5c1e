// SPDX-License-Identifier: GPL-2.0
//! Batches of small frames, each complete before the device sees it.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::header::NetHeader;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::wait;

use crate::test::Test;
use crate::Card;

pub fn run(card: Card, frames: u16, receive: bool, test: &Test) -> Result<()> {
    let mut nic = card.open(NicOptions {
        ring_size: (2 * frames).next_power_of_two(),
        regions_filled: true,
        transmit_length: 2048,
        receive_length: 2048,
        receive_chains: Some(frames),
        transmit_chains: Some(frames),
        ..NicOptions::default()
    })?;
    nic.touch_buffers()?;
    test.tell_done()?;
    if receive {
        // The first batch takes the buffers that the device has had from the beginning.
        test.wait()?;
        let mut taken = 0;
        wait::until("the first batch", || {
            while nic.take_received()?.is_some() {
                taken += 1;
            }
            Ok(taken == frames)
        })?;
        test.tell_done()?;
    }
    let (header, packet) = (NetHeader::default(), frame::unheard(64));
    loop {
        test.wait()?;
        if receive {
            nic.fill_receive(frames.into())?;
        } else {
            for _ in 0..frames {
                ensure!(nic.add_transmit(&header, &packet)?, "no room in the ring");
            }
        }
        test.tell_done()?;
        test.wait()?;
        let queue = if receive {
            &mut nic.receive
        } else {
            &mut nic.transmit
        };
        let goal = queue.ring.published().wrapping_add(frames);
        queue.publish()?;
        // One call at the end. The test measures until then.
        while queue.ring.used_index()? != goal {
            let left = goal.wrapping_sub(queue.ring.used_index()?);
            if !queue.ring.call_after(left)? {
                let is_called = wait::readable(&[queue.call_fd()], wait::patience())?;
                ensure!(is_called, "{left} frames of a batch were not served");
                queue.calls()?;
            }
        }
        test.tell_done()?;
        if receive {
            for _ in 0..frames {
                let received = nic.take_received()?;
                let length = received.map(|received| received.packet.len());
                ensure!(length == Some(packet.len()), "{length:?} was received");
            }
        } else {
            nic.reclaim_all()?;
        }
    }
}
