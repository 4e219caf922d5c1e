// SPDX-License-Identifier: GPL-2.0
//! Counters of those who do nothing do not move, and say the same wherever they are read.

use std::time::Duration;

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::Card;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::{Counters, AGES, OF_DEVICE, OF_WORKER};
use vhost_iocm_selftests::device::{Device, RECEIVE, TRANSMIT};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;

/// How long nothing must happen.
const STILL: Duration = Duration::from_secs(1);

/// The only counter of a worker that moves while it has nothing to do.
const PASSES: &str = "idle_ns";

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case("counters of a fresh device are zero", move || {
        let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
        for index in [RECEIVE, TRANSMIT] {
            let counters = Counters::of_virtqueue(control, &virtqueue(&name, index))?;
            ensure!(counters.moved().is_empty(), "{:?}", counters.moved());
        }
        let counters = Counters::of_device(control, &name)?;
        ensure!(counters.moved().is_empty(), "{:?}", counters.moved());
        Ok(())
    });

    suite.case("nothing moves while nothing happens", move || {
        still(options, control)
    });

    suite.case(
        "each counter says the same in its file and in status",
        move || {
            let mut card = Card::new(options, control, NicOptions::default(), "auto")?;
            card.exchange(20)?;
            card.expect_polled(0)?;
            for index in [RECEIVE, TRANSMIT] {
                let counters = card.counters(index)?;
                for name in [OF_DEVICE, AGES].concat() {
                    let file = format!("vq/{}/{name}", virtqueue(&card.device, index));
                    expect_same(control, &file, counters.get(name)?)?;
                }
            }
            let counters = card.worker_counters()?;
            for name in [OF_WORKER, AGES].concat() {
                if name == PASSES {
                    continue;
                }
                let file = format!("worker/{}/{name}", card.worker);
                expect_same(control, &file, counters.get(name)?)?;
            }
            Ok(())
        },
    );

    suite.case("a device's counters are its virtqueues' sums", move || {
        for mode in ["0", "1"] {
            let mut card = Card::new(options, control, NicOptions::default(), mode)?;
            card.exchange(50)?;
            card.expect_polled(0)?;
            let whole = Counters::of_device(control, &card.device)?;
            let [receive, transmit] = card.both_counters()?;
            for name in OF_DEVICE {
                let parts = (receive.get(name)?, transmit.get(name)?);
                ensure!(
                    whole.get(name)? == parts.0 + parts.1,
                    "{name} is {}, of {parts:?}",
                    whole.get(name)?
                );
            }
        }
        Ok(())
    });
}

fn expect_same(control: &Control, file: &str, status: u64) -> Result<()> {
    let said = control.read_line(file)?;
    ensure!(
        said == status.to_string(),
        "{file} says {said}, the status {status}"
    );
    Ok(())
}

fn still(options: &Options, control: &Control) -> Result<()> {
    let worker = control.side_core()?;
    // One that was polled, one that was not, one that never ran, and one that nobody owns.
    let modes = ["1", "0"].map(|mode| {
        let mut card = Card::beside(
            options,
            control,
            NicOptions::default(),
            mode,
            worker.clone(),
        )?;
        card.exchange(20)?;
        card.expect_polled(0)?;
        Ok(card)
    });
    let ran: Vec<_> = modes.into_iter().collect::<Result<_>>()?;
    let _unused = Nic::new(&options.node, NicOptions::default())?;
    let _opened = Device::open(&options.node)?;
    let look = || -> Result<Vec<Counters>> {
        let virtqueues = control.virtqueues()?;
        let mut all: Vec<_> = virtqueues
            .iter()
            .map(|virtqueue| Counters::of_virtqueue(control, virtqueue))
            .collect::<Result<_>>()?;
        for worker in control.workers()? {
            all.push(Counters::of_worker(control, &worker)?);
        }
        Ok(all)
    };
    // The last frame was there a moment before the worker was done with it.
    ran[0].expect_quiet()?;
    let before = look()?;
    std::thread::sleep(STILL);
    for (now, before) in look()?.iter().zip(&before) {
        let moved = now.since(before);
        let moved: Vec<_> = moved
            .moved()
            .into_iter()
            .filter(|(name, _)| *name != PASSES)
            .collect();
        ensure!(moved.is_empty(), "{now:?} moved by {moved:?}");
    }
    Ok(())
}
