// SPDX-License-Identifier: GPL-2.0
//! Rings that break the specification: reported, left alone, harmless to others, and repairable.

use std::cell::RefCell;

use anyhow::{ensure, Context, Result};
use vhost::vhost_kern::vhost_binding::vhost_vring_addr;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::{self, EVENT_IDX, MRG_RXBUF, VERSION_1};
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

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, bench: &'a Bench<'a>) {
    for (name, breakage) in TRANSMIT {
        suite.case(
            format!("a transmit ring {name} is reported and can be repaired"),
            move || {
                bench.repaired_after(|pair| {
                    pair.break_transmit(*breakage)?;
                    let nic = &mut pair.nic;
                    let used = nic.transmit.ring.used_index()?;
                    let base = nic.device.base(nic.transmit.index)?;
                    ensure!(
                        base == u32::from(used),
                        "base {base} moved past the broken chain at {used}"
                    );
                    // Nothing happens until the next kick, and that one finds the ring as it was.
                    nic.transmit.kick()?;
                    pair.expect_broken(TRANSMIT_QUEUE)
                })
            },
        );
    }
    for (name, breakage) in UNFIT {
        suite.case(
            format!("a transmit ring {name} is reported and can be repaired"),
            move || bench.repaired_after(|pair| pair.break_transmit(*breakage)),
        );
    }
    for (name, breakage) in RECEIVE {
        suite.case(
            format!("a receive ring {name} is reported and can be repaired"),
            move || bench.repaired_after(|pair| pair.break_receive(*breakage)),
        );
    }
    for jump in [257, 40_000, 65_535] {
        suite.case(
            format!("an available index that jumps by {jump} is reported and can be repaired"),
            move || {
                bench.repaired_after(|pair| {
                    let transmit = &mut pair.nic.transmit;
                    let index = transmit.ring.published().wrapping_add(jump);
                    transmit.ring.write_available_index(index)?;
                    transmit.kick()?;
                    pair.expect_broken(TRANSMIT_QUEUE)
                })
            },
        );
    }
    for (name, packet) in UNSENDABLE {
        suite.case(format!("a packet {name} starves nobody"), move || {
            if options.stock {
                return skip("vhost_net tries such a packet for ever");
            }
            bench.repaired_after(|pair| pair.hand_over(packet))?;
            Ok(Outcome::Pass)
        });
    }

    suite.case(
        "a ring at an address that is no memory is reported and can be repaired",
        move || bench.repaired_after(Pair::lose_ring),
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
            nic.transmit.expect_error()
        },
    );
}

const RECEIVE_QUEUE: usize = device::RECEIVE as usize;
const TRANSMIT_QUEUE: usize = device::TRANSMIT as usize;

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

/// Two cards that one case after the other uses, since each leaves them in order.
pub struct Bench<'a> {
    options: &'a Options,
    pair: RefCell<Option<Pair>>,
}

impl<'a> Bench<'a> {
    /// A bench without cards.
    pub fn new(options: &'a Options) -> Self {
        Self {
            options,
            pair: RefCell::new(None),
        }
    }

    /// Runs the closure, which breaks a ring of one card, and then checks that the other card works,
    /// and that the first one can be set up anew.
    fn repaired_after(&self, run: impl FnOnce(&mut Pair) -> Result<()>) -> Result<()> {
        let mut pair = match self.pair.take() {
            Some(pair) => pair,
            None => Pair::new(self.options)?,
        };
        run(&mut pair)?;
        Traffic::new(&mut pair.neighbour, Direction::Both)?
            .run(10)
            .context("the card beside the broken one")?;
        pair.repair()?;
        // Only a pair that is in order is used again.
        self.pair.replace(Some(pair));
        Ok(())
    }
}

/// Two cards of the same process, on the same worker where workers are shared.
struct Pair {
    nic: Nic,
    neighbour: Nic,
    /// The first card's entry in the control interface, where there is one.
    device: Option<String>,
    /// The errors that were counted for its virtqueues.
    counted: [u64; 2],
}

impl Pair {
    fn new(options: &Options) -> Result<Self> {
        let card = || {
            let options_of_card = NicOptions {
                features: VERSION_1 | MRG_RXBUF | EVENT_IDX,
                segments: 1,
                ..NicOptions::default()
            };
            Nic::new(&options.node, options_of_card)
        };
        let mut pair = Self {
            nic: card()?,
            neighbour: card()?,
            device: None,
            counted: [0; 2],
        };
        if !options.stock {
            let control = Control::default();
            let device = control.device_of(pair.nic.tap.name())?;
            let other = control.device_of(pair.neighbour.tap.name())?;
            let worker = |device: &str| control.read_line(&format!("dev/{device}/worker"));
            ensure!(
                worker(&device)? == worker(&other)?,
                "the cards have different workers"
            );
            pair.device = Some(device);
        }
        // Work that starting the device caused must not be mistaken for work on a broken ring.
        pair.repair()?;
        Ok(pair)
    }

