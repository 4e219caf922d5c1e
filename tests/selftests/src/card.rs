// SPDX-License-Identifier: GPL-2.0
//! A card on a worker of its own, whose virtqueues are polled or not.

use std::time::Duration;

use crate::control::{virtqueue, Control};
use crate::counters::Counters;
use crate::device::{RECEIVE, TRANSMIT};
use crate::frame::{self, Account};
use crate::header::NetHeader;
use crate::nic::{Nic, NicOptions};
use crate::options::Options;
use crate::parameter::Parameter;
use crate::wait;
use crate::wire::PacketSocket;
use anyhow::{ensure, Context, Result};

const TO_HOST: u32 = 1;
const TO_DRIVER: u32 = 2;

/// Keeps what is polled from being parked until the test wants that: nothing here takes as long.
pub fn never_parked() -> Result<Parameter> {
    Parameter::set_time("poll_idle_us", Duration::from_secs(10))
}

/// A card and both its virtqueues in the control interface.
pub struct Card<'a> {
    control: &'a Control,
    /// The card.
    pub nic: Nic,
    /// Its device.
    pub device: String,
    /// The worker that it is on, alone.
    pub worker: String,
    wire: PacketSocket,
    sent: (u64, u64),
    accounts: (Account, Account),
}

impl<'a> Card<'a> {
    /// A card on a fresh worker in this mode, which has not had any work yet.
    pub fn new(
        options: &Options,
        control: &'a Control,
        nic: NicOptions,
        mode: &str,
    ) -> Result<Self> {
        let worker = control.side_core()?;
        Self::beside(options, control, nic, mode, worker)
    }

    /// A card on the worker that new devices get.
    pub fn beside(
        options: &Options,
        control: &'a Control,
        nic: NicOptions,
        mode: &str,
        worker: String,
    ) -> Result<Self> {
        let (nic, device) = control.device_made_by(|| Nic::new(&options.node, nic))?;
        nic.touch_buffers()?;
        control.set_poll_of_device(&device, mode)?;
        let wire = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
        Ok(Self {
            control,
            nic,
            device,
            worker,
            wire,
            sent: (0, 0),
            accounts: Default::default(),
        })
    }

    /// A card both of whose virtqueues are being polled. Keep [`never_parked`] for as long as they are to
    /// be.
    pub fn polled(options: &Options, control: &'a Control, nic: NicOptions) -> Result<Self> {
        let mut card = Self::new(options, control, nic, "1")?;
        card.exchange(4)?;
        card.expect_polled(2)?;
        Ok(card)
    }

    /// Adds a frame to the host to the ring and shows it to the device, without a kick. Returns whether
    /// the device wants one.
    pub fn publish(&mut self) -> Result<bool> {
        self.publish_at_once(1)
    }

    /// Adds frames to the host to the ring and shows all of them to the device by one step of the
    /// available index, without a kick. Returns whether the device wants one.
    pub fn publish_at_once(&mut self, frames: u32) -> Result<bool> {
        self.publish_frames(frames, frame::MINIMUM)
    }

    /// The same with frames of this length.
    pub fn publish_frames(&mut self, frames: u32, length: usize) -> Result<bool> {
        for _ in 0..frames {
            let frame = frame::encode(TO_HOST, self.sent.0, length);
            let added = self.nic.add_transmit(&NetHeader::default(), &frame)?;
            ensure!(added, "no room for frame {}", self.sent.0);
            self.sent.0 += 1;
        }
        self.nic.transmit.ring.publish()
    }

    /// Transmits a frame as a driver does. Returns whether the device wanted a kick.
    pub fn transmit(&mut self) -> Result<bool> {
        let wanted = self.publish()?;
        if wanted {
            self.nic.transmit.kick()?;
        }
        Ok(wanted)
    }

    /// Publishes frames of this length and kicks once, as a driver does that has many of them.
    pub fn transmit_at_once(&mut self, frames: u32, length: usize) -> Result<()> {
        if self.publish_frames(frames, length)? {
            self.nic.transmit.kick()?;
        }
        Ok(())
    }

