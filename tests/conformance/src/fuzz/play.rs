// SPDX-License-Identifier: GPL-2.0
//! Plays a scene on a node.

use anyhow::{Context, Result};

use super::known::FOR_EVER;
use super::scene::{Chain, Damage, Scene, Step};
use crate::case::Node;
use crate::device::{feature, request, TRANSMIT, VIRTQUEUES};
use crate::rig::{done, place, Rig, State};
use crate::ring::{Descriptor, INDIRECT, NEXT};
use crate::transcript::Transcript;

/// A driver that knows nothing of what it may not do.
struct Driver {
    rig: Rig,
    /// The next descriptor of each table.
    descriptors: [u16; VIRTQUEUES],
    /// The available index of each ring.
    published: [u16; VIRTQUEUES],
    /// The used index of each ring up to which was looked.
    used: [u16; VIRTQUEUES],
    /// Whether each virtqueue said that its ring is broken, since it was started.
    broken: [bool; VIRTQUEUES],
    /// What the host received in this step.
    received: Vec<String>,
}

/// Plays the scene.
pub fn play(scene: &Scene, node: &Node, transcript: &mut Transcript<'_>) -> Result<()> {
    let mut driver = Driver::new(scene, node)?;
    // A virtqueue is served at least once, whatever waits for it.
    for index in 0..VIRTQUEUES {
        driver.rig.queues[index].kick.signal()?;
    }
    driver.settle("start", transcript)?;
    for (number, step) in scene.steps.iter().enumerate() {
        for queue in &driver.rig.queues {
            queue.call.forget()?;
            queue.error.forget()?;
        }
        driver
            .take(step)
            .with_context(|| format!("step {number}"))?;
        if driver.settle(&format!("step {number}"), transcript)? == Progress::Ended {
            return driver.rig.stop();
        }
    }
    driver.rig.stop()?;
    for index in 0..VIRTQUEUES {
        transcript.note(format!("stopped: {}", driver.rig.look(index)?));
    }
    driver.receive()?;
    transcript.note(format!("received at last: {:?}", driver.received));
    transcript.note(format!(
        "packets left: {}",
        driver.rig.ground.tap.discard()?
    ));
    transcript.note(format!("memory: {:x}", driver.rig.arena().checksum()));
    Ok(())
}

/// Whether a scene goes on.
#[derive(PartialEq, Eq)]
enum Progress {
    /// It does.
    Goes,
    /// It does not, see [`super::known`].
    Ended,
}

impl Driver {
    fn new(scene: &Scene, node: &Node) -> Result<Self> {
        let ground = if scene.features & feature::VIRTIO_NET_HDR != 0 {
            &node.headless
        } else {
            &node.ground
        };
        let mut rig = Rig::new(&node.path, ground, State::Owned)?;
        rig.ground
            .tap
            .configure(scene.tap_header, scene.send_buffer)?;
        done(rig.device.set_features(scene.features)).context("features")?;
        rig.set_memory()?;
        for index in 0..VIRTQUEUES {
            let (size, base) = (scene.sizes[index], scene.bases[index]);
            rig.queues[index].ring = place(index, size);
            let ring = rig.queues[index].ring;
            ring.publish(rig.arena(), base);
            ring.set_used_index(rig.arena(), base);
            rig.set_up(index, base)?;
        }
        rig.start()?;
        Ok(Self {
            rig,
            descriptors: scene.bases.map(|_| 0),
            published: scene.bases,
            used: scene.bases,
            broken: [false; VIRTQUEUES],
            received: Vec::new(),
        })
    }

    fn receive(&mut self) -> Result<()> {
        while let Some(packet) = self.rig.ground.wire.receive()? {
            self.received
                .push(format!("{}:{:08x}", packet.len(), crc32fast::hash(&packet)));
        }
        Ok(())
    }

    /// What can be seen now.
    fn look(&mut self, what: &str) -> Result<String> {
        self.receive()?;
        let mut text = what.to_owned();
        for index in 0..VIRTQUEUES {
            let queue = &self.rig.queues[index];
            let end = queue.ring.used_index(self.rig.arena());
            let count = end.wrapping_sub(self.used[index]).min(queue.ring.size);
            let elements: Vec<_> = (0..count)
                .map(|at| {
                    let position = self.used[index].wrapping_add(at);
                    let (id, length) = queue.ring.used(self.rig.arena(), position);
                    format!("{id}:{length}")
                })
                .collect();
            text += &format!("; {} {}", self.rig.look(index)?, elements.join(" "));
        }
        text += &format!("; received {}", self.received.join(" "));
        Ok(text)
    }

    /// Whether the transmit virtqueue has chains that it does not take, without saying why.
    fn is_stuck(&self) -> Result<bool> {
        let end = self.published[TRANSMIT].to_string();
        // Between two attempts the last chain looks as if it were taken.
        let is_behind = (0..100).any(|_| self.rig.base(TRANSMIT) != end);
        Ok(is_behind && !self.broken[TRANSMIT] && !self.rig.queues[TRANSMIT].error.seen()?)
    }

    /// Notes what is new since the last step.
    fn catch_up(&mut self) -> Result<()> {
        for (index, queue) in self.rig.queues.iter().enumerate() {
            self.used[index] = queue.ring.used_index(self.rig.arena());
            self.broken[index] |= queue.error.seen()?;
        }
        Ok(())
    }

