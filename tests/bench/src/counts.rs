// SPDX-License-Identifier: GPL-2.0
//! Instructions for each packet, counted on an emulated machine with one processor (tier T1).
//!
//! The machine's clock advances by one nanosecond with each instruction, so the time for which the
//! serving thread ran, as the scheduler says, is the number of instructions that it executed, with
//! all that it called: this is what the two modules have in common, whatever they count themselves.
//! Neither cache misses nor the real price of an instruction are in it.

use anyhow::Result;
use vhost_iocm_selftests::cpu;

use crate::bare;
use crate::crowd;
use crate::operations;
use crate::pairs::{self, Wanted};
use crate::record::{Record, Tier};
use crate::subject::{Module, Subjects};
use crate::testpmd;
use crate::workload::{Direction, Shape, Workload};

/// Batches of one measurement.
pub const BATCHES: u32 = 40;
/// Measurements, in the order stock, ours, ours, stock; the first of each is not counted.
pub const ROUNDS: usize = 4;

/// Measures the metrics that are wanted.
pub fn run(subjects: &Subjects, wanted: &Wanted) -> Result<Vec<Record>> {
    let mut records = pairs::sweep(
        Tier::T1,
        "insns",
        ROUNDS,
        wanted,
        |module, direction, shape| measure(subjects, module, direction, shape, "0"),
    )?;
    records.extend(bare::run(wanted)?);
    records.extend(crowd::run(subjects, wanted)?);
    records.extend(operations::run(subjects, wanted)?);
    records.extend(testpmd::run(subjects, wanted)?);
    Ok(records)
}

/// Instructions of the serving thread for each packet or byte, where ours is polled as `poll` says.
pub fn measure(
    subjects: &Subjects,
    module: Module,
    direction: Direction,
    shape: &Shape,
    poll: &str,
) -> Result<f64> {
    let mut subject = subjects.open(module, shape.card(), poll)?;
    let nic = &mut subject.nic;
    let workload = Workload::new(nic, shape, direction)?;
    // A batch is complete before the serving thread sees the first of it.
    let _first = cpu::run_first()?;
    for _ in 0..2 {
        workload.serve(nic)?;
        settle();
    }
    let before = subject.thread.runtime()?;
    for _ in 0..BATCHES {
        workload.serve(nic)?;
        settle();
    }
    let ran = (subject.thread.runtime()? - before).as_nanos() as f64;
    Ok(shape.divide(ran, f64::from(BATCHES) * shape.batch as f64))
}

/// Lets the serving thread end what it does after the last packet, as it would on a processor of its
/// own.
pub fn settle() {
    std::thread::sleep(std::time::Duration::from_micros(200));
}
