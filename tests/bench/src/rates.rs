// SPDX-License-Identifier: GPL-2.0
//! How often a guest and its host have to tell each other something (tier T2): counts on an emulated machine
//! with two processors, one for the driver and one for what serves it.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::device::{RECEIVE, TRANSMIT};
use vhost_iocm_selftests::load::Load;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::process::Packets;
use vhost_iocm_selftests::statistics::jain;
use vhost_iocm_selftests::traffic::Background;

use crate::pairs::{self, Wanted};
use crate::record::{Record, Tier};
use crate::subject::{Module, Subjects};
use crate::workload::{Direction, Workload, SHAPES};

/// Rounds of four measurements.
const ROUNDS: usize = 6;
/// How long one takes.
const TIME: Duration = Duration::from_secs(1);
/// Moves while traffic goes on.
const MOVES: usize = 400;
/// For how long a polled virtqueue may find nothing, as in tier T4.
pub const IDLE: Duration = Duration::from_millis(100);
/// Devices that want all of a worker.
const CROWD: usize = 8;

/// Measures the metrics that are wanted.
pub fn run(subjects: &Subjects, wanted: &Wanted) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    let metric = "t2_sawtooth_kicks_per_packet";
    if wanted.has(metric) {
        records.extend(pairs::measure(Tier::T2, metric, ROUNDS, |module| {
            kicks_per_packet(subjects, module)
        })?);
    }
    let metric = "t2_context_switches_per_packet";
    if wanted.has(metric) {
        records.extend(context_switches(subjects, metric)?);
    }
    let metric = "t2_migration_pause_slices";
    if wanted.has(metric) {
        let slices = longest_pause(subjects)?;
        records.push(Record::new(Tier::T2, metric.into(), &[slices]));
    }
    let metric = "t3_jain_8";
    if wanted.has(metric) {
        records.push(Record::new(Tier::T3, metric.into(), &[fairness(subjects)?]));
    }
    Ok(records)
}

/// Kicks for each packet of a driver that fills its ring again as soon as all of it was sent, which is when
/// stock vhost has gone to sleep. Ours is polled: mode auto would not, since a batch takes longer than
/// `poll_start_us` on an emulated machine. For the same reason it is not parked as soon as usual: an emulated
/// processor stands still for longer than that while its host has none for it.
fn kicks_per_packet(subjects: &Subjects, module: Module) -> Result<f64> {
    let shape = &SHAPES[0];
    let _idle = Parameter::set_time("poll_idle_us", IDLE)?;
    let mut subject = subjects.open_apart(module, shape.card(), "1")?;
    let nic = &mut subject.nic;
    let workload = Workload::new(nic, shape, Direction::Transmit)?;
    let mut kicks = 0;
    let mut packets = 0;
    let start = Instant::now();
    // The first tenth is for polling to begin.
    let mut measuring = false;
    while start.elapsed() < TIME {
        if !measuring && start.elapsed() > TIME / 10 {
            measuring = true;
            kicks = nic.transmit.kicks;
            packets = 0;
        }
        workload.time(nic)?;
        packets += shape.batch;
    }
    ensure!(packets > 0, "nothing was sent");
    Ok((nic.transmit.kicks - kicks) as f64 / packets as f64)
}

/// How often the serving thread gives up its processor for each packet of a ring that is always full. Ours
/// is polled. Stock's number is beside it for comparison; the metric is our number, since stock does not
/// sleep either as long as there is work.
fn context_switches(subjects: &Subjects, metric: &str) -> Result<[Record; 2]> {
    let shape = &SHAPES[0];
    let switches = |module| -> Result<f64> {
        let mut subject = subjects.open_apart(module, shape.card(), "1")?;
        let nic = &mut subject.nic;
        let workload = Workload::new(nic, shape, Direction::Transmit)?;
        workload.time(nic)?;
        let before = subject.thread.switches()?;
        let (start, mut packets) = (Instant::now(), 0);
        while start.elapsed() < TIME {
            packets += workload.keep_full(nic)?;
        }
        ensure!(packets > 0, "nothing was sent");
        let switches = subject.thread.switches()? - before;
        nic.reclaim_all()?;
        Ok(switches as f64 / packets as f64)
    };
    let (mut stock, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        stock.push(switches(Module::Stock)?);
        ours.push(switches(Module::Ours)?);
    }
    Ok([
        Record::new(Tier::T2, format!("{metric}_stock"), &stock),
        Record::new(Tier::T2, metric.into(), &ours),
    ])
}

/// The most slices that a virtqueue had to wait for as it moved, under two-way traffic.
fn longest_pause(subjects: &Subjects) -> Result<f64> {
    let control = Control::default();
    let workers = [control.restore()?, control.create_worker(-1)?];
    let (mut nic, device) =
        control.device_made_by(|| Nic::new(&subjects.ours, NicOptions::default()))?;
    std::thread::scope(|scope| {
        let traffic = Background::start(scope, &mut nic)?;
        let moved = (0..MOVES).try_for_each(|number| {
            control.move_device(&device, &workers[number % 2])?;
            traffic.advance(1)
        });
        traffic.conclude(moved)
    })?;
    let mut longest = 0;
    for index in [RECEIVE, TRANSMIT] {
        let status = format!("vq/{}/status", virtqueue(&device, index));
        ensure!(
            control.read_counter(&status, "moves")? > 0,
            "no move with work was counted"
        );
        longest = longest.max(control.read_counter(&status, "move_slices_max")?);
    }
    drop(nic);
    control.restore()?;
    Ok(longest as f64)
}

/// Jain's index of the time that eight equal devices get of a worker of which each wants all.
fn fairness(subjects: &Subjects) -> Result<f64> {
    let control = Control::default();
    let load = Load::new(&subjects.ours, &control, CROWD, Packets::Frames)?;
    load.begin()?;
    let served = load.measure_saturated()?;
    load.end()?;
    Ok(jain(&served.shares()))
}
