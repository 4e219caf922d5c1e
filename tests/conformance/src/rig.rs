// SPDX-License-Identifier: GPL-2.0
//! A device with all that it needs around it: memory, rings, eventfds and a tap.

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::rc::Rc;

use anyhow::{ensure, Context, Result};

use crate::device::{describe, feature, memory_table, request, words, Addresses, Answer, Device};
use crate::device::{RECEIVE, TRANSMIT, VIRTQUEUES};
use crate::event::Event;
use crate::memory::{Arena, PAGE, STARTS};
use crate::ring::Ring;
use crate::tap::{Tap, Wire, NO_LIMIT};

/// What outlives a device: making it takes most of the time.
pub struct Ground {
    /// The guest's memory.
    pub arena: Arena,
    /// The tap behind it.
    pub tap: Tap,
    /// The host's side of that.
    pub wire: Wire,
}

impl Ground {
    /// A new one.
    pub fn new() -> Result<Rc<Self>> {
        Self::with(Tap::new()?)
    }

    /// A new one whose packets have no header, for devices that supply it.
    pub fn without_header() -> Result<Rc<Self>> {
        Self::with(Tap::with(libc::IFF_TAP | libc::IFF_NO_PI)?)
    }

    fn with(tap: Tap) -> Result<Rc<Self>> {
        Ok(Rc::new(Self {
            arena: Arena::new()?,
            wire: Wire::new(&tap)?,
            tap,
        }))
    }

    /// As if it were new.
    pub fn clear(&self) -> Result<()> {
        self.arena.clear()?;
        self.tap.discard()?;
        while self.wire.receive()?.is_some() {}
        self.tap.configure(12, NO_LIMIT)
    }
}

/// A virtqueue.
pub struct Queue {
    /// Where it lies.
    pub ring: Ring,
    /// The driver signals it.
    pub kick: Event,
    /// The device signals it for interrupts.
    pub call: Event,
    /// The device signals it for errors.
    pub error: Event,
}

/// Bytes of the part of each region that rings have.
pub const RINGS: u64 = 128 << 10;

impl Queue {
    fn new(index: usize) -> Result<Self> {
        Ok(Self {
            ring: place(index, 256),
            kick: Event::new()?,
            call: Event::new()?,
            error: Event::new()?,
        })
    }
}

/// A ring of this size. Its parts lie in different regions, which hold up to 2048 descriptors.
pub fn place(index: usize, size: u16) -> Ring {
    let part = |region: usize| STARTS[region] + index as u64 * RINGS / 2;
    Ring {
        size,
        descriptors: part(0),
        available: part(1),
        // Not the first page, which an error of the device's may be more likely to hit.
        used: part(1) + 0x2000,
    }
}

/// A ring of this size whose parts follow each other as legacy drivers have them (virtio 1.3, 2.7.2),
/// at the start of the first region.
pub fn place_together(index: usize, size: u16) -> Ring {
    let descriptors = STARTS[0] + index as u64 * RINGS / 2;
    let available = descriptors + 16 * u64::from(size);
    let end = available + 6 + 2 * u64::from(size);
    Ring {
        size,
        descriptors,
        available,
        used: end.next_multiple_of(PAGE as u64),
    }
}

/// A device and its surroundings.
pub struct Rig {
    /// The device.
    pub device: Device,
    /// Memory and tap.
    pub ground: Rc<Ground>,
    /// Its virtqueues.
    pub queues: [Queue; VIRTQUEUES],
}

/// How far a device has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Just opened.
    Fresh,
    /// Owned by this process, and nothing else.
    Owned,
    /// All set, but without backends.
    Stopped,
    /// Serving both virtqueues.
    Running,
    /// Given up by its owner after it was serving.
    Reset,
}

impl Rig {
    /// A new device of the node, in this state.
    pub fn new(node: &Path, ground: &Rc<Ground>, state: State) -> Result<Self> {
        Self::with(Device::open(node)?, ground, state)
    }

    /// The device, which is new, in this state.
    pub fn with(device: Device, ground: &Rc<Ground>, state: State) -> Result<Self> {
        ground.clear()?;
        let rig = Self {
            device,
            ground: ground.clone(),
            queues: [Queue::new(RECEIVE)?, Queue::new(TRANSMIT)?],
        };
        if state == State::Fresh {
            return Ok(rig);
        }
        done(rig.device.set_owner()).context("SET_OWNER")?;
        if state == State::Owned {
            return Ok(rig);
        }
        done(rig.device.set_features(feature::VERSION_1)).context("SET_FEATURES")?;
        rig.set_memory()?;
        for index in 0..VIRTQUEUES {
            rig.set_up(index, 0)?;
        }
        if state == State::Stopped {
            return Ok(rig);
        }
        rig.start()?;
        if state == State::Reset {
            done(rig.device.set(request::RESET_OWNER, &[])).context("RESET_OWNER")?;
        }
        Ok(rig)
    }

