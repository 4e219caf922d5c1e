// SPDX-License-Identifier: GPL-2.0
//! A load that comes and goes.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::diagnostic;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::{Owner, Packets};
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};
use vhost_iocm_selftests::wait;

use crate::running::{affinity, io_cores, restored, server_of, Monitor};

/// Devices whose guests notify of each packet, when the load is full.
const BUSY: usize = 2;
/// For how long an idle host is watched.
const IDLE: Duration = Duration::from_secs(2);
/// The time between two little exchanges of frames on a host that is to be idle: an emulated one has to be
/// idle as well.
const REST: Duration = Duration::from_millis(500);

pub fn follow(options: &Options) -> Result<()> {
    let control = Control::default();
    control.restore()?;
    let last = cpu::count()? - 1;
    ensure!(last > 0, "this takes two CPUs");
    let before = affinity(std::process::id())?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let mut owners = Vec::new();
    let mut devices = Vec::new();
    for number in 0..BUSY {
        let tap = format!("busy{number}");
        owners.push(Owner::saturate(&options.node, &tap, Packets::SingleFrames)?);
        devices.push(control.device_of(&tap)?);
    }
    // Two CPUs, on which the drivers run as well, have no load for which a whole core is worth it. So a
    // guest's notification is said to cost it ten milliseconds, of which a worker saves all however
    // slow this kernel is, and neither ages count nor how busy the worker would be.
    let mut monitor = Monitor::start(&format!(
        "interval_ms = 20\n\
         [limits]\ncores_max = 1\ncpus = [{last}]\n\
         [policy.cores]\nage_us = 1000000\nutilisation = 100.0\n\
         [policy.cores.assumptions]\nnotification_ns = 10000000\npoll_rate = 0\n"
    ))?;
    let log = monitor.log.clone();
    monitor.until("the monitor to watch", || {
        Ok(fs::read_to_string(&log)?.contains("the monitor watches"))
    })?;
    let idle = Instant::now();
    while idle.elapsed() < IDLE {
        Traffic::new(&mut nic, Direction::Both)?.run(2)?;
        ensure!(
            io_cores(&control)?.is_empty(),
            "an idle host has a side core: {}",
            monitor.log()
        );
        std::thread::sleep(REST);
    }

    let frames = std::thread::scope(|scope| -> Result<(u64, u64)> {
        let traffic = Background::start(scope, &mut nic)?;
        let result = (|| {
            traffic.advance(2)?;
            for owner in &owners {
                owner.go_on()?;
                owner.expect_done()?;
            }
            monitor.until("a side core for the load", || {
                Ok(io_cores(&control)? == [last])
            })?;
            monitor.until("the busy devices to be served there", || {
                for device in &devices {
                    let Some(worker) = server_of(&control, device)? else {
                        return Ok(false);
                    };
                    if control.read_line(&format!("worker/{worker}/cpu"))? != last.to_string() {
                        return Ok(false);
                    }
                }
                Ok(true)
            })?;
            for owner in &owners {
                ensure!(
                    !affinity(owner.pid())?.is_set(last)?,
                    "a guest may run on the side core"
                );
            }
            traffic.advance(20)
        })();
        traffic.conclude(result)
    })?;
    for owner in owners {
        owner.kill()?;
    }
    diagnostic(format!("{frames:?} frames while the side core came"));
    // Little traffic goes on while the core is given back, and none of that is lost either.
    let end = Instant::now() + wait::patience();
    while !io_cores(&control)?.is_empty() {
        ensure!(
            Instant::now() < end,
            "the side core is not given back: {}",
            monitor.log()
        );
        Traffic::new(&mut nic, Direction::Both)?.run(2)?;
        std::thread::sleep(REST);
    }
    monitor.until("this process to be where it was", || {
        Ok(affinity(std::process::id())? == before)
    })?;
    Traffic::new(&mut nic, Direction::Both)?.run(50)?;
    let log = monitor.log();
    for (what, word) in [("taken", "keep CPU"), ("given back", "give the CPU of")] {
        let line = log.lines().find(|line| line.contains(word));
        let line = line.with_context(|| format!("the log does not say that a core was {what}"))?;
        ensure!(line.contains("reason="), "no reason: {line}");
        diagnostic(line);
    }
    drop(monitor);
    drop(nic);
    restored(&control)
}
