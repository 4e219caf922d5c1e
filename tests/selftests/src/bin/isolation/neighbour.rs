// SPDX-License-Identifier: GPL-2.0
//! What the neighbour of a stalled device gets of the worker that both are on.
//!
//! Times of an emulated machine are noisy. So the neighbour is measured in short windows, before, during
//! and after the stall in the same run; medians of windows are compared; and only a claim that fails
//! every time that it is tried is taken for false. A worker that waits for the stalled device fails at once,
//! as the neighbour gets nothing at all.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::probe::Probe;
use vhost_iocm_selftests::process::Part;
use vhost_iocm_selftests::service::Service;

use crate::stalled::Stalled;

/// How often a claim about times is tried.
const ATTEMPTS: u32 = 3;
/// Windows before and after the stall.
const IDLE_WINDOWS: usize = 5;
/// What a device that stalls may use of its worker's time.
const STALLED_SHARE: f64 = 0.02;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control, stall: Duration) {
    for (what, part) in [
        ("receive buffers are missing", Part::ReceiveBuffers),
        ("transmit buffers are missing", Part::TransmitBuffers),
        ("available ring is missing", Part::Available),
        ("used ring is missing", Part::Used),
        ("tap is full", Part::Nothing),
    ] {
        suite.measurement(
            format!("a device whose {what} for {stall:?} does not harm its neighbour"),
            move || {
                let make = || Stalled::new(&options.node, control, part);
                unharmed(options, control, make, "0", stall)
            },
        );
    }

    for part in [Part::TransmitBuffers, Part::Available] {
        suite.measurement(
            format!("a device whose memory lies in a file whose server stops for {stall:?} does not harm its neighbour ({part:?})"),
            move || {
                let make = || Stalled::in_file(&options.node, control, part);
                unharmed(options, control, make, "0", stall)
            },
        );
    }

    suite.measurement(
        format!("a polled device whose available ring is missing for {stall:?} does not either"),
        move || {
            // So long that it is still being polled when the ring goes.
            let _idle = Parameter::set_time("poll_idle_us", Duration::from_secs(10))?;
            // Each of these looks changes the address space twice, after which an emulated processor has
            // to learn all of its translations again.
            let _recheck = Parameter::set_time("poll_recheck_us", Duration::from_millis(50))?;
            let make = || Stalled::new(&options.node, control, Part::Available);
            unharmed(options, control, make, "1", stall)
        },
    );
}

fn unharmed(
    options: &Options,
    control: &Control,
    make: impl Fn() -> Result<Stalled>,
    poll: &str,
    stall: Duration,
) -> Result<()> {
    let worker = control.side_core()?;
    let _left = cpu::leave(cpu::count()? - 1)?;
    for attempt in 1.. {
        let mut neighbour = Probe::new(&options.node)?;
        let mut stalled = make()?;
        control.set_poll_of_device(&stalled.device, poll)?;
        if poll != "0" {
            // It is polled from its first work on, and what the worker's looks take is no matter of the
            // stall: the neighbour is beside a polled device before as well.
            stalled.be_polled(control)?;
        }
        let on = control.read_list(&format!("worker/{worker}/dev_list"))?;
        ensure!(on.len() == 2, "{worker} serves {on:?}, not two devices");
        let _first = cpu::run_first()?;
        let (mut idle, mut beside) = (Service::default(), Service::default());
        idle.measure(&mut neighbour, IDLE_WINDOWS)?;
        let used = stall_beside(control, &mut stalled, &mut neighbour, &mut beside, stall)?;
        stalled.end()?;
        idle.measure(&mut neighbour, IDLE_WINDOWS)?;
        diagnostic(format!(
            "beside an idle device: {idle}; beside the stalled one: {beside}, which used {:.2} % of the worker",
            used * 100.0
        ));
        match compare(&idle, &beside, used) {
            Ok(()) => break,
            Err(error) if attempt < ATTEMPTS => diagnostic(format!("attempt {attempt}: {error}")),
            Err(error) => return Err(error),
        }
    }
    control.restore().map(drop)
}

/// Measures the neighbour from the beginning of a stall for as long as it lasts, and says how much of the
/// worker's time the stalled device had.
fn stall_beside(
    control: &Control,
    stalled: &mut Stalled,
    neighbour: &mut Probe,
    service: &mut Service,
    stall: Duration,
) -> Result<f64> {
    let counters = |stalled: &Stalled| Counters::of_device(control, &stalled.device);
    let idle = counters(stalled)?;
    stalled.begin()?;
    let (start, begun) = (Instant::now(), counters(stalled)?);
    while start.elapsed() < stall {
        if stalled.is_full() {
            stalled.flood()?;
        }
        service.measure(neighbour, 1)?;
    }
    let ended = counters(stalled)?;
    let faulted = ended.since(&idle).get("left_fault")? > 0;
    ensure!(
        faulted != stalled.is_full(),
        "left_fault moved: {faulted}, the tap is full: {}",
        stalled.is_full()
    );
    let served = Duration::from_nanos(ended.since(&begun).get("served_ns")?);
    Ok(served.as_secs_f64() / start.elapsed().as_secs_f64())
}

fn compare(idle: &Service, beside: &Service, used: f64) -> Result<()> {
    beside.compare(idle)?;
    if used > STALLED_SHARE {
        bail!(
            "the stalled device used {:.1} % of the worker's time",
            used * 100.0
        );
    }
    Ok(())
}
