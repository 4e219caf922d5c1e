// SPDX-License-Identifier: GPL-2.0
//! Plays a scene on a node.

use std::collections::{BTreeSet, VecDeque};

use anyhow::{Context, Result};

use super::iommu::Iommu;
use super::known::FOR_EVER;
use super::scene::{header_of, Chain, Damage, Reply, Scene, Step, Table};
use super::truth::Before;
use crate::case::Node;
use crate::device::{
    feature, long_words, memory_table, request, Addresses, IOTLB_MSG_V2, RECEIVE, TRANSMIT,
    VIRTQUEUES,
};
use crate::log::Log;
use crate::memory::{PAGE, REGION, STARTS};
use crate::rig::{done, Rig, State, RINGS};
use crate::ring::{Descriptor, Ring, INDIRECT, NEXT};
use crate::transcript::Transcript;

/// A dirty log, and what the device has to tell it.
struct Logging {
    log: Log,
    /// Whether writes to buffers are told.
    buffers: bool,
    /// For each virtqueue, whether writes to its used ring are told.
    used: [bool; VIRTQUEUES],
    /// Memory before the step.
    before: Before,
    /// Pages that changed in a step and were not in the log after it: who migrates a guest would lose them.
    lost: BTreeSet<u64>,
    /// Pages of which the device may tell or not.
    excused: BTreeSet<u64>,
}

/// A driver that knows nothing of what it may not do, and who runs its virtual machine.
struct Driver<'a> {
    scene: &'a Scene,
    rig: Rig,
    logging: Option<Logging>,
    iommu: Iommu,
    /// The chains of each ring that were offered and not given back, with their heads.
    outstanding: [VecDeque<(u16, &'a Chain)>; VIRTQUEUES],
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
        let what = format!("step {number}");
        let progress = driver.take(step, &what, transcript).context(what)?;
        if progress == Progress::Ended {
            return driver.rig.stop();
        }
    }
    driver.rig.stop()?;
    let with_flags = scene.features & feature::EVENT_IDX == 0;
    for index in 0..VIRTQUEUES {
        let seen = driver.rig.look_at(index, with_flags)?;
        transcript.note(format!("stopped: {seen}"));
    }
    driver.receive()?;
    if let Some(logging) = driver
        .logging
        .as_ref()
        .filter(|_| !transcript.is_of_stock())
    {
        let lost = &logging.lost;
        anyhow::ensure!(lost.is_empty(), "pages {lost:x?} are not in the log");
    }
    transcript.note(format!("received at last: {:?}", driver.received));
    transcript.note(format!(
        "packets left: {}",
        driver.rig.ground.tap.discard()?
    ));
    // A packet whose header is not as long as the device expects is dropped. How much of it was written before
    // into buffers that stay in the ring is nobody's business.
    if scene.tap_header == header_of(scene.features) {
        for index in 0..VIRTQUEUES {
            driver.forget_what_may_differ(index);
        }
        transcript.note(format!("memory: {:x}", driver.rig.arena().checksum()));
    }
    Ok(())
}

/// No packet of up to so many bytes is too long for a frame of stock vhost, whatever is before and behind it. With a
/// longer one it is the tap that takes the header off, which is not as long as the device's where a scene
/// says so.
const FRAME_MIN: usize = 3000;

/// Whether a scene goes on.
#[derive(PartialEq, Eq)]
enum Progress {
    /// It does.
    Goes,
    /// It does not, see [`super::known`].
    Ended,
}

