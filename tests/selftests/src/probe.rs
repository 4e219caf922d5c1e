// SPDX-License-Identifier: GPL-2.0
//! A device whose service is measured: round trips, and a stream as fast as it goes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

use crate::frame;
use crate::header::NetHeader;
use crate::nic::{Nic, NicOptions};
use crate::wait;
use crate::wire::PacketSocket;

/// Bytes of a request and of a response.
const MESSAGE: usize = 64;
/// Bytes of a frame of the stream.
const STREAMED: u32 = 1514;

const REQUEST_STREAM: u32 = 1;
const RESPONSE_STREAM: u32 = 2;

/// A card, and the host that answers it.
pub struct Probe {
    /// The card.
    pub nic: Nic,
    wire: PacketSocket,
    sequence: u64,
}

impl Probe {
    /// Opens the node and starts serving.
    pub fn new(node: &Path) -> Result<Self> {
        let nic = Nic::new(node, NicOptions::default())?;
        nic.touch_buffers()?;
        let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
        Ok(Self {
            nic,
            wire,
            sequence: 0,
        })
    }

    /// Sends one request from the driver to the host and its response back, and says how long that took.
    pub fn round_trip(&mut self) -> Result<Duration> {
        let request = frame::encode(REQUEST_STREAM, self.sequence, MESSAGE);
        let response = frame::encode(RESPONSE_STREAM, self.sequence, MESSAGE);
        let start = Instant::now();
        ensure!(self.nic.transmit(&request)?, "no room for a request");
        let arrived = self.wire.expect()?;
        ensure!(self.wire.send(&response)?, "no room for a response");
        let received = self.nic.receive()?;
        let elapsed = start.elapsed();
        ensure!(
            arrived == request && received.packet == response,
            "round trip {} brought something else",
            self.sequence
        );
        self.sequence += 1;
        self.nic.reclaim_all()?;
        self.nic.replenish()?;
        Ok(elapsed)
    }

    /// Makes round trips for this long, at least one, and says how long each took.
    pub fn round_trips(&mut self, time: Duration) -> Result<Vec<Duration>> {
        let end = Instant::now() + time;
        let mut trips = vec![self.round_trip()?];
        while Instant::now() < end {
            trips.push(self.round_trip()?);
        }
        Ok(trips)
    }

    /// Transmits as much as the device takes for this long, and says how many frames a second that was.
    pub fn stream(&mut self, time: Duration) -> Result<f64> {
        let frame = frame::unheard(STREAMED as usize);
        while self.nic.add_transmit(&NetHeader::default(), &frame)? {}
        self.nic.transmit.publish()?;
        // Looking when half of the ring is done lets the device go on meanwhile.
        let enough = self.nic.transmit.ring.in_flight() / 2;
        let start = Instant::now();
        let mut frames = 0;
        while start.elapsed() < time {
            if !self.nic.transmit.ring.call_after(enough)? {
                self.expect_call()?;
            }
            frames += self.nic.transmit_again(STREAMED)?;
        }
        let rate = frames as f64 / start.elapsed().as_secs_f64();
        self.nic.reclaim_all()?;
        Ok(rate)
    }

    fn expect_call(&self) -> Result<()> {
        let called = wait::readable(&[self.nic.transmit.call_fd()], wait::patience())?;
        ensure!(
            called,
            "half of the ring was not transmitted within {:?}",
            wait::patience()
        );
        self.nic.transmit.calls().map(drop)
    }
}
