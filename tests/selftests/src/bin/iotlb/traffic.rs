// SPDX-License-Identifier: GPL-2.0
//! Traffic while user space answers what the device asks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{anyhow, ensure, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::{DEVICE_HEADER, INDIRECT_DESC, IN_ORDER};
use vhost_iocm_selftests::iotlb::{invalidate, Iommu, LARGE, SMALL};
use vhost_iocm_selftests::ktap::{skip, Outcome, Suite};
use vhost_iocm_selftests::log::{DirtyLog, Switch, Written};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::ring::Chaining;
use vhost_iocm_selftests::traffic::{Direction, Traffic};

use crate::{nic_options, prepared, FEATURES};

/// Runs something on a card while its IOMMU answers, and while another thread does something else until
/// it is told to stop.
fn answered<T>(
    nic: &mut Nic,
    iommu: &Iommu,
    other: impl Fn(&AtomicBool) -> Result<()> + Sync,
    run: impl FnOnce(&mut Nic) -> Result<T>,
) -> Result<T> {
    for queue in [&nic.receive, &nic.transmit] {
        iommu.map_used(queue)?;
    }
    nic.start()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let answers = scope.spawn(|| iommu.answer_until(&stop));
        let others = scope.spawn(|| other(&stop));
        let result = run(nic);
        stop.store(true, Ordering::SeqCst);
        for thread in [answers, others] {
            thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        result
    })
}

fn nothing(_: &AtomicBool) -> Result<()> {
    Ok(())
}

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    let layouts = [
        ("by default", nic_options()),
        (
            "with indirect chains",
            NicOptions {
                features: FEATURES | INDIRECT_DESC,
                chaining: Chaining::Indirect,
                segments: 3,
                ..nic_options()
            },
        ),
        (
            "with several buffers for a packet, used in order",
            NicOptions {
                features: FEATURES | IN_ORDER,
                receive_length: 300,
                ..nic_options()
            },
        ),
        (
            "with rings of several pages",
            NicOptions {
                features: FEATURES | DEVICE_HEADER,
                ring_size: 1024,
                start: 500,
                ..nic_options()
            },
        ),
    ];
    let frames = options.volume(1500, 100);
    for (name, nic) in layouts {
        for (pages, grain) in [("small", SMALL), ("large", LARGE)] {
            let nic = nic.clone();
            suite.case(
                format!("two-way traffic through an IOMMU with {pages} pages, {name}"),
                move || {
                    let mut nic = prepared(options, nic)?;
                    let iommu = Iommu::new(&nic, grain)?;
                    answered(&mut nic, &iommu, nothing, |nic| {
                        Traffic::new(nic, Direction::Both)?.run(frames)
                    })?;
                    let answers = iommu.answers.load(Ordering::SeqCst);
                    ensure!(answers > 0, "nothing was asked");
                    Ok(())
                },
            );
        }
    }

    suite.case(
        "translations are taken back under traffic, and nothing is lost",
        move || {
            let mut nic = prepared(options, nic_options())?;
            let iommu = Iommu::new(&nic, SMALL)?;
            let other = |stop: &AtomicBool| {
                while !stop.load(Ordering::SeqCst) {
                    iommu.send(&invalidate(0, 0))?;
                    thread::sleep(std::time::Duration::from_millis(20));
                }
                Ok(())
            };
            answered(&mut nic, &iommu, other, |nic| {
                Traffic::new(nic, Direction::Both)?.run(frames)
            })
        },
    );

    suite.case(
        "what is written through an IOMMU is logged by guest-physical pages",
        move || {
            let mut nic = prepared(options, nic_options())?;
            let iommu = Iommu::new(&nic, SMALL)?;
            let log = DirtyLog::new()?;
            let switch = Switch::new(&nic)?;
            let (changed, writable) = answered(&mut nic, &iommu, nothing, |nic| {
                // Acknowledging the log's feature takes all translations away, which are asked for again.
                switch.on(&log)?;
                for queue in [&nic.receive, &nic.transmit] {
                    iommu.map_used(queue)?;
                }
                let before = Written::of(nic)?;
                Traffic::new(nic, Direction::Both)?.run(200)?;
                nic.stop()?;
                let changed = before.changed(&Written::of(nic)?);
                Ok((changed, before.pages()))
            })?;
            let logged = log.take();
            ensure!(!changed.is_empty(), "nothing was written");
            let missed: Vec<_> = changed.difference(&logged).collect();
            ensure!(missed.is_empty(), "written and not logged: {missed:x?}");
            let invented: Vec<_> = logged.difference(&writable).collect();
            ensure!(invented.is_empty(), "logged and not written: {invented:x?}");
            Ok(())
        },
    );

    suite.case("a virtqueue with a device IOTLB is not polled", move || {
        not_polled(options)
    });
}

fn not_polled(options: &Options) -> Result<Outcome> {
    if options.stock {
        return skip("vhost_net has no such polling");
    }
    let mut nic = prepared(options, nic_options())?;
    let iommu = Iommu::new(&nic, LARGE)?;
    let control = Control::default();
    answered(&mut nic, &iommu, nothing, |nic| {
        let device = control.device_of(nic.tap.name())?;
        let number = device.trim_start_matches("d.");
        for index in 0..2 {
            control.write(&format!("vq/vq.{number}.{index}/poll"), "1")?;
        }
        Traffic::new(nic, Direction::Both)?.run(options.volume(1000, 100))?;
        for index in 0..2 {
            let status = format!("vq/vq.{number}.{index}/status");
            let polls = control.read_counter(&status, "polls")?;
            ensure!(polls == 0, "virtqueue {index} was looked at {polls} times");
        }
        Ok(())
    })?;
    Ok(Outcome::Pass)
}
