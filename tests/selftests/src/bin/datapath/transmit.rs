// SPDX-License-Identifier: GPL-2.0
//! Packets from the driver: those too short for a frame, limited sockets, stops and starts.

use std::os::fd::AsFd;

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::Device;
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::header::NetHeader;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::meminfo::available;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::tap::TapOptions;
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    suite.case(
        "packets shorter than an Ethernet header are dropped and come back",
        move || tiny_packets(options, NicOptions::default()),
    );

    suite.case(
        "short packets over a limited socket are dropped and come back",
        move || tiny_packets(options, limited()),
    );

    suite.case(
        "a socket with a limited send buffer transmits in order",
        move || {
            let mut nic = Nic::new(&options.node, limited())?;
            Traffic::new(&mut nic, Direction::Both)?.run(options.volume(2000, 64))
        },
    );

    suite.case(
        "a tap that is down drops packets, and works again when it is up",
        move || {
            let mut nic = Nic::new(&options.node, NicOptions::default())?;
            nic.tap.set_up(false)?;
            for sequence in 0..20 {
                let frame = frame::encode(1, sequence, frame::MINIMUM);
                ensure!(nic.transmit(&frame)?, "no room for frame {sequence}");
            }
            nic.reclaim_all()?;
            nic.tap.set_up(true)?;
            Traffic::new(&mut nic, Direction::Both)?.run(50)
        },
    );

    suite.case(
        "frames that are dropped leave no memory behind",
        move || dropped_frames(options, 1514, options.volume(30_000, 15_000)),
    );
    suite.case(
        "frames of 60,000 bytes that are dropped leave no memory behind",
        move || dropped_frames(options, 60_000, options.volume(1500, 1000)),
    );

    suite.case(
        "stop and start resume exactly where the ring stopped",
        move || stop_and_start(options, options.volume(100, 8)),
    );

    suite.case(
        "a backend set before kick and call eventfds works",
        move || {
            let nic = Nic::prepare(Device::open(&options.node)?, NicOptions::default())?;
            let device = &nic.device;
            for queue in [&nic.receive, &nic.transmit] {
                device.set_kick(queue.index, None)?;
                device.set_call(queue.index, None)?;
            }
            nic.start()?;
            for queue in [&nic.receive, &nic.transmit] {
                device.set_kick(queue.index, Some(&queue.kick))?;
                device.set_call(queue.index, Some(&queue.call))?;
            }
            let mut nic = nic;
            Traffic::new(&mut nic, Direction::Both)?.run(100)
        },
    );

    suite.case(
        "a kick that came before its eventfd was set is served",
        move || {
            let mut nic = Nic::new(&options.node, NicOptions::default())?;
            let mut wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
            nic.device.set_kick(nic.transmit.index, None)?;
            ensure!(nic.transmit(&frame::encode(1, 0, 60))?, "no room");
            nic.transmit.kick()?;
            nic.device
                .set_kick(nic.transmit.index, Some(&nic.transmit.kick))?;
            nic.reclaim_all()?;
            frame::decode(&wire.expect()?).map(drop)
        },
    );

    suite.case(
        "replacing the memory table under traffic loses nothing",
        move || {
            let mut nic = Nic::new(&options.node, NicOptions::default())?;
            let device = Device::from(nic.device.as_fd().try_clone_to_owned()?);
            let table = nic.memory.table()?;
            std::thread::scope(|scope| {
                let traffic = Background::start(scope, &mut nic)?;
                let replaced = (0..options.volume(200, 15)).try_for_each(|_| {
                    device.set_memory_table(&table)?;
                    traffic.advance(1)
                });
                traffic.conclude(replaced)
            })
            .map(drop)
        },
    );

    suite.case(
        "replacing the kick eventfd under traffic loses no kick",
        move || {
            let mut nic = Nic::new(&options.node, NicOptions::default())?;
            for _ in 0..options.volume(200, 15) {
                let frame = frame::encode(1, 0, 60);
                ensure!(nic.transmit(&frame)?, "no room");
                let kick = new_event()?;
                nic.device.set_kick(nic.transmit.index, Some(&kick))?;
                nic.transmit.kick = kick;
                ensure!(nic.transmit(&frame)?, "no room");
                nic.reclaim_all()?;
            }
            Ok(())
        },
    );

    suite.case(
        "replacing the call eventfd under traffic loses no call",
        move || {
            let mut nic = Nic::new(&options.node, NicOptions::default())?;
            for _ in 0..options.volume(200, 15) {
                let call = new_event()?;
                // The driver asks for a call before it hands the packet over, so that it waits for one.
                nic.transmit.ring.enable_call()?;
                ensure!(nic.transmit(&frame::encode(1, 0, 60))?, "no room");
                nic.device.set_call(nic.transmit.index, Some(&call))?;
                let old = std::mem::replace(&mut nic.transmit.call, call);
                let events = [
                    vhost_iocm_selftests::nic::borrow(&old),
                    nic.transmit.call_fd(),
                ];
                ensure!(
                    wait::readable(&events, wait::patience())?,
                    "neither eventfd was signalled"
                );
                nic.reclaim_all()?;
            }
            Ok(())
        },
    );
}

