// SPDX-License-Identifier: GPL-2.0
//! A virtio network card as its driver sees it, with a vhost device and a tap behind it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{ensure, Context, Result};
use vhost::vhost_kern::vhost_binding::vhost_vring_addr;
use vm_memory::{Address, GuestAddress};
use vmm_sys_util::eventfd::{EventFd, EFD_CLOEXEC, EFD_NONBLOCK};

use crate::device::{
    self, Device, ACCESS_PLATFORM, DEVICE_HEADER, EVENT_IDX, IN_ORDER, MRG_RXBUF, UDP_TUNNELS,
    VERSION_1,
};
use crate::header::{NetHeader, LEGACY_LENGTH, MODERN_LENGTH, TUNNEL_LENGTH};
use crate::memory::GuestMemory;
use crate::ring::{Chaining, Segment, SplitRing};
use crate::tap::{Tap, TapOptions};
use crate::wait;

/// What can be chosen about a network card.
#[derive(Clone, Debug)]
pub struct NicOptions {
    /// Features that the driver acknowledges.
    pub features: u64,
    /// Those of them from number 64 on.
    pub high_features: u64,
    /// Descriptors of each ring.
    pub ring_size: u16,
    /// Layout of the chains of both rings.
    pub chaining: Chaining,
    /// Most segments of a chain: with one, the header and the packet share a buffer.
    pub segments: u16,
    /// Index at which the rings start.
    pub start: u16,
    /// Bytes of a receive chain.
    pub receive_length: u32,
    /// Receive chains; none for as many as the ring takes.
    pub receive_chains: Option<u16>,
    /// Bytes of the largest packet to transmit.
    pub transmit_length: u32,
    /// Packets in flight to the device; none for as many as the ring takes.
    pub transmit_chains: Option<u16>,
    /// Whether all packets go through one buffer that takes two translations.
    pub across_regions: bool,
    /// Whether every part of the rings and every buffer has pages of its own.
    pub pages_apart: bool,
    /// Whether one region of the memory is filled before the next one is begun.
    pub regions_filled: bool,
    /// The tap behind the card. The length of its header follows from the features.
    pub tap: TapOptions,
}

impl Default for NicOptions {
    fn default() -> Self {
        Self {
            features: VERSION_1 | MRG_RXBUF | EVENT_IDX,
            high_features: 0,
            ring_size: 256,
            chaining: Chaining::Direct,
            segments: 2,
            start: 0,
            receive_length: 2048,
            receive_chains: None,
            transmit_length: 2048,
            transmit_chains: None,
            across_regions: false,
            pages_apart: false,
            regions_filled: false,
            tap: TapOptions::default(),
        }
    }
}

impl NicOptions {
    /// Whether the header has the number of buffers.
    pub fn modern_header(&self) -> bool {
        self.features & (MRG_RXBUF | VERSION_1) != 0
    }

    /// Length of the header before every packet.
    pub fn header_length(&self) -> usize {
        if self.high_features & UDP_TUNNELS != 0 {
            TUNNEL_LENGTH
        } else if self.modern_header() {
            MODERN_LENGTH
        } else {
            LEGACY_LENGTH
        }
    }

    fn chains(&self, segments: u16, limit: Option<u16>) -> u16 {
        let most = match self.chaining {
            Chaining::Direct => self.ring_size / segments,
            Chaining::Indirect => self.ring_size,
        };
        limit.map_or(most, |limit| limit.min(most))
    }
}

/// One virtqueue with its eventfds.
pub struct Queue {
    /// Its index in the device.
    pub index: u32,
    /// The ring.
    pub ring: SplitRing,
    /// Tells the device of new chains.
    pub kick: EventFd,
    /// Tells the driver of used chains.
    pub call: EventFd,
    /// Tells the driver of a broken ring.
    pub error: EventFd,
    /// Kicks that the device wanted and got.
    pub kicks: u64,
    /// For each head in flight, its buffer.
    in_flight: Vec<Option<Buffer>>,
    /// Buffers that the device does not have.
    spare: Vec<Buffer>,
}

