// SPDX-License-Identifier: GPL-2.0
//! Time for each packet in User Mode Linux, whose code runs on the machine's own processors (tier T5).
//!
//! A batch waits until it is complete, and is then served in one go: what is timed is from the kick until the
//! driver, which does nothing but look, sees the last packet. Driver and serving thread have a processor
//! each. Kernel and user space of User Mode Linux are processes of its host: a system call is no trap
//! but a switch of processes, and guest memory is reached through its own page tables, so what is far from
//! a real kernel is entering and leaving it, and not what happens between.

use anyhow::{ensure, Result};
use nix::unistd::Pid;
use vhost_iocm_selftests::cpu;

use crate::pairs::{self, Wanted};
use crate::record::{Record, Tier};
use crate::subject::{Module, Subjects};
use crate::workload::{Direction, Shape, Workload, SHAPES};

/// Batches of one measurement.
const BATCHES: u32 = 400;
/// Rounds of four measurements.
const ROUNDS: usize = 8;

/// Measures the metrics that are wanted.
pub fn run(subjects: &Subjects, wanted: &Wanted) -> Result<Vec<Record>> {
    ensure!(
        cpu::count()? > 1,
        "driver and serving thread need a processor each"
    );
    let mut records = Vec::new();
    for direction in Direction::ALL {
        for shape in &SHAPES {
            let metric = format!(
                "t5_{}{}_time_per_{}",
                direction.name(),
                shape.name,
                shape.per()
            );
            if wanted.has(&metric) {
                records.extend(pairs::measure(Tier::T5, &metric, ROUNDS, |module| {
                    measure(subjects, module, direction, shape)
                })?);
            }
        }
    }
    Ok(records)
}

/// Nanoseconds for each packet or byte.
fn measure(
    subjects: &Subjects,
    module: Module,
    direction: Direction,
    shape: &Shape,
) -> Result<f64> {
    let _left = cpu::leave(cpu::count()? - 1)?;
    let mut subject = subjects.open(module, shape.card(), "0")?;
    cpu::place(Pid::from_raw(subject.thread.id), &[cpu::count()? - 1])?;
    let nic = &mut subject.nic;
    let workload = Workload::new(nic, shape, direction)?;
    if direction == Direction::Receive {
        workload.take_buffers(nic)?;
    }
    for _ in 0..BATCHES / 10 {
        workload.time(nic)?;
    }
    let mut times = Vec::new();
    for _ in 0..BATCHES {
        times.push(workload.time(nic)?.as_nanos() as f64);
    }
    // What the machine takes from either processor for itself is not the module's.
    let typical = vhost_iocm_selftests::statistics::median(&times);
    Ok(shape.divide(typical, shape.batch as f64))
}
