// SPDX-License-Identifier: GPL-2.0
//! Numbered frames between a network card and the host's side of its tap, both ways.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{bail, ensure, Context, Result};

use crate::frame::{self, Account, Numbered};
use crate::header::NetHeader;
use crate::nic::{borrow, Nic};
use crate::wait;
use crate::wire::PacketSocket;

/// Most frames on their way in one direction.
///
/// A tap queues 500 packets before it drops, and so many more than this fit the packet socket, that a
/// frame that does not arrive was lost by what is being tested and by nothing else.
pub const WINDOW: u64 = 128;

/// Which ways frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the driver to the host.
    Transmit,
    /// From the host to the driver.
    Receive,
    /// Both at once.
    Both,
}

/// The frames of one direction.
#[derive(Debug, Default)]
pub struct Stream {
    /// Frames sent.
    pub sent: u64,
    /// Bytes of the frames sent.
    pub sent_bytes: u64,
    /// What arrived.
    pub account: Account,
}

impl Stream {
    fn in_flight(&self) -> u64 {
        self.account.lost(self.sent)
    }

    fn note_sent(&mut self, frame: &[u8]) {
        self.sent += 1;
        self.sent_bytes += frame.len() as u64;
    }

    fn note(&mut self, stream: u32, frame: &[u8]) -> Result<()> {
        let Numbered {
            stream: arrived,
            sequence,
            ..
        } = frame::decode(frame)?;
        ensure!(
            arrived == stream,
            "frame of stream {arrived} arrived in stream {stream}"
        );
        self.account.note(sequence);
        Ok(())
    }
}

/// Traffic over one network card. It can be run several times; the numbers go on.
pub struct Traffic<'a, L = fn(u64) -> usize> {
    nic: &'a mut Nic,
    wire: PacketSocket,
    directions: Direction,
    window: u64,
    length: L,
    /// How many frames each direction may have sent in all.
    goals: (u64, u64),
    /// Frames from the driver to the host.
    pub transmit: Stream,
    /// Frames from the host to the driver.
    pub receive: Stream,
}

/// Stream numbers, so that a frame that was reflected into the other direction shows.
const TRANSMIT_STREAM: u32 = 1;
const RECEIVE_STREAM: u32 = 2;

/// A mix of frame lengths: small, odd, and full.
pub fn mixed_length(sequence: u64) -> usize {
    const LENGTHS: [usize; 8] = [60, 61, 1514, 128, 257, 1000, 1513, 64];
    LENGTHS[(sequence % LENGTHS.len() as u64) as usize]
}

impl<'a> Traffic<'a> {
    /// Traffic of frames of [`mixed_length`].
    pub fn new(nic: &'a mut Nic, directions: Direction) -> Result<Self> {
        Self::with_lengths(nic, directions, mixed_length as fn(u64) -> usize)
    }
}

impl<'a, L: Fn(u64) -> usize> Traffic<'a, L> {
    /// Traffic of frames whose length follows from their number.
    pub fn with_lengths(nic: &'a mut Nic, directions: Direction, length: L) -> Result<Self> {
        let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
        Ok(Self::over(nic, wire, directions, length))
    }

    /// The same with a wire that ends elsewhere than at the card's own tap.
    pub fn over(nic: &'a mut Nic, wire: PacketSocket, directions: Direction, length: L) -> Self {
        Self {
            nic,
            wire,
            directions,
            window: WINDOW,
            length,
            goals: (0, 0),
            transmit: Stream::default(),
            receive: Stream::default(),
        }
    }

    /// Sends this many frames in each direction and expects them all.
    pub fn run(&mut self, frames: u64) -> Result<()> {
        self.goals = (self.transmit.sent + frames, self.receive.sent + frames);
        self.drive(|traffic| {
            (traffic.sends(Direction::Transmit) && traffic.transmit.sent < traffic.goals.0)
                || (traffic.sends(Direction::Receive) && traffic.receive.sent < traffic.goals.1)
        })
    }

    fn sends(&self, direction: Direction) -> bool {
        self.directions == Direction::Both || self.directions == direction
    }

    /// Sends frames for as long as the condition says so, and expects them all.
    ///
    /// # Errors
    ///
    /// Fails when a frame is lost, duplicated, reordered or damaged, or when nothing moves.
    pub fn run_while(&mut self, more: impl FnMut(&Self) -> bool) -> Result<()> {
        self.goals = (u64::MAX, u64::MAX);
        self.drive(more)
    }

    fn drive(&mut self, mut more: impl FnMut(&Self) -> bool) -> Result<()> {
        loop {
            let sending = more(self);
            let mut moved = false;
            if sending {
                moved |= self.send_transmit()?;
                moved |= self.send_receive()?;
            }
            moved |= self.take_transmitted()?;
            moved |= self.take_received()?;
            if !sending && self.is_drained() {
                break;
            }
            if !moved {
                self.wait().with_context(|| self.describe())?;
            }
        }
        self.nic.reclaim_all()?;
        // A frame that comes twice comes right after the last one, if ever: look once more.
        self.take_transmitted()?;
        self.take_received()?;
        let drops = self.wire.drops()?;
        ensure!(
            drops == 0,
            "the packet socket had no room for {drops} frames"
        );
        self.transmit
            .account
            .expect_all(self.transmit.sent)
            .context("driver to host")?;
        self.receive
            .account
            .expect_all(self.receive.sent)
            .context("host to driver")
    }

    fn is_drained(&self) -> bool {
        self.transmit.in_flight() == 0 && self.receive.in_flight() == 0
    }

