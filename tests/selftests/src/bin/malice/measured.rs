// SPDX-License-Identifier: GPL-2.0
//! What the neighbour of a hostile device gets of the worker that both are on, as in the suite isolation.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{bail, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::probe::Probe;
use vhost_iocm_selftests::service::Service;

use crate::hostile::Hostile;
use crate::input::Inputs;

/// How often the claim is tried.
const ATTEMPTS: u32 = 3;
/// Windows beside a device that is idle, before and after, and beside one that is not.
const IDLE_WINDOWS: usize = 5;
const WINDOWS: usize = 20;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control, seed: u64) {
    suite.measurement("a hostile guest does not harm its neighbour", move || {
        unharmed(options, control, seed)
    });
}

fn unharmed(options: &Options, control: &Control, seed: u64) -> Result<()> {
    control.side_core()?;
    let _left = cpu::leave(cpu::count()? - 1)?;
    let inputs = Inputs::new(seed)?;
    for attempt in 1.. {
        let mut neighbour = Probe::new(&options.node)?;
        let mut hostile = Hostile::new(&options.node, control)?;
        let (mut idle, mut beside) = (Service::default(), Service::default());
        let stop = AtomicBool::new(false);
        {
            let _first = cpu::run_first()?;
            idle.measure(&mut neighbour, IDLE_WINDOWS)?;
        }
        let scripts = std::thread::scope(|scope| {
            let malice = scope.spawn(|| -> Result<u64> {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    hostile.play(number, &inputs.get(number))?;
                    number += 1;
                }
                hostile.recover()?;
                Ok(number)
            });
            let measured =
                cpu::run_first().and_then(|_first| beside.measure(&mut neighbour, WINDOWS));
            stop.store(true, Ordering::Relaxed);
            let scripts = malice
                .join()
                .unwrap_or_else(|_| bail!("the hostile guest panicked"));
            measured.and(scripts)
        })?;
        {
            let _first = cpu::run_first()?;
            idle.measure(&mut neighbour, IDLE_WINDOWS)?;
        }
        diagnostic(format!(
            "beside an idle device: {idle}; beside {scripts} scripts of a hostile one: {beside}"
        ));
        match beside.compare(&idle) {
            Ok(()) => break,
            Err(error) if attempt < ATTEMPTS => diagnostic(format!("attempt {attempt}: {error}")),
            Err(error) => return Err(error),
        }
    }
    control.restore().map(drop)
}
