// SPDX-License-Identifier: GPL-2.0
//! A scene: how a device is set up, and what its guest and its host then do.

use std::ops::Range;

use crate::device::{feature, RECEIVE, TRANSMIT, VIRTQUEUES};
use crate::memory::{REGION, SEAM, STARTS, UNMAPPED};
use crate::random::Random;
use crate::rig::{place, place_together, RINGS};
use crate::ring::{Ring, INDIRECT, NEXT, WRITE};
use crate::tap::NO_LIMIT;

/// A descriptor before it has a place in a table.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Flags, of which [`NEXT`] is added where one follows.
    pub flags: u16,
    /// What is written there before: bytes to transmit.
    pub contents: Vec<u8>,
}

/// How a descriptor is damaged after it was written.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    /// These flags are turned over.
    Flags(u16),
    /// The next descriptor is this one.
    Next(u16),
    /// It has this length.
    Length(u32),
    /// It has this address.
    Address(u64),
}

/// A chain of descriptors.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its pieces.
    pub pieces: Vec<Piece>,
    /// From this piece on, the descriptors are in an indirect table at this address.
    pub table: Option<(usize, u64)>,
    /// What is damaged: which descriptor, and how.
    pub damage: Option<(usize, Damage)>,
    /// The available ring says this instead of the head.
    pub head: Option<u16>,
}

/// What is done at once, before it is looked what came of it.
#[derive(Clone, Debug)]
pub enum Step {
    /// Chains are offered, and the device is kicked.
    Offer {
        /// The virtqueue.
        queue: usize,
        /// The chains.
        chains: Vec<Chain>,
    },
    /// The available index jumps, and the device is kicked.
    Jump {
        /// The virtqueue.
        queue: usize,
        /// By so much.
        by: u16,
    },
    /// The driver says when it wants to be called.
    Suppress {
        /// The virtqueue.
        queue: usize,
        /// Flags of the available ring.
        flags: u16,
        /// The event index, from the used index on.
        event: u16,
    },
    /// The host sends packets.
    Arrive(Vec<Vec<u8>>),
    /// A virtqueue is stopped and started again.
    Restart {
        /// The virtqueue.
        queue: usize,
        /// This many chains are passed over.
        skip: u16,
    },
    /// A virtqueue is stopped, and started with an empty ring of another size that begins elsewhere.
    Reset {
        /// The virtqueue.
        queue: usize,
        /// The new size.
        size: u16,
        /// The new index.
        base: u16,
    },
    /// The memory table is exchanged.
    Memory(Table),
    /// What is told to the dirty log changes.
    Log {
        /// Whether writes to buffers are.
        buffers: bool,
        /// For each virtqueue, whether writes to its used ring are.
        used: [bool; VIRTQUEUES],
    },
    /// The dirty log is read and cleared.
    TakeLog,
    /// The IOMMU takes translations back.
    Unmap {
        /// Where the range begins.
        from: u64,
        /// Its bytes.
        length: u64,
    },
    /// The misses that were read so far are answered.
    Answer {
        /// Each with a translation of so many bytes around its address, a power of two.
        bytes: u64,
        /// How.
        how: Reply,
    },
}

/// A memory table.
#[derive(Clone, Copy, Debug)]
pub enum Table {
    /// The three regions.
    Whole,
    /// The same memory in six regions, in another order.
    Halves,
    /// Without the third region.
    Less,
}

/// How a miss is answered.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    /// With what is asked for, or more.
    Right,
    /// With permission for everything but what is asked for.
    Forbidden,
    /// With the page that follows, if it is a buffer to receive into; otherwise with what is asked for.
    Elsewhere,
    /// About another range.
    Beside,
}

impl Step {
    fn summary(&self) -> String {
        match self {
            Self::Offer { queue, chains } => {
                let chains: Vec<_> = chains.iter().map(Chain::summary).collect();
                format!("offer to {queue}: {}", chains.join("; "))
            }
            Self::Arrive(packets) => {
                let lengths: Vec<_> = packets.iter().map(Vec::len).collect();
                format!("packets arrive of {lengths:?}")
            }
            other => format!("{other:x?}"),
        }
    }
}

impl Chain {
    /// How many descriptors it has in the ring's table.
    pub fn descriptors(&self) -> u16 {
        self.table.map_or(self.pieces.len(), |(from, _)| from + 1) as u16
    }