fn new_event() -> Result<vmm_sys_util::eventfd::EventFd> {
    vhost_iocm_selftests::nic::new_event()
}

/// A tap whose limit keeps the device from handing packets over in batches.
fn limited() -> NicOptions {
    NicOptions {
        tap: TapOptions {
            send_buffer: Some(1 << 20),
            ..TapOptions::default()
        },
        ..NicOptions::default()
    }
}

/// Frames for which there is no packet, and frames that the tap refuses: each was copied by then, into memory
/// of 1 KiB at least.
fn dropped_frames(options: &Options, length: usize, frames: usize) -> Result<()> {
    let nic = NicOptions {
        transmit_length: length as u32,
        transmit_chains: Some(64),
        ..NicOptions::default()
    };
    let mut nic = Nic::new(&options.node, nic)?;
    let frame = frame::encode(1, 0, length);
    let drop_all = |nic: &mut Nic, header: NetHeader, count: usize| -> Result<()> {
        let mut sent = 0;
        while sent < count {
            while nic.add_transmit(&header, &frame)? {
                sent += 1;
            }
            nic.transmit.publish()?;
            nic.reclaim_all()?;
        }
        Ok(())
    };
    nic.tap.set_up(false)?;
    // What is needed once is not counted.
    drop_all(&mut nic, NetHeader::default(), frames / 15)?;
    let before = available()?;
    drop_all(&mut nic, NetHeader::default(), frames)?;
    if !options.stock {
        // Stock vhost tries these for ever.
        drop_all(&mut nic, NetHeader::needs_checksum(0xfff0, 10), frames)?;
    }
    // Two thirds of them, in MiB: other memory comes and goes.
    let most = (frames * length * 2 / 3) >> 20;
    wait::until("the memory of dropped frames to be free", || {
        Ok(available()? + most >= before)
    })
}

fn tiny_packets(options: &Options, nic: NicOptions) -> Result<()> {
    let mut nic = Nic::new(&options.node, nic)?;
    let mut wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
    let whole = frame::encode(1, 0, frame::MINIMUM);
    for length in 0..frame::ETHERNET_HEADER {
        ensure!(
            nic.add_transmit(&NetHeader::default(), &whole[..length])?,
            "no room for {length} bytes"
        );
        nic.transmit.publish()?;
        nic.reclaim_all()
            .with_context(|| format!("packet of {length} bytes"))?;
    }
    // What arrives next is the whole frame: nothing of the others came before it.
    ensure!(nic.transmit(&whole)?, "no room for a whole frame");
    nic.reclaim_all()?;
    frame::decode(&wire.expect()?)?;
    if options.stock {
        return Ok(());
    }
    let control = Control::default();
    let device = control.device_of(nic.tap.name())?;
    let status = format!("vq/vq.{}.1/status", device.trim_start_matches("d."));
    ensure!(
        control.read_counter(&status, "errors")? == 0,
        "short packets count as ring errors"
    );
    Ok(())
}

fn stop_and_start(options: &Options, rounds: u64) -> Result<()> {
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let mut wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
    let mut account = frame::Account::default();
    let mut sent = 0;
    for round in 0..rounds {
        for _ in 0..64 {
            ensure!(
                nic.transmit(&frame::encode(1, sent, 60))?,
                "no room for frame {sent}"
            );
            sent += 1;
        }
        // Somewhere in the middle of those packets, or before or after them.
        for queue in [&nic.transmit, &nic.receive] {
            nic.stop_queue(queue)?;
            let base = nic.device.base(queue.index)?;
            let published = u32::from(queue.ring.published());
            let used = u32::from(queue.ring.used_index()?);
            let behind = published.wrapping_sub(base) & 0xffff;
            ensure!(
                behind <= 256,
                "round {round}: base {base} with {published} published"
            );
            ensure!(
                base == used,
                "round {round}: base {base}, but used index {used}"
            );
            nic.device.set_base(queue.index, base)?;
            nic.start_queue(queue)?;
        }
        nic.reclaim_all()
            .with_context(|| format!("round {round}"))?;
        while account.received < sent {
            account.note(frame::decode(&wire.expect()?)?.sequence);
        }
    }
    account.expect_all(sent)?;
    // Both rings still work as before.
    Traffic::new(&mut nic, Direction::Both)?.run(100)
}
