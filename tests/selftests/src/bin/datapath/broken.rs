// SPDX-License-Identifier: GPL-2.0
//! Rings that break the specification: reported, left alone, harmless to others, and repairable.

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::{EVENT_IDX, MRG_RXBUF, VERSION_1};
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::ktap::{skip, Outcome, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::ring::{Descriptor, INDIRECT, NEXT, WRITE};
use vhost_iocm_selftests::traffic::{Direction, Traffic};
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;
use vm_memory::{Address, GuestAddress};

use crate::{expect_idle, CHAIN_MAX};

/// A way to break a ring: writes descriptors and returns the head to make available.
type Break = fn(&Nic, GuestAddress) -> Result<u16>;

/// Breakages of a transmit ring. The address is that of a page that is good for anything.
const TRANSMIT: &[(&str, Break)] = &[
    ("whose chain loops", |nic, page| {
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(page, 64, NEXT, 1))?;
        nic.transmit
            .ring
            .write_descriptor(1, Descriptor::new(page, 64, NEXT, 0))?;
        Ok(0)
    }),
    ("whose descriptor is followed by itself", |nic, page| {
        nic.transmit
            .ring
            .write_descriptor(3, Descriptor::new(page, 64, NEXT, 3))?;
        Ok(3)
    }),
    ("with a head out of range", |nic, _| {
        Ok(nic.options().ring_size)
    }),
    ("with the largest head", |_, _| Ok(u16::MAX)),
    ("whose next descriptor is out of range", |nic, page| {
        let next = nic.options().ring_size;
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(page, 64, NEXT, next))?;
        Ok(0)
    }),
    (
        "with an indirect table of no whole number of descriptors",
        |nic, page| {
            nic.transmit
                .ring
                .write_descriptor(0, Descriptor::new(page, 17, INDIRECT, 0))?;
            Ok(0)
        },
    ),
    ("with an empty indirect table", |nic, page| {
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(page, 0, INDIRECT, 0))?;
        Ok(0)
    }),
    (
        "with an indirect table in an indirect table",
        |nic, page| {
            nic.memory
                .write(page, Descriptor::new(page, 16, INDIRECT, 0))?;
            nic.transmit
                .ring
                .write_descriptor(0, Descriptor::new(page, 16, INDIRECT, 0))?;
            Ok(0)
        },
    ),
    ("whose indirect chain loops", |nic, page| {
        nic.memory.write(page, Descriptor::new(page, 64, NEXT, 0))?;
        nic.memory
            .write(page.unchecked_add(16), Descriptor::new(page, 64, NEXT, 0))?;
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(page, 32, INDIRECT, 0))?;
        Ok(0)
    }),
    ("whose indirect chain leaves its table", |nic, page| {
        nic.memory.write(page, Descriptor::new(page, 64, NEXT, 9))?;
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(page, 16, INDIRECT, 0))?;
        Ok(0)
    }),
    ("with an indirect table at an unmapped address", |nic, _| {
        let nowhere = nic.memory.unmapped();
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(nowhere, 64, INDIRECT, 0))?;
        Ok(0)
    }),
    ("with an indirect table of 4 GiB", |nic, page| {
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(page, 0xffff_fff0, INDIRECT, 0))?;
        Ok(0)
    }),
    (
        "with a readable descriptor after a writable one",
        |nic, page| {
            nic.transmit
                .ring
                .write_descriptor(0, Descriptor::new(page, 64, WRITE | NEXT, 1))?;
            nic.transmit
                .ring
                .write_descriptor(1, Descriptor::new(page, 64, 0, 0))?;
            Ok(0)
        },
    ),
    ("with a buffer at an unmapped address", |nic, _| {
        let nowhere = nic.memory.unmapped();
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(nowhere, 64, 0, 0))?;
        Ok(0)
    }),
    ("with a buffer that ends in unmapped memory", |nic, page| {
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(page, u32::MAX, 0, 0))?;
        Ok(0)
    }),
    ("with a buffer at the end of the address space", |nic, _| {
        let end = GuestAddress(u64::MAX - 10);
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(end, 64, 0, 0))?;
        Ok(0)
    }),
];