    /// Where its pieces and its table are.
    fn ranges(&self) -> Vec<Range<u64>> {
        let pieces = self.pieces.iter();
        let mut ranges: Vec<_> = pieces
            .map(|piece| piece.address..piece.address + u64::from(piece.length))
            .collect();
        if let Some((from, table)) = self.table {
            ranges.push(table..table + 16 * (self.pieces.len() - from) as u64);
        }
        ranges
    }

    /// Whether none of its parts overlaps another one.
    pub fn is_apart(&self) -> bool {
        let ranges = self.ranges();
        (0..ranges.len()).all(|at| {
            ranges[..at]
                .iter()
                .all(|other| are_apart(&ranges[at], other))
        })
    }

    /// Whether none of its parts overlaps one of another chain's.
    pub fn is_apart_from(&self, other: &Self) -> bool {
        let others = other.ranges();
        self.ranges()
            .iter()
            .all(|range| others.iter().all(|other| are_apart(range, other)))
    }

    fn summary(&self) -> String {
        let pieces: Vec<_> = self
            .pieces
            .iter()
            .map(|piece| format!("{:#x}+{}", piece.address, piece.length))
            .collect();
        let mut text = pieces.join(" ");
        if let Some((from, address)) = self.table {
            text += &format!(", from {from} on in a table at {address:#x}");
        }
        if let Some((which, damage)) = self.damage {
            text += &format!(", {damage:x?} of {which}");
        }
        if let Some(head) = self.head {
            text += &format!(", head {head}");
        }
        if let Some(piece) = self.pieces.iter().find(|piece| !piece.contents.is_empty()) {
            let length = piece.contents.len().min(12);
            text += &format!(", begins {:x?}", &piece.contents[..length]);
        }
        text
    }
}

fn are_apart(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.end <= other.start || other.end <= one.start
}

/// A scene.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The features that are set.
    pub features: u64,
    /// Bytes of the tap's header.
    pub tap_header: usize,
    /// The limit of bytes in flight towards the host.
    pub send_buffer: i32,
    /// Sizes of the rings.
    pub sizes: [u16; VIRTQUEUES],
    /// Where their indices start.
    pub bases: [u16; VIRTQUEUES],
    /// Whether the parts of a ring follow each other, as legacy drivers have them.
    pub together: bool,
    /// Whether there is a dirty log, and where the used rings are in it.
    pub log: Option<[u64; VIRTQUEUES]>,
    /// Whether writes to the used rings are logged from the start.
    pub used_logged: [bool; VIRTQUEUES],
    /// What happens.
    pub steps: Vec<Step>,
}

impl Scene {
    /// A scene on rings of 256 descriptors that begin at 0, with nothing out of the ordinary.
    pub fn plain(features: u64, steps: Vec<Step>) -> Self {
        Self {
            features,
            tap_header: header_of(features),
            send_buffer: NO_LIMIT,
            sizes: [256; VIRTQUEUES],
            bases: [0; VIRTQUEUES],
            together: false,
            log: None,
            used_logged: [false; VIRTQUEUES],
            steps,
        }
    }

    /// Whether the driver uses buffers in order.
    pub fn in_order(&self) -> bool {
        self.features & feature::IN_ORDER != 0
    }

    /// Whether addresses go through an IOMMU.
    pub fn translates(&self) -> bool {
        self.features & feature::ACCESS_PLATFORM != 0
    }

    /// Where the rings are.
    pub fn place(&self, queue: usize, size: u16) -> Ring {
        if self.together {
            place_together(queue, size)
        } else {
            place(queue, size)
        }
    }

    /// The largest ring that a scene may have. Where stock vhost logs the used ring of a driver that uses
    /// buffers in order, it marks up to twice its length from some element on, so the ring has to
    /// be so small that this stays within its page.
    fn largest(&self) -> u16 {
        if self.in_order() && self.log.is_some() {
            64
        } else {
            1024
        }
    }
}

/// Bytes of the header that features ask for.
pub fn header_of(features: u64) -> usize {
    if features & (feature::MRG_RXBUF | feature::VERSION_1) != 0 {
        12
    } else {
        10
    }
}

/// Gives out places for buffers, over and over.
struct Places {
    next: [u64; VIRTQUEUES],
}

