// SPDX-License-Identifier: GPL-2.0
//! The time of a worker: its own account, its virtqueues', and the scheduler's agree.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::card::{never_parked, Card};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::load::Load;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::Packets;
use vhost_iocm_selftests::thread::Thread;

/// How far the sum over virtqueues may be from the worker's own account.
const ACCURATE: f64 = 0.02;
/// How far either may be from the scheduler's account, which also has the way into and out of the worker's
/// loop, and interrupts.
const ROUGH: f64 = 0.05;
/// How long a light load is watched.
const TIME: Duration = Duration::from_secs(3);

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    for (devices, packets, what) in [
        (1, Packets::Frames, "one device"),
        (4, Packets::Frames, "four devices"),
        (2, Packets::Segments, "two devices with large segments"),
    ] {
        suite.measurement(
            format!("a worker that is busy with {what} charges all its time to them"),
            move || saturated(options, control, devices, packets),
        );
    }

    for mode in ["0", "1"] {
        suite.measurement(
            format!("a worker with a light load charges what it worked, poll {mode}"),
            move || light(options, control, mode),
        );
    }

    suite.case("cycles are the same time in another unit", move || {
        let load = Load::new(&options.node, control, 2, Packets::Frames)?;
        load.begin()?;
        // What the clock says belongs to the cycles: reading the counters may take long.
        let look = || -> Result<(Counters, u64, Instant)> {
            let counters = Counters::of_worker(control, &load.worker)?;
            let cycles = control.read_line("cycles")?.parse()?;
            Ok((counters, cycles, Instant::now()))
        };
        let before = look()?;
        std::thread::sleep(TIME);
        let after = look()?;
        let elapsed = after.2.duration_since(before.2);
        let frequency = (after.1 - before.1) as f64 / elapsed.as_secs_f64();
        let worked = after.0.since(&before.0);
        let seconds = worked.get("total_work_cycles")? as f64 / frequency;
        let busy = worked.get("busy_ns")? as f64 / 1e9;
        expect_near("total_work_cycles and busy_ns", seconds, busy, ACCURATE)?;
        let parts = worked.get("poll_cycles")? + worked.get("notif_cycles")?;
        let parts = parts as f64 / frequency;
        expect_near("poll_cycles and notif_cycles", parts, busy, ROUGH)?;
        load.end()
    });

    suite.measurement(
        "iocores_utilization has a line for each worker with one CPU",
        move || utilization(options, control),
    );

    suite.measurement("time at home covers that of the home thread", move || {
        let load = Load::new(&options.node, control, 1, Packets::Frames)?;
        load.set(0, "home", 1)?;
        load.begin()?;
        let device = &load.devices[0];
        let status = control.read_status(&format!("dev/{device}/status"))?;
        let home = Thread::parse(status.get("home_pid").context("no home_pid")?)?;
        let look =
            || Ok::<_, anyhow::Error>((Counters::of_device(control, device)?, home.runtime()?));
        let (start, before) = (Instant::now(), look()?);
        std::thread::sleep(TIME);
        let (elapsed, after) = (start.elapsed().as_secs_f64(), look()?);
        let worked = after.0.since(&before.0);
        let ran = (after.1 - before.1).as_secs_f64();
        let counted = worked.get("home_ns")? as f64 / 1e9;
        // It has what the thread waited as well: for memory, which is its purpose, and for a CPU.
        diagnostic(format!("home_ns {counted:.3} s, the thread ran {ran:.3} s"));
        ensure!(
            ran > 0.1 && counted >= ran * (1.0 - ROUGH) && counted <= elapsed * (1.0 + ROUGH),
            "home_ns {counted:.3} s, the thread ran {ran:.3} s of {elapsed:.3} s"
        );
        ensure!(worked.get("served_ns")? == 0, "{:?}", worked.moved());
        load.end()
    });
}

fn expect_near(what: &str, one: f64, other: f64, accuracy: f64) -> Result<()> {
    diagnostic(format!("{what}: {one:.3} s and {other:.3} s"));
    let error = (one / other - 1.0).abs();
    ensure!(
        error <= accuracy,
        "{what} are {one:.3} s and {other:.3} s, {:.1} % apart",
        error * 100.0
    );
    Ok(())
}

fn saturated(options: &Options, control: &Control, devices: usize, packets: Packets) -> Result<()> {
    let load = Load::new(&options.node, control, devices, packets)?;
    load.begin()?;
    let served = load.measure()?;
    ensure!(
        served.busy > served.elapsed / 2.0,
        "the worker was busy for {:.3} s of {:.3} s only",
        served.busy,
        served.elapsed
    );
    let sum = served.devices.iter().sum();
    expect_near("virtqueues and worker", sum, served.busy, ACCURATE)?;
    expect_near("worker and scheduler", served.busy, served.ran, ROUGH)?;
    load.end()
}

fn light(options: &Options, control: &Control, mode: &str) -> Result<()> {
    let _parked = never_parked()?;
    let mut card = Card::new(options, control, NicOptions::default(), mode)?;
    card.exchange(4)?;
    let look = |card: &Card<'_>| {
        Ok::<_, anyhow::Error>((
            Counters::of_device(control, &card.device)?,
            card.worker_counters()?,
        ))
    };
    let before = look(&card)?;
    let end = Instant::now() + TIME;
    while Instant::now() < end {
        card.exchange(10)?;
    }
    let after = look(&card)?;
    let served = after.0.since(&before.0).get("served_ns")? as f64 / 1e9;
    let busy = after.1.since(&before.1).get("busy_ns")? as f64 / 1e9;
    expect_near("virtqueues and worker", served, busy, ACCURATE)
}

/// The lines of the file: the CPU, cycles of work, and cycles in all.
fn cores(control: &Control) -> Result<Vec<(String, u64, u64)>> {
    let text = control.read("iocores_utilization")?;
    let line = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        match fields[..] {
            [name, work, total] => Ok((name.to_owned(), work.parse()?, total.parse()?)),
            _ => anyhow::bail!("malformed line {line:?}"),
        }
    };
    text.lines().map(line).collect()
}

fn utilization(options: &Options, control: &Control) -> Result<()> {
    control.restore()?;
    let free = cores(control)?;
    ensure!(free.is_empty(), "a worker without CPU: {free:?}");
    let load = Load::new(&options.node, control, 1, Packets::Frames)?;
    let name = format!("cpu{}", cpu::count()? - 1);
    let look = || -> Result<(u64, u64)> {
        match &cores(control)?[..] {
            [(found, work, total)] if *found == name => Ok((*work, *total)),
            other => anyhow::bail!("{other:?}, expected {name} alone"),
        }
    };
    let share = || -> Result<f64> {
        let before = look()?;
        std::thread::sleep(TIME);
        let after = look()?;
        ensure!(after.1 > before.1, "cycles in all do not grow");
        Ok((after.0 - before.0) as f64 / (after.1 - before.1) as f64)
    };
    let idle = share()?;
    load.begin()?;
    let busy = share()?;
    diagnostic(format!("utilization {idle:.4} idle, {busy:.4} under load"));
    ensure!(
        idle < 0.01 && (0.95..=1.0).contains(&busy),
        "utilization {idle:.4} idle, {busy:.4} under load"
    );
    load.end()
}
