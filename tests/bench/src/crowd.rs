// SPDX-License-Identifier: GPL-2.0
//! What other devices on a worker change about the instructions of a packet (tiers T1 and T3), counted as in
//! [`counts`](crate::counts). Stock vhost has a thread for each device and is not measured.

use std::os::fd::OwnedFd;

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::process::{Owner, Packets};
use vhost_iocm_selftests::thread::Thread;
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::xdp::{self, Program};

use crate::counts::{self, ROUNDS};
use crate::pairs::Wanted;
use crate::record::{Record, Tier};
use crate::subject::{Module, Subjects};
use crate::workload::{Direction, SHAPES};

/// Idle devices.
const IDLE: usize = 63;
/// Devices that all have something to transmit, always; a packet of `ALL` of them is compared with one of one.
const ACTIVE: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
const ALL: usize = 64;
/// Packets of a measurement of active devices: some slices of each.
const PACKETS: u64 = 64_000;

/// Measures the metrics that are wanted.
pub fn run(subjects: &Subjects, wanted: &Wanted) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    let metric = "t1_idle63_cost";
    if wanted.has(metric) {
        let alone = idle_beside(subjects, 0)?;
        let beside = idle_beside(subjects, IDLE)?;
        let quotients: Vec<_> = beside.iter().zip(&alone).map(|(b, a)| b / a).collect();
        records.push(Record::quotient(Tier::T1, metric.into(), &quotients));
    }
    let metric = format!("t3_cost_slope_{ALL}_active");
    let (mut one, mut all) = (Vec::new(), Vec::new());
    for devices in ACTIVE {
        let names =
            ["insns", "mm_switches"].map(|what| format!("t3_{devices}_active_{what}_per_packet"));
        let is_compared = [1, ALL].contains(&devices) && wanted.has(&metric);
        if !is_compared && !names.iter().any(|name| wanted.has(name)) {
            continue;
        }
        let costs = active(subjects, devices)?;
        for (name, costs) in names.into_iter().zip(&costs) {
            records.push(Record::new(Tier::T3, name, costs));
        }
        let [instructions, _] = costs;
        match devices {
            1 => one = instructions,
            ALL => all = instructions,
            _ => (),
        }
    }
    if wanted.has(&metric) {
        let quotients: Vec<_> = all.iter().zip(&one).map(|(all, one)| all / one).collect();
        records.push(Record::quotient(Tier::T3, metric, &quotients));
    }
    Ok(records)
}

/// Instructions of a small packet of the only device with work, beside `idle` more on its worker that are
/// polled until they are parked. It is not polled itself: for as long as a worker polls it does so whatever
/// that costs, which the suite `instructions` of the selftests tells from serving.
fn idle_beside(subjects: &Subjects, idle: usize) -> Result<Vec<f64>> {
    let shape = &SHAPES[0];
    let others = (0..idle)
        .map(|_| {
            let options = NicOptions {
                ring_size: 16,
                ..NicOptions::default()
            };
            subjects.open(Module::Ours, options, "1")
        })
        .collect::<Result<Vec<_>>>()?;
    let costs = (0..ROUNDS)
        .map(|_| counts::measure(subjects, Module::Ours, Direction::Transmit, shape, "0"))
        .collect();
    drop(others);
    costs
}

/// Instructions of the worker for each packet of so many devices, each of a process of its own, that keep
/// their rings full, and how often it takes on another process's memory.
fn active(subjects: &Subjects, devices: usize) -> Result<[Vec<f64>; 2]> {
    let control = Control::default();
    let worker = control.restore()?;
    let thread = Thread::parse(&control.read_line(&format!("worker/{worker}/pid"))?)?;
    let mut crowd: Vec<(Owner, OwnedFd)> = Vec::new();
    for number in 0..devices {
        let tap = format!("crowd{number}");
        let owner = Owner::saturate(&subjects.ours, &tap, Packets::Frames)?;
        crowd.push((owner, xdp::attach(&tap, Program::Drop)?));
    }
    let names = control.devices()?;
    ensure!(names.len() == devices, "there are other devices");
    for name in &names {
        control.set_poll_of_device(name, "0")?;
    }
    for (owner, _) in &crowd {
        owner.go_on()?;
        owner.expect_done()?;
    }
    // Devices go on while the counters of the others are read, at the end of a measurement as at its
    // beginning.
    let served = || -> Result<u64> {
        names
            .iter()
            .map(|name| control.read_counter(&format!("dev/{name}/status"), "handled_packets"))
            .sum()
    };
    let advance = |from: u64| {
        wait::until("the packets of a measurement", || {
            Ok(served()?.wrapping_sub(from) >= PACKETS)
        })
    };
    let status = format!("worker/{worker}/status");
    let look = || -> Result<(u64, u64, u64)> {
        let ran = thread.runtime()?.as_nanos() as u64;
        let switches = control.read_counter(&status, "mm_switches")?;
        Ok((served()?, ran, switches))
    };
    advance(served()?)?;
    let mut costs = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let before = look()?;
        advance(before.0)?;
        let now = look()?;
        ensure!(now.0 > before.0, "nothing was served");
        let packets = (now.0 - before.0) as f64;
        costs[0].push((now.1 - before.1) as f64 / packets);
        costs[1].push((now.2 - before.2) as f64 / packets);
    }
    for (owner, _) in crowd {
        owner.release()?;
    }
    Ok(costs)
}
