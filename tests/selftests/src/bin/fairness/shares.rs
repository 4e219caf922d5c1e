// SPDX-License-Identifier: GPL-2.0
//! Equal devices get equal shares, others what their weights say.

use anyhow::{ensure, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::Device;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::load::Load;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::Packets;
use vhost_iocm_selftests::refusal::{expect_refused, MALFORMED_NUMBERS};
use vhost_iocm_selftests::statistics::jain;

/// What Jain's index must be among equals.
const FAIR: f64 = 0.99;
/// How far a share may be from what its weight says, of itself.
const ACCURATE: f64 = 0.05;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.measurement(
        "eight devices that want all of a worker get the same of it",
        move || {
            let load = Load::new(&options.node, control, 8, Packets::Frames)?;
            load.begin()?;
            let shares = load.measure_saturated()?.shares();
            let index = jain(&shares);
            diagnostic(format!("Jain's index {index:.4}, shares {shares:.3?}"));
            ensure!(index >= FAIR, "Jain's index is {index:.4}");
            load.end()
        },
    );

    suite.measurement(
        "devices get shares by their weights, also when these change",
        move || {
            let load = Load::new(&options.node, control, 3, Packets::Frames)?;
            // Set before there is any load, and under load.
            set_weights(&load, &[100, 200, 400])?;
            load.begin()?;
            expect_shares(&load, &[100, 200, 400])?;
            set_weights(&load, &[400, 100, 200])?;
            expect_shares(&load, &[400, 100, 200])?;
            load.end()
        },
    );

    suite.measurement(
        "a device with a thousandth of its neighbour's weight gets little, but not nothing",
        move || {
            let load = Load::new(&options.node, control, 2, Packets::Frames)?;
            set_weights(&load, &[10, 10000])?;
            load.begin()?;
            let shares = load.measure_saturated()?.shares();
            diagnostic(format!("weights 10 and 10000: shares {shares:.5?}"));
            // A few slices are all that it should get in that time: no base for a precise ratio.
            ensure!(
                shares[0] > 0.0 && shares[0] < 0.01,
                "the shares are {shares:.5?}"
            );
            load.end()
        },
    );

    suite.case(
        "a weight is a number from 1 to 10000, and nothing else",
        move || expect_range(options, control, "weight", "100", 10000),
    );

    suite.case(
        "a max_time_share is a number from 1 to 1000, and nothing else",
        move || expect_range(options, control, "max_time_share", "1000", 1000),
    );
}

fn set_weights(load: &Load<'_>, weights: &[u64]) -> Result<()> {
    (0..)
        .zip(weights)
        .try_for_each(|(device, weight)| load.set(device, "weight", *weight))
}

fn expect_shares(load: &Load<'_>, weights: &[u64]) -> Result<()> {
    let shares = load.measure_saturated()?.shares();
    diagnostic(format!("weights {weights:?}: shares {shares:.3?}"));
    let sum: u64 = weights.iter().sum();
    for (share, weight) in shares.iter().zip(weights) {
        let expected = *weight as f64 / sum as f64;
        let error = (share / expected - 1.0).abs();
        ensure!(
            error <= ACCURATE,
            "weight {weight} of {sum} got {share:.3}, expected {expected:.3}"
        );
    }
    Ok(())
}

/// Checks which numbers an attribute of a device takes, and what it is at first.
fn expect_range(
    options: &Options,
    control: &Control,
    attribute: &str,
    first: &str,
    largest: u64,
) -> Result<()> {
    let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
    let file = format!("dev/{name}/{attribute}");
    let said = control.read_line(&file)?;
    ensure!(said == first, "{attribute} is {said} at first");
    for text in ["1", "7\n", &largest.to_string()] {
        control.set(&file, text)?;
        let said = control.read_line(&file)?;
        let status = control.read_status(&format!("dev/{name}/status"))?;
        ensure!(
            said == text.trim_end() && status.get(attribute) == Some(&said),
            "wrote {text:?}, reads {said:?}, status {:?}",
            status.get(attribute)
        );
    }
    for text in MALFORMED_NUMBERS {
        expect_refused(control, &file, text, Errno::EINVAL)?;
    }
    for number in [0, largest + 1, u64::from(u32::MAX)] {
        expect_refused(control, &file, &number.to_string(), Errno::ERANGE)?;
    }
    Ok(())
}
