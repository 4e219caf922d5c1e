// SPDX-License-Identifier: GPL-2.0
//! Work of a polled virtqueue that waits for more of it.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::{never_parked, Card};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::device::{RECEIVE, TRANSMIT};
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;

use crate::bounds::largest;

/// Frames, of which one comes every [`PAUSE`].
const FRAMES: u32 = 60;
const PAUSE: Duration = Duration::from_millis(2);
/// The largest rate is a slice in 100 ms.
const LONGEST: Duration = Duration::from_millis(100);

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "frames that come within min_poll_rate share a slice and an interrupt",
        move || coalesced(options, control),
    );

    suite.case(
        "packets to the driver that come within min_poll_rate share slices",
        move || received(options, control),
    );

    suite.case("nothing is coalesced without min_poll_rate", move || {
        let _parked = never_parked()?;
        let mut card = Card::polled(options, control, NicOptions::default())?;
        card.exchange(50)?;
        for counters in card.both_counters()? {
            ensure!(
                counters.get("poll_coalesced")? == 0,
                "{:?}",
                counters.moved()
            );
        }
        Ok(())
    });

    suite.case(
        "a virtqueue that is not polled does not wait for min_poll_rate",
        move || {
            let mut card = Card::new(options, control, NicOptions::default(), "0")?;
            set_longest(control, &card, TRANSMIT)?;
            card.exchange(20)?;
            let counters = card.counters(TRANSMIT)?;
            ensure!(
                counters.get("poll_coalesced")? == 0 && counters.get("notif_works")? > 0,
                "{:?}",
                counters.moved()
            );
            Ok(())
        },
    );

    // In each of these a frame waits for min_poll_rate while something happens to its virtqueue.
    for (what, mode_after) in [
        ("the mode becomes 0", "0"),
        ("the mode becomes auto", "auto"),
    ] {
        suite.case(
            format!("nothing is lost when {what} meanwhile"),
            move || {
                edge(options, control, |card| {
                    control.set_poll_of_device(&card.device, mode_after)?;
                    card.expect_transmitted()?;
                    control.set_poll_of_device(&card.device, "1")
                })
            },
        );
    }

    suite.case(
        "nothing is lost when the virtqueue moves meanwhile",
        move || {
            let mut next = None;
            edge(options, control, |card| {
                let to = match next.take() {
                    Some(to) => to,
                    None => control.create_worker(-1)?,
                };
                control.move_virtqueue(&virtqueue(&card.device, TRANSMIT), &to)?;
                next = Some(std::mem::replace(&mut card.worker, to));
                card.expect_transmitted()
            })
        },
    );

    suite.case(
        "nothing is lost when the limit becomes 0 meanwhile",
        move || {
            edge(options, control, |card| {
                card.set_transmit("min_poll_rate", 0)?;
                card.expect_transmitted()?;
                set_longest(control, card, TRANSMIT).map(drop)
            })
        },
    );

    suite.case(
        "nothing is lost when it could be parked meanwhile",
        move || {
            edge(options, control, |card| {
                let parked = Parameter::set("poll_idle_us", "1")?;
                card.expect_transmitted()?;
                drop(parked);
                Ok(())
            })
        },
    );

    suite.case(
        "nothing is lost when the virtqueue stops meanwhile",
        move || {
            edge(options, control, |card| {
                card.nic.stop_queue(&card.nic.transmit)?;
                card.nic.start_queue(&card.nic.transmit)?;
                card.expect_transmitted()
            })
        },
    );

    suite.case(
        "nothing is lost when the device goes home meanwhile",
        move || {
            edge(options, control, |card| {
                let file = format!("dev/{}/home", card.device);
                control.set(&file, "1")?;
                card.expect_transmitted()?;
                control.set(&file, "0")
            })
        },
    );

    suite.case("a device is closed while a frame waits", move || {
        let _parked = never_parked()?;
        for _ in 0..options.volume(10, 3) {
            let mut card = Card::polled(options, control, NicOptions::default())?;
            set_longest(control, &card, TRANSMIT)?;
            wait_in_line(&mut card)?;
            let device = card.device.clone();
            drop(card);
            ensure!(
                !control.devices()?.contains(&device),
                "{device} is still there"
            );
        }
        control.restore().map(drop)
    });
}

/// Sets the largest rate of a virtqueue, and returns it, in cycles.
fn set_longest(control: &Control, card: &Card<'_>, index: u32) -> Result<u64> {
    let file = format!("vq/{}/min_poll_rate", virtqueue(&card.device, index));
    let rate = largest(control, &file)?;
    control.set(&file, &rate.to_string())?;
    Ok(rate)
}

