// SPDX-License-Identifier: GPL-2.0
//! How much a slice moves.

use anyhow::ensure;
use vhost_iocm_selftests::card::Card;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;

/// Fewer than after how many packets the clock is looked at, so that time ends no slice.
const FRAMES: u32 = 12;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    // Frames of 1500 bytes, with the header before each: how many a slice moves until it ends.
    for (limit, per_slice) in [
        (1, 1),
        (1500, 1),
        (3000, 2),
        (4501, 3),
        (524_288, FRAMES + 1),
    ] {
        suite.case(
            format!("a slice ends after max_processed_data_limit, {limit} bytes"),
            move || {
                let mut card = Card::new(options, control, NicOptions::default(), "0")?;
                card.set_transmit("max_processed_data_limit", limit)?;
                card.transmit()?;
                card.expect_transmitted()?;
                card.expect_armed()?;
                card.expect_quiet()?;
                let index = card.nic.transmit.index;
                let before = card.counters(index)?;
                card.transmit_at_once(FRAMES, 1500)?;
                card.expect_transmitted()?;
                card.expect_quiet()?;
                let moved = card.counters(index)?.since(&before);
                let limited = u64::from(FRAMES / per_slice);
                ensure!(
                    moved.get("handled_packets")? == u64::from(FRAMES)
                        && moved.get("notif_limited")? == limited,
                    "{FRAMES} frames of 1500 bytes, expected {limited} limited slices: {:?}",
                    moved.moved()
                );
                Ok(())
            },
        );
    }
}
