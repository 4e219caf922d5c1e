// SPDX-License-Identifier: GPL-2.0
//! A worker whose virtqueues have nothing to do sleeps, however many they are.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::{never_parked, Card};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::thread::Thread;

const DEVICES: usize = 64;
/// How long a worker is watched in its sleep.
const ASLEEP: Duration = Duration::from_secs(1);
/// How often it is watched before it is said not to sleep: a worker that polls nothing any more still has
/// to lie down.
const WATCHES: u32 = 3;
/// What parking may take beyond the time that is set. Generous, since an emulated machine that has to share
/// its processors stands still now and then; and still far less than the ten seconds of `never_parked`.
pub const PROMPTNESS: Duration = Duration::from_secs(4);

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        format!("a worker that polled {DEVICES} devices sleeps once they are idle"),
        move || all_idle(options, control),
    );

    suite.case(
        "a busy device is polled, and its idle neighbours are not",
        move || one_busy(options, control),
    );
}

/// Checks that the worker of a card, all of whose virtqueues are parked, does nothing at all.
pub fn expect_asleep(card: &Card<'_>) -> Result<()> {
    let pid = format!("worker/{}/pid", card.worker);
    let thread = Thread::parse(&Control::default().read_line(&pid)?)?;
    let look = || Ok::<_, anyhow::Error>((card.worker_counters()?, thread.runtime()?));
    let mut before = look()?;
    for watch in 1.. {
        std::thread::sleep(ASLEEP);
        let after = look()?;
        match compare(&before, &after) {
            Ok(()) => break,
            Err(error) if watch == WATCHES => return Err(error),
            Err(_) => before = after,
        }
    }
    Ok(())
}

fn compare(before: &(Counters, Duration), after: &(Counters, Duration)) -> Result<()> {
    let moved = after.0.since(&before.0);
    for counter in [
        "polls",
        "empty_polls",
        "loops",
        "works",
        "wait",
        "busy_ns",
        "polled",
    ] {
        ensure!(
            moved.get(counter)? == 0,
            "a sleeping worker: {:?}",
            moved.moved()
        );
    }
    ensure!(
        after.1 == before.1,
        "a sleeping worker ran for {:?}",
        after.1 - before.1
    );
    Ok(())
}

fn cards<'a>(options: &Options, control: &'a Control) -> Result<Vec<Card<'a>>> {
    let worker = control.side_core()?;
    (0..DEVICES)
        .map(|_| {
            let nic = NicOptions {
                ring_size: 16,
                ..NicOptions::default()
            };
            Card::beside(options, control, nic, "1", worker.clone())
        })
        .collect()
}

fn all_idle(options: &Options, control: &Control) -> Result<()> {
    let _parked = never_parked()?;
    let mut cards = cards(options, control)?;
    for card in &mut cards {
        card.exchange(1)?;
    }
    cards[0].expect_polled(2 * DEVICES as u64)?;
    let idle = Duration::from_millis(100);
    let _idle = Parameter::set_time("poll_idle_us", idle)?;
    let start = Instant::now();
    cards[0].expect_polled(0)?;
    let elapsed = start.elapsed();
    diagnostic(format!(
        "{DEVICES} devices were parked {elapsed:?} after poll_idle_us was set to {idle:?}"
    ));
    ensure!(elapsed <= idle + PROMPTNESS, "parked after {elapsed:?}");
    expect_asleep(&cards[0])?;
    // They have not been forgotten.
    for card in &mut cards {
        card.exchange(1)?;
    }
    drop(cards);
    control.restore().map(drop)
}

fn one_busy(options: &Options, control: &Control) -> Result<()> {
    let mut cards = cards(options, control)?;
    for card in &mut cards {
        card.exchange(1)?;
    }
    cards[0].expect_polled(0)?;
    let _parked = never_parked()?;
    let look = |cards: &[Card<'_>]| -> Result<Vec<u64>> {
        let counters = cards.iter().map(Card::both_counters);
        counters
            .map(|counters| {
                let [receive, transmit] = counters?;
                Ok(receive.get("polls")? + transmit.get("polls")?)
            })
            .collect()
    };
    let before = look(&cards)?;
    cards[0].exchange(options.volume(500, 50))?;
    let after = look(&cards)?;
    ensure!(after[0] > before[0], "the busy device was not polled");
    ensure!(
        after[1..] == before[1..],
        "idle devices were looked at: before {:?}, after {:?}",
        &before[1..],
        &after[1..]
    );
    drop(cards);
    control.restore().map(drop)
}
