// SPDX-License-Identifier: GPL-2.0
//! A virtqueue that has waited for too long, or has too much to do, is served next.

use std::time::Duration;

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::{never_parked, Card};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::device::TRANSMIT;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::load::Load;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::process::Packets;
use vhost_iocm_selftests::wait;

/// Rounds in which nobody must be found stuck.
const ROUNDS: u32 = 50;
/// Frames of a round.
const FRAMES: u32 = 10;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "work that waits for longer than work_list_max_stuck_cycles ends the slice of others",
        move || {
            stuck(options, control, "0", |card, on| {
                let file = format!("worker/{}/work_list_max_stuck_cycles", card.worker);
                control.set(&file, if on { "1" } else { "0" })
            })
        },
    );

    suite.case(
        "a polled virtqueue with more than max_stuck_pending_items ends the slice of others",
        move || {
            stuck(options, control, "1", |card, on| {
                card.set_transmit(
                    "max_stuck_pending_items",
                    if on { u64::from(FRAMES) - 1 } else { 0 },
                )
            })
        },
    );

    suite.case(
        "a polled virtqueue that waits for longer than max_stuck_cycles ends the slice of others",
        move || {
            stuck(options, control, "1", |card, on| {
                card.set_transmit("max_stuck_cycles", u64::from(on))
            })
        },
    );

    suite.case(
        "a virtqueue with no more than max_stuck_pending_items is not stuck",
        move || {
            let _parked = never_parked()?;
            let scene = Scene::new(options, control, "1")?;
            let mut card = scene.card;
            card.set_transmit("max_stuck_pending_items", FRAMES.into())?;
            expect_never(&mut card)
        },
    );

    suite.measurement(
        "virtqueues that are stuck get no more than their share",
        move || {
            let load = Load::new(&options.node, control, 2, Packets::Frames)?;
            let file = format!("worker/{}/work_list_max_stuck_cycles", load.worker);
            control.set(&file, "1")?;
            load.begin()?;
            let shares = load.measure_saturated()?.shares();
            diagnostic(format!("shares {shares:.3?}"));
            ensure!((0.45..0.55).contains(&shares[0]), "shares {shares:.3?}");
            load.end()
        },
    );
}

/// A device that always has work, and a card beside it.
struct Scene<'a> {
    // The card goes first, since it counts on the worker that the load has.
    card: Card<'a>,
    load: Load<'a>,
    /// Time enough for a slice to be ended early, also where packets take long.
    _slice: Parameter,
}

impl<'a> Scene<'a> {
    fn new(options: &Options, control: &'a Control, mode: &str) -> Result<Self> {
        let slice = Parameter::set_time("slice_us", Duration::from_millis(10))?;
        // It is asked who is stuck after each of these, and after 16 of others, which a debug kernel
        // may take a whole slice for.
        let load = Load::new(&options.node, control, 1, Packets::Segments)?;
        let nic = NicOptions::default();
        let mut card = Card::beside(options, control, nic, mode, load.worker.clone())?;
        card.exchange(4)?;
        load.begin()?;
        Ok(Self {
            card,
            load,
            _slice: slice,
        })
    }
}

fn expect_never(card: &mut Card<'_>) -> Result<()> {
    let look = |card: &Card<'_>| {
        Ok::<_, anyhow::Error>((card.counters(TRANSMIT)?, card.worker_counters()?))
    };
    let before = look(card)?;
    for _ in 0..ROUNDS {
        card.transmit_at_once(FRAMES, 100)?;
        card.expect_transmitted()?;
    }
    let after = look(card)?;
    let (moved, worker) = (after.0.since(&before.0), after.1.since(&before.1));
    ensure!(
        moved.get("stuck_times")? == 0
            && moved.get("stuck_cycles")? == 0
            && worker.get("stuck_works")? == 0,
        "stuck: {:?}, worker {:?}",
        moved.moved(),
        worker.moved()
    );
    Ok(())
}

fn stuck(
    options: &Options,
    control: &Control,
    mode: &str,
    limit: impl Fn(&Card<'_>, bool) -> Result<()>,
) -> Result<()> {
    let _parked = never_parked()?;
    let Scene {
        mut card,
        load,
        _slice,
    } = Scene::new(options, control, mode)?;
    expect_never(&mut card)?;

    let busy = virtqueue(&load.devices[0], TRANSMIT);
    let counters = Counters::of_virtqueue(control, &busy)?;
    let before = (card.counters(TRANSMIT)?, card.worker_counters()?);
    limit(&card, true)?;
    // Some of the frames come while the other device is served.
    wait::until("the card to be found stuck", || {
        card.transmit_at_once(FRAMES, 100)?;
        card.expect_transmitted()?;
        Ok(card
            .counters(TRANSMIT)?
            .since(&before.0)
            .get("stuck_times")?
            >= 5)
    })?;
    limit(&card, false)?;
    card.expect_transmitted()?;
    let moved = card.counters(TRANSMIT)?.since(&before.0);
    let worker = card.worker_counters()?.since(&before.1);
    let other = Counters::of_virtqueue(control, &busy)?.since(&counters);
    ensure!(
        moved.get("stuck_cycles")? > 0
            && other.get("notif_limited")? + other.get("poll_limited")? > 0,
        "stuck: {:?}; the other one: {:?}",
        moved.moved(),
        other.moved()
    );
    // The worker counts works, and looks are none.
    let works = worker.get("stuck_works")?;
    ensure!(
        (works > 0) == (mode == "0"),
        "{works} stuck works in mode {mode}: {:?}",
        worker.moved()
    );

    // Below its minimum nobody ends the slice of the other device, which moves that at a time.
    control.set(&format!("vq/{busy}/min_processed_data_limit"), "524288")?;
    control.set(&format!("vq/{busy}/poll"), "0")?;
    card.exchange(4)?;
    let before = card.counters(TRANSMIT)?.get("stuck_times")?;
    limit(&card, true)?;
    for _ in 0..ROUNDS {
        card.transmit_at_once(FRAMES, 100)?;
        card.expect_transmitted()?;
    }
    let times = card.counters(TRANSMIT)?.get("stuck_times")? - before;
    ensure!(times == 0, "stuck {times} times below the minimum");
    drop(card);
    load.end()
}
