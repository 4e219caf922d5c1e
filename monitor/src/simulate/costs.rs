// SPDX-License-Identifier: GPL-2.0

//! What things cost. Nobody knows exactly, and machines differ: so each cost is a range, and what is
//! claimed has to hold over all of it.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

/// A cost and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// What costs, with its unit.
    pub name: &'static str,
    /// The smallest and the largest value. Between them the logarithm is spread evenly.
    pub bounds: [f64; 2],
    /// Where that is known from.
    pub source: &'static str,
}

/// The ranges of all costs, in the order of the fields of [`Costs`].
pub const RANGES: [Range; 9] = [
    Range {
        name: "packet_ns",
        bounds: [200.0, 1100.0],
        source: "560 to 3,300 cycles for a packet in published vhost_net measurements, at 3 GHz",
    },
    Range {
        name: "kilobyte_ns",
        bounds: [30.0, 150.0],
        source: "copies of 7 to 33 GB/s",
    },
    Range {
        name: "slice_ns",
        bounds: [150.0, 800.0],
        source: "a change of the address space, a turn of the loop and a signal",
    },
    Range {
        name: "look_ns",
        bounds: [30.0, 200.0],
        source: "a look at a polled virtqueue: one or two cache misses",
    },
    Range {
        name: "exit_ns",
        bounds: [850.0, 2200.0],
        source: "2,565 cycles for an exit handled in the kernel, 6,732 in user space, at 3 GHz",
    },
    Range {
        name: "wake_latency_ns",
        bounds: [3000.0, 20_000.0],
        source: "3 to 20 us for a wake-up on another core",
    },
    Range {
        name: "wake_work_ns",
        bounds: [1000.0, 4000.0],
        source: "the CPU time of a wake-up and two context switches",
    },
    Range {
        name: "interrupt_ns",
        bounds: [300.0, 2000.0],
        source: "an interrupt in the guest, posted or not",
    },
    Range {
        name: "handover_ns",
        bounds: [5000.0, 20_000_000.0],
        source: "5 us for a parked worker, tens of milliseconds for a worker that is created",
    },
];

/// One choice of costs, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Costs {
    /// Moving a packet, whatever its size.
    pub packet: f64,
    /// Moving 1,024 bytes.
    pub kilobyte: f64,
    /// Beginning and ending a slice on a worker or at home.
    pub slice: f64,
    /// Looking at a polled virtqueue.
    pub look: f64,
    /// A notification, of the guest's CPU.
    pub exit: f64,
    /// From waking a thread until it runs.
    pub wake_latency: f64,
    /// Putting a thread to sleep and waking it, of the CPU where it runs.
    pub wake_work: f64,
    /// An interrupt, of the guest's CPU.
    pub interrupt: f64,
    /// Taking a core from guests until a worker runs on it, and giving it back.
    pub handover: f64,
}

impl Costs {
    /// The costs at a point of the unit cube.
    pub fn at(point: &[f64; RANGES.len()]) -> Self {
        let mut value = [0.0; RANGES.len()];
        for ((value, range), share) in value.iter_mut().zip(&RANGES).zip(point) {
            let [low, high] = range.bounds;
            *value = low * (high / low).powf(*share);
        }
        let [packet, kilobyte, slice, look, exit, wake_latency, wake_work, interrupt, handover] =
            value;
        Self {
            packet,
            kilobyte,
            slice,
            look,
            exit,
            wake_latency,
            wake_work,
            interrupt,
            handover,
        }
    }

    /// The middle of all ranges.
    pub fn middle() -> Self {
        Self::at(&[0.5; RANGES.len()])
    }

    /// `count` choices that cover the ranges: the middle if there is one only; otherwise all costs
    /// at their smallest, all at their largest, and for the rest a Latin hypercube (McKay, Beckman
    /// and Conover, 1979), in which each cost takes each of its strata once.
    pub fn sweep(count: usize, seed: u64) -> Vec<Self> {
        if count < 2 {
            return vec![Self::middle(); count];
        }
        let mut random = StdRng::seed_from_u64(seed);
        let strata = count - 2;
        let mut points = vec![[0.0; RANGES.len()]; strata];
        for cost in 0..RANGES.len() {
            let mut order: Vec<usize> = (0..strata).collect();
            order.shuffle(&mut random);
            for (point, stratum) in points.iter_mut().zip(order) {
                point[cost] = (stratum as f64 + random.random::<f64>()) / strata as f64;
            }
        }
        let corners = [[0.0; RANGES.len()], [1.0; RANGES.len()]];
        corners.iter().chain(&points).map(Self::at).collect()
    }

    /// The time to move a packet.
    pub fn service(&self, bytes: u32) -> u64 {
        (self.packet + self.kilobyte * f64::from(bytes) / 1024.0).round() as u64
    }
}
