// SPDX-License-Identifier: GPL-2.0
//! Time for each packet in User Mode Linux, whose code runs on the machine's own processors (tier T5).
//!
//! Driver and serving thread have a processor each, and the serving thread is saturated. What is to be sent is put into
//! the ring by the driver as fast as there is room, so there is always something to do. Packets to receive come from
//! a system call each, which takes longer than to serve them, so they wait until a batch is complete, which is then
//! served in one go: what is timed is from the kick until the driver, which does nothing but look, sees the last packet,
//! and the batch is so long that waking up is shared by many. Kernel and user space of User Mode Linux are processes
//! of its host: a system call is no trap but a switch of processes, and guest memory is reached through its own
//! page tables, so what is far from a real kernel is entering and leaving it, and not what happens between.

use anyhow::Result;
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::statistics::median;

use crate::pairs::{self, Wanted};
use crate::record::{Record, Tier};
use crate::subject::{Module, Subjects};
use crate::workload::{Direction, Shape, Workload};

/// Batches of one measurement.
const BATCHES: u32 = 60;
/// Batches before the first that counts.
const WARM: u32 = 4;
/// How many times as long as elsewhere a batch of small packets is, and one of large ones, which take so
/// much longer that they need it less.
const LENGTHS: [usize; 2] = [8, 4];
/// Descriptors of a ring: a small packet takes two.
const RING: u16 = 1024;
/// Rounds of four measurements.
const ROUNDS: usize = 12;

/// Measures the metrics that are wanted.
pub fn run(subjects: &Subjects, wanted: &Wanted) -> Result<Vec<Record>> {
    pairs::sweep(
        Tier::T5,
        "time",
        ROUNDS,
        wanted,
        |module, direction, shape| measure(subjects, module, direction, shape),
    )
}

/// Nanoseconds for each packet or byte.
fn measure(
    subjects: &Subjects,
    module: Module,
    direction: Direction,
    shape: &Shape,
) -> Result<f64> {
    let shape = &Shape {
        batch: LENGTHS[usize::from(shape.large)] * shape.batch,
        ..*shape
    };
    let card = NicOptions {
        ring_size: RING,
        receive_chains: Some(shape.batch as u16),
        transmit_chains: Some(shape.batch as u16),
        ..shape.card()
    };
    let mut subject = subjects.open_apart(module, card, "0")?;
    let nic = &mut subject.nic;
    let workload = Workload::new(nic, shape, direction)?;
    if direction == Direction::Receive {
        workload.take_buffers(nic)?;
    }
    let mut times = Vec::new();
    for batch in 0..BATCHES + WARM {
        let time = match direction {
            Direction::Transmit => workload.time_full(nic)?,
            Direction::Receive => workload.time(nic)?.as_nanos() as f64 / shape.batch as f64,
        };
        if batch >= WARM {
            times.push(time);
        }
    }
    nic.reclaim_all()?;
    // What the machine takes from either processor for itself is not the module's.
    Ok(shape.divide(median(&times), 1.0))
}