/// Room for a header and a packet, in one piece or two.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    header: GuestAddress,
    data: GuestAddress,
    /// Bytes at `data`.
    length: u32,
}

impl Queue {
    fn new(memory: &Arc<GuestMemory>, index: u32, options: &NicOptions) -> Result<Self> {
        let event_index = options.features & EVENT_IDX != 0;
        let ring = SplitRing::new(
            memory.clone(),
            options.ring_size,
            event_index,
            options.start,
        )?;
        let ring = if options.features & IN_ORDER != 0 {
            ring.in_order()
        } else {
            ring
        };
        Ok(Self {
            index,
            ring,
            kick: new_event()?,
            call: new_event()?,
            error: new_event()?,
            kicks: 0,
            in_flight: vec![None; options.ring_size.into()],
            spare: Vec::new(),
        })
    }

    /// Shows the device what was added to the ring, and kicks it if it wants to know.
    pub fn publish(&mut self) -> Result<()> {
        if self.ring.publish()? {
            self.kick()?;
        }
        Ok(())
    }

    /// Kicks the device whether it wants to know or not.
    pub fn kick(&mut self) -> Result<()> {
        self.kicks += 1;
        self.kick.write(1).context("kick")
    }

    /// Calls since the last look.
    pub fn calls(&self) -> Result<u64> {
        drain(&self.call).context("call eventfd")
    }

    /// Complaints about the ring since the last look.
    pub fn errors(&self) -> Result<u64> {
        drain(&self.error).context("error eventfd")
    }

    /// The call eventfd for polling.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.call)
    }

    /// Waits for a complaint about the ring.
    pub fn expect_error(&self) -> Result<()> {
        let complained = wait::readable(&[borrow(&self.error)], wait::patience())?;
        ensure!(
            complained,
            "no error was signalled for virtqueue {}",
            self.index
        );
        self.errors().map(drop)
    }

    /// Forgets every chain, and starts the ring over at this index. The device must not serve it.
    pub fn restart(&mut self, start: u16) -> Result<()> {
        self.spare
            .extend(self.in_flight.iter_mut().filter_map(Option::take));
        self.ring.restart(start)
    }

    /// The parts of the memory that are buffers the device has.
    pub fn buffers_in_flight(&self) -> Vec<(GuestAddress, u64)> {
        let buffers = self.in_flight.iter().flatten();
        buffers
            .map(|buffer| (buffer.data, buffer.length.into()))
            .collect()
    }

    /// The pages of all buffers, whoever has them now.
    pub fn buffer_pages(&self, memory: &GuestMemory) -> Vec<GuestAddress> {
        let buffers = self.in_flight.iter().flatten().chain(&self.spare);
        buffers
            .flat_map(|buffer| {
                let mut pages = memory.pages(buffer.header, 1);
                pages.extend(memory.pages(buffer.data, buffer.length.max(1).into()));
                pages
            })
            .collect()
    }

    /// Hands the device an already laid out chain.
    fn add(&mut self, segments: &[Segment], chaining: Chaining, buffer: Buffer) -> Result<bool> {
        let Some(head) = self.ring.add(segments, chaining)? else {
            self.spare.push(buffer);
            return Ok(false);
        };
        self.in_flight[usize::from(head)] = Some(buffer);
        Ok(true)
    }

    /// Takes back the next chain that the device is done with, and its buffer.
    fn take_used(&mut self) -> Result<Option<(Buffer, u32)>> {
        let Some(used) = self.ring.take_used()? else {
            return Ok(None);
        };
        let buffer = self.in_flight[usize::from(used.head)]
            .take()
            .with_context(|| format!("head {} has no buffer", used.head))?;
        Ok(Some((buffer, used.length)))
    }
}

/// An eventfd that does not block.
pub fn new_event() -> Result<EventFd> {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).context("eventfd")
}

/// Borrows an eventfd for polling.
pub fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: The descriptor stays open for as long as the eventfd is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Reads an eventfd that does not block; zero when nothing was signalled.
fn drain(event: &EventFd) -> Result<u64> {
    match event.read() {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
        result => Ok(result?),
    }
}

