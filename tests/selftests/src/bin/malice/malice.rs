// SPDX-License-Identifier: GPL-2.0
//! Scripts of the fuzzer, played to a device that shares its worker.

use std::ops::Range;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::options::Options;

use crate::hostile::Hostile;
use crate::input::Inputs;
use crate::neighbour::{self, Neighbour};

/// Scripts after each of which everything is checked.
const BATCH: usize = 500;

pub fn add<'a>(
    suite: &mut Suite<'a>,
    options: &'a Options,
    control: &'a Control,
    seed: u64,
    scripts: Range<u64>,
) {
    let count = scripts.end - scripts.start;
    suite.case(
        format!("{count} scripts of a hostile guest (seed {seed}) break nothing, and its neighbour loses no frame"),
        move || breaks_nothing(options, control, seed, scripts),
    );
}

fn breaks_nothing(
    options: &Options,
    control: &Control,
    seed: u64,
    scripts: Range<u64>,
) -> Result<()> {
    let worker = control.side_core()?;
    // The worker is to read what is being changed, rather than to be preempted by who changes it.
    let _left = cpu::leave(cpu::count()? - 1)?;
    let inputs = Inputs::new(seed)?;
    let neighbour = Neighbour::new(&options.node)?;
    let mut hostile = Hostile::new(&options.node, control)?;
    let on = control.read_list(&format!("worker/{worker}/dev_list"))?;
    let beside = control.device_of(neighbour::TAP)?;
    ensure!(
        on.len() == 2 && on.contains(&beside) && on.contains(&hostile.device),
        "{worker} serves {on:?}"
    );
    let started = Instant::now();
    let count = scripts.end - scripts.start;
    let mut errors = [0; 2];
    let frames = std::thread::scope(|scope| {
        let traffic = neighbour.start(scope);
        let all: Vec<u64> = scripts.collect();
        let played = all.chunks(BATCH).try_for_each(|batch| {
            let (counted, signalled) = play(&mut hostile, control, &inputs, batch)?;
            ensure!(
                counted == signalled,
                "{counted:?} errors were counted, {signalled:?} signalled"
            );
            errors = [errors[0] + counted[0], errors[1] + counted[1]];
            hostile.recover()?;
            neighbour.advance(&traffic)
        });
        let finished = neighbour.finish(traffic);
        // The neighbour's failure is likely to be the cause of the other.
        match (played, finished) {
            (Ok(()), frames) => frames,
            (Err(error), Ok(_)) => Err(error),
            (Err(error), Err(traffic)) => Err(traffic.context(format!("{error:#}"))),
        }
    })?;
    diagnostic(format!(
        "{count} scripts in {:?}, which kick {} times, {errors:?} errors of the two virtqueues, {frames} frames of the neighbour there and back",
        started.elapsed(),
        hostile.kicks
    ));
    // Fewer scripts are to play one again.
    if count as usize >= BATCH {
        ensure!(errors[0] > 0 && errors[1] > 0, "{errors:?} errors");
    }
    drop(hostile);
    neighbour.end()?;
    control.restore().map(drop)
}

/// Plays scripts, and returns the errors that were counted and those that were signalled.
fn play(
    hostile: &mut Hostile,
    control: &Control,
    inputs: &Inputs,
    numbers: &[u64],
) -> Result<([u64; 2], [u64; 2])> {
    let before = hostile.counted(control)?;
    hostile.signalled()?;
    for number in numbers {
        let script = inputs.get(*number);
        hostile
            .play(*number, &script)
            .with_context(|| format!("script {number}: {script:02x?}"))?;
    }
    hostile.stop()?;
    let after = hostile.counted(control)?;
    let signalled = hostile.signalled()?;
    Ok(([after[0] - before[0], after[1] - before[1]], signalled))
}
