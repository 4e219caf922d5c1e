// SPDX-License-Identifier: GPL-2.0
//! A device of another process beside the hostile one, which reflects numbered frames.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use vhost_iocm_selftests::frame::{self, Account};
use vhost_iocm_selftests::process::Owner;
use vhost_iocm_selftests::traffic::mixed_length;
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

/// The tap behind the device.
pub const TAP: &str = "neighbour0";

/// Frames on their way: few, so that the test does not wait long for the next one.
const WINDOW: u64 = 16;
/// Pause after some came back: the drivers of both devices share a CPU, and it is the hostile one that is
/// to be fast.
const PAUSE: Duration = Duration::from_millis(2);
const STREAM: u32 = 1;

/// The device. Every frame crosses it twice, from the host to the driver and back.
pub struct Neighbour {
    owner: Owner,
    arrived: AtomicU64,
    stop: AtomicBool,
}

impl Neighbour {
    /// Starts the process.
    pub fn new(node: &Path) -> Result<Self> {
        Ok(Self {
            owner: Owner::reflect(node, TAP)?,
            arrived: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    /// Starts traffic, which ends as failed when a frame is lost, or comes twice, late or damaged.
    pub fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
    ) -> ScopedJoinHandle<'scope, Result<u64>> {
        scope.spawn(|| self.traffic())
    }

    fn traffic(&self) -> Result<u64> {
        let mut wire = PacketSocket::new(TAP, frame::ETHERTYPE)?;
        let mut account = Account::default();
        let mut sent = 0;
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            while !stopping && account.lost(sent) < WINDOW {
                if !wire.send(&frame::encode(STREAM, sent, mixed_length(sent)))? {
                    break;
                }
                sent += 1;
            }
            let before = account.received;
            while let Some(frame) = wire.receive()? {
                account.note(frame::decode(frame)?.sequence);
            }
            self.arrived.store(account.received, Ordering::Relaxed);
            account.expect_order()?;
            if stopping && account.lost(sent) == 0 {
                break;
            }
            if account.received > before {
                std::thread::sleep(PAUSE);
                continue;
            }
            let arrived = wait::readable(&[wire.as_fd()], wait::patience())?;
            ensure!(
                arrived,
                "of {sent} frames {} came back, and none for {:?}",
                account.received,
                wait::patience()
            );
        }
        ensure!(wire.drops()? == 0, "the packet socket had no room");
        account.expect_all(sent)?;
        Ok(sent)
    }

    /// Waits until frames that were not sent yet have come back.
    pub fn advance(&self, thread: &ScopedJoinHandle<'_, Result<u64>>) -> Result<()> {
        let goal = self.arrived.load(Ordering::Relaxed) + 2 * WINDOW;
        wait::until("frames of the neighbour to come back", || {
            ensure!(!thread.is_finished(), "the neighbour's traffic ended");
            Ok(self.arrived.load(Ordering::Relaxed) >= goal)
        })
    }

    /// Ends the traffic, expects every frame, and returns how many there were.
    pub fn finish(&self, thread: ScopedJoinHandle<'_, Result<u64>>) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        thread
            .join()
            .unwrap_or_else(|_| bail!("the neighbour's traffic panicked"))
            .context("the neighbour's traffic")
    }

    /// Ends the process.
    pub fn end(self) -> Result<()> {
        self.owner.release()
    }
}