/// Chains of a transmit ring that can be walked, but not transmitted.
const UNFIT: &[(&str, Break)] = &[
    ("with a writable descriptor", |nic, page| {
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(page, 64, WRITE, 0))?;
        Ok(0)
    }),
    (
        "with a writable descriptor after a readable one",
        |nic, page| {
            nic.transmit
                .ring
                .write_descriptor(0, Descriptor::new(page, 64, NEXT, 1))?;
            nic.transmit
                .ring
                .write_descriptor(1, Descriptor::new(page, 64, WRITE, 0))?;
            Ok(0)
        },
    ),
    ("with an empty buffer", |nic, page| {
        nic.transmit
            .ring
            .write_descriptor(0, Descriptor::new(page, 0, 0, 0))?;
        Ok(0)
    }),
];

/// Breakages of a receive ring.
const RECEIVE: &[(&str, Break)] = &[
    ("with a readable buffer", |nic, page| {
        nic.receive
            .ring
            .write_descriptor(0, Descriptor::new(page, 2048, 0, 0))?;
        Ok(0)
    }),
    (
        "with a readable descriptor before a writable one",
        |nic, page| {
            nic.receive
                .ring
                .write_descriptor(0, Descriptor::new(page, 64, NEXT, 1))?;
            nic.receive
                .ring
                .write_descriptor(1, Descriptor::new(page, 2048, WRITE, 0))?;
            Ok(0)
        },
    ),
    ("with a buffer at an unmapped address", |nic, _| {
        let nowhere = nic.memory.unmapped();
        nic.receive
            .ring
            .write_descriptor(0, Descriptor::new(nowhere, 2048, WRITE, 0))?;
        Ok(0)
    }),
    ("whose chain loops", |nic, page| {
        nic.receive
            .ring
            .write_descriptor(0, Descriptor::new(page, 8, WRITE | NEXT, 0))?;
        Ok(0)
    }),
    ("with a head out of range", |nic, _| {
        Ok(nic.options().ring_size)
    }),
];

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    for (name, breakage) in TRANSMIT {
        suite.case(
            format!("a transmit ring {name} is reported and can be repaired"),
            move || {
                let mut nic = broken_transmit(options, *breakage)?;
                let used = nic.transmit.ring.used_index()?;
                let base = nic.device.base(nic.transmit.index)?;
                ensure!(
                    base == u32::from(used),
                    "base {base} moved past the broken chain at {used}"
                );
                // Nothing happens until the next kick, and that one finds the ring as it was.
                nic.transmit.kick()?;
                expect_broken(&nic, 1)?;
                repair(&mut nic)
            },
        );
    }
    for (name, breakage) in UNFIT {
        suite.case(
            format!("a transmit ring {name} is reported and can be repaired"),
            move || repair(&mut broken_transmit(options, *breakage)?),
        );
    }
    for (name, breakage) in RECEIVE {
        suite.case(
            format!("a receive ring {name} is reported and can be repaired"),
            move || broken_receive(options, *breakage),
        );
    }

    suite.case(
        "an available index that jumps is reported and can be repaired",
        move || {
            for jump in [257, 40_000, 65_535] {
                let (mut nic, mut neighbour) = pair(options)?;
                let index = nic.transmit.ring.published().wrapping_add(jump);
                nic.transmit.ring.write_available_index(index)?;
                nic.transmit.kick()?;
                expect_broken(&nic, 1)?;
                check_neighbour(&mut neighbour)?;
                repair(&mut nic).with_context(|| format!("jump of {jump}"))?;
            }
            Ok(())
        },
    );

    suite.case(
        "a transmit ring with more buffers in a chain than allowed is reported",
        move || {
            let nic = NicOptions {
                ring_size: 2048,
                segments: CHAIN_MAX + 1,
                ..NicOptions::default()
            };
            let mut nic = Nic::new(&options.node, nic)?;
            ensure!(nic.transmit(&frame::encode(1, 0, 1514))?, "no room");
            expect_broken(&nic, 1)
        },
    );

    for (name, packet) in UNSENDABLE {
        suite.case(format!("a packet {name} starves nobody"), move || {
            unsendable(options, packet)
        });
    }

    suite.case(
        "rings at addresses that are no memory are reported",
        move || {
            let (mut nic, mut neighbour) = pair(options)?;
            nic.stop()?;
            let layout = *nic.transmit.ring.layout();
            let address = |at| nic.memory.host_address(at);
            let mut addresses = vhost::vhost_kern::vhost_binding::vhost_vring_addr {
                index: nic.transmit.index,
                flags: 0,
                desc_user_addr: address(layout.descriptors)?,
                used_user_addr: address(layout.used)?,
                // An address that a process may have, where this one has nothing.
                avail_user_addr: 0x1000,
                log_guest_addr: 0,
            };
            nic.device.set_addresses(addresses)?;
            nic.start_queue(&nic.transmit)?;
            nic.transmit.kick()?;
            expect_broken(&nic, 1)?;
            check_neighbour(&mut neighbour)?;
            addresses.avail_user_addr = address(layout.available)?;
            nic.stop()?;
            nic.device.set_addresses(addresses)?;
            nic.start()?;
            repair(&mut nic)
        },
    );
}

