// SPDX-License-Identifier: GPL-2.0
//! What virtqueues count that are being polled.

use anyhow::ensure;
use vhost_iocm_selftests::card::{never_parked, Card};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;

const FRAMES: u32 = 40;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case("polls, and what they found, are counted", move || {
        let parked = never_parked()?;
        let mut card = Card::polled(options, control, NicOptions::default())?;
        let (before, worker) = (card.both_counters()?, card.worker_counters()?);
        card.exchange(FRAMES)?;
        for (now, before) in card.both_counters()?.iter().zip(&before) {
            let moved = now.since(before);
            let get = |name| moved.get(name);
            let bytes = u64::from(FRAMES) * frame::MINIMUM as u64;
            // A look that was under way when the first counters were read was counted already, and not
            // yet what it found.
            let underway = 1;
            ensure!(
                get("handled_packets")? == u64::from(FRAMES)
                    && get("handled_bytes")? == bytes
                    && get("poll_bytes")? == bytes
                    && (1..=u64::from(FRAMES)).contains(&get("poll_kicks")?)
                    && get("poll_cycles")? > 0
                    && get("poll_wait")? > 0
                    && get("poll_pending_cycles")? > 0
                    && get("poll_pending_cycles")? <= get("poll_wait")?
                    && get("poll_coalesced")? == 0
                    && get("notif_wait")? == 0
                    && get("polls")? + underway >= get("poll_kicks")? + get("poll_empty")?
                    && get("poll_empty")? > 0
                    && get("poll_empty_cycles")? > 0
                    && get("kicks")? == 0
                    && get("notif_works")? == 0
                    && get("notif_bytes")? == 0
                    && get("parks")? == 0,
                "{:?}",
                moved.moved()
            );
        }
        let moved = card.worker_counters()?.since(&worker);
        ensure!(
            moved.get("poll_cycles")? > 0
                && moved.get("empty_polls")? > 0
                && moved.get("polls")? > moved.get("empty_polls")?
                && moved.get("cycles")? > 0
                && moved.get("empty_works")? > 0
                && moved.get("noqueue_works")? == 0,
            "{:?}",
            moved.moved()
        );
        drop(parked);
        card.expect_polled(0)?;
        for counters in card.both_counters()? {
            ensure!(counters.get("parks")? > 0, "{:?}", counters.moved());
        }
        Ok(())
    });

    suite.case("a worker's polls are those of its virtqueues", move || {
        let mut card = Card::new(options, control, NicOptions::default(), "1")?;
        card.exchange(FRAMES)?;
        card.expect_polled(0)?;
        let worker = card.worker_counters()?;
        let [receive, transmit] = card.both_counters()?;
        for (whole, part) in [("polls", "polls"), ("empty_polls", "poll_empty")] {
            let parts = (receive.get(part)?, transmit.get(part)?);
            ensure!(
                worker.get(whole)? == parts.0 + parts.1 && parts.1 > 0,
                "{whole} of the worker is {}, of its virtqueues {parts:?}",
                worker.get(whole)?
            );
        }
        Ok(())
    });

    // The slices that follow are brought about by what the first one left, and not by a look.
    for (mode, limited, looks) in [("0", "notif_limited", false), ("1", "poll_limited", true)] {
        suite.case(
            format!("slices that end with work left are counted as {limited}"),
            move || {
                let _parked = never_parked()?;
                // A slice in which there is hardly time for a packet.
                let _slice = Parameter::set("slice_us", "10")?;
                let nic = NicOptions {
                    ring_size: 1024,
                    ..NicOptions::default()
                };
                let mut card = Card::new(options, control, nic, mode)?;
                card.exchange(4)?;
                let index = card.nic.transmit.index;
                let before = card.counters(index)?;
                // At once: a worker that polls keeps up with a driver that shows one after the other,
                // and then no slice has more than a few.
                if card.publish_at_once(500)? {
                    card.nic.transmit.kick()?;
                }
                card.expect_transmitted()?;
                let moved = card.counters(index)?.since(&before);
                ensure!(
                    moved.get(limited)? > 0 && (moved.get("poll_limited")? > 0) == looks,
                    "{:?}",
                    moved.moved()
                );
                Ok(())
            },
        );
    }
}