    /// Waits until the ring is reported as broken, and counted where there are counters.
    fn expect_broken(&mut self, index: usize) -> Result<()> {
        let queue = if index == RECEIVE_QUEUE {
            &self.nic.receive
        } else {
            &self.nic.transmit
        };
        queue.expect_error()?;
        let Some(device) = &self.device else {
            return Ok(());
        };
        let status = format!("vq/vq.{}.{index}/status", device.trim_start_matches("d."));
        let counted = Control::default().read_counter(&status, "errors")?;
        let before = std::mem::replace(&mut self.counted[index], counted);
        ensure!(
            counted > before,
            "the error was not counted: {before} before, {counted} now"
        );
        Ok(())
    }

    /// Sets both rings up anew and checks that they work.
    fn repair(&mut self) -> Result<()> {
        let nic = &mut self.nic;
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
            .run(20)
            .context("after the repair")?;
        ensure!(
            nic.transmit.errors()? + nic.receive.errors()? == 0,
            "errors after the repair"
        );
        Ok(())
    }

    /// Breaks the transmit ring.
    fn break_transmit(&mut self, breakage: Break) -> Result<()> {
        let nic = &mut self.nic;
        let page = nic.memory.allocate(4096, 16)?;
        let head = breakage(nic, page)?;
        let ring = &nic.transmit.ring;
        let used = ring.used_index()?;
        ring.write_available_entry(ring.published(), head)?;
        ring.write_available_index(ring.published().wrapping_add(1))?;
        nic.transmit.kick()?;
        self.expect_broken(TRANSMIT_QUEUE)?;
        ensure!(
            self.nic.transmit.ring.used_index()? == used,
            "the broken chain was used"
        );
        Ok(())
    }

    /// Breaks the receive ring, and lets a packet wait until it is sound.
    fn break_receive(&mut self, breakage: Break) -> Result<()> {
        let nic = &mut self.nic;
        nic.stop()?;
        nic.receive.restart(0)?;
        nic.set_up_ring(&nic.receive)?;
        let page = nic.memory.allocate(4096, 16)?;
        let head = breakage(nic, page)?;
        nic.receive.ring.write_available_entry(0, head)?;
        nic.receive.ring.write_available_index(1)?;
        nic.start()?;
        let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
        ensure!(wire.send(&frame::encode(2, 0, 60))?, "the wire is full");
        self.expect_broken(RECEIVE_QUEUE)?;

        let nic = &mut self.nic;
        ensure!(
            nic.receive.ring.used_index()? == 0,
            "the broken chain was used"
        );
        nic.stop()?;
        nic.receive.restart(0)?;
        nic.set_up_ring(&nic.receive)?;
        nic.replenish()?;
        nic.start()?;
        frame::decode(&nic.receive()?.packet).map(drop)
    }

    /// Hands over a packet that cannot be sent. Whether it comes back dropped or the ring is reported
    /// as broken is the device's choice; to try it for ever, as vhost_net does, is not.
    fn hand_over(&mut self, packet: &[u8]) -> Result<()> {
        let nic = &mut self.nic;
        let page = nic.memory.allocate(4096, 16)?;
        nic.memory.write_bytes(page, packet)?;
        let ring = &nic.transmit.ring;
        let used = ring.used_index()?;
        ring.write_descriptor(0, Descriptor::new(page, packet.len() as u32, 0, 0))?;
        ring.write_available_entry(ring.published(), 0)?;
        ring.write_available_index(ring.published().wrapping_add(1))?;
        nic.transmit.kick()?;
        wait::until("the packet to be dropped or reported", || {
            let dropped = nic.transmit.ring.used_index()? == used.wrapping_add(1);
            Ok(dropped || nic.transmit.errors()? > 0)
        })?;
        expect_idle(nic)
    }

    /// Puts the available ring where there is no memory.
    fn lose_ring(&mut self) -> Result<()> {
        let nic = &mut self.nic;
        nic.stop()?;
        let layout = *nic.transmit.ring.layout();
        nic.device.set_addresses(vhost_vring_addr {
            index: nic.transmit.index,
            flags: 0,
            desc_user_addr: nic.memory.host_address(layout.descriptors)?,
            used_user_addr: nic.memory.host_address(layout.used)?,
            // An address that a process may have, where this one has nothing.
            avail_user_addr: 0x1000,
            log_guest_addr: 0,
        })?;
        nic.start_queue(&nic.transmit)?;
        nic.transmit.kick()?;
        self.expect_broken(TRANSMIT_QUEUE)
    }
}
