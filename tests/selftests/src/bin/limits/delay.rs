// SPDX-License-Identifier: GPL-2.0
//! Service that is made slower for experiments.

use std::time::Duration;

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::Card;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::device::TRANSMIT;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;

/// The longest delay, in cycles.
const LONGEST: u64 = 1_000_000;
/// Slices, one after the other.
const ROUNDS: u64 = 20;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "delay_per_work is charged for each slice that moves something",
        move || {
            let _slice = Parameter::set_time("slice_us", Duration::from_millis(10))?;
            let mut card = Card::new(options, control, NicOptions::default(), "0")?;
            card.exchange(1)?;
            set(control, &card, "delay_per_work", LONGEST)?;
            let took = rounds(&mut card, 1, 60)?;
            // What soft interrupts take of it is not charged.
            ensure!(
                took.iter().sum::<u64>() >= ROUNDS * LONGEST * 9 / 10,
                "slices of {took:?} cycles with a delay of {LONGEST}"
            );
            expect_sum(&card)
        },
    );

    suite.case(
        "delay_per_kbyte is charged for what a slice moves",
        move || {
            const FRAMES: u32 = 8;
            const DELAY: u64 = 100_000;
            let _slice = Parameter::set_time("slice_us", Duration::from_millis(10))?;
            let mut card = Card::new(options, control, NicOptions::default(), "0")?;
            card.exchange(1)?;
            set(control, &card, "delay_per_kbyte", DELAY)?;
            let took = rounds(&mut card, FRAMES, 1024)?;
            let expected = ROUNDS * u64::from(FRAMES) * DELAY;
            ensure!(
                took.iter().sum::<u64>() >= expected * 9 / 10,
                "slices of {took:?} cycles with a delay of {}",
                u64::from(FRAMES) * DELAY
            );
            expect_sum(&card)
        },
    );

    suite.measurement("no delay is longer than a slice", move || {
        let _slice = Parameter::set("slice_us", "10")?;
        let mut card = Card::new(options, control, NicOptions::default(), "0")?;
        card.exchange(1)?;
        // A machine that does something else makes slices longer, but not all of them.
        let shortest = |took: &[u64]| took.iter().min().copied().unwrap_or(0);
        let without = shortest(&rounds(&mut card, 1, 1024)?);
        set(control, &card, "delay_per_work", LONGEST)?;
        set(control, &card, "delay_per_kbyte", LONGEST)?;
        let took = rounds(&mut card, 1, 1024)?;
        ensure!(
            shortest(&took) < without + LONGEST,
            "slices of {took:?} cycles, {without} without delay"
        );
        Ok(())
    });
}

fn set(control: &Control, card: &Card<'_>, name: &str, delay: u64) -> Result<()> {
    control.set(&format!("dev/{}/{name}", card.device), &delay.to_string())
}

/// Transmits so many frames of this length at once, in several rounds. Returns the cycles of their
/// slices.
fn rounds(card: &mut Card<'_>, frames: u32, length: usize) -> Result<Vec<u64>> {
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        card.expect_armed()?;
        card.expect_quiet()?;
        let before = card.counters(TRANSMIT)?;
        card.transmit_at_once(frames, length)?;
        card.expect_transmitted()?;
        card.expect_quiet()?;
        took.push(
            card.counters(TRANSMIT)?
                .since(&before)
                .get("notif_cycles")?,
        );
    }
    Ok(took)
}

/// Checks that the time of a worker is that of the only device that it has served.
fn expect_sum(card: &Card<'_>) -> Result<()> {
    card.expect_quiet()?;
    let served = |counters: &Counters| counters.get("served_ns");
    let [receive, transmit] = card.both_counters()?;
    let (sum, busy) = (
        served(&receive)? + served(&transmit)?,
        card.worker_counters()?.get("busy_ns")?,
    );
    ensure!(sum == busy, "served for {sum} ns, busy for {busy} ns");
    Ok(())
}