/// A packet that the card received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The header before it.
    pub header: NetHeader,
    /// The packet.
    pub packet: Vec<u8>,
    /// Receive chains that it took.
    pub chains: u16,
}

/// A virtio network card.
pub struct Nic {
    /// The vhost device.
    pub device: Device,
    /// The tap behind it.
    pub tap: Tap,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The virtqueue of packets to the driver.
    pub receive: Queue,
    /// The virtqueue of packets from the driver.
    pub transmit: Queue,
    options: NicOptions,
}

impl Nic {
    /// Opens the node, makes a tap, and starts serving.
    pub fn new(node: &Path, options: NicOptions) -> Result<Self> {
        let nic = Self::prepare(Device::open(node)?, options)?;
        nic.start()?;
        Ok(nic)
    }

    /// Does everything but set the backends, in the order in which QEMU does it.
    pub fn prepare(device: Device, mut options: NicOptions) -> Result<Self> {
        let device_header = options.features & DEVICE_HEADER != 0;
        options.tap.header_length = (!device_header).then_some(options.header_length());
        options.segments = options.segments.min(options.ring_size);
        let tap = Tap::new(&options.tap)?;
        let memory = Arc::new(GuestMemory::new()?);
        if options.pages_apart {
            memory.keep_pages_apart();
        }
        if options.regions_filled {
            memory.fill_regions();
        }
        let mut nic = Self {
            receive: Queue::new(&memory, device::RECEIVE, &options)?,
            transmit: Queue::new(&memory, device::TRANSMIT, &options)?,
            device,
            tap,
            memory,
            options,
        };
        nic.allocate_buffers()?;
        nic.set_up()?;
        nic.replenish()?;
        Ok(nic)
    }

    /// What was chosen for the card.
    pub fn options(&self) -> &NicOptions {
        &self.options
    }

    fn allocate_buffers(&mut self) -> Result<()> {
        let options = &self.options;
        let header = options.header_length() as u32;
        for _ in 0..options.chains(options.segments.min(2), options.receive_chains) {
            let length = options.receive_length.saturating_sub(header);
            self.receive
                .spare
                .push(buffer(&self.memory, options, length)?);
        }
        for _ in 0..options.chains(options.segments, options.transmit_chains) {
            self.transmit
                .spare
                .push(buffer(&self.memory, options, options.transmit_length)?);
        }
        Ok(())
    }

    /// Owns the device and tells it all it needs, but no backend.
    pub fn set_up(&self) -> Result<()> {
        let device = &self.device;
        device.set_owner().context("SET_OWNER")?;
        for queue in [&self.receive, &self.transmit] {
            device
                .set_call(queue.index, Some(&queue.call))
                .context("SET_VRING_CALL")?;
            device
                .set_error(queue.index, Some(&queue.error))
                .context("SET_VRING_ERR")?;
        }
        if self.options.high_features == 0 {
            device
                .set_features(self.options.features)
                .context("SET_FEATURES")?;
        } else {
            device
                .set_features_array(&[self.options.features, self.options.high_features])
                .context("SET_FEATURES_ARRAY")?;
        }
        device
            .set_memory_table(&self.memory.table()?)
            .context("SET_MEM_TABLE")?;
        for queue in [&self.receive, &self.transmit] {
            self.set_up_ring(queue)?;
        }
        Ok(())
    }

    /// Tells the device where a ring is and where it starts.
    pub fn set_up_ring(&self, queue: &Queue) -> Result<()> {
        let (device, index, layout) = (&self.device, queue.index, queue.ring.layout());
        device
            .set_size(index, layout.size.into())
            .context("SET_VRING_NUM")?;
        let base = queue.ring.used_index()?;
        device
            .set_base(index, base.into())
            .context("SET_VRING_BASE")?;
        device
            .set_addresses(self.addresses(queue)?)
            .context("SET_VRING_ADDR")?;
        device
            .set_kick(index, Some(&queue.kick))
            .context("SET_VRING_KICK")?;
        Ok(())
    }

