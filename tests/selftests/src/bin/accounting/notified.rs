// SPDX-License-Identifier: GPL-2.0
//! What virtqueues count that are never polled.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::Card;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;

const FRAMES: u64 = 40;
const BYTES: u64 = FRAMES * frame::MINIMUM as u64;

/// Counters that stay where they are as long as nothing unusual happens and nothing is polled.
const UNMOVED: &[&str] = &[
    "poll_kicks",
    "poll_cycles",
    "poll_bytes",
    "poll_empty",
    "poll_empty_cycles",
    "poll_limited",
    "poll_wait",
    "poll_pending_cycles",
    "poll_coalesced",
    "stuck_times",
    "stuck_cycles",
    "notif_limited",
    "ring_full",
    "errors",
    "drops",
    "home_ns",
    "left_fault",
    "left_backend",
    "home_works",
    "polls",
    "parks",
];

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case("frames to the host are counted one by one", move || {
        let mut card = Card::new(options, control, NicOptions::default(), "0")?;
        let index = card.nic.transmit.index;
        card.exchange(2)?;
        card.expect_armed()?;
        card.nic.transmit.calls()?;
        let before = (card.counters(index)?, card.worker_counters()?);
        let other = card.counters(card.nic.receive.index)?;
        for _ in 0..FRAMES {
            card.expect_armed()?;
            card.nic.transmit.ring.enable_call()?;
            ensure!(card.transmit()?, "no kick wanted");
            card.expect_transmitted()?;
        }
        card.expect_armed()?;
        let moved = card.counters(index)?.since(&before.0);
        let worker = card.worker_counters()?.since(&before.1);
        expect_counted(&moved, FRAMES)?;
        expect_worker(&worker, &moved)?;
        let calls = card.nic.transmit.calls()?;
        ensure!(
            moved.get("interrupts")? == calls,
            "{calls} calls came: {:?}",
            moved.moved()
        );
        let sibling = card.counters(card.nic.receive.index)?.since(&other);
        ensure!(
            sibling.moved().is_empty(),
            "the sibling moved: {:?}",
            sibling.moved()
        );
        Ok(())
    });

    suite.case("frames to the driver are counted one by one", move || {
        let mut card = Card::new(options, control, NicOptions::default(), "0")?;
        let index = card.nic.receive.index;
        card.exchange(2)?;
        card.expect_armed()?;
        let before = (card.counters(index)?, card.worker_counters()?);
        let kicks = card.nic.receive.kicks;
        for _ in 0..FRAMES {
            card.send()?;
            card.expect_received()?;
        }
        card.expect_quiet()?;
        let moved = card.counters(index)?.since(&before.0);
        let worker = card.worker_counters()?.since(&before.1);
        expect_counted(&moved, card.nic.receive.kicks - kicks)?;
        expect_worker(&worker, &moved)
    });
}

fn expect_counted(moved: &Counters, kicks: u64) -> Result<()> {
    for (name, expected) in [
        ("handled_packets", FRAMES),
        ("handled_bytes", BYTES),
        ("notif_bytes", BYTES),
        ("kicks", kicks),
    ] {
        ensure!(
            moved.get(name)? == expected,
            "{name}: {} instead of {expected}: {:?}",
            moved.get(name)?,
            moved.moved()
        );
    }
    for name in ["notif_works", "notif_cycles", "notif_wait", "served_ns"] {
        ensure!(moved.get(name)? > 0, "{name}: {:?}", moved.moved());
    }
    for name in UNMOVED {
        ensure!(moved.get(name)? == 0, "{name}: {:?}", moved.moved());
    }
    Ok(())
}

/// Checks a worker that did nothing but serve this virtqueue.
fn expect_worker(worker: &Counters, virtqueue: &Counters) -> Result<()> {
    let slices = virtqueue.get("notif_works")?;
    ensure!(
        worker.get("works")? >= slices && worker.get("loops")? > 0 && worker.get("wait")? > 0,
        "{slices} slices: {:?}",
        worker.moved()
    );
    for name in [
        "polls",
        "empty_polls",
        "poll_cycles",
        "stuck_works",
        "noqueue_works",
    ] {
        ensure!(worker.get(name)? == 0, "{name}: {:?}", worker.moved());
    }
    for name in [
        "busy_ns",
        "idle_ns",
        "notif_cycles",
        "total_work_cycles",
        "cycles",
        "empty_works",
        "last_loop_tsc_end",
    ] {
        ensure!(worker.get(name)? > 0, "{name}: {:?}", worker.moved());
    }
    Ok(())
}
