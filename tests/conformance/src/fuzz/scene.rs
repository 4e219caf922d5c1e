// SPDX-License-Identifier: GPL-2.0
//! A scene: how a device is set up, and what its guest and its host then do.

use crate::device::{feature, RECEIVE, TRANSMIT, VIRTQUEUES};
use crate::memory::{REGION, SEAM, STARTS, UNMAPPED};
use crate::random::Random;
use crate::rig::RINGS;
use crate::ring::{INDIRECT, NEXT, WRITE};
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
    /// What happens.
    pub steps: Vec<Step>,
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

fn damage(random: &mut Random, size: u16) -> Damage {
    match random.below(4) {
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
        let features = features(random);
        let device_header = features & feature::VIRTIO_NET_HDR != 0;
        let tap_header = match random.below(12) {
            0 => *random.choose(&[10, 12, 24]),
            _ => header_of(features),
        };
        let mut scene = Self {
            features,
            tap_header,
            send_buffer: if random.below(4) == 0 {
                1 << 20
            } else {
                NO_LIMIT
            },
            sizes: [0, 1].map(|_| *random.choose(&[1, 2, 4, 8, 64, 256, 256, 256, 1024])),
            bases: [0, 1].map(|_| *random.choose(&[0, 0, 1, 255, 65_530, 65_535])),
            steps: Vec::new(),
        };
        let broken = random.below(2) == 0;
        let mut places = Places {
            next: [0; VIRTQUEUES],
        };
        for _ in 0..1 + random.below(6) {
            let step = scene.step(random, &mut places, broken, device_header);
            scene.steps.push(step);
        }
        scene
    }

    /// The scene in a few lines, without the contents of packets.
    pub fn summary(&self) -> String {
        let mut text = format!(
            "features {:#x}, tap header {}, send buffer {}, sizes {:?}, bases {:?}",
            self.features, self.tap_header, self.send_buffer, self.sizes, self.bases
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
                let mut bytes = header(random, before);
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
            let damage = is_broken.then(|| (random.below(pieces.len() + 1), damage(random, size)));
            let head = (broken && random.below(40) == 0)
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
