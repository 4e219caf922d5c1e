// SPDX-License-Identifier: GPL-2.0
//! The packets that are measured, and the driver that sends or receives batches of them.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use vhost_iocm_selftests::header::NetHeader;
use vhost_iocm_selftests::nic::{Nic, NicOptions, Queue};
use vhost_iocm_selftests::tap::TapOptions;
use vhost_iocm_selftests::wire::PacketSocket;
use vhost_iocm_selftests::xdp::{self, Program};
use vhost_iocm_selftests::{segment, wait};

/// Room for the packets that wait in the tap, in bytes.
pub const SEND_BUFFER: usize = 32 << 20;

/// What the packets are like.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Its part of a metric's name.
    pub name: &'static str,
    /// Bytes of a frame.
    pub length: usize,
    /// Frames of one batch.
    pub batch: usize,
    /// Whether a frame has many segments. Then the cost of a byte counts, not of a packet.
    pub large: bool,
}

/// All shapes.
pub const SHAPES: [Shape; 3] = [
    Shape {
        name: "64",
        length: 64,
        batch: 64,
        large: false,
    },
    Shape {
        name: "1500",
        length: 1514,
        batch: 64,
        large: false,
    },
    Shape {
        name: "64k",
        length: 65226,
        batch: 8,
        large: true,
    },
];

/// Which way packets go, as the guest says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the driver.
    Transmit,
    /// To the driver.
    Receive,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Transmit, Self::Receive];

    /// Its part of a metric's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transmit => "tx",
            Self::Receive => "rx",
        }
    }
}

impl Shape {
    /// What a cost is told of.
    pub fn per(&self) -> &'static str {
        if self.large {
            "byte"
        } else {
            "packet"
        }
    }

    /// The part of what `packets` cost together that one of them, or one byte, does.
    pub fn divide(&self, cost: f64, packets: f64) -> f64 {
        let cost = cost / packets;
        if self.large {
            cost / self.length as f64
        } else {
            cost
        }
    }

    /// A card whose buffers these packets fit into.
    pub fn card(&self) -> NicOptions {
        let length = if self.large { 1 << 16 } else { 2048 };
        NicOptions {
            regions_filled: true,
            transmit_length: length,
            receive_length: length,
            tap: TapOptions {
                offload: self.large,
                ..TapOptions::default()
            },
            ..NicOptions::default()
        }
    }
}

/// Packets of one shape on their way through a card.
pub struct Workload<'a> {
    direction: Direction,
    shape: &'a Shape,
    packet: Vec<u8>,
    header: NetHeader,
    wire: PacketSocket,
    _drop: Option<OwnedFd>,
}

impl<'a> Workload<'a> {
    /// Prepares the card, which was made for this shape.
    pub fn new(nic: &Nic, shape: &'a Shape, direction: Direction) -> Result<Self> {
        // A page that is missing is another matter: the modules bring it in at different expense.
        nic.touch_buffers()?;
        let interface = nic.tap.name();
        let large = shape.large;
        let wire = if large {
            PacketSocket::with_header(interface, 0)?
        } else {
            PacketSocket::new(interface, 0)?
        };
        setsockopt(&wire, sockopt::SndBufForce, &SEND_BUFFER).context("SO_SNDBUFFORCE")?;
        let (header, packet) = segment::unheard(shape.length);
        Ok(Self {
            direction,
            shape,
            packet,
            header,
            // Large packets would be copied once more for it.
            _drop: (direction == Direction::Transmit && !large)
                .then(|| xdp::attach(interface, Program::Drop))
                .transpose()?,
            wire,
        })
    }

    /// Takes all receive buffers from the device, by filling them. From then on a batch of received packets
    /// waits in the tap until the buffers for it come.
    pub fn take_buffers(&self, nic: &mut Nic) -> Result<()> {
        while nic.receive.ring.in_flight() > 0 {
            ensure!(self.send()?, "the wire is full");
            self.take_received(nic, 1)?;
        }
        Ok(())
    }

    /// Lets the device serve one batch, complete before it sees the first packet.
    pub fn serve(&self, nic: &mut Nic) -> Result<()> {
        match self.direction {
            Direction::Transmit => {
                self.fill_transmit(nic)?;
                nic.transmit.publish()?;
                nic.reclaim_all()
            }
            Direction::Receive => {
                for _ in 0..self.shape.batch {
                    ensure!(self.send()?, "the wire is full");
                }
                self.take_received(nic, self.shape.batch)?;
                nic.replenish()
            }
        }
    }

    /// Lets the device, which waits for what the driver does next, serve one batch, and returns how long
    /// that took from the kick until the driver sees the last packet.
    pub fn time(&self, nic: &mut Nic) -> Result<Duration> {
        match self.direction {
            Direction::Transmit => {
                self.fill_transmit(nic)?;
                let took = self.time_queue(&mut nic.transmit)?;
                nic.reclaim_all()?;
                Ok(took)
            }
            Direction::Receive => {
                for _ in 0..self.shape.batch {
                    ensure!(self.send()?, "the wire is full");
                }
                nic.fill_receive(self.shape.batch)?;
                let took = self.time_queue(&mut nic.receive)?;
                self.take_received(nic, self.shape.batch)?;
                Ok(took)
            }
        }
    }

    /// Shows the device the batch that was added to a ring, and looks until all of it was used.
    fn time_queue(&self, queue: &mut Queue) -> Result<Duration> {
        let (shown, start) = (queue.ring.published(), Instant::now());
        queue.publish()?;
        let goal = shown.wrapping_add(self.shape.batch as u16);
        while queue.ring.used_index()? != goal {
            std::hint::spin_loop();
        }
        Ok(start.elapsed())
    }

    /// Adds a batch to the transmit ring, which the device does not see yet.
    pub fn fill_transmit(&self, nic: &mut Nic) -> Result<()> {
        for _ in 0..self.shape.batch {
            ensure!(
                nic.add_transmit(&self.header, &self.packet)?,
                "no room in the ring"
            );
        }
        Ok(())
    }

    /// Keeps the transmit ring full until a batch of packets was sent, and returns how long one packet of these
    /// took, in nanoseconds.
    pub fn time_full(&self, nic: &mut Nic) -> Result<f64> {
        let (start, mut packets) = (Instant::now(), 0);
        while packets < self.shape.batch {
            packets += self.keep_full(nic)?;
        }
        Ok(start.elapsed().as_nanos() as f64 / packets as f64)
    }

    /// Takes back what was sent and sends as much again, up to a full ring; returns the number of packets.
    pub fn keep_full(&self, nic: &mut Nic) -> Result<usize> {
        let mut packets = 0;
        nic.reclaim()?;
        while nic.add_transmit(&self.header, &self.packet)? {
            packets += 1;
        }
        nic.transmit.publish()?;
        Ok(packets)
    }

    fn send(&self) -> Result<bool> {
        if self.shape.large {
            self.wire.send_with(&self.header, &self.packet)
        } else {
            self.wire.send(&self.packet)
        }
    }

    fn take_received(&self, nic: &mut Nic, packets: usize) -> Result<()> {
        let mut received = 0;
        wait::until("the packets of a batch", || {
            while let Some(packet) = nic.take_received()? {
                ensure!(packet.packet.len() == self.shape.length, "a packet was cut");
                received += 1;
            }
            Ok(received >= packets)
        })
    }
}
