// SPDX-License-Identifier: GPL-2.0
//! What serving a packet costs, in instructions.
//!
//! Under `scripts/vm --icount` the machine's clock advances by one nanosecond with each instruction, so the
//! times that the module accounts for are numbers of instructions. They do not depend on what else the
//! real machine does, and repeat to a few in a thousand.

use std::process::ExitCode;

use anyhow::{ensure, Result};
use clap::Parser;
use vhost_iocm_selftests::card::Card;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::{diagnostic, skip, Outcome, Suite};
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;

/// Idle devices beside the one that is measured.
const IDLE: usize = 63;
/// Frames of one batch, as many as fit into the ring at once.
const BATCH: u32 = 64;
/// Batches, or round trips, of a measurement.
const ROUNDS: u32 = 50;
/// How much more a packet may cost beside the idle devices.
const GROWTH: f64 = 1.02;

/// What the device that is measured does.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// Transmits batches.
    Transmit,
    /// Receives batches.
    Receive,
    /// Transmits a frame, waits for it, receives one.
    RoundTrips,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let control = Control::default();
    let mut suite = Suite::new();
    for mode in ["0", "1"] {
        for work in [Work::Transmit, Work::Receive, Work::RoundTrips] {
            let (options, control) = (&options, &control);
            suite.case(
                format!("{IDLE} idle devices add nothing to a packet's instructions: {work:?}, poll {mode}"),
                move || idle_cost(options, control, work, mode),
            );
        }
    }
    suite.run(&options.filters)
}

fn idle_cost(options: &Options, control: &Control, work: Work, mode: &str) -> Result<Outcome> {
    if std::env::var_os("VHOST_IOCM_ICOUNT").is_none() {
        return skip("counts instructions, see scripts/vm --icount");
    }
    let mut card = Card::new(options, control, NicOptions::default(), mode)?;
    // There is one processor. A worker that is woken serves all there is before the driver goes on, so
    // that which of them runs when is no matter of the scheduler's.
    control.set(&format!("worker/{}/priority", card.worker), "1")?;
    let _idle = Parameter::set("poll_idle_us", "20")?;
    // What is done once is done before.
    measure(&mut card, work)?;
    let before = measure(&mut card, work)?;
    let idle = (0..IDLE)
        .map(|_| {
            let nic = NicOptions {
                ring_size: 16,
                ..NicOptions::default()
            };
            let mut idle = Card::beside(options, control, nic, mode, card.worker.clone())?;
            idle.exchange(1)?;
            Ok(idle)
        })
        .collect::<Result<Vec<_>>>()?;
    card.expect_polled(0)?;
    measure(&mut card, work)?;
    let beside = measure(&mut card, work)?;
    drop(idle);
    measure(&mut card, work)?;
    let after = measure(&mut card, work)?;
    drop(card);
    control.restore()?;
    diagnostic(format!(
        "instructions of the worker for each packet: {before:.0} alone, {beside:.0} beside {IDLE} idle \
         devices, {after:.0} alone again"
    ));
    let alone = f64::midpoint(before, after);
    ensure!(
        beside <= GROWTH * alone,
        "{:.2} times as many",
        beside / alone
    );
    Ok(Outcome::Pass)
}

/// Instructions for which a worker accounts, for each packet of the device.
fn measure(card: &mut Card<'_>, work: Work) -> Result<f64> {
    let before = card.both_counters()?;
    for _ in 0..ROUNDS {
        match work {
            Work::Transmit => {
                if card.publish_at_once(BATCH)? {
                    card.nic.transmit.kick()?;
                }
                card.expect_transmitted()?;
            }
            Work::Receive => {
                for _ in 0..BATCH {
                    card.send()?;
                }
                card.expect_received()?;
            }
            Work::RoundTrips => {
                card.exchange(1)?;
            }
        }
    }
    let (mut served, mut packets) = (0, 0);
    for (now, before) in card.both_counters()?.iter().zip(&before) {
        let moved = now.since(before);
        served += moved.get("served_ns")?;
        packets += moved.get("handled_packets")?;
    }
    Ok(served as f64 / packets as f64)
}
