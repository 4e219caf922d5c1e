// SPDX-License-Identifier: GPL-2.0
//! What is read in vain for a packet is no reason to refuse it later.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::ring::{Descriptor, INDIRECT, NEXT, WRITE};
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;
use vm_memory::Address;

/// Entries of an indirect table, all but the last of them empty.
const ENTRIES: u16 = 1000;
/// How often the guest kicks without giving the device enough buffers.
const KICKS: u64 = 20;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "a packet that waits for buffers is not refused for the descriptors that were read in vain",
        move || waits(options, control),
    );
}

fn waits(options: &Options, control: &Control) -> Result<()> {
    control.restore()?;
    let nic = NicOptions {
        receive_chains: Some(0),
        ..NicOptions::default()
    };
    let (mut nic, name) = control.device_made_by(|| Nic::new(&options.node, nic))?;
    control.set_poll_of_device(&name, "0")?;
    let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;

    let table = nic.memory.allocate(16 * u64::from(ENTRIES), 16)?;
    let small = nic.memory.allocate(64, 16)?;
    let large = nic.memory.allocate(2048, 16)?;
    for entry in 0..ENTRIES {
        let at = table.unchecked_add(16 * u64::from(entry));
        let descriptor = if entry + 1 < ENTRIES {
            Descriptor::new(small, 0, WRITE | NEXT, 0)
        } else {
            Descriptor::new(small, 64, WRITE, 0)
        };
        nic.memory.write(at, descriptor)?;
    }
    let length = 16 * u32::from(ENTRIES);
    let ring = &nic.receive.ring;
    ring.write_descriptor(0, Descriptor::new(table, length, INDIRECT, 0))?;
    ring.write_descriptor(1, Descriptor::new(large, 2048, WRITE, 0))?;
    ring.write_available_entry(0, 0)?;
    ring.write_available_entry(1, 1)?;
    ring.write_available_index(1)?;

    let full = || {
        let receive = virtqueue(&name, nic.receive.index);
        Counters::of_virtqueue(control, &receive)?.get("ring_full")
    };
    ensure!(wire.send(&frame::encode(1, 0, 1514))?, "no room");
    for _ in 0..KICKS {
        let before = full()?;
        nic.receive.kick.write(1)?;
        wait::until("the device to find too few buffers", || {
            ensure!(
                nic.receive.errors()? == 0,
                "the ring was reported as broken"
            );
            Ok(full()? > before)
        })?;
    }
    nic.receive.ring.write_available_index(2)?;
    nic.receive.kick()?;
    wait::until("the packet to arrive", || {
        ensure!(
            nic.receive.errors()? == 0,
            "the ring was reported as broken"
        );
        Ok(nic.receive.ring.used_index()? == 2)
    })
}