impl<'a> Driver<'a> {
    fn new(scene: &'a Scene, node: &Node) -> Result<Self> {
        let ground = if scene.features & feature::VIRTIO_NET_HDR != 0 {
            &node.headless
        } else {
            &node.ground
        };
        let rig = Rig::new(&node.path, ground, State::Owned)?;
        rig.ground
            .tap
            .configure(scene.tap_header, scene.send_buffer)?;
        let logging = scene.log.map(|_| Logging {
            log: Log::new(),
            buffers: scene.features & feature::LOG_ALL != 0,
            used: scene.used_logged,
            before: Before::now(rig.arena()),
            lost: BTreeSet::new(),
            excused: BTreeSet::new(),
        });
        if let Some(logging) = &logging {
            let base = long_words(&[logging.log.address()]);
            done(rig.device.set(request::SET_LOG_BASE, &base)).context("log")?;
        }
        let messages = IOTLB_MSG_V2.to_ne_bytes();
        done(rig.device.set(request::SET_BACKEND_FEATURES, &messages)).context("messages")?;
        done(rig.device.set_features(scene.features)).context("features")?;
        rig.set_memory()?;
        let mut driver = Self {
            scene,
            rig,
            logging,
            iommu: Iommu::default(),
            outstanding: Default::default(),
            descriptors: [0; VIRTQUEUES],
            published: [0; VIRTQUEUES],
            used: [0; VIRTQUEUES],
            broken: [false; VIRTQUEUES],
            received: Vec::new(),
        };
        for index in 0..VIRTQUEUES {
            driver.rig.queues[index].ring = scene.place(index, scene.sizes[index]);
            driver.set_up(index, scene.bases[index])?;
        }
        driver.begin();
        driver.rig.start()?;
        Ok(driver)
    }

    /// Makes an empty ring that begins at this index, and tells the device about it.
    fn set_up(&mut self, index: usize, base: u16) -> Result<()> {
        let ring = self.rig.queues[index].ring;
        let arena = self.rig.arena();
        for (part, length) in parts(&ring) {
            arena.write(part, &vec![0; length as usize]);
        }
        ring.publish(arena, base);
        ring.set_used_index(arena, base);
        self.published[index] = base;
        self.used[index] = base;
        self.outstanding[index].clear();
        // Stock vhost takes the first chain of a driver that uses buffers in order from here.
        self.descriptors[index] = if self.scene.in_order() {
            base % ring.size
        } else {
            0
        };
        self.rig.set_up(index, base)?;
        self.set_addresses(index)?;
        self.map_ring(index)
    }

    /// Tells where a ring is.
    fn set_addresses(&self, index: usize) -> Result<()> {
        let ring = self.rig.queues[index].ring;
        let mut addresses = self.rig.addresses(index);
        if self.scene.translates() {
            addresses = Addresses {
                descriptors: ring.descriptors,
                available: ring.available,
                used: ring.used,
                ..addresses
            };
        }
        if let (Some(logging), Some(places)) = (&self.logging, self.scene.log) {
            addresses.flags = logging.used[index].into();
            addresses.log = places[index];
        }
        let answer = self
            .rig
            .device
            .set(request::SET_VRING_ADDR, &addresses.bytes());
        done(answer).context("addresses")
    }