    /// Where a ring is: in this process, or for the device IOTLB if there is one.
    pub fn addresses(&self, queue: &Queue) -> Result<vhost_vring_addr> {
        let layout = queue.ring.layout();
        let place = |address: GuestAddress| {
            if self.options.features & ACCESS_PLATFORM != 0 {
                Ok(address.raw_value())
            } else {
                self.memory.host_address(address)
            }
        };
        Ok(vhost_vring_addr {
            index: queue.index,
            flags: 0,
            desc_user_addr: place(layout.descriptors)?,
            used_user_addr: place(layout.used)?,
            avail_user_addr: place(layout.available)?,
            log_guest_addr: 0,
        })
    }

    /// Sets the tap as the backend of both virtqueues.
    pub fn start(&self) -> Result<()> {
        for queue in [&self.receive, &self.transmit] {
            self.start_queue(queue)?;
        }
        Ok(())
    }

    /// Sets the tap as the backend of one virtqueue.
    pub fn start_queue(&self, queue: &Queue) -> Result<()> {
        let socket: &dyn AsRawFd = &self.tap;
        self.device
            .set_backend(queue.index, Some(socket))
            .with_context(|| format!("set the backend of virtqueue {}", queue.index))
    }

    /// Takes the backend from both virtqueues.
    pub fn stop(&self) -> Result<()> {
        for queue in [&self.receive, &self.transmit] {
            self.stop_queue(queue)?;
        }
        Ok(())
    }

    /// Takes the backend from one virtqueue.
    pub fn stop_queue(&self, queue: &Queue) -> Result<()> {
        self.device
            .set_backend(queue.index, None)
            .with_context(|| format!("stop virtqueue {}", queue.index))
    }

    /// Adds a packet to the transmit ring. Returns false when there is no room for it now.
    pub fn add_transmit(&mut self, header: &NetHeader, packet: &[u8]) -> Result<bool> {
        let Some(buffer) = self.transmit.spare.pop() else {
            return Ok(false);
        };
        let mut head = header.encode(self.options.modern_header());
        head.resize(self.options.header_length(), 0);
        let length = packet.len() as u32;
        ensure!(
            length <= buffer.length,
            "packet of {length} bytes exceeds its buffer"
        );
        self.memory.write_bytes(buffer.header, &head)?;
        self.memory.write_bytes(buffer.data, packet)?;
        let segments = transmit_segments(&buffer, head.len() as u32, length, &self.options);
        self.transmit.add(&segments, self.options.chaining, buffer)
    }

    /// Transmits one packet at once. Returns false when there is no room for it now.
    pub fn transmit(&mut self, packet: &[u8]) -> Result<bool> {
        let added = self.add_transmit(&NetHeader::default(), packet)?;
        self.transmit.publish()?;
        Ok(added)
    }

    /// Takes back what was transmitted and transmits it once more, and returns how many packets that were.
    /// All of them must have this length.
    ///
    /// Nothing is written but the ring: a driver that does only this is faster than any device.
    pub fn transmit_again(&mut self, length: u32) -> Result<usize> {
        let header = self.options.header_length() as u32;
        let mut count = 0;
        while let Some((buffer, _)) = self.transmit.take_used()? {
            let segments = transmit_segments(&buffer, header, length, &self.options);
            self.transmit
                .add(&segments, self.options.chaining, buffer)?;
            count += 1;
        }
        self.transmit.publish()?;
        Ok(count)
    }

    /// Takes back what was transmitted, and returns how many packets that were.
    pub fn reclaim(&mut self) -> Result<usize> {
        let mut count = 0;
        while let Some((buffer, length)) = self.transmit.take_used()? {
            ensure!(
                length == 0,
                "transmit chain came back with {length} bytes written"
            );
            self.transmit.spare.push(buffer);
            count += 1;
        }
        Ok(count)
    }

    /// Waits until everything transmitted came back.
    pub fn reclaim_all(&mut self) -> Result<()> {
        while self.transmit.ring.in_flight() > 0 {
            if self.reclaim()? == 0 && !self.transmit.ring.enable_call()? {
                self.wait_for(&[], |nic| &nic.transmit, "transmitted packets to come back")?;
            }
        }
        Ok(())
    }