/// What is read as a packet with its header of 12 bytes, but has none or one that is nonsense.
const UNSENDABLE: &[(&str, &[u8])] = &[
    ("shorter than its header", &[0; 5]),
    // NEEDS_CSUM with a start and an offset far behind the end.
    (
        "whose checksum is outside of it",
        &[
            1, 0, 0, 0, 0, 0, 0xf0, 0xff, 0x0a, 0, 0, 0, 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88,
            0xb5,
        ],
    ),
    (
        "of an unknown kind of segmentation",
        &[
            0, 77, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5,
        ],
    ),
];

/// Hands over a packet that cannot be sent. Whether it comes back dropped or the ring is reported
/// as broken is the device's choice; to try it for ever, as vhost_net does, is not.
fn unsendable(options: &Options, packet: &[u8]) -> Result<Outcome> {
    if options.stock {
        return skip("vhost_net tries such a packet for ever");
    }
    let (mut nic, mut neighbour) = pair(options)?;
    let page = nic.memory.allocate(4096, 16)?;
    nic.memory.write_bytes(page, packet)?;
    let ring = &nic.transmit.ring;
    let used = ring.used_index()?;
    ring.write_descriptor(0, Descriptor::new(page, packet.len() as u32, 0, 0))?;
    ring.write_available_entry(ring.published(), 0)?;
    ring.write_available_index(ring.published().wrapping_add(1))?;
    nic.transmit.kick()?;
    wait::until("the packet to be dropped or reported", || {
        Ok(nic.transmit.ring.used_index()? == used.wrapping_add(1) || nic.transmit.errors()? > 0)
    })?;
    expect_idle(&nic)?;
    check_neighbour(&mut neighbour)?;
    repair(&mut nic)?;
    Ok(Outcome::Pass)
}

