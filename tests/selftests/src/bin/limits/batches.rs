// SPDX-License-Identifier: GPL-2.0
//! For how long soft interrupts are kept off.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::Card;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::tap::TapOptions;

/// Frames that fit into a batch, and that a slice moves before the clock is looked at.
const FRAMES: u32 = 12;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "batches are as large as max_disabled_soft_interrupts_cycles lets them be",
        move || {
            let mut card = Card::new(options, control, NicOptions::default(), "0")?;
            card.transmit()?;
            card.expect_transmitted()?;
            let file = format!("worker/{}/max_disabled_soft_interrupts_cycles", card.worker);
            // Without limit, with one that no frame meets, and with one that all meet.
            for (limit, fewest, most) in [
                (0, 1, 1),
                (1, u64::from(FRAMES), u64::from(FRAMES)),
                (1_000_000_000, 1, u64::from(FRAMES) / 2),
                (0, 1, 1),
            ] {
                control.set(&file, &limit.to_string())?;
                let batches = batches(&mut card)?;
                ensure!(
                    (fewest..=most).contains(&batches),
                    "limit {limit}: {batches} batches of {FRAMES} frames"
                );
            }
            Ok(())
        },
    );

    suite.case("frames that are sent alone are batches of one", move || {
        // A tap with a limit for its send buffer takes no batches.
        let nic = NicOptions {
            tap: TapOptions {
                send_buffer: Some(1 << 20),
                ..TapOptions::default()
            },
            ..NicOptions::default()
        };
        let mut card = Card::new(options, control, nic, "0")?;
        let batches = batches(&mut card)?;
        ensure!(batches == u64::from(FRAMES), "{batches} of {FRAMES} frames");
        Ok(())
    });
}

fn batches(card: &mut Card<'_>) -> Result<u64> {
    card.expect_armed()?;
    card.expect_quiet()?;
    let before = card.worker_counters()?;
    card.transmit_at_once(FRAMES, 1000)?;
    card.expect_transmitted()?;
    card.expect_quiet()?;
    card.worker_counters()?
        .since(&before)
        .get("enabled_interrupts")
}
