// SPDX-License-Identifier: GPL-2.0
//! Rings and buffers whose translations are odd, lacking, or do not allow what is to be done.

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::device::{ACCESS_PLATFORM, TRANSMIT};
use vhost_iocm_selftests::frame::ETHERTYPE;
use vhost_iocm_selftests::iotlb::{invalidate, update, Iommu, LARGE, READ, SMALL, WRITE};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;
use vm_memory::{Address, GuestAddress};

use crate::{nic_options, prepared, FEATURES};

/// A frame that nobody takes.
const FRAME: [u8; 60] = [0xff; 60];

/// A card of which all of the memory is translated, and which serves nothing yet.
fn mapped(options: &Options, nic: NicOptions) -> Result<(Nic, Iommu)> {
    let nic = prepared(options, nic)?;
    let iommu = Iommu::new(&nic, LARGE)?;
    map_all(&nic, &iommu)?;
    Ok((nic, iommu))
}

/// Tells the translations of all of a card's memory.
fn map_all(nic: &Nic, iommu: &Iommu) -> Result<()> {
    for region in nic.memory.table()? {
        let start = GuestAddress(region.guest_phys_addr);
        iommu.map(start, region.memory_size, READ | WRITE)?;
    }
    Ok(())
}

/// Transmits a frame and waits until its chain is back.
fn transmit(nic: &mut Nic) -> Result<()> {
    ensure!(nic.transmit(&FRAME)?, "the ring is full");
    nic.reclaim_all()
}

/// Replaces the translation of a part of a card's memory by pieces of this length.
fn cut(nic: &Nic, iommu: &Iommu, start: GuestAddress, length: u64, piece: u64) -> Result<()> {
    // The part's page is nobody else's, but pages around it are in the same translation.
    for region in nic.memory.table()? {
        iommu.send(&invalidate(region.guest_phys_addr, region.memory_size))?;
    }
    for region in nic.memory.table()? {
        let end = region.guest_phys_addr + region.memory_size;
        let mut at = region.guest_phys_addr;
        while at < end {
            let inside = (start.0..start.0 + length).contains(&at);
            let size = if inside {
                piece.min(start.0 + length - at)
            } else if at < start.0 && start.0 < end {
                start.0 - at
            } else {
                end - at
            };
            let uaddr = region.userspace_addr + (at - region.guest_phys_addr);
            iommu.send(&update(at, size, uaddr))?;
            at += size;
        }
    }
    Ok(())
}

