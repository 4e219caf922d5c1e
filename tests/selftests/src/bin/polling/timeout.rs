// SPDX-License-Identifier: GPL-2.0
//! A busy-loop timeout lets its virtqueue be polled, in mode auto and within the host's bounds.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::{never_parked, Card};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::{RECEIVE, TRANSMIT};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;

use crate::idle::{expect_asleep, PROMPTNESS};

/// The unit of a timeout.
const UNIT: Duration = Duration::from_nanos(1024);

/// Sets the timeout of both virtqueues of a card.
fn set_timeout(card: &Card<'_>, timeout: u32) -> Result<()> {
    for index in [RECEIVE, TRANSMIT] {
        card.nic.device.set_busyloop_timeout(index, timeout)?;
    }
    Ok(())
}

/// Keeps frequent work from being a reason to poll: nothing here comes every microsecond.
fn never_often() -> Result<Parameter> {
    Parameter::set("poll_start_us", "1")
}

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "a virtqueue with a busy-loop timeout is polled for that long, and then its worker sleeps",
        move || {
            let _parked = never_parked()?;
            let _often = never_often()?;
            let mut card = Card::new(options, control, NicOptions::default(), "auto")?;
            card.exchange(2)?;
            card.expect_polled(0)?;
            let timeout = Duration::from_secs(3);
            set_timeout(&card, (timeout.as_nanos() / UNIT.as_nanos()) as u32)?;
            let start = Instant::now();
            card.exchange(2)?;
            let exchanged = Instant::now();
            card.expect_polled(2)?;
            card.expect_polled(0)?;
            let end = Instant::now();
            let (longest, shortest) = (end - start, end - exchanged);
            ensure!(
                longest >= timeout - UNIT && shortest <= timeout + PROMPTNESS,
                "parked {shortest:?} to {longest:?} after the last work, the timeout is {timeout:?}"
            );
            expect_asleep(&card)
        },
    );

    suite.case(
        "the longest timeout keeps nobody from sleeping after poll_idle_us",
        move || {
            let idle = Duration::from_millis(100);
            let _idle = Parameter::set_time("poll_idle_us", idle)?;
            let mut card = Card::new(options, control, NicOptions::default(), "auto")?;
            set_timeout(&card, u32::MAX)?;
            for _ in 0..3 {
                card.exchange(2)?;
                let exchanged = Instant::now();
                card.expect_polled(0)?;
                let shortest = exchanged.elapsed();
                ensure!(
                    shortest <= idle + PROMPTNESS,
                    "parked at least {shortest:?} after the last work, poll_idle is {idle:?}"
                );
                expect_asleep(&card)?;
            }
            Ok(())
        },
    );

    suite.case(
        "a virtqueue with a timeout is not polled where the host forbids it, or once the timeout is taken back",
        move || {
            let _parked = never_parked()?;
            let _often = never_often()?;
            let mut card = Card::new(options, control, NicOptions::default(), "0")?;
            set_timeout(&card, u32::MAX)?;
            card.exchange(5)?;
            set_timeout(&card, 0)?;
            control.set_poll_of_device(&card.device, "auto")?;
            card.exchange(5)?;
            for counters in card.both_counters()? {
                ensure!(
                    counters.get("polls")? == 0 && counters.get("parks")? == 0,
                    "it was polled: {:?}",
                    counters.moved()
                );
            }
            Ok(())
        },
    );

    suite.case(
        "a neighbour with the longest timeout costs a virtqueue no frame and none of its turns",
        move || {
            let _parked = never_parked()?;
            let worker = control.side_core()?;
            let card = |mode| {
                let nic = NicOptions::default();
                Card::beside(options, control, nic, mode, worker.clone())
            };
            let mut greedy = card("auto")?;
            let mut other = card("0")?;
            set_timeout(&greedy, u32::MAX)?;
            greedy.exchange(2)?;
            greedy.expect_polled(2)?;
            // Stock vhost would spin for over an hour with its virtqueues locked.
            other.exchange(options.volume(200, 20))?;
            set_timeout(&greedy, 0)?;
            greedy.exchange(2)?;
            drop((greedy, other));
            control.restore().map(drop)
        },
    );
}
