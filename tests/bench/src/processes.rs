// SPDX-License-Identifier: GPL-2.0
//! Time for each packet of several devices, each of a process of its own, in User Mode Linux (tier T5).
//!
//! All devices are given a batch before any of their serving threads sees it, and one after the other kicks. What
//! counts is how long it takes from then until the last process knows that its batch was served. The serving
//! threads have a processor for themselves, that of each device with vhost_net, and the one worker with
//! vhost_iocm; so what is counted beside serving is what going from one device, and its process's memory, to the
//! next takes.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use vhost_iocm_selftests::process::Owner;
use vhost_iocm_selftests::statistics::median;
use vhost_iocm_selftests::thread::Thread;
use vhost_iocm_selftests::wire::PacketSocket;
use vhost_iocm_selftests::xdp::{self, Program};
use vhost_iocm_selftests::{cpu, segment};

use crate::pairs::{self, Wanted};
use crate::record::{Record, Tier};
use crate::subject::{Module, Subjects};
use crate::workload::{Direction, Shape, SEND_BUFFER, SHAPES};

/// Devices, and processes.
const DEVICES: [usize; 5] = [2, 4, 8, 16, 32];
/// Packets of a batch of one device, as many as wait in a tap that is received from, and of large ones.
const PACKETS: [usize; 2] = [512, 32];
/// Devices whose batches have so many. More of them share what these have, so that a measurement does not take longer.
const FULL: usize = 8;
/// Batches of each device in one measurement.
const BATCHES: usize = 9;
/// Rounds of four measurements.
const ROUNDS: usize = 6;

/// Measures the metrics that are wanted, and tells each as soon as it is known: all of them take long.
pub fn run(
    subjects: &Subjects,
    wanted: &Wanted,
    mut tell: impl FnMut(&[Record]) -> Result<()>,
) -> Result<()> {
    for direction in Direction::ALL {
        for shape in &SHAPES {
            for devices in DEVICES {
                let metric = format!(
                    "t5_{devices}_devices_{}{}_time_per_{}",
                    direction.name(),
                    shape.name,
                    shape.per()
                );
                if !wanted.has(&metric) {
                    continue;
                }
                let crowd = |module| Crowd::new(subjects, module, direction, shape, devices);
                let (stock, ours) = (crowd(Module::Stock)?, crowd(Module::Ours)?);
                let cost = |module| match module {
                    Module::Stock => stock.measure(),
                    Module::Ours => ours.measure(),
                };
                tell(&pairs::measure(Tier::T5, &metric, ROUNDS, cost)?)?;
                stock.release()?;
                ours.release()?;
            }
        }
    }
    Ok(())
}

/// A device with its process and the other side of its tap.
struct Device {
    owner: Owner,
    wire: PacketSocket,
    _drop: Option<OwnedFd>,
}

/// Devices of one module.
struct Crowd<'a> {
    direction: Direction,
    shape: &'a Shape,
    /// Of the batch of one device.
    packets: u16,
    devices: Vec<Device>,
}

impl<'a> Crowd<'a> {
    fn new(
        subjects: &Subjects,
        module: Module,
        direction: Direction,
        shape: &'a Shape,
        devices: usize,
    ) -> Result<Self> {
        let last = cpu::count()? - 1;
        ensure!(last > 0, "drivers and serving threads need a CPU each");
        // The processes inherit it.
        let _left = cpu::leave(last)?;
        let mut crowd = Self {
            direction,
            shape,
            packets: (PACKETS[usize::from(shape.large)] * FULL / devices.max(FULL)) as u16,
            devices: Vec::new(),
        };
        let mut threads: Vec<Thread> = Vec::new();
        for number in 0..devices {
            let tap = match module {
                Module::Stock => format!("stock{number}"),
                Module::Ours => format!("ours{number}"),
            };
            let receive = direction == Direction::Receive;
            let packets = crowd.packets;
            let owner =
                Owner::batches(subjects.node(module), &tap, packets, shape.length, receive)?;
            let serving = subjects.thread(module, owner.pid(), &tap, "0")?;
            if !threads.contains(&serving) {
                cpu::place(Pid::from_raw(serving.id), &[last])?;
                threads.push(serving);
            }
            let wire = PacketSocket::with_header(&tap, 0)?;
            setsockopt(&wire, sockopt::SndBufForce, &SEND_BUFFER).context("SO_SNDBUFFORCE")?;
            let drop = (direction == Direction::Transmit && !shape.large)
                .then(|| xdp::attach(&tap, Program::Drop))
                .transpose()?;
            crowd.devices.push(Device {
                owner,
                wire,
                _drop: drop,
            });
        }
        let expected = match module {
            Module::Stock => devices,
            Module::Ours => 1,
        };
        ensure!(
            threads.len() == expected,
            "{} threads serve {devices} devices",
            threads.len()
        );
        if direction == Direction::Receive {
            crowd.send()?;
            crowd.go_on()?;
        }
        // What is made at first use is not measured.
        crowd.batch()?;
        Ok(crowd)
    }

    /// Nanoseconds for each packet or byte.
    fn measure(&self) -> Result<f64> {
        let mut costs = Vec::new();
        for _ in 0..BATCHES {
            costs.push(self.batch()?.as_nanos() as f64);
        }
        let packets = self.devices.len() * usize::from(self.packets);
        Ok(self.shape.divide(median(&costs), packets as f64))
    }

    /// How long it takes to serve a batch of each device.
    fn batch(&self) -> Result<Duration> {
        if self.direction == Direction::Receive {
            self.send()?;
        }
        // All put their batches up.
        self.go_on()?;
        let start = Instant::now();
        self.go_on()?;
        Ok(start.elapsed())
    }

    /// Tells all processes to go on, and waits until all have done so.
    fn go_on(&self) -> Result<()> {
        for device in &self.devices {
            device.owner.go_on()?;
        }
        self.devices
            .iter()
            .try_for_each(|device| device.owner.expect_done())
    }

    /// A batch for each device, which waits in its tap.
    fn send(&self) -> Result<()> {
        let (header, packet) = segment::unheard(self.shape.length);
        for device in &self.devices {
            for _ in 0..self.packets {
                let is_sent = device.wire.send_with(&header, &packet)?;
                ensure!(is_sent, "the wire is full");
            }
        }
        Ok(())
    }

    fn release(self) -> Result<()> {
        self.devices
            .into_iter()
            .try_for_each(|device| device.owner.release())
    }
}
