// SPDX-License-Identifier: GPL-2.0
//! A device that sends much does not make one that sends little wait long.

use std::time::Duration;

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::load::Load;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::probe::Probe;
use vhost_iocm_selftests::process::Packets;
use vhost_iocm_selftests::statistics::median;

/// How long round trips are measured, beside an idle and beside a busy device.
const TIME: Duration = Duration::from_secs(3);
/// By how many slices a round trip may become longer: both ways, one slice of the other device may come
/// first.
const SLICES: u32 = 2;
/// The slice. A slice can be exceeded by sixteen frames or one large segment, which take an emulated machine
/// longer than the default; what they add is little beside this.
const SLICE: Duration = Duration::from_millis(2);
/// How often a claim about times of an emulated machine is tried.
const ATTEMPTS: u32 = 3;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    for (what, packets) in [
        ("segments of 64 KiB", Packets::Segments),
        ("full frames", Packets::Frames),
    ] {
        suite.measurement(
            format!("a sender of {what} delays small round trips by 2 slices at most"),
            move || {
                for attempt in 1..ATTEMPTS {
                    match delay(options, control, packets) {
                        Ok(()) => return Ok(()),
                        Err(error) => diagnostic(format!("attempt {attempt}: {error:#}")),
                    }
                }
                delay(options, control, packets)
            },
        );
    }
}

fn delay(options: &Options, control: &Control, packets: Packets) -> Result<()> {
    let _slice = Parameter::set_time("slice_us", SLICE)?;
    let load = Load::new(&options.node, control, 1, packets)?;
    let mut probe = Probe::new(&options.node)?;
    // It shares its CPU with the driver of the busy device.
    let _first = cpu::run_first()?;
    let alone = median(&probe.round_trips(TIME)?);
    load.begin()?;
    let beside = median(&probe.round_trips(TIME)?);
    load.measure_saturated()?;
    diagnostic(format!(
        "round trips: median {alone:?} beside an idle device, {beside:?} beside a busy one, slice {SLICE:?}"
    ));
    ensure!(
        beside <= alone + SLICES * SLICE,
        "the median of round trips grew from {alone:?} to {beside:?}, more than {SLICES} slices of {SLICE:?}"
    );
    drop(probe);
    load.end()
}