    fn settle(&mut self, what: &str, transcript: &mut Transcript<'_>) -> Result<Progress> {
        self.received.clear();
        if transcript.expects(FOR_EVER) {
            // The base at which stock vhost hangs is not known here, but ours must not hang.
            let end = std::time::Instant::now() + std::time::Duration::from_secs(3);
            while self.is_stuck()? && std::time::Instant::now() < end {
                std::thread::yield_now();
            }
            transcript.note(if self.is_stuck()? {
                "it hangs"
            } else {
                FOR_EVER
            });
            return Ok(Progress::Ended);
        }
        let device = self.rig.device.clone_handle()?;
        transcript.settle(&device, || self.look(what))?;
        if transcript.is_of_stock() && self.is_stuck()? {
            transcript.lines.pop();
            transcript.note(FOR_EVER);
            return Ok(Progress::Ended);
        }
        self.catch_up()?;
        if transcript.stops_short() {
            return Ok(Progress::Ended);
        }
        Ok(Progress::Goes)
    }

    fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Offer { queue, chains } => {
                for chain in chains {
                    let head = self.write(*queue, chain);
                    let ring = self.rig.queues[*queue].ring;
                    ring.offer(
                        self.rig.arena(),
                        self.published[*queue],
                        chain.head.unwrap_or(head),
                    );
                    self.published[*queue] = self.published[*queue].wrapping_add(1);
                }
                self.publish(*queue)
            }
            Step::Jump { queue, by } => {
                self.published[*queue] = self.published[*queue].wrapping_add(*by);
                self.publish(*queue)
            }
            Step::Suppress {
                queue,
                flags,
                event,
            } => {
                let ring = self.rig.queues[*queue].ring;
                ring.set_flags(self.rig.arena(), *flags);
                let index = ring.used_index(self.rig.arena());
                ring.set_used_event(self.rig.arena(), index.wrapping_add(*event));
                Ok(())
            }
            Step::Arrive(packets) => packets
                .iter()
                .try_for_each(|p| self.rig.ground.wire.send(p)),
            Step::Restart { queue, skip } => self.restart(*queue, *skip),
        }
    }

    fn publish(&mut self, queue: usize) -> Result<()> {
        // A kick lets the device look at a broken ring anew, and report it once more if it still is.
        self.broken[queue] = false;
        let Driver { rig, published, .. } = self;
        rig.queues[queue]
            .ring
            .publish(rig.arena(), published[queue]);
        rig.queues[queue].kick.signal()
    }

    fn restart(&mut self, queue: usize, skip: u16) -> Result<()> {
        self.rig.stop_queue(queue)?;
        self.broken[queue] = false;
        let base = self
            .rig
            .device
            .state(request::GET_VRING_BASE, queue as u32)?;
        let base = (base as u16).wrapping_add(skip);
        done(
            self.rig
                .device
                .set_state(request::SET_VRING_BASE, queue as u32, base.into()),
        )?;
        self.rig.start_queue(queue)?;
        self.rig.queues[queue].kick.signal()
    }

    /// Writes a chain into the tables and returns its head.
    fn write(&mut self, queue: usize, chain: &Chain) -> u16 {
        let ring = self.rig.queues[queue].ring;
        let arena = &self.rig.ground.arena;
        let head = self.descriptors[queue] % ring.size;
        let damage = |number: usize, mut descriptor: Descriptor| {
            if let Some((_, damage)) = chain.damage.filter(|(which, _)| *which == number) {
                match damage {
                    Damage::Flags(flags) => descriptor.flags ^= flags,
                    Damage::Next(next) => descriptor.next = next,
                    Damage::Length(length) => descriptor.length = length,
                    Damage::Address(address) => descriptor.address = address,
                }
            }
            descriptor
        };
        let direct = chain.table.map_or(chain.pieces.len(), |(from, _)| from);
        let total = direct + usize::from(chain.table.is_some());
        for (number, piece) in chain.pieces.iter().enumerate() {
            arena.write(piece.address, &piece.contents);
            let mut descriptor = Descriptor {
                address: piece.address,
                length: piece.length,
                flags: piece.flags,
                next: 0,
            };
            if number < direct {
                let at = (self.descriptors[queue] + number as u16) % ring.size;
                if number + 1 < total {
                    descriptor.flags |= NEXT;
                    descriptor.next = (at + 1) % ring.size;
                }
                ring.describe(arena, at, damage(number, descriptor));
            } else if let Some((from, table)) = chain.table {
                let at = number - from;
                if number + 1 < chain.pieces.len() {
                    descriptor.flags |= NEXT;
                    descriptor.next = at as u16 + 1;
                }
                let descriptor = damage(number, descriptor);
                arena.write(table + 16 * at as u64, &descriptor.bytes());
            }
        }
        if let Some((from, table)) = chain.table {
            let descriptor = Descriptor {
                address: table,
                length: 16 * (chain.pieces.len() - from) as u32,
                flags: INDIRECT,
                next: 0,
            };
            let at = (self.descriptors[queue] + from as u16) % ring.size;
            ring.describe(arena, at, damage(chain.pieces.len(), descriptor));
        }
        self.descriptors[queue] = (self.descriptors[queue] + total as u16) % ring.size;
        head
    }
}
