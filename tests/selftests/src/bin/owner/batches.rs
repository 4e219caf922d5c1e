// SPDX-License-Identifier: GPL-2.0
//! Batches of packets, each complete before the device sees it.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::segment;
use vhost_iocm_selftests::tap::TapOptions;
use vhost_iocm_selftests::wait;

use crate::test::Test;
use crate::Card;

pub fn run(card: Card, packets: u16, length: usize, receive: bool, test: &Test) -> Result<()> {
    let offload = length > frame::MAXIMUM;
    let room = if offload { 1 << 16 } else { 2048 };
    let mut nic = card.open(NicOptions {
        ring_size: (2 * packets).next_power_of_two(),
        regions_filled: true,
        transmit_length: room,
        receive_length: room,
        receive_chains: Some(packets),
        transmit_chains: Some(packets),
        tap: TapOptions {
            offload,
            ..TapOptions::default()
        },
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
            Ok(taken == packets)
        })?;
        test.tell_done()?;
    }
    let (header, packet) = segment::unheard(length);
    loop {
        test.wait()?;
        if receive {
            nic.fill_receive(packets.into())?;
        } else {
            for _ in 0..packets {
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
        let goal = queue.ring.published().wrapping_add(packets);
        queue.publish()?;
        // One call at the end. The test measures until then.
        while queue.ring.used_index()? != goal {
            let left = goal.wrapping_sub(queue.ring.used_index()?);
            if !queue.ring.call_after(left)? {
                let is_called = wait::readable(&[queue.call_fd()], wait::patience())?;
                ensure!(is_called, "{left} packets of a batch were not served");
                queue.calls()?;
            }
        }
        test.tell_done()?;
        if receive {
            for _ in 0..packets {
                let received = nic.take_received()?;
                let length = received.map(|received| received.packet.len());
                ensure!(length == Some(packet.len()), "{length:?} was received");
            }
        } else {
            nic.reclaim_all()?;
        }
    }
}
