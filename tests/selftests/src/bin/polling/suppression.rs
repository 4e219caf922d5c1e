// SPDX-License-Identifier: GPL-2.0
//! A polled virtqueue needs no kick and asks for none.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::{never_parked, Card};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::{EVENT_IDX, MRG_RXBUF, VERSION_1};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;

/// More than the receive ring has buffers, so that these go round.
const FRAMES: u32 = 300;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    for (name, event_index) in [("flags", 0), ("event index", EVENT_IDX)] {
        suite.case(
            format!("polled virtqueues ask for no kick and need none, {name}"),
            move || {
                let nic = NicOptions {
                    features: VERSION_1 | MRG_RXBUF | event_index,
                    ..NicOptions::default()
                };
                unasked(options, control, nic, options.volume(FRAMES, 150))
            },
        );
    }

    suite.case(
        "a polled receive virtqueue without buffers takes new ones without a kick",
        move || {
            const BUFFERS: usize = 4;
            let _parked = never_parked()?;
            let nic = NicOptions {
                receive_chains: Some(BUFFERS as u16),
                ..NicOptions::default()
            };
            let mut card = Card::polled(options, control, nic)?;
            for _ in 0..20 {
                // Twice as many as there are buffers: the second half waits for the first to come back.
                for _ in 0..2 * BUFFERS {
                    card.send()?;
                }
                let kicked = card.expect_received()?;
                ensure!(!kicked, "buffers for a polled virtqueue needed a kick");
            }
            Ok(())
        },
    );

    suite.case(
        "a virtqueue that is not polled asks for kicks and needs them",
        move || {
            let mut card = Card::new(options, control, NicOptions::default(), "0")?;
            for _ in 0..20 {
                card.expect_armed()?;
                ensure!(card.transmit()?, "an idle virtqueue wanted no kick");
                card.expect_transmitted()?;
            }
            for counters in card.both_counters()? {
                for counter in ["polls", "poll_kicks", "poll_bytes", "parks"] {
                    ensure!(counters.get(counter)? == 0, "{:?}", counters.moved());
                }
            }
            Ok(())
        },
    );
}

fn unasked(options: &Options, control: &Control, nic: NicOptions, frames: u32) -> Result<()> {
    let _parked = never_parked()?;
    let mut card = Card::polled(options, control, nic)?;
    let before = card.both_counters()?;
    let steps = card.exchange(frames)?;
    ensure!(
        steps == frames,
        "{} of {frames} frames needed a kick",
        frames - steps
    );
    for (now, before) in card.both_counters()?.iter().zip(&before) {
        let moved = now.since(before);
        ensure!(
            moved.get("kicks")? == 0
                && moved.get("notif_works")? == 0
                && moved.get("poll_kicks")? > 0
                && moved.get("handled_packets")? == u64::from(frames)
                && moved.get("poll_bytes")? == moved.get("handled_bytes")?
                && moved.get("polls")? >= moved.get("poll_kicks")?
                && moved.get("parks")? == 0,
            "{frames} frames without a kick: {:?}",
            moved.moved()
        );
    }
    Ok(())
}