impl Places {
    /// Half of the part of the first region that rings do not have, or of the whole third one.
    fn take(&mut self, random: &mut Random, queue: usize, length: u64) -> u64 {
        let (start, room) = if random.below(3) == 0 {
            (STARTS[0] + RINGS + queue as u64 * RINGS / 2, RINGS / 2)
        } else {
            (STARTS[2] + queue as u64 * REGION / 2, REGION / 2)
        };
        let next = &mut self.next[queue];
        if *next + length > room {
            *next = 0;
        }
        let place = start + *next;
        *next += length + random.below(9) as u64;
        place
    }
}

fn features(random: &mut Random) -> u64 {
    let mut features = 0;
    for bit in [
        feature::MRG_RXBUF,
        feature::EVENT_IDX,
        feature::INDIRECT_DESC,
        feature::VERSION_1,
    ] {
        if random.below(2) == 0 {
            features |= bit;
        }
    }
    for bit in [
        feature::NOTIFY_ON_EMPTY,
        feature::VIRTIO_NET_HDR,
        feature::RING_RESET,
        feature::IN_ORDER,
        feature::ACCESS_PLATFORM,
    ] {
        if random.below(5) == 0 {
            features |= bit;
        }
    }
    features
}

fn length(random: &mut Random) -> usize {
    match random.below(10) {
        0 => random.below(15),
        1 => 14 + random.below(46),
        2 => 1514 - random.below(3),
        3 => 3000 + random.below(2000),
        4 => random.below(12_000),
        _ => 60 + random.below(200),
    }
}

/// Where an index starts.
fn base(random: &mut Random) -> u16 {
    *random.choose(&[0, 0, 1, 255, 65_530, 65_535])
}

/// An Ethernet frame with something in it.
fn frame(random: &mut Random, length: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1, 0x88, 0xb5];
    let start = random.below(256);
    frame.extend((0..length.saturating_sub(14)).map(|at| (start + 7 * at) as u8));
    frame.truncate(length);
    frame
}

fn header(random: &mut Random, bytes: usize) -> Vec<u8> {
    let mut header = vec![0; bytes];
    match random.below(16) {
        // A checksum that is to be filled in, where there is room for it or not.
        0 => {
            header[0] = 1;
            let start = *random.choose(&[14u16, 34, 60, 2000, 0xfff0]);
            let offset = *random.choose(&[0u16, 6, 16, 0xffff]);
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
        }
        // Some kind of segmentation.
        1 => {
            header[1] = *random.choose(&[1, 3, 4, 5, 0x81, 77]);
            header[4] = random.below(256) as u8;
        }
        // Flags and lengths without meaning.
        2 => {
            header[0] = *random.choose(&[2, 4, 0x80]);
            header[2] = random.below(256) as u8;
        }
        _ => {}
    }
    header
}

/// How a descriptor of a ring of this size is damaged. If the chain keeps its length, what follows it
/// is found where it is.
fn damage(random: &mut Random, size: u16, keeps_length: bool) -> Damage {
    if keeps_length && random.below(2) == 0 {
        return Damage::Flags(*random.choose(&[WRITE, INDIRECT, 0x8000]));
    }
    match random.below(4).max(if keeps_length { 2 } else { 0 }) {
        0 => Damage::Flags(*random.choose(&[NEXT, WRITE, INDIRECT, NEXT | WRITE, 0x8000])),
        1 => Damage::Next(*random.choose(&[0, 1, size - 1, size, 0x7fff, 0xffff])),
        2 => Damage::Length(*random.choose(&[
            0,
            1,
            9,
            11,
            15,
            16,
            17,
            4096,
            70_000,
            0xffff_fff0,
            u32::MAX,
        ])),
        _ => Damage::Address(*random.choose(&[
            0,
            1,
            UNMAPPED,
            SEAM - 1,
            SEAM - 16,
            SEAM + REGION - 8,
            u64::MAX,
            u64::MAX - 10,
            1 << 63,
        ])),
    }
}

/// Cuts bytes into pieces and gives them places.
fn pieces(random: &mut Random, places: &mut Places, queue: usize, bytes: &[u8]) -> Vec<Piece> {
    let count = 1 + random.below(4);
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for number in 0..count {
        let here = if number + 1 == count {
            rest.len()
        } else if random.below(12) == 0 {
            0
        } else {
            random.below(rest.len() + 1).min(rest.len())
        };
        let (now, later) = rest.split_at(here);
        rest = later;
        let address = if random.below(10) == 0 {
            SEAM - (here as u64 / 2)
        } else {
            places.take(random, queue, here as u64)
        };
        pieces.push(Piece {
            address,
            length: here as u32,
            flags: if queue == RECEIVE { WRITE } else { 0 },
            contents: if queue == RECEIVE {
                Vec::new()
            } else {
                now.to_vec()
            },
        });
    }
    pieces
}