    /// Translates all of a ring, as has to be done before a device uses it.
    fn map_ring(&mut self, index: usize) -> Result<()> {
        if self.scene.translates() {
            let Self { rig, iommu, .. } = self;
            for (part, length) in parts(&rig.queues[index].ring) {
                iommu.map_pages(&rig.device, rig.arena(), part, length)?;
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        let other_header = self.scene.tap_header != header_of(self.scene.features);
        while let Some(packet) = self.rig.ground.wire.receive()? {
            if other_header && packet.len() > FRAME_MIN {
                continue;
            }
            self.received
                .push(format!("{}:{:08x}", packet.len(), crc32fast::hash(&packet)));
        }
        Ok(())
    }

    /// What was given back since the last step.
    fn elements(&self, index: usize) -> String {
        let ring = self.rig.queues[index].ring;
        let end = ring.used_index(self.rig.arena());
        let count = end.wrapping_sub(self.used[index]).min(ring.size);
        let element = |at: u16| ring.used(self.rig.arena(), self.used[index].wrapping_add(at));
        let mut text = Vec::new();
        let mut at = 0;
        while at < count {
            let (id, length) = element(at);
            if !self.scene.in_order() {
                text.push(format!("{id}:{length}"));
                at += 1;
                continue;
            }
            // An element stands for all chains up to the one that it names (virtio 1.3, 2.7.9).
            let chains =
                self.outstanding[index].range(usize::from(at).min(self.outstanding[index].len())..);
            let heads: Vec<_> = chains.map(|(head, _)| u32::from(*head)).collect();
            let Some(last) = heads.iter().position(|head| *head == id) else {
                text.push(format!("unknown {id}:{length}"));
                break;
            };
            if index == RECEIVE {
                text.push(format!("{}*{id}:{length}", last + 1));
            } else {
                // How many a device gives back at once is its own business.
                text.extend(heads[..last].iter().map(|head| format!("{head}:0")));
                text.push(format!("{id}:{length}"));
            }
            at += last as u16 + 1;
        }
        text.join(" ")
    }

    /// What can be seen now.
    fn look(&mut self, what: &str) -> Result<String> {
        self.receive()?;
        if self.scene.translates() && self.iommu.read(&self.rig.device)? {
            // A virtqueue of stock vhost waits for a question that nobody can read any more. One that is
            // broken does not, and would say so once more.
            for index in 0..VIRTQUEUES {
                let queue = &self.rig.queues[index];
                if !self.broken[index] && !queue.error.seen()? {
                    queue.kick.signal()?;
                }
            }
        }
        let mut text = what.to_owned();
        for index in 0..VIRTQUEUES {
            let with_flags = self.scene.features & feature::EVENT_IDX == 0;
            let seen = self.rig.look_at(index, with_flags)?;
            text += &format!("; {seen} {}", self.elements(index));
        }
        if let Some(logging) = &self.logging {
            let pages = logging.log.pages();
            let pages: Vec<_> = pages.difference(&logging.excused).collect();
            text += &format!("; log {pages:x?}");
        }
        if self.scene.translates() {
            text += &format!("; {}", self.iommu.describe());
        }
        text += &format!("; received {}", self.received.join(" "));
        Ok(text)
    }

    /// What the device wrote in this step without telling the log.
    fn lost(&self) -> BTreeSet<u64> {
        let (Some(logging), Some(places)) = (&self.logging, self.scene.log) else {
            return BTreeSet::new();
        };
        let parts = [RECEIVE, TRANSMIT].map(|index| parts(&self.rig.queues[index].ring));
        let within = |address: u64, (start, length): (u64, u64)| {
            address.checked_sub(start).filter(|at| *at < length)
        };
        let place = |address: u64| {
            for index in 0..VIRTQUEUES {
                let [descriptors, available, used] = parts[index];
                if within(address, descriptors)
                    .or(within(address, available))
                    .is_some()
                {
                    return None;
                }
                if let Some(at) = within(address, used) {
                    let place = if self.scene.translates() {
                        address
                    } else {
                        places[index] + at
                    };
                    return logging.used[index].then_some(place);
                }
            }
            logging.buffers.then_some(address)
        };
        let changed = logging.before.pages(self.rig.arena(), place);
        changed.difference(&logging.log.pages()).copied().collect()
    }

    /// Takes down what is in memory, before the device has something to do.
    fn begin(&mut self) {
        if let Some(logging) = &mut self.logging {
            logging.before = Before::now(&self.rig.ground.arena);
        }
    }

    /// Whether the transmit virtqueue has chains that it does not take, without saying why.
    fn is_stuck(&self) -> Result<bool> {
        let end = self.published[TRANSMIT].to_string();
        // Between two attempts the last chain looks as if it were taken.
        let is_behind = (0..100).any(|_| self.rig.base(TRANSMIT) != end);
        // Behind an IOMMU it may wait for a translation, and scenes have nothing that is tried for ever.
        Ok(!self.scene.translates()
            && is_behind
            && !self.broken[TRANSMIT]
            && !self.rig.queues[TRANSMIT].error.seen()?)
    }

    /// Clears what is in the memory of a ring that says nothing.
    fn forget_what_may_differ(&self, index: usize) {
        let (ring, arena) = (self.rig.queues[index].ring, self.rig.arena());
        if self.scene.features & feature::EVENT_IDX != 0 {
            arena.store(ring.used, 0);
        }
        // Where the elements are depends on how many chains were given back at once.
        if self.scene.in_order() && index == TRANSMIT {
            arena.write(ring.used + 4, &vec![0; 8 * usize::from(ring.size)]);
        }
    }

    /// Notes what is new since the last step.
    fn catch_up(&mut self) -> Result<()> {
        for (index, queue) in self.rig.queues.iter().enumerate() {
            let used = queue.ring.used_index(self.rig.arena());
            let count = usize::from(used.wrapping_sub(self.used[index]));
            let outstanding = &mut self.outstanding[index];
            outstanding.drain(..count.min(outstanding.len()));
            self.used[index] = used;
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
        let lost = self.lost();
        if let Some(logging) = &mut self.logging {
            logging.lost.extend(lost);
        }
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

    /// Does what a step says, and notes what comes of it.
    fn take(
        &mut self,
        step: &'a Step,
        what: &str,
        transcript: &mut Transcript<'_>,
    ) -> Result<Progress> {
        self.begin();
        match step {
            Step::Answer { bytes, how } => return self.answer(*bytes, *how, what, transcript),
            step => self.act(step)?,
        }
        self.settle(what, transcript)
    }

    /// Answers the questions that wait, one by one: what a virtqueue finds between two answers would depend on
    /// how fast it is.
    fn answer(
        &mut self,
        bytes: u64,
        how: Reply,
        what: &str,
        transcript: &mut Transcript<'_>,
    ) -> Result<Progress> {
        for question in self.iommu.asked.clone() {
            let Self { rig, iommu, .. } = self;
            if !iommu.answer(&rig.device, rig.arena(), question, bytes, how)? {
                continue;
            }
            // Stock vhost may look once more at a ring that is broken, for an answer to what it asked
            // before that.
            for index in (0..VIRTQUEUES).filter(|index| self.broken[*index]) {
                self.rig.queues[index].kick.signal()?;
            }
            let what = format!("{what}, {:x} answered", question.0);
            if self.settle(&what, transcript)? == Progress::Ended {
                return Ok(Progress::Ended);
            }
            self.begin();
        }
        Ok(Progress::Goes)
    }

    fn act(&mut self, step: &'a Step) -> Result<()> {
        match step {
            Step::Offer { queue, chains } => {
                for chain in chains {
                    if !self.fits(*queue, chain) {
                        break;
                    }
                    self.excuse(*queue, chain);
                    let head = self.write(*queue, chain);
                    self.outstanding[*queue].push_back((head, chain));
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
            Step::Reset { queue, size, base } => {
                self.rig.stop_queue(*queue)?;
                self.forget_what_may_differ(*queue);
                self.rig.queues[*queue].ring = self.scene.place(*queue, *size);
                self.broken[*queue] = false;
                self.set_up(*queue, *base)?;
                self.start(*queue)
            }
            Step::Memory(table) => {
                let regions = self.regions(*table);
                let answer = self
                    .rig
                    .device
                    .set(request::SET_MEM_TABLE, &memory_table(&regions));
                done(answer).context("memory")
            }
            Step::Log { buffers, used } => {
                if let Some(logging) = &mut self.logging {
                    (logging.buffers, logging.used) = (*buffers, *used);
                }
                let bit = if *buffers { feature::LOG_ALL } else { 0 };
                let features = self.scene.features & !feature::LOG_ALL | bit;
                done(self.rig.device.set_features(features)).context("features")?;
                self.iommu.reset();
                (0..VIRTQUEUES).try_for_each(|index| self.set_addresses(index))
            }
            Step::TakeLog => {
                if let Some(logging) = &self.logging {
                    logging.log.take();
                }
                Ok(())
            }
            Step::Unmap { from, length } => self.iommu.unmap(&self.rig.device, *from, *length),
            // They are given one by one, by `answer`.
            Step::Answer { .. } => Ok(()),
        }
    }

    fn publish(&mut self, queue: usize) -> Result<()> {
        // A kick lets the device look at a broken ring anew, and report it once more if it still is.
        self.broken[queue] = false;
        self.begin();
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
        if self.scene.in_order() {
            // The index does not tell how many descriptors the chains before it had, which is what stock
            // vhost counts. So the driver begins anew where that counts from.
            let ring = self.rig.queues[queue].ring;
            self.outstanding[queue].clear();
            self.descriptors[queue] = base % ring.size;
            self.published[queue] = base;
            ring.publish(self.rig.arena(), base);
            ring.set_used_index(self.rig.arena(), base);
            self.used[queue] = base;
        }
        self.map_ring(queue)?;
        self.start(queue)
    }

    /// Starts a virtqueue that was stopped.
    fn start(&mut self, queue: usize) -> Result<()> {
        self.begin();
        self.rig.start_queue(queue)?;
        self.rig.queues[queue].kick.signal()?;
        if self.scene.translates() {
            // When stock vhost stops a virtqueue it forgets what both asked for.
            self.iommu.asked.clear();
            self.rig.queues[1 - queue].kick.signal()?;
        }
        Ok(())
    }

    /// The regions of a memory table.
    fn regions(&self, table: Table) -> Vec<[u64; 3]> {
        let whole = self.rig.arena().regions();
        match table {
            Table::Whole => whole,
            Table::Less => whole[..2].to_vec(),
            Table::Halves => {
                let half = REGION / 2;
                let halves = whole.into_iter().flat_map(|[guest, _, host]| {
                    [[guest, half, host], [guest + half, half, host + half]]
                });
                halves.rev().collect()
            }
        }
    }

    /// Whether a chain may be offered: drivers keep their descriptors and buffers until the device is done with
    /// them, but this one does so only where stock vhost would not be understood otherwise. It counts
    /// descriptors if buffers are used in order; and behind an IOMMU a packet that was overwritten, which it may
    /// try to send for ever, looks like one that waits for a translation.
    fn fits(&self, queue: usize, chain: &Chain) -> bool {
        let translates = self.scene.translates();
        if !translates && !self.scene.in_order() {
            return true;
        }
        let chains = |queue: usize| self.outstanding[queue].iter().map(|(_, chain)| *chain);
        let taken: u16 = chains(queue).map(Chain::descriptors).sum();
        taken + chain.descriptors() <= self.rig.queues[queue].ring.size
            && (!translates
                || chain.is_apart()
                    && (0..VIRTQUEUES)
                        .flat_map(chains)
                        .all(|other| chain.is_apart_from(other)))
    }

    /// Takes down where the log may say more or less than stock vhost's.
    fn excuse(&mut self, queue: usize, chain: &Chain) {
        let Some(logging) = &mut self.logging else {
            return;
        };
        if queue != RECEIVE {
            return;
        }
        let pages = |address: u64, length: u64| {
            address / PAGE as u64..=(address + length.max(1) - 1) / PAGE as u64
        };
        if self.scene.translates() {
            // Stock vhost marks all of the buffers that a packet is received into, also those behind its
            // end. Where they really are is up to the translations.
            let everything = (0..STARTS.len()).filter(|region| *region != 1);
            logging.excused.extend(everything.flat_map(|region| {
                let first = if region == 0 { RINGS } else { 0 };
                pages(STARTS[region] + first, REGION - first)
            }));
        } else if self.scene.tap_header != header_of(self.scene.features) {
            // The tap's packets have another length than the device expects, so they are received and then
            // dropped: what was written is logged by vhost_iocm, and not by stock vhost.
            let pieces = chain.pieces.iter().filter(|piece| piece.length > 0);
            logging
                .excused
                .extend(pieces.flat_map(|piece| pages(piece.address, piece.length.into())));
        } else if self.scene.features & feature::MRG_RXBUF == 0 {
            // A packet that finds no room is dropped, with its first byte in the buffer: that is logged
            // by vhost_iocm, and not by stock vhost.
            let first = chain.pieces.iter().find(|piece| piece.length > 0);
            logging
                .excused
                .extend(first.into_iter().flat_map(|piece| pages(piece.address, 1)));
        }
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

/// The parts of a ring: where they are, and their bytes.
fn parts(ring: &Ring) -> [(u64, u64); 3] {
    let size = u64::from(ring.size);
    [
        (ring.descriptors, 16 * size),
        (ring.available, 6 + 2 * size),
        (ring.used, 6 + 8 * size),
    ]
}
