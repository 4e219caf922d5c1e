// SPDX-License-Identifier: GPL-2.0
//! Counters of what does not happen every day.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::Card;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::device::TRANSMIT;
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::header::NetHeader;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::memory::GuestMemory;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::Owner;
use vhost_iocm_selftests::ring::{Descriptor, WRITE};
use vhost_iocm_selftests::userfault::Holes;
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case("a ring without room for a packet is counted", move || {
        let nic = NicOptions {
            receive_chains: Some(2),
            ..NicOptions::default()
        };
        let mut card = Card::new(options, control, nic, "0")?;
        card.exchange(4)?;
        let index = card.nic.receive.index;
        let before = card.counters(index)?;
        for _ in 0..4 {
            card.send()?;
        }
        wait::until("the lack of buffers to be counted", || {
            Ok(card.counters(index)?.since(&before).get("ring_full")? > 0)
        })?;
        card.expect_received()?;
        let transmit = card.counters(card.nic.transmit.index)?;
        ensure!(transmit.get("ring_full")? == 0, "{:?}", transmit.moved());
        Ok(())
    });

    suite.case("an error of the ring is counted as that alone", move || {
        let mut card = Card::new(options, control, NicOptions::default(), "0")?;
        card.exchange(4)?;
        card.expect_armed()?;
        let index = card.nic.transmit.index;
        let before = card.counters(index)?;
        // The device must not be asked to write what it is to transmit.
        let ring = &card.nic.transmit.ring;
        let published = ring.published();
        let buffer = card.nic.memory.allocate(100, 1)?;
        ring.write_descriptor(0, Descriptor::new(buffer, 100, WRITE, 0))?;
        ring.write_available_entry(published, 0)?;
        ring.write_available_index(published.wrapping_add(1))?;
        card.nic.transmit.kick()?;
        card.nic.transmit.expect_error()?;
        let moved = card.counters(index)?.since(&before);
        for (name, expected) in [
            ("errors", 1),
            ("drops", 0),
            ("handled_packets", 0),
            ("kicks", 1),
        ] {
            ensure!(moved.get(name)? == expected, "{:?}", moved.moved());
        }
        Ok(())
    });

    suite.case("a packet that cannot be delivered is counted", move || {
        let mut card = Card::new(options, control, NicOptions::default(), "0")?;
        card.exchange(4)?;
        let index = card.nic.transmit.index;
        let before = card.counters(index)?;
        // Shorter than an Ethernet header.
        ensure!(card.nic.transmit(&[0; 10])?, "no room");
        card.nic.reclaim_all()?;
        card.expect_armed()?;
        let moved = card.counters(index)?.since(&before);
        for (name, expected) in [("drops", 1), ("errors", 0), ("handled_packets", 0)] {
            ensure!(moved.get(name)? == expected, "{:?}", moved.moved());
        }
        Ok(())
    });

    suite.case(
        "a change of the address space is counted where it was caused",
        move || mm_switches(options, control),
    );

    suite.case(
        "leaving the fast path is counted once for each time",
        move || left(options, control),
    );

    suite.case(
        "work for a stopped virtqueue is counted as that",
        move || {
            const KICKS: u64 = 5;
            let mut card = Card::new(options, control, NicOptions::default(), "0")?;
            card.exchange(4)?;
            card.nic.stop_queue(&card.nic.transmit)?;
            card.expect_quiet()?;
            // What was announced when it was stopped may have been such a work already.
            let before = card.worker_counters()?;
            for kick in 1..=KICKS {
                card.nic.transmit.kick()?;
                wait::until("the kick to be counted", || {
                    let moved = card.worker_counters()?.since(&before);
                    Ok(moved.get("noqueue_works")? == kick)
                })?;
            }
            card.nic.start_queue(&card.nic.transmit)?;
            card.exchange(4)?;
            let moved = card.worker_counters()?.since(&before);
            ensure!(moved.get("noqueue_works")? == KICKS, "{:?}", moved.moved());
            Ok(())
        },
    );

    suite.case("the age of pending work is counted", move || {
        let mut card = Card::new(options, control, NicOptions::default(), "0")?;
        card.exchange(50)?;
        for counters in card.both_counters()? {
            let (most, average) = (
                counters.get("pending_ns_max")?,
                counters.get("pending_ns_avg")?,
            );
            ensure!(
                0 < average && average <= most,
                "{average} ns on average, at most {most}"
            );
        }
        Ok(())
    });
}

fn mm_switches(options: &Options, control: &Control) -> Result<()> {
    const ROUNDS: u64 = 20;
    let mut card = Card::new(options, control, NicOptions::default(), "0")?;
    card.exchange(4)?;
    let look = |device: &str| Counters::of_device(control, device)?.get("mm_switches");
    let _owner = Owner::reflect(&options.node, "switch0")?;
    let other = control.device_of("switch0")?;
    let wire = &mut PacketSocket::new("switch0", frame::ETHERTYPE)?;
    let before = (look(&card.device)?, look(&other)?, card.worker_counters()?);
    for sequence in 0..ROUNDS {
        // The two take turns, each in an address space of its own.
        card.exchange(1)?;
        ensure!(
            wire.send(&frame::encode(2, sequence, 60))?,
            "the wire is full"
        );
        wire.expect()?;
    }
    card.expect_quiet()?;
    let own = look(&card.device)? - before.0;
    let others = look(&other)? - before.1;
    let worker = card
        .worker_counters()?
        .since(&before.2)
        .get("mm_switches")?;
    // Once in each round for each of them at least; the driver's answers may come in between.
    ensure!(
        own >= ROUNDS - 1 && others >= ROUNDS - 1 && own + others == worker,
        "in {ROUNDS} rounds: {own} and {others}, {worker} of the worker"
    );
    Ok(())
}

fn left(options: &Options, control: &Control) -> Result<()> {
    const TIMES: u64 = 5;
    let nic = NicOptions {
        pages_apart: true,
        ..NicOptions::default()
    };
    control.side_core()?;
    let (mut nic, device) = control.device_made_by(|| Nic::new(&options.node, nic))?;
    control.set_poll_of_device(&device, "0")?;
    let mut wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
    let counters = || Counters::of_virtqueue(control, &virtqueue(&device, TRANSMIT));
    for time in 0..TIMES {
        let before = counters()?;
        let frame = frame::encode(1, time, frame::MINIMUM);
        ensure!(nic.add_transmit(&NetHeader::default(), &frame)?, "no room");
        nic.transmit.ring.publish()?;
        let memory: &GuestMemory = &nic.memory;
        let mut holes = Holes::punch(memory, &nic.transmit.buffers_in_flight())?;
        nic.transmit.kick()?;
        holes.expect_fault()?;
        let moved = counters()?.since(&before);
        ensure!(moved.get("left_fault")? == 1, "{:?}", moved.moved());
        holes.fill()?;
        ensure!(wire.expect()? == frame, "another frame arrived");
        nic.reclaim_all()?;
        wait::until("the work at home to be counted", || {
            let moved = counters()?.since(&before);
            Ok(moved.get("home_works")? > 0 && moved.get("home_ns")? > 0)
        })?;
        let moved = counters()?.since(&before);
        ensure!(
            moved.get("left_fault")? == 1 && moved.get("left_backend")? == 0,
            "{:?}",
            moved.moved()
        );
    }
    Ok(())
}
