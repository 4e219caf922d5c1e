// SPDX-License-Identifier: GPL-2.0
//! A device with a ceiling does not get more, however idle its worker is.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::load::Load;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::Packets;

/// How far what a device gets may be from its ceiling, of the ceiling.
const ACCURATE: f64 = 0.10;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.measurement(
        "a device alone gets its max_time_share of the worker, and no more",
        move || {
            let load = Load::new(&options.node, control, 1, Packets::Frames)?;
            load.begin()?;
            for share in [250, 500, 100] {
                load.set(0, "max_time_share", share)?;
                expect_share(&load, 0, share)?;
            }
            load.set(0, "max_time_share", 1000)?;
            load.measure_saturated()?;
            load.end()
        },
    );

    suite.measurement(
        "what a ceiling keeps from a device, the others get",
        move || {
            let load = Load::new(&options.node, control, 2, Packets::Frames)?;
            load.set(0, "max_time_share", 200)?;
            // The weight does not lift the ceiling.
            load.set(0, "weight", 10000)?;
            load.begin()?;
            load.measure_saturated()?;
            expect_share(&load, 0, 200)?;
            expect_share(&load, 1, 800)?;
            load.end()
        },
    );
}

fn expect_share(load: &Load<'_>, device: usize, thousandths: u64) -> Result<()> {
    let served = load.measure()?;
    let share = served.devices[device] / served.elapsed;
    let expected = thousandths as f64 / 1000.0;
    diagnostic(format!(
        "device {device}: {share:.3} of the worker, expected {expected:.3}"
    ));
    ensure!(
        (share / expected - 1.0).abs() <= ACCURATE,
        "device {device} got {share:.3} of the worker, expected {expected:.3}"
    );
    Ok(())
}
