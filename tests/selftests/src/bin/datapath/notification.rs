// SPDX-License-Identifier: GPL-2.0
//! Calls come when they were asked for, and only then.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::device::{EVENT_IDX, MRG_RXBUF, NOTIFY_ON_EMPTY, VERSION_1};
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions, Queue};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    for (name, event_index) in [("flags", 0), ("event index", EVENT_IDX)] {
        suite.case(
            format!("no call while calls are suppressed by {name}"),
            move || suppressed(options, VERSION_1 | MRG_RXBUF | event_index),
        );
    }

    suite.case(
        "with an event index the call comes at the index and not before",
        move || {
            let mut nic = warm(options, VERSION_1 | MRG_RXBUF | EVENT_IDX)?;
            for _ in 0..10 {
                ensure!(
                    !nic.transmit.ring.call_after(16)?,
                    "used before it was made available"
                );
                for _ in 0..15 {
                    transmit_one(&mut nic)?;
                }
                expect_used(&nic.transmit)?;
                ensure!(nic.transmit.calls()? == 0, "called before the event index");
                transmit_one(&mut nic)?;
                expect_call(&nic.transmit)?;
                nic.reclaim_all()?;
            }
            Ok(())
        },
    );

    suite.case(
        "an empty ring calls in spite of suppression when that was agreed",
        move || {
            let mut nic = warm(options, VERSION_1 | MRG_RXBUF | NOTIFY_ON_EMPTY)?;
            nic.transmit.ring.disable_call()?;
            transmit_one(&mut nic)?;
            expect_call(&nic.transmit)
        },
    );

    suite.case(
        "a virtqueue without call eventfd is served all the same",
        move || {
            let mut nic = warm(options, VERSION_1 | MRG_RXBUF)?;
            let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
            for index in [nic.receive.index, nic.transmit.index] {
                nic.device.set_call(index, None)?;
            }
            transmit_one(&mut nic)?;
            expect_used(&nic.transmit)?;
            ensure!(wire.send(&frame::encode(2, 0, 60))?, "the wire is full");
            wait::until("a packet to be received", || nic.receive.ring.has_used())?;
            frame::decode(&nic.receive()?.packet).map(drop)
        },
    );

    suite.case("two virtqueues may share one call eventfd", move || {
        let mut nic = warm(options, VERSION_1 | MRG_RXBUF | EVENT_IDX)?;
        nic.receive.ring.enable_call()?;
        nic.device
            .set_call(nic.receive.index, Some(&nic.transmit.call))?;
        let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
        ensure!(wire.send(&frame::encode(2, 0, 60))?, "the wire is full");
        expect_call(&nic.transmit)?;
        frame::decode(&nic.receive()?.packet).map(drop)
    });
}

/// A card whose first call, which comes whatever was asked for, is over.
fn warm(options: &Options, features: u64) -> Result<Nic> {
    let mut nic = Nic::new(
        &options.node,
        NicOptions {
            features,
            ..NicOptions::default()
        },
    )?;
    let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
    transmit_one(&mut nic)?;
    nic.reclaim_all()?;
    ensure!(wire.send(&frame::encode(2, 0, 60))?, "the wire is full");
    nic.receive()?;
    nic.replenish()?;
    // The calls for those packets are signalled right after the used index that was seen.
    expect_quiet(&nic.transmit)?;
    expect_quiet(&nic.receive)?;
    Ok(nic)
}

/// Takes late calls until the device is done with what it did, which one more round trip shows.
fn expect_quiet(queue: &Queue) -> Result<()> {
    wait::until("calls to settle", || Ok(queue.calls()? == 0))
}

fn transmit_one(nic: &mut Nic) -> Result<()> {
    ensure!(nic.transmit(&frame::encode(1, 0, 60))?, "no room");
    Ok(())
}

/// Waits, without a call, until the device gave back everything that was published.
fn expect_used(queue: &Queue) -> Result<()> {
    wait::until("packets to be transmitted", || {
        Ok(queue.ring.used_index()? == queue.ring.published())
    })
}

fn expect_call(queue: &Queue) -> Result<()> {
    let event = [queue.call_fd()];
    ensure!(
        wait::readable(&event, wait::patience())?,
        "no call for virtqueue {}",
        queue.index
    );
    queue.calls().map(drop)
}

fn suppressed(options: &Options, features: u64) -> Result<()> {
    let mut nic = warm(options, features)?;
    nic.transmit.ring.disable_call()?;
    for _ in 0..20 {
        transmit_one(&mut nic)?;
        expect_used(&nic.transmit)?;
    }
    // One packet later the device has long decided about the call for those before.
    transmit_one(&mut nic)?;
    expect_used(&nic.transmit)?;
    ensure!(nic.transmit.calls()? == 0, "called in spite of suppression");
    nic.reclaim_all()?;

    ensure!(
        !nic.transmit.ring.enable_call()?,
        "used before it was made available"
    );
    transmit_one(&mut nic)?;
    expect_call(&nic.transmit)
}