impl Scene {
    /// The scene of a seed.
    pub fn new(seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let mut scene = Self::plain(features(random), Vec::new());
        let device_header = scene.features & feature::VIRTIO_NET_HDR != 0;
        // What breaks a packet keeps stock vhost at it for ever, and that cannot be told from waiting
        // for a translation.
        let broken = random.below(2) == 0 && !scene.translates();
        if random.below(12) == 0 && !scene.translates() {
            scene.tap_header = *random.choose(&[10, 12, 24]);
        }
        if random.below(4) == 0 {
            scene.send_buffer = 1 << 20;
        }
        scene.together = random.below(4) == 0;
        if random.below(3) == 0 {
            scene.log = Some([0, 1].map(|queue| {
                // Whoever migrates a guest gives the ring's place in the guest's memory.
                match random.below(4) {
                    0 => STARTS[0] + 0x1000 * random.below(REGION as usize / 0x1000) as u64,
                    _ => scene.place(queue, 64).used,
                }
            }));
            if random.below(2) == 0 {
                scene.features |= feature::LOG_ALL;
            }
            scene.used_logged = [0, 1].map(|_| random.below(2) == 0);
        }
        scene.sizes = [0, 1].map(|_| scene.size(random));
        scene.bases = [0, 1].map(|_| base(random));
        let mut places = Places {
            next: [0; VIRTQUEUES],
        };
        let sizes = scene.sizes;
        // What is missing is asked for, answered and asked for again.
        let most = if scene.translates() { 16 } else { 6 };
        for _ in 0..1 + random.below(most) {
            let step = scene.step(random, &mut places, broken, device_header);
            // Chains that are made later have to fit the ring.
            if let Step::Reset { queue, size, .. } = &step {
                scene.sizes[*queue] = *size;
            }
            scene.steps.push(step);
        }
        scene.sizes = sizes;
        scene
    }

    fn size(&self, random: &mut Random) -> u16 {
        let size = *random.choose(&[1, 2, 4, 8, 64, 256, 256, 256, 1024]);
        size.min(self.largest())
    }

    /// The scene in a few lines, without the contents of packets.
    pub fn summary(&self) -> String {
        let mut text = format!(
            "features {:#x}, tap header {}, send buffer {}, sizes {:?}, bases {:?}, together {}, \
             log at {:x?}, used rings logged {:?}",
            self.features,
            self.tap_header,
            self.send_buffer,
            self.sizes,
            self.bases,
            self.together,
            self.log,
            self.used_logged,
        );
        for (number, step) in self.steps.iter().enumerate() {
            text += &format!("\nstep {number}: {}", step.summary());
        }
        text
    }

    fn step(
        &self,
        random: &mut Random,
        places: &mut Places,
        broken: bool,
        device_header: bool,
    ) -> Step {
        let queue = random.below(VIRTQUEUES);
        if let Some(step) = self.special_step(random, queue) {
            return step;
        }
        match random.below(12) {
            0..=3 => self.offer(random, places, TRANSMIT, broken, device_header),
            4..=6 => self.offer(random, places, RECEIVE, broken, device_header),
            7 | 8 => {
                let most = *random.choose(&[1, 4, 12]);
                let count = 1 + random.below(most);
                Step::Arrive(
                    (0..count)
                        .map(|_| {
                            let length = (14 + random.below(100)).max(length(random).min(1514));
                            frame(random, length)
                        })
                        .collect(),
                )
            }
            9 => Step::Suppress {
                queue,
                flags: random.below(2) as u16,
                event: *random.choose(&[0, 1, 3, 0x8000, 0xffff]),
            },
            10 if broken && self.in_order() => Step::Jump { queue, by: 0x8000 },
            10 if broken => Step::Jump {
                queue,
                by: *random.choose(&[1, self.sizes[queue], self.sizes[queue] + 1, 0x8000, 0xffff]),
            },
            _ => Step::Restart {
                queue,
                skip: if broken { random.below(2) as u16 } else { 0 },
            },
        }
    }

