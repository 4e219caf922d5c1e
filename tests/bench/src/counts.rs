// SPDX-License-Identifier: GPL-2.0
//! Instructions for each packet, counted on an emulated machine with one processor.
//!
//! The machine's clock advances by one nanosecond with each instruction, so the time for which the
//! serving thread ran, as the scheduler says, is the number of instructions that it executed, with
//! all that it called: this is what the two modules have in common, whatever they count themselves.
//! Neither cache misses nor the real price of an instruction are in it.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::header::NetHeader;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::tap::TapOptions;
use vhost_iocm_selftests::wire::PacketSocket;
use vhost_iocm_selftests::{frame, segment, wait};

use crate::drop_all;
use crate::record::Record;
use crate::subject::{Module, Subjects};

/// Batches of one measurement.
const BATCHES: u32 = 40;
/// Measurements, in the order stock, ours, ours, stock; the first of each is not counted.
const ROUNDS: usize = 4;
/// Bytes of a segment of a large packet.
const SEGMENT: u16 = 1448;

/// What the packets are like.
struct Shape {
    name: &'static str,
    /// Bytes of a frame.
    length: usize,
    /// Frames of one batch.
    batch: usize,
    /// Whether a frame has many segments.
    large: bool,
    /// Whether the cost of a byte counts, or of a packet.
    per_byte: bool,
}

const SHAPES: [Shape; 3] = [
    Shape {
        name: "64",
        length: 64,
        batch: 64,
        large: false,
        per_byte: false,
    },
    Shape {
        name: "1500",
        length: 1514,
        batch: 64,
        large: false,
        per_byte: false,
    },
    Shape {
        name: "64k",
        length: 65226,
        batch: 8,
        large: true,
        per_byte: true,
    },
];

#[derive(Clone, Copy)]
enum Direction {
    Transmit,
    Receive,
}

/// Measures the metrics whose names contain one of `wanted`, or all.
pub fn run(subjects: &Subjects, wanted: &[String]) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for direction in [Direction::Transmit, Direction::Receive] {
        for shape in &SHAPES {
            let way = match direction {
                Direction::Transmit => "tx",
                Direction::Receive => "rx",
            };
            let per = if shape.per_byte { "byte" } else { "packet" };
            let metric = format!("t1_{way}{}_insns_per_{per}", shape.name);
            if wanted.is_empty() || wanted.iter().any(|wanted| metric.contains(wanted)) {
                records.extend(measure_pairs(subjects, direction, shape, metric)?);
            }
        }
    }
    Ok(records)
}

fn measure_pairs(
    subjects: &Subjects,
    direction: Direction,
    shape: &Shape,
    metric: String,
) -> Result<[Record; 3]> {
    let (mut stock, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for module in [Module::Stock, Module::Ours, Module::Ours, Module::Stock] {
            let cost = measure(subjects, module, direction, shape)?;
            match module {
                Module::Stock => stock.push(cost),
                Module::Ours => ours.push(cost),
            }
        }
    }
    let (stock, ours) = (&stock[1..], &ours[1..]);
    let pairs: Vec<_> = ours
        .iter()
        .zip(stock)
        .map(|(ours, stock)| ours / stock)
        .collect();
    let same: Vec<_> = stock.windows(2).map(|pair| pair[1] / pair[0]).collect();
    Ok([
        Record::count(format!("{metric}_stock"), stock),
        Record::count(format!("{metric}_ours"), ours),
        Record::ratio(metric, &pairs, &same),
    ])
}

/// Instructions of the serving thread for each packet or byte.
fn measure(
    subjects: &Subjects,
    module: Module,
    direction: Direction,
    shape: &Shape,
) -> Result<f64> {
    let options = NicOptions {
        regions_filled: true,
        transmit_length: 1 << 16,
        receive_length: if shape.large { 1 << 16 } else { 2048 },
        tap: TapOptions {
            offload: shape.large,
            ..TapOptions::default()
        },
        ..NicOptions::default()
    };
    let mut subject = subjects.open(module, options)?;
    let nic = &mut subject.nic;
    // A page that is missing is another matter: the modules bring it in at different expense.
    nic.touch_buffers()?;
    let interface = nic.tap.name().to_owned();
    // Large packets would be copied once more for it.
    let _drop = (matches!(direction, Direction::Transmit) && !shape.large)
        .then(|| drop_all::attach(&interface))
        .transpose()?;
    let wire = if shape.large {
        PacketSocket::with_header(&interface, 0)?
    } else {
        PacketSocket::new(&interface, 0)?
    };
    let packet = if shape.large {
        segment::encode(0, shape.length)
    } else {
        frame::unheard(shape.length)
    };
    let header = if shape.large {
        segment::segmentation_header(SEGMENT)
    } else {
        NetHeader::default()
    };
    // A batch is complete before the serving thread sees the first of it.
    let _first = cpu::run_first()?;
    let batch = |nic: &mut Nic| -> Result<()> {
        match direction {
            Direction::Transmit => transmit(nic, &header, &packet, shape.batch),
            Direction::Receive => receive(nic, &wire, &header, &packet, shape),
        }
    };
    for _ in 0..2 {
        batch(nic)?;
    }
    let before = subject.thread.runtime()?;
    for _ in 0..BATCHES {
        batch(nic)?;
    }
    let ran = (subject.thread.runtime()? - before).as_nanos() as f64;
    let packets = f64::from(BATCHES) * shape.batch as f64;
    Ok(if shape.per_byte {
        ran / packets / shape.length as f64
    } else {
        ran / packets
    })
}

fn transmit(nic: &mut Nic, header: &NetHeader, packet: &[u8], count: usize) -> Result<()> {
    for _ in 0..count {
        ensure!(nic.add_transmit(header, packet)?, "no room in the ring");
    }
    nic.transmit.publish()?;
    nic.reclaim_all()?;
    settle();
    Ok(())
}

fn receive(
    nic: &mut Nic,
    wire: &PacketSocket,
    header: &NetHeader,
    packet: &[u8],
    shape: &Shape,
) -> Result<()> {
    for _ in 0..shape.batch {
        let sent = if shape.large {
            wire.send_with(header, packet)?
        } else {
            wire.send(packet)?
        };
        ensure!(sent, "the wire is full");
    }
    let mut received = 0;
    wait::until("the packets of a batch", || {
        while let Some(packet) = nic.take_received()? {
            ensure!(packet.packet.len() == shape.length, "a packet was cut");
            received += 1;
        }
        Ok(received >= shape.batch)
    })?;
    nic.replenish()?;
    settle();
    Ok(())
}

/// Lets the serving thread end what it does after the last packet, as it would on a processor of its
/// own.
fn settle() {
    std::thread::sleep(std::time::Duration::from_micros(200));
}