    /// Gives the device every receive buffer that it does not have.
    pub fn replenish(&mut self) -> Result<()> {
        self.replenish_some(usize::MAX)
    }

    /// Gives the device at most this many receive buffers.
    pub fn replenish_some(&mut self, most: usize) -> Result<()> {
        self.fill_receive(most)?;
        self.receive.publish()
    }

    /// Adds at most this many receive buffers to the ring, which the device does not see yet.
    pub fn fill_receive(&mut self, most: usize) -> Result<()> {
        let header = self.options.header_length() as u32;
        for _ in 0..most {
            let Some(buffer) = self.receive.spare.pop() else {
                break;
            };
            let segments = receive_segments(&buffer, header, &self.options);
            if !self.receive.add(&segments, self.options.chaining, buffer)? {
                break;
            }
        }
        Ok(())
    }

    /// Touches every receive buffer, so that none is missing when its first packet comes. The device must
    /// not be receiving.
    pub fn touch_buffers(&self) -> Result<()> {
        for buffer in self.receive.in_flight.iter().flatten() {
            for (start, length) in [(buffer.header, 1), (buffer.data, buffer.length as usize)] {
                self.memory.write_bytes(start, &vec![0; length])?;
            }
        }
        Ok(())
    }

    /// Receive buffers that the device does not have.
    pub fn spare_receive_chains(&self) -> usize {
        self.receive.spare.len()
    }

    /// Takes the next packet received, if there is one. Its buffers become spare.
    pub fn take_received(&mut self) -> Result<Option<Received>> {
        let Some(used) = self.receive.take_used()? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        self.take_bytes(used, &mut bytes)?;
        let header_length = self.options.header_length();
        let header = bytes
            .get(..header_length)
            .and_then(NetHeader::decode)
            .with_context(|| format!("received {} bytes, no header", bytes.len()))?;
        let chains = if self.options.modern_header() {
            header.buffers
        } else {
            1
        };
        ensure!(chains > 0, "received a packet of no buffers");
        let mergeable = self.options.features & MRG_RXBUF != 0;
        ensure!(
            mergeable || chains == 1,
            "packet of {chains} buffers without MRG_RXBUF"
        );
        for number in 1..chains {
            let used = self.receive.take_used()?.with_context(|| {
                format!("of a packet of {chains} buffers, only {number} were published")
            })?;
            self.take_bytes(used, &mut bytes)?;
        }
        let packet = bytes.split_off(header_length);
        Ok(Some(Received {
            header,
            packet,
            chains,
        }))
    }

    fn take_bytes(&mut self, (buffer, length): (Buffer, u32), bytes: &mut Vec<u8>) -> Result<()> {
        let header = self.options.header_length() as u32;
        let mut left = length;
        for segment in receive_segments(&buffer, header, &self.options) {
            let here = left.min(segment.length);
            let start = bytes.len();
            bytes.resize(start + here as usize, 0);
            self.memory
                .read_bytes(segment.address, &mut bytes[start..])?;
            left -= here;
        }
        ensure!(
            left == 0,
            "receive chain came back with {left} bytes more than it has"
        );
        self.receive.spare.push(buffer);
        Ok(())
    }

    /// Waits for a packet.
    pub fn receive(&mut self) -> Result<Received> {
        loop {
            if let Some(received) = self.take_received()? {
                return Ok(received);
            }
            if !self.receive.ring.enable_call()? {
                self.wait_for(&[], |nic| &nic.receive, "a packet to arrive")?;
            }
        }
    }