    fn send_transmit(&mut self) -> Result<bool> {
        let before = self.transmit.sent;
        while self.sends(Direction::Transmit)
            && self.transmit.sent < self.goals.0
            && self.transmit.in_flight() < self.window
        {
            let sequence = self.transmit.sent;
            let frame = frame::encode(TRANSMIT_STREAM, sequence, (self.length)(sequence));
            if !self.nic.add_transmit(&NetHeader::default(), &frame)? {
                break;
            }
            self.transmit.note_sent(&frame);
        }
        self.nic.transmit.publish()?;
        Ok(self.transmit.sent > before)
    }

    fn send_receive(&mut self) -> Result<bool> {
        let before = self.receive.sent;
        while self.sends(Direction::Receive)
            && self.receive.sent < self.goals.1
            && self.receive.in_flight() < self.window
        {
            let sequence = self.receive.sent;
            let frame = frame::encode(RECEIVE_STREAM, sequence, (self.length)(sequence));
            if !self.wire.send(&frame)? {
                break;
            }
            self.receive.note_sent(&frame);
        }
        Ok(self.receive.sent > before)
    }

    fn take_transmitted(&mut self) -> Result<bool> {
        let mut moved = self.nic.reclaim()? > 0;
        while let Some(frame) = self.wire.receive()? {
            self.transmit
                .note(TRANSMIT_STREAM, frame)
                .context("driver to host")?;
            moved = true;
        }
        Ok(moved)
    }

    fn take_received(&mut self) -> Result<bool> {
        let mut moved = false;
        while let Some(received) = self.nic.take_received()? {
            self.receive
                .note(RECEIVE_STREAM, &received.packet)
                .context("host to driver")?;
            moved = true;
        }
        self.nic.replenish()?;
        Ok(moved)
    }

    /// Waits until a frame may have come or gone.
    fn wait(&mut self) -> Result<()> {
        let nic = &mut *self.nic;
        let used = nic.transmit.ring.enable_call()? | nic.receive.ring.enable_call()?;
        if !used {
            let descriptors = [
                borrow(&nic.transmit.call),
                borrow(&nic.receive.call),
                self.wire.as_fd(),
            ];
            let ready = wait::readable(&descriptors, wait::patience())?;
            ensure!(ready, "nothing moved for {:?}", wait::patience());
        }
        nic.transmit.calls()?;
        nic.receive.calls()?;
        nic.transmit.ring.disable_call()?;
        nic.receive.ring.disable_call()
    }

    fn describe(&self) -> String {
        let stream = |name: &str, stream: &Stream| {
            format!(
                "{name}: {} sent, {} received",
                stream.sent, stream.account.received
            )
        };
        let ring = |name: &str, queue: &crate::nic::Queue| {
            format!(
                "{name} ring: published {}, in flight {}, used index {:?}, errors {:?}",
                queue.ring.published(),
                queue.ring.in_flight(),
                queue.ring.used_index().ok(),
                queue.errors().ok()
            )
        };
        [
            stream("driver to host", &self.transmit),
            stream("host to driver", &self.receive),
            ring("transmit", &self.nic.transmit),
            ring("receive", &self.nic.receive),
        ]
        .join("; ")
    }
}

/// Most frames on their way in one direction in the background: few, so that the test, which waits for
/// some to arrive again and again, does not wait long.
const BACKGROUND_WINDOW: u64 = 16;

/// Traffic that goes on in a thread while the test does something to it.
///
/// [`Background::progress`] lets the test pace what it does by what has arrived, so that it really
/// happens under traffic.
pub struct Background<'scope> {
    thread: ScopedJoinHandle<'scope, Result<(u64, u64)>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    transmitted: AtomicU64,
    received: AtomicU64,
}

impl<'scope> Background<'scope> {
    /// Starts two-way traffic over the card.
    pub fn start<'env>(scope: &'scope Scope<'scope, 'env>, nic: &'env mut Nic) -> Result<Self> {
        let mut traffic = Traffic::new(nic, Direction::Both)?;
        traffic.window = BACKGROUND_WINDOW;
        let shared = Arc::new(Shared::default());
        let seen = shared.clone();
        let thread = scope.spawn(move || {
            traffic.run_while(|traffic| {
                seen.transmitted
                    .store(traffic.transmit.account.received, Ordering::Relaxed);
                seen.received
                    .store(traffic.receive.account.received, Ordering::Relaxed);
                !seen.stop.load(Ordering::Relaxed)
            })?;
            Ok((traffic.transmit.sent, traffic.receive.sent))
        });
        Ok(Self { thread, shared })
    }

    /// Frames that arrived in the direction in which fewer did.
    pub fn progress(&self) -> u64 {
        let transmitted = self.shared.transmitted.load(Ordering::Relaxed);
        transmitted.min(self.shared.received.load(Ordering::Relaxed))
    }

    /// Waits until this many more frames arrived in each direction.
    pub fn advance(&self, frames: u64) -> Result<()> {
        // Frames that were on their way before do not count as traffic after.
        let goal = self.progress() + frames;
        wait::until("frames to arrive in both directions", || {
            ensure!(!self.thread.is_finished(), "the traffic ended");
            Ok(self.progress() >= goal)
        })
    }

    /// Ends the traffic, expects every frame, and returns how many went each way: to the host and to
    /// the driver.
    pub fn finish(self) -> Result<(u64, u64)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|_| bail!("the traffic panicked"))
    }

    /// Ends the traffic after this result of what was done under it. The traffic's own failure, which
    /// is likely to be the cause of the other, is reported with it.
    pub fn conclude(self, result: Result<()>) -> Result<(u64, u64)> {
        match (result, self.finish()) {
            (Ok(()), traffic) => traffic,
            (Err(error), Ok(_)) => Err(error),
            (Err(error), Err(traffic)) => Err(traffic.context(format!("{error:#}"))),
        }
    }
}