    /// A step that only some scenes have.
    fn special_step(&self, random: &mut Random, queue: usize) -> Option<Step> {
        let choice = random.below(12);
        let step = match choice {
            0..=2 if self.translates() => Step::Answer {
                bytes: *random.choose(&[0x1000, 0x4000, 0x1_0000, REGION]),
                how: match random.below(8) {
                    0 => Reply::Forbidden,
                    1 => Reply::Elsewhere,
                    2 => Reply::Beside,
                    _ => Reply::Right,
                },
            },
            3 if self.translates() => {
                let start = *random.choose(&STARTS);
                Step::Unmap {
                    from: start + 0x1000 * random.below(REGION as usize / 0x1000) as u64,
                    length: *random.choose(&[1, 0x1000, 0x1_0000, REGION]),
                }
            }
            4 | 5 if self.log.is_some() => Step::Log {
                buffers: random.below(2) == 0,
                used: [0, 1].map(|_| random.below(2) == 0),
            },
            6 if self.log.is_some() => Step::TakeLog,
            7 if random.below(2) == 0 => Step::Reset {
                queue,
                size: self.size(random),
                base: base(random),
            },
            8 if !self.translates() => {
                Step::Memory(*random.choose(&[Table::Whole, Table::Halves, Table::Less]))
            }
            _ => return None,
        };
        Some(step)
    }

    fn offer(
        &self,
        random: &mut Random,
        places: &mut Places,
        queue: usize,
        broken: bool,
        device_header: bool,
    ) -> Step {
        let size = self.sizes[queue];
        let most = *random.choose(&[1, 2, 8, 40]);
        let count = (1 + random.below(most)).min(size.into());
        let mut descriptors = usize::from(size);
        let mut chains = Vec::new();
        for _ in 0..count {
            // What the guest puts before a frame: the device's header if it has one, else the tap's.
            let before = if device_header {
                header_of(self.features)
            } else {
                self.tap_header
            };
            let length = length(random);
            let bytes = if queue == RECEIVE {
                vec![0; random.below(64).max(before + length)]
            } else {
                let mut bytes = if self.translates() {
                    vec![0; before]
                } else {
                    header(random, before)
                };
                bytes.extend(frame(random, length));
                bytes
            };
            let pieces = pieces(random, places, queue, &bytes);
            let table = (random.below(3) == 0).then(|| {
                let address = places.take(random, queue, 16 * pieces.len() as u64);
                (
                    random.below(pieces.len() + 1).min(pieces.len() - 1),
                    address,
                )
            });
            let used = table.map_or(pieces.len(), |(from, _)| from + 1);
            if used > descriptors {
                break;
            }
            descriptors -= used;
            let is_broken = broken && random.below(6) == 0;
            let damage = is_broken.then(|| {
                (
                    random.below(pieces.len() + 1),
                    damage(random, size, self.in_order()),
                )
            });
            // Stock vhost does not read the available ring's entries if buffers are used in order.
            let head = (broken && !self.in_order() && random.below(40) == 0)
                .then(|| *random.choose(&[0, size - 1, size, u16::MAX]));
            chains.push(Chain {
                pieces,
                table,
                damage,
                head,
            });
        }
        Step::Offer { queue, chains }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_say_the_same_again() {
        for seed in 0..100 {
            let scene = || format!("{:?}", Scene::new(seed));
            assert_eq!(scene(), scene());
        }
    }

    #[test]
    fn chains_fit_the_rings_that_they_are_offered_in() {
        for seed in 0..2000 {
            let scene = Scene::new(seed);
            let mut sizes = scene.sizes;
            for step in scene.steps {
                match step {
                    Step::Reset { queue, size, .. } => sizes[queue] = size,
                    Step::Offer { queue, chains } => {
                        let taken: u16 = chains.iter().map(Chain::descriptors).sum();
                        assert!(taken <= sizes[queue], "seed {seed}");
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn buffers_of_good_scenes_have_memory() {
        let arena = crate::memory::Arena::new().expect("memory");
        for seed in 0..500 {
            for step in Scene::new(seed).steps {
                let Step::Offer { chains, .. } = step else {
                    continue;
                };
                for piece in chains.iter().flat_map(|chain| &chain.pieces) {
                    // Panics where there is none.
                    arena.write(piece.address, &vec![1; piece.length as usize]);
                }
            }
        }
    }
}
