// SPDX-License-Identifier: GPL-2.0
//! What the neighbour of a hostile device gets of the worker that both are on.
//!
//! Unlike a device that stalls, this one keeps its driver busy, and the drivers of both share a CPU. So what the
//! neighbour gets is compared with what it gets while the same is done to another worker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{bail, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::probe::Probe;
use vhost_iocm_selftests::service::Service;

use crate::hostile::Hostile;
use crate::input::Inputs;

/// How often the claim is tried.
const ATTEMPTS: u32 = 3;
/// Windows while the hostile device is on the other worker, before and after, and on the same one.
const APART_WINDOWS: usize = 10;
const BESIDE_WINDOWS: usize = 20;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control, seed: u64) {
    suite.measurement("a hostile guest does not harm its neighbour", move || {
        unharmed(options, control, seed)
    });
}

fn unharmed(options: &Options, control: &Control, seed: u64) -> Result<()> {
    let worker = control.side_core()?;
    let other = control.create_worker(0)?;
    let _left = cpu::leave(cpu::count()? - 1)?;
    let inputs = Inputs::new(seed)?;
    for attempt in 1.. {
        let mut neighbour = Probe::new(&options.node)?;
        let mut hostile = Hostile::new(&options.node, control)?;
        let device = hostile.device.clone();
        let served = || Counters::of_device(control, &device)?.get("served_ns");
        let stop = AtomicBool::new(false);
        let (mut apart, mut beside) = (Service::default(), Service::default());
        let mut measure = || -> Result<f64> {
            let _first = cpu::run_first()?;
            control.move_device(&device, &other)?;
            apart.measure(&mut neighbour, APART_WINDOWS)?;
            control.move_device(&device, &worker)?;
            let (start, before) = (Instant::now(), served()?);
            beside.measure(&mut neighbour, BESIDE_WINDOWS)?;
            let used = (served()? - before) as f64 / start.elapsed().as_nanos() as f64;
            control.move_device(&device, &other)?;
            apart.measure(&mut neighbour, APART_WINDOWS)?;
            Ok(used)
        };
        let (scripts, used) = std::thread::scope(|scope| {
            let malice = scope.spawn(|| -> Result<u64> {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    hostile.play(number, &inputs.get(number))?;
                    number += 1;
                }
                hostile.recover()?;
                Ok(number)
            });
            let used = measure();
            stop.store(true, Ordering::Relaxed);
            let scripts = malice
                .join()
                .unwrap_or_else(|_| bail!("the hostile guest panicked"));
            Ok::<_, anyhow::Error>((scripts?, used?))
        })?;
        diagnostic(format!(
            "{scripts} scripts of a hostile device; beside it: {beside}, while it used {:.1} % of the worker; while it was on another worker: {apart}",
            used * 100.0
        ));
        match beside.compare(&apart) {
            Ok(()) => break,
            Err(error) if attempt < ATTEMPTS => diagnostic(format!("attempt {attempt}: {error}")),
            Err(error) => return Err(error),
        }
    }
    control.restore().map(drop)
}