    /// Sets an attribute of the virtqueue to the host.
    pub fn set_transmit(&self, attribute: &str, value: u64) -> Result<()> {
        let virtqueue = virtqueue(&self.device, TRANSMIT);
        self.control
            .set(&format!("vq/{virtqueue}/{attribute}"), &value.to_string())
    }

    /// Waits for all frames to the host.
    pub fn expect_transmitted(&mut self) -> Result<()> {
        while self.accounts.0.received < self.sent.0 {
            let numbered = frame::decode(&self.wire.expect()?)?;
            ensure!(numbered.stream == TO_HOST, "{numbered:?} came to the host");
            self.accounts.0.note(numbered.sequence);
        }
        self.accounts.0.expect_all(self.sent.0)?;
        // Without waiting for calls, of which a polled virtqueue owes none to who does not sleep.
        wait::until("transmitted frames to come back", || {
            self.nic.reclaim()?;
            Ok(self.nic.transmit.ring.in_flight() == 0)
        })
    }

    /// Sends a frame to the driver.
    pub fn send(&mut self) -> Result<()> {
        let frame = frame::encode(TO_DRIVER, self.sent.1, frame::MINIMUM);
        ensure!(self.wire.send(&frame)?, "the wire is full");
        self.sent.1 += 1;
        Ok(())
    }

    /// Waits for all frames to the driver, and gives their buffers back. Returns whether the device
    /// wanted a kick for these.
    pub fn expect_received(&mut self) -> Result<bool> {
        let kicks = self.nic.receive.kicks;
        while self.accounts.1.received < self.sent.1 {
            let numbered = frame::decode(&self.nic.receive()?.packet)?;
            ensure!(
                numbered.stream == TO_DRIVER,
                "{numbered:?} came to the driver"
            );
            self.accounts.1.note(numbered.sequence);
            self.nic.replenish()?;
        }
        self.accounts.1.expect_all(self.sent.1)?;
        Ok(self.nic.receive.kicks > kicks)
    }

    /// Sends frames both ways and expects them. Returns how many of the steps went without any kick.
    pub fn exchange(&mut self, frames: u32) -> Result<u32> {
        let mut unasked = 0;
        for _ in 0..frames {
            let transmit = self.transmit()?;
            self.expect_transmitted()?;
            self.send()?;
            let receive = self.expect_received()?;
            unasked += u32::from(!transmit && !receive);
        }
        Ok(unasked)
    }

    /// The counters of one of its virtqueues.
    pub fn counters(&self, index: u32) -> Result<Counters> {
        Counters::of_virtqueue(self.control, &virtqueue(&self.device, index))
    }

    /// The counters of both: to the driver, and to the host.
    pub fn both_counters(&self) -> Result<[Counters; 2]> {
        Ok([self.counters(RECEIVE)?, self.counters(TRANSMIT)?])
    }

    /// The counters of its worker.
    pub fn worker_counters(&self) -> Result<Counters> {
        Counters::of_worker(self.control, &self.worker)
    }

    /// Waits until the device has asked for a kick for the next frame to the host, as it does once it has
    /// nothing left to do.
    pub fn expect_armed(&self) -> Result<()> {
        wait::until("the device to ask for a kick", || {
            self.nic.transmit.ring.wants_kick()
        })
    }

    /// Waits until its worker has slept for a moment.
    pub fn expect_quiet(&self) -> Result<()> {
        Counters::expect_rest(self.control, &self.worker)
    }

    /// Waits until its worker polls this many virtqueues.
    pub fn expect_polled(&self, virtqueues: u64) -> Result<()> {
        wait::until("the right number of virtqueues to be polled", || {
            Ok(self.worker_counters()?.get("polled")? == virtqueues)
        })
        .with_context(|| {
            let worker = self.worker_counters();
            let worker = worker.as_ref().map(Counters::moved);
            let own = self.both_counters();
            let own = own
                .as_ref()
                .map(|both| both.each_ref().map(Counters::moved));
            format!("expected {virtqueues} to be polled; worker: {worker:?}; virtqueues: {own:?}")
        })
    }
}