/// Transmits a frame that is served, and another one that waits.
fn wait_in_line(card: &mut Card<'_>) -> Result<()> {
    card.transmit()?;
    card.expect_transmitted()?;
    card.transmit().map(drop)
}

fn edge(
    options: &Options,
    control: &Control,
    mut happens: impl FnMut(&mut Card<'_>) -> Result<()>,
) -> Result<()> {
    let _parked = never_parked()?;
    let mut card = Card::polled(options, control, NicOptions::default())?;
    set_longest(control, &card, TRANSMIT)?;
    let before = card.counters(TRANSMIT)?;
    for _ in 0..options.volume(10, 4) {
        wait_in_line(&mut card)?;
        happens(&mut card)?;
        // By now it is polled again, or will be by what comes.
        card.exchange(2)?;
    }
    let moved = card.counters(TRANSMIT)?.since(&before);
    ensure!(moved.get("poll_coalesced")? > 0, "{:?}", moved.moved());
    drop(card);
    control.restore().map(drop)
}

fn coalesced(options: &Options, control: &Control) -> Result<()> {
    let _parked = never_parked()?;
    let mut card = Card::polled(options, control, NicOptions::default())?;
    let run = |card: &mut Card<'_>| -> Result<_> {
        let before = card.counters(TRANSMIT)?;
        let start = Instant::now();
        for _ in 0..FRAMES {
            card.nic.transmit.ring.enable_call()?;
            card.transmit()?;
            std::thread::sleep(PAUSE);
            card.nic.reclaim()?;
        }
        card.expect_transmitted()?;
        Ok((start.elapsed(), card.counters(TRANSMIT)?.since(&before)))
    };
    let (_, each) = run(&mut card)?;
    ensure!(each.get("poll_coalesced")? == 0, "{:?}", each.moved());

    let rate = set_longest(control, &card, TRANSMIT)?;
    let (elapsed, moved) = run(&mut card)?;
    let slices = whole_slices(&moved)?;
    let most = elapsed.as_millis() / LONGEST.as_millis() + 2;
    diagnostic(format!(
        "{FRAMES} frames in {elapsed:?}: {slices} slices and {} interrupts, without limit {} and {}",
        moved.get("interrupts")?,
        each.get("poll_kicks")?,
        each.get("interrupts")?
    ));
    ensure!(
        u128::from(slices) <= most
            && moved.get("interrupts")? <= moved.get("poll_kicks")? + moved.get("notif_works")?
            && moved.get("interrupts")? < u64::from(FRAMES) / 2
            && moved.get("poll_coalesced")? > 0
            && moved.get("handled_packets")? == u64::from(FRAMES),
        "{slices} slices, at most {most}: {:?}",
        moved.moved()
    );
    // The first one may follow what was before; each later one waited.
    ensure!(
        moved.get("poll_wait")? >= (moved.get("poll_kicks")? - 1) * rate,
        "a rate of {rate} cycles: {:?}",
        moved.moved()
    );
    // A frame waits for longer than it did without limit.
    ensure!(
        moved.get("poll_pending_cycles")? > rate / 2,
        "a rate of {rate} cycles: {:?}",
        moved.moved()
    );
    Ok(())
}

/// Slices, less those that took up what an earlier one had left.
fn whole_slices(moved: &Counters) -> Result<u64> {
    let slices = moved.get("poll_kicks")? + moved.get("notif_works")?;
    Ok(slices - moved.get("poll_limited")? - moved.get("notif_limited")?)
}

fn received(options: &Options, control: &Control) -> Result<()> {
    let _parked = never_parked()?;
    let mut card = Card::polled(options, control, NicOptions::default())?;
    set_longest(control, &card, RECEIVE)?;
    let before = card.counters(RECEIVE)?;
    let start = Instant::now();
    for _ in 0..FRAMES {
        card.send()?;
        std::thread::sleep(PAUSE);
    }
    card.expect_received()?;
    let elapsed = start.elapsed();
    let moved = card.counters(RECEIVE)?.since(&before);
    let slices = whole_slices(&moved)?;
    let most = elapsed.as_millis() / LONGEST.as_millis() + 2;
    ensure!(
        u128::from(slices) <= most && moved.get("poll_coalesced")? > 0,
        "{slices} slices, at most {most}: {:?}",
        moved.moved()
    );
    Ok(())
}