/// Reads the question that waits, sends a packet to the card, and expects the same question.
fn asked_by_packet(iommu: &Iommu, wire: &PacketSocket) -> Result<()> {
    let question = iommu.expect_question()?;
    ensure!(wire.send(&FRAME)?, "the wire is full");
    let again = iommu.expect_question().context("the packet's")?;
    ensure!(again == question, "{question:x?}, then {again:x?}");
    Ok(())
}

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    for piece in [8, 24, 26] {
        suite.case(
            format!("descriptors in translations of {piece} bytes are read"),
            move || {
                let (mut nic, iommu) = mapped(options, nic_options())?;
                let start = nic.transmit.ring.layout().descriptors;
                let length = 16 * u64::from(nic.options().ring_size);
                cut(&nic, &iommu, start, length, piece)?;
                nic.start()?;
                for _ in 0..300 {
                    transmit(&mut nic)?;
                }
                Ok(())
            },
        );
    }

    for piece in [2, 6, 12] {
        suite.case(
            format!("a used ring in translations of {piece} bytes is written"),
            move || {
                let small = NicOptions {
                    ring_size: 64,
                    ..nic_options()
                };
                let (mut nic, iommu) = mapped(options, small)?;
                let (start, length) = nic.transmit.ring.layout().used_part();
                cut(&nic, &iommu, start, length, piece)?;
                nic.start()?;
                for _ in 0..100 {
                    transmit(&mut nic)?;
                }
                Ok(())
            },
        );
    }

    suite.case(
        "a field of a ring in two translations is an error",
        move || {
            let (mut nic, iommu) = mapped(options, nic_options())?;
            let (start, length) = nic.transmit.ring.layout().available_part();
            cut(&nic, &iommu, start, length, 3)?;
            nic.start()?;
            nic.transmit(&FRAME)?;
            nic.transmit.kick()?;
            nic.transmit.expect_error()
        },
    );

    suite.case(
        "a buffer that may not be read is an error, until it may be",
        move || {
            let (mut nic, iommu) = mapped(options, nic_options())?;
            // The other virtqueue would ask for what it lacks.
            nic.start_queue(&nic.transmit)?;
            transmit(&mut nic)?;
            let pages = nic.transmit.buffer_pages(&nic.memory);
            let layout = *nic.transmit.ring.layout();
            iommu.send(&invalidate(0, 0))?;
            let keep = [
                (layout.descriptors, 16 * u64::from(layout.size)),
                layout.available_part(),
                layout.used_part(),
            ];
            let small = Iommu::new(&nic, SMALL)?;
            for page in &pages {
                small.map(*page, 4096, WRITE)?;
            }
            for (start, length) in keep {
                small.map(start, length, READ | WRITE)?;
            }
            nic.transmit(&FRAME)?;
            nic.transmit.kick()?;
            nic.transmit.expect_error()?;
            ensure!(!nic.transmit.ring.has_used()?, "it was read all the same");
            ensure!(small.question()?.is_none(), "a translation was asked for");
            iommu.send(&invalidate(0, 0))?;
            map_all(&nic, &iommu)?;
            nic.transmit.kick()?;
            nic.reclaim_all()
        },
    );

    suite.case("a buffer that may not be written is an error", move || {
        let nic = prepared(options, nic_options())?;
        let small = Iommu::new(&nic, SMALL)?;
        let layout = *nic.receive.ring.layout();
        for page in nic.receive.buffer_pages(&nic.memory) {
            small.map(page, 4096, READ)?;
        }
        for (start, length) in [
            (layout.descriptors, 16 * u64::from(layout.size)),
            layout.available_part(),
            layout.used_part(),
        ] {
            small.map(start, length, READ | WRITE)?;
        }
        nic.start_queue(&nic.receive)?;
        let wire = PacketSocket::new(nic.tap.name(), ETHERTYPE)?;
        ensure!(wire.send(&FRAME)?, "the wire is full");
        nic.receive.expect_error()
    });

    suite.case(
        "an answer resumes a virtqueue also if nobody read the question",
        move || {
            if options.stock {
                return Ok(());
            }
            let (mut nic, iommu) = mapped(options, nic_options())?;
            nic.start()?;
            transmit(&mut nic)?;
            for region in nic.memory.table()? {
                iommu.send(&invalidate(region.guest_phys_addr, region.memory_size))?;
            }
            nic.transmit(&FRAME)?;
            nic.transmit.kick()?;
            let asked = wait::readable(&[std::os::fd::AsFd::as_fd(&nic.device)], wait::patience())?;
            ensure!(asked, "nothing is asked");
            map_all(&nic, &iommu)?;
            nic.reclaim_all()
        },
    );

    suite.case(
        "a packet asks once more for the translation that its ring lacks",
        move || {
            let mut nic = prepared(options, nic_options())?;
            let iommu = Iommu::new(&nic, LARGE)?;
            let wire = PacketSocket::new(nic.tap.name(), ETHERTYPE)?;
            Iommu::new(&nic, SMALL)?.map_used(&nic.receive)?;
            // Its start asks, and so does the packet, without a kick.
            nic.start_queue(&nic.receive)?;
            asked_by_packet(&iommu, &wire).context("after a start")?;
            map_all(&nic, &iommu)?;
            nic.receive()?;
            // So it is also when it has waited for packets before.
            iommu.send(&invalidate(0, 0))?;
            nic.receive.kick()?;
            asked_by_packet(&iommu, &wire).context("under way")?;
            map_all(&nic, &iommu)?;
            nic.receive().map(drop)
        },
    );

    suite.case(
        "the oldest translation makes room for a new one",
        move || {
            let (mut nic, iommu) = mapped(options, nic_options())?;
            nic.start()?;
            transmit(&mut nic)?;
            let uaddr = nic.memory.table()?[0].userspace_addr;
            for number in 0..options.volume(20_000u64, 3000) {
                iommu.send(&update((1 << 40) + number * 4096, 4096, uaddr))?;
            }
            // All that it had is gone.
            nic.transmit(&FRAME)?;
            nic.transmit.kick()?;
            let question = iommu.expect_question()?;
            ensure!(question.iova < 1 << 40, "{question:x?} is not lacking");
            Ok(())
        },
    );

    suite.case(
        "a switch of ACCESS_PLATFORM takes the addresses of rings away",
        move || {
            let (mut nic, iommu) = mapped(options, nic_options())?;
            nic.start()?;
            transmit(&mut nic)?;
            nic.device.set_features(FEATURES & !ACCESS_PLATFORM)?;
            let base = nic.device.base(TRANSMIT)?;
            nic.transmit(&FRAME)?;
            for _ in 0..10 {
                nic.transmit.kick()?;
            }
            let answer = iommu.device.write(&update(0, 1, 0).encode());
            ensure!(
                answer == Err(Errno::EFAULT),
                "there is an IOTLB: {answer:?}"
            );
            ensure!(nic.device.base(TRANSMIT)? == base, "a chain was taken");
            nic.device.set_features(FEATURES)?;
            nic.transmit.kick()?;
            ensure!(nic.device.base(TRANSMIT)? == base, "a chain was taken");
            ensure!(
                iommu.question()?.is_none(),
                "a ring without address is asked for"
            );
            // With its address back it goes on, by translations that have to be told again.
            nic.device.set_addresses(nic.addresses(&nic.transmit)?)?;
            map_all(&nic, &iommu)?;
            nic.transmit.kick()?;
            nic.reclaim_all()
        },
    );

    suite.case(
        "acknowledging ACCESS_PLATFORM again loses every translation",
        move || {
            let (mut nic, iommu) = mapped(options, nic_options())?;
            nic.start()?;
            transmit(&mut nic)?;
            nic.device.set_features(FEATURES)?;
            nic.transmit(&FRAME)?;
            nic.transmit.kick()?;
            let question = iommu.expect_question()?;
            let first = nic.transmit.ring.layout().descriptors.raw_value();
            ensure!(question.iova == first, "{question:x?} is not the first");
            Ok(())
        },
    );
}