/// Two cards of the same process, on the same worker where workers are shared.
fn pair(options: &Options) -> Result<(Nic, Nic)> {
    let card = || {
        Nic::new(
            &options.node,
            NicOptions {
                features: VERSION_1 | MRG_RXBUF | EVENT_IDX,
                segments: 1,
                ..NicOptions::default()
            },
        )
    };
    let (mut nic, neighbour) = (card()?, card()?);
    // Work that starting the device caused must not be mistaken for work on the broken ring.
    Traffic::new(&mut nic, Direction::Both)?.run(10)?;
    if !options.stock {
        let control = Control::default();
        let worker = |nic: &Nic| {
            control.read_line(&format!(
                "dev/{}/worker",
                control.device_of(nic.tap.name())?
            ))
        };
        ensure!(
            worker(&nic)? == worker(&neighbour)?,
            "the cards have different workers"
        );
    }
    Ok((nic, neighbour))
}

fn check_neighbour(neighbour: &mut Nic) -> Result<()> {
    Traffic::new(neighbour, Direction::Both)?
        .run(20)
        .context("the card beside the broken one")
}

/// Waits until the ring is reported as broken, and counted where there are counters.
fn expect_broken(nic: &Nic, index: u32) -> Result<()> {
    let queue = if index == 0 {
        &nic.receive
    } else {
        &nic.transmit
    };
    queue.expect_error()?;
    let control = Control::default();
    if let Ok(device) = control.device_of(nic.tap.name()) {
        let status = format!("vq/vq.{}.{index}/status", device.trim_start_matches("d."));
        ensure!(
            control.read_counter(&status, "errors")? > 0,
            "the error was not counted"
        );
    }
    Ok(())
}

/// Sets both rings up anew and checks that they work.
fn repair(nic: &mut Nic) -> Result<()> {
    nic.stop()?;
    nic.transmit.restart(7)?;
    nic.receive.restart(9)?;
    for queue in [&nic.receive, &nic.transmit] {
        nic.set_up_ring(queue)?;
    }
    nic.replenish()?;
    nic.start()?;
    nic.transmit.errors()?;
    nic.receive.errors()?;
    Traffic::new(nic, Direction::Both)?
        .run(50)
        .context("after the repair")?;
    ensure!(
        nic.transmit.errors()? + nic.receive.errors()? == 0,
        "errors after the repair"
    );
    Ok(())
}

/// Breaks a transmit ring, and waits until that was reported and the other card has worked on.
fn broken_transmit(options: &Options, breakage: Break) -> Result<Nic> {
    let (mut nic, mut neighbour) = pair(options)?;
    let page = nic.memory.allocate(4096, 16)?;
    let head = breakage(&nic, page)?;
    let ring = &nic.transmit.ring;
    let used = ring.used_index()?;
    ring.write_available_entry(ring.published(), head)?;
    ring.write_available_index(ring.published().wrapping_add(1))?;
    nic.transmit.kick()?;
    expect_broken(&nic, 1)?;
    check_neighbour(&mut neighbour)?;
    ensure!(
        nic.transmit.ring.used_index()? == used,
        "the broken chain was used"
    );
    nic.transmit.errors()?;
    Ok(nic)
}

fn broken_receive(options: &Options, breakage: Break) -> Result<()> {
    let (mut nic, mut neighbour) = pair(options)?;
    nic.stop()?;
    nic.receive.restart(0)?;
    nic.set_up_ring(&nic.receive)?;
    let page = nic.memory.allocate(4096, 16)?;
    let head = breakage(&nic, page)?;
    nic.receive.ring.write_available_entry(0, head)?;
    nic.receive.ring.write_available_index(1)?;
    nic.start()?;
    let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
    ensure!(wire.send(&frame::encode(2, 0, 60))?, "the wire is full");
    expect_broken(&nic, 0)?;
    check_neighbour(&mut neighbour)?;
    ensure!(
        nic.receive.ring.used_index()? == 0,
        "the broken chain was used"
    );

    // The packet waited: once the ring is sound, it is the first to arrive.
    nic.stop()?;
    nic.receive.restart(0)?;
    nic.set_up_ring(&nic.receive)?;
    nic.replenish()?;
    nic.start()?;
    frame::decode(&nic.receive()?.packet)?;
    nic.replenish()?;
    repair(&mut nic)
}
