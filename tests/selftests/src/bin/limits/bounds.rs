// SPDX-License-Identifier: GPL-2.0
//! Defaults and bounds of the limits.

use std::time::Duration;

use anyhow::{ensure, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::device::{Device, TRANSMIT};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::refusal::{expect_refused, MALFORMED_NUMBERS};

/// The longest time that a limit can be, in cycles.
const CYCLES: u64 = 1_000_000_000;

/// Files by directory: name, default, smallest, largest.
const OF_VIRTQUEUE: &[(&str, u64, u64, u64)] = &[
    ("min_processed_data_limit", 1500, 0, 524_288),
    ("max_processed_data_limit", 524_288, 1, 524_288),
    ("max_stuck_pending_items", 0, 0, 32_768),
    ("max_stuck_cycles", 0, 0, CYCLES),
];
const OF_WORKER: &[(&str, u64, u64, u64)] = &[
    ("work_list_max_stuck_cycles", 0, 0, CYCLES),
    ("max_disabled_soft_interrupts_cycles", 0, 0, CYCLES),
];
const OF_DEVICE: &[(&str, u64, u64, u64)] = &[
    ("delay_per_work", 0, 0, 1_000_000),
    ("delay_per_kbyte", 0, 0, 1_000_000),
];

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "limits have their defaults, take what is in their bounds, and nothing else",
        move || {
            let worker = control.restore()?;
            let (_device, device) = control.device_made_by(|| Device::open(&options.node))?;
            let virtqueue = virtqueue(&device, TRANSMIT);
            for (directory, limits) in [
                (format!("worker/{worker}"), OF_WORKER),
                (format!("dev/{device}"), OF_DEVICE),
                (format!("vq/{virtqueue}"), OF_VIRTQUEUE),
            ] {
                for (name, default, smallest, largest) in limits {
                    let status = control.read_counter(&format!("{directory}/status"), name)?;
                    let file = format!("{directory}/{name}");
                    ensure!(
                        status == *default,
                        "the status says that {file} is {status}"
                    );
                    expect(control, &file, *default)?;
                    for number in [*smallest, *largest] {
                        control.set(&file, &format!("{number}\n"))?;
                        expect(control, &file, number)?;
                    }
                    expect_out_of_range(control, &file, *largest)?;
                    if *smallest > 0 {
                        expect_refused(control, &file, "0", Errno::ERANGE)?;
                    }
                    expect_malformed(control, &file)?;
                    control.set(&file, &default.to_string())?;
                }
            }
            Ok(())
        },
    );

    suite.case(
        "a virtqueue cannot be kept waiting for more than 100 ms",
        move || {
            control.restore()?;
            let (_device, device) = control.device_made_by(|| Device::open(&options.node))?;
            let file = format!("vq/{}/min_poll_rate", virtqueue(&device, TRANSMIT));
            expect(control, &file, 0)?;
            expect_malformed(control, &file)?;
            let largest = largest(control, &file)?;
            control.set(&file, &largest.to_string())?;
            expect_out_of_range(control, &file, largest)?;
            // What the clock of the counter is, as near as sleeping tells.
            let cycles = || {
                control
                    .read_line("cycles")?
                    .parse::<u64>()
                    .map_err(anyhow::Error::from)
            };
            let (start, before) = (std::time::Instant::now(), cycles()?);
            std::thread::sleep(Duration::from_millis(500));
            let frequency = (cycles()? - before) as f64 / start.elapsed().as_secs_f64();
            let seconds = largest as f64 / frequency;
            ensure!(
                (0.05..0.15).contains(&seconds),
                "{largest} cycles are {seconds:.3} s"
            );
            Ok(())
        },
    );
}

/// The largest number that a file takes.
pub fn largest(control: &Control, file: &str) -> Result<u64> {
    let (mut taken, mut refused) = (0, u64::from(u32::MAX));
    while taken + 1 < refused {
        let middle = (taken + refused) / 2;
        match control.write(file, &middle.to_string()) {
            Ok(()) => taken = middle,
            Err(Errno::ERANGE) => refused = middle,
            Err(errno) => anyhow::bail!("{file} answered {middle} with {errno}"),
        }
    }
    Ok(taken)
}

fn expect(control: &Control, file: &str, number: u64) -> Result<()> {
    let said = control.read_line(file)?;
    ensure!(
        said == number.to_string(),
        "{file} is {said}, expected {number}"
    );
    Ok(())
}

fn expect_out_of_range(control: &Control, file: &str, largest: u64) -> Result<()> {
    for number in [
        largest + 1,
        u64::from(u32::MAX),
        1 << 32,
        (1 << 32) + 1,
        u64::MAX,
    ] {
        expect_refused(control, file, &number.to_string(), Errno::ERANGE)?;
    }
    expect_refused(control, file, "99999999999999999999999999", Errno::ERANGE)
}

fn expect_malformed(control: &Control, file: &str) -> Result<()> {
    for text in MALFORMED_NUMBERS.iter().copied().chain(["-1", "+1"]) {
        expect_refused(control, file, text, Errno::EINVAL)?;
    }
    Ok(())
}