    /// The guest's memory.
    pub fn arena(&self) -> &Arena {
        &self.ground.arena
    }

    /// Sets the memory table.
    pub fn set_memory(&self) -> Result<()> {
        let table = memory_table(&self.arena().regions());
        done(self.device.set(request::SET_MEM_TABLE, &table)).context("SET_MEM_TABLE")
    }

    /// Where a virtqueue's ring is in this process.
    pub fn addresses(&self, index: usize) -> Addresses {
        let ring = &self.queues[index].ring;
        let host = |address| self.arena().host(address);
        Addresses {
            index: index as u32,
            flags: 0,
            descriptors: host(ring.descriptors),
            used: host(ring.used),
            available: host(ring.available),
            log: 0,
        }
    }

    /// Tells the device about a ring that begins at this index.
    pub fn set_up(&self, index: usize, base: u16) -> Result<()> {
        let (device, queue) = (&self.device, &self.queues[index]);
        let number = index as u32;
        done(device.set_state(request::SET_VRING_NUM, number, queue.ring.size.into()))
            .context("SET_VRING_NUM")?;
        done(device.set_state(request::SET_VRING_BASE, number, base.into()))
            .context("SET_VRING_BASE")?;
        done(device.set(request::SET_VRING_ADDR, &self.addresses(index).bytes()))
            .context("SET_VRING_ADDR")?;
        for (request, event) in [
            (request::SET_VRING_KICK, &queue.kick),
            (request::SET_VRING_CALL, &queue.call),
            (request::SET_VRING_ERR, &queue.error),
        ] {
            done(device.set_state(request, number, event.as_raw_fd() as u32))
                .with_context(|| format!("eventfd of virtqueue {index}"))?;
        }
        Ok(())
    }

    /// Sets this backend.
    pub fn set_backend(&self, index: usize, fd: RawFd) -> Answer {
        let argument = words(&[index as u32, fd as u32]);
        self.device.set(request::NET_SET_BACKEND, &argument)
    }

    /// Sets the tap as the backend of a virtqueue.
    pub fn start_queue(&self, index: usize) -> Result<()> {
        done(self.set_backend(index, self.ground.tap.as_raw_fd())).context("start a virtqueue")
    }

    /// Takes the backend from a virtqueue.
    pub fn stop_queue(&self, index: usize) -> Result<()> {
        done(self.set_backend(index, -1)).context("stop a virtqueue")
    }

    /// Starts both virtqueues.
    pub fn start(&self) -> Result<()> {
        (0..VIRTQUEUES).try_for_each(|index| self.start_queue(index))
    }

    /// Stops both virtqueues.
    pub fn stop(&self) -> Result<()> {
        (0..VIRTQUEUES).try_for_each(|index| self.stop_queue(index))
    }

    /// The next index of a virtqueue's available ring that the device will look at, in words.
    pub fn base(&self, index: usize) -> String {
        match self.device.state(request::GET_VRING_BASE, index as u32) {
            Ok(base) => base.to_string(),
            Err(errno) => format!("{errno:?}"),
        }
    }

    /// What can be seen of a virtqueue.
    pub fn look(&self, index: usize) -> Result<String> {
        self.look_at(index, true)
    }

    /// What can be seen of a virtqueue, with the flags of its used ring or without. Those say nothing to a
    /// driver with EVENT_IDX (virtio 1.3, 2.7.10): after a start they tell whether the virtqueue had
    /// been served before it was stopped.
    pub fn look_at(&self, index: usize, with_flags: bool) -> Result<String> {
        let Queue {
            ring, call, error, ..
        } = &self.queues[index];
        let arena = self.arena();
        let flags = if with_flags {
            format!("flags {}, ", ring.used_flags(arena))
        } else {
            String::new()
        };
        Ok(format!(
            "virtqueue {index}: base {}, used {}, {flags}available event {}, call {}, error {}",
            self.base(index),
            ring.used_index(arena),
            ring.available_event(arena),
            call.seen()?,
            error.seen()?,
        ))
    }
}

/// An answer that has to be good.
pub fn done(answer: Answer) -> Result<()> {
    ensure!(answer.is_ok(), "{}", describe(&answer));
    Ok(())
}