    /// Waits for a call of the virtqueue, or for one of the other descriptors.
    fn wait_for(
        &self,
        others: &[BorrowedFd<'_>],
        queue: impl Fn(&Self) -> &Queue,
        what: &str,
    ) -> Result<()> {
        let queue = queue(self);
        let mut descriptors = vec![borrow(&queue.call)];
        descriptors.extend(others);
        let ready = wait::readable(&descriptors, wait::patience())?;
        ensure!(
            ready,
            "waited {:?} for {what}: virtqueue {} has used index {}, published {}, {} in flight",
            wait::patience(),
            queue.index,
            queue.ring.used_index()?,
            queue.ring.published(),
            queue.ring.in_flight()
        );
        queue.calls().map(drop)
    }
}

impl AsFd for Nic {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn buffer(memory: &GuestMemory, options: &NicOptions, length: u32) -> Result<Buffer> {
    let header = options.header_length() as u64;
    if options.across_regions {
        let data = memory.across_regions(length.into())?;
        return Ok(Buffer {
            header: memory.allocate(header, 4)?,
            data,
            length,
        });
    }
    if options.segments == 1 {
        let start = memory.allocate(header + u64::from(length), 4)?;
        return Ok(Buffer {
            header: start,
            data: start.unchecked_add(header),
            length,
        });
    }
    Ok(Buffer {
        header: memory.allocate(header, 4)?,
        data: memory.allocate(length.into(), 4)?,
        length,
    })
}

/// Where a packet of this length lies in its buffer.
fn transmit_segments(
    buffer: &Buffer,
    header: u32,
    length: u32,
    options: &NicOptions,
) -> Vec<Segment> {
    let readable = |address, length| Segment {
        address,
        length,
        writable: false,
    };
    if options.segments == 1 {
        return vec![readable(buffer.header, header + length)];
    }
    let mut segments = vec![readable(buffer.header, header)];
    let pieces = u32::from(options.segments - 1).min(length);
    for piece in 0..pieces {
        let (start, end) = (length * piece / pieces, length * (piece + 1) / pieces);
        segments.push(readable(
            buffer.data.unchecked_add(start.into()),
            end - start,
        ));
    }
    segments
}

/// How a receive buffer is offered.
fn receive_segments(buffer: &Buffer, header: u32, options: &NicOptions) -> Vec<Segment> {
    let writable = |address, length| Segment {
        address,
        length,
        writable: true,
    };
    if options.segments == 1 || buffer.length == 0 {
        return vec![writable(buffer.header, header + buffer.length)];
    }
    vec![
        writable(buffer.header, header),
        writable(buffer.data, buffer.length),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(segments: u16) -> NicOptions {
        NicOptions {
            segments,
            ..NicOptions::default()
        }
    }

    const BUFFER: Buffer = Buffer {
        header: GuestAddress(0x1000),
        data: GuestAddress(0x2000),
        length: 2000,
    };

    #[test]
    fn header_length_follows_the_features() {
        let with = |features| {
            NicOptions {
                features,
                ..NicOptions::default()
            }
            .header_length()
        };
        assert_eq!(with(0), LEGACY_LENGTH);
        assert_eq!(with(EVENT_IDX), LEGACY_LENGTH);
        assert_eq!(with(MRG_RXBUF), MODERN_LENGTH);
        assert_eq!(with(VERSION_1), MODERN_LENGTH);
    }

    #[test]
    fn transmit_segments_cover_the_packet() {
        for segments in 1..=4 {
            for length in [0, 1, 2, 60, 1515] {
                let chain = transmit_segments(&BUFFER, 12, length, &options(segments));
                assert_eq!(chain.iter().map(|s| s.length).sum::<u32>(), 12 + length);
                assert!(chain.iter().all(|s| s.length > 0 && !s.writable));
                assert!(chain.len() <= segments.into());
            }
        }
    }

    #[test]
    fn receive_segments_cover_the_buffer() {
        for segments in 1..=3 {
            let chain = receive_segments(&BUFFER, 12, &options(segments));
            assert_eq!(chain.iter().map(|s| s.length).sum::<u32>(), 2012);
            assert!(chain.iter().all(|s| s.writable));
        }
    }

    #[test]
    fn chains_fit_the_ring() {
        let mut options = options(2);
        options.ring_size = 256;
        assert_eq!(options.chains(2, None), 128);
        options.chaining = Chaining::Indirect;
        assert_eq!(options.chains(2, None), 256);
        assert_eq!(options.chains(2, Some(5)), 5);
    }
}
