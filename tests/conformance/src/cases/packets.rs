// SPDX-License-Identifier: GPL-2.0
//! Packets of all lengths, buffers of all sizes, notifications, and each way to break a ring.

use crate::case::Cases;
use crate::device::{feature, RECEIVE, TRANSMIT};
use crate::fuzz::scene::{header_of, Chain, Damage, Piece, Scene, Step};
use crate::memory::{SEAM, STARTS, UNMAPPED};
use crate::rig::RINGS;
use crate::ring::{INDIRECT, NEXT, NO_INTERRUPT, WRITE};
use crate::tap::NO_LIMIT;

/// Where buffers are; each has as much room as it needs.
const BUFFERS: [u64; 2] = [STARTS[2] + RINGS, STARTS[2]];

/// A chain of one piece for each of these contents.
fn readable(contents: &[&[u8]]) -> Chain {
    let mut address = BUFFERS[TRANSMIT];
    let pieces = contents
        .iter()
        .map(|bytes| {
            let piece = Piece {
                address,
                length: bytes.len() as u32,
                flags: 0,
                contents: bytes.to_vec(),
            };
            address += bytes.len() as u64;
            piece
        })
        .collect();
    Chain {
        pieces,
        table: None,
        damage: None,
        head: None,
    }
}

/// A chain of buffers of these lengths, the first of which is this one from the start of the memory.
fn writable(number: usize, lengths: &[usize]) -> Chain {
    let mut address = BUFFERS[RECEIVE] + number as u64 * 0x800;
    let pieces = lengths
        .iter()
        .map(|length| {
            let piece = Piece {
                address,
                length: *length as u32,
                flags: WRITE,
                contents: Vec::new(),
            };
            address += *length as u64;
            piece
        })
        .collect();
    Chain {
        pieces,
        table: None,
        damage: None,
        head: None,
    }
}

fn frame(length: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1, 0x88, 0xb5];
    frame.extend((0..length.saturating_sub(14)).map(|at| at as u8));
    frame.truncate(length);
    frame
}

/// A packet with an empty header.
fn packet(header: usize, length: usize) -> Vec<u8> {
    let mut packet = vec![0; header];
    packet.extend(frame(length));
    packet
}

fn offer(queue: usize, chains: Vec<Chain>) -> Step {
    Step::Offer { queue, chains }
}

const FEATURES: &[(&str, u64)] = &[
    ("no features", 0),
    ("MRG_RXBUF", feature::MRG_RXBUF),
    ("VERSION_1", feature::VERSION_1),
    (
        "VERSION_1 and MRG_RXBUF",
        feature::VERSION_1 | feature::MRG_RXBUF,
    ),
    ("VIRTIO_NET_HDR", feature::VIRTIO_NET_HDR),
    (
        "VIRTIO_NET_HDR and VERSION_1",
        feature::VIRTIO_NET_HDR | feature::VERSION_1,
    ),
    (
        "EVENT_IDX and VERSION_1",
        feature::EVENT_IDX | feature::VERSION_1,
    ),
];

fn lengths(cases: &mut Cases) {
    for (name, features) in FEATURES {
        for (limit_name, send_buffer) in [("in batches", NO_LIMIT), ("one by one", 1 << 20)] {
            let header = header_of(*features);
            let step = |length| offer(TRANSMIT, vec![readable(&[&packet(header, length)])]);
            let mut scene = Scene::plain(*features, (0..16).map(step).collect());
            scene.send_buffer = send_buffer;
            let mut long = scene.clone();
            long.steps = [
                59, 60, 61, 1513, 1514, 1515, 3700, 3800, 3900, 4096, 9014, 30_000,
            ]
            .map(step)
            .into();
            cases.add_scene(
                format!("the shortest packets with {name}, {limit_name}"),
                scene,
            );
            cases.add_scene(format!("long packets with {name}, {limit_name}"), long);
        }
        let header = header_of(*features);
        for cut in [1, header - 1, header, header + 1, header + 13] {
            let whole = packet(header, 60);
            let (before, after) = whole.split_at(cut);
            let chain = readable(&[before, &[], after]);
            cases.add_scene(
                format!("a packet cut after {cut} bytes with {name}"),
                Scene::plain(*features, vec![offer(TRANSMIT, vec![chain])]),
            );
        }
        for missing in [0, 1, 2] {
            let step = |length: usize| {
                vec![
                    offer(RECEIVE, vec![writable(0, &[header + length - missing])]),
                    Step::Arrive(vec![frame(length)]),
                    offer(RECEIVE, vec![writable(1, &[2000])]),
                    Step::Arrive(vec![frame(length)]),
                ]
            };
            cases.add_scene(
                format!("a buffer that is {missing} bytes too short with {name}"),
                Scene::plain(*features, [60, 1514].into_iter().flat_map(step).collect()),
            );
        }
        let bytes = (0..120).map(|number| writable(number, &[1])).collect();
        cases.add_scene(
            format!("buffers of one byte with {name}"),
            Scene::plain(
                *features,
                vec![
                    offer(RECEIVE, bytes),
                    Step::Arrive(vec![frame(60), frame(60), frame(14)]),
                ],
            ),
        );
        let chains = (0..8)
            .map(|number| writable(number, &[header - 1, 1, 100, 0, 200]))
            .collect();
        cases.add_scene(
            format!("buffers in pieces with {name}"),
            Scene::plain(
                *features,
                vec![
                    offer(RECEIVE, chains),
                    Step::Arrive([60, 280, 400, 900].map(frame).into()),
                ],
            ),
        );
        cases.add_scene(
            format!("packets that wait for buffers with {name}"),
            Scene::plain(
                *features,
                vec![
                    Step::Arrive([60, 61, 62].map(frame).into()),
                    offer(RECEIVE, vec![writable(0, &[2000])]),
                    offer(RECEIVE, vec![writable(1, &[2000]), writable(2, &[2000])]),
                ],
            ),
        );
    }
}

fn notifications(cases: &mut Cases) {
    for features in [
        feature::VERSION_1,
        feature::VERSION_1 | feature::EVENT_IDX,
        feature::VERSION_1 | feature::NOTIFY_ON_EMPTY,
        feature::VERSION_1 | feature::NOTIFY_ON_EMPTY | feature::EVENT_IDX,
    ] {
        for base in [0, 1, 65_530, 65_535] {
            for (queue, name) in [(TRANSMIT, "transmit"), (RECEIVE, "receive")] {
                let mut steps = Vec::new();
                for (flags, event) in [
                    (0, 0),
                    (0, 1),
                    (0, 2),
                    (0, 3),
                    (NO_INTERRUPT, 0),
                    (NO_INTERRUPT, 0xffff),
                    (0, 0xffff),
                    (0, 0x8000),
                ] {
                    steps.push(Step::Suppress {
                        queue,
                        flags,
                        event,
                    });
                    if queue == TRANSMIT {
                        let chain = readable(&[&packet(12, 60)]);
                        steps.push(offer(queue, vec![chain.clone(), chain]));
                    } else {
                        steps.push(offer(queue, vec![writable(0, &[200]), writable(1, &[200])]));
                        steps.push(Step::Arrive(vec![frame(60), frame(61)]));
                    }
                }
                let mut scene = Scene::plain(features, steps);
                scene.bases = [base; 2];
                cases.add_scene(
                    format!("calls of a {name} ring from {base} with features {features:#x}"),
                    scene,
                );
            }
        }
    }
    for size in [1, 2, 4, 2048] {
        let mut steps = Vec::new();
        for _ in 0..6 {
            steps.push(offer(RECEIVE, vec![writable(0, &[200])]));
            steps.push(offer(TRANSMIT, vec![readable(&[&packet(12, 70)])]));
            steps.push(Step::Arrive(vec![frame(65)]));
        }
        let mut scene = Scene::plain(feature::VERSION_1, steps);
        scene.sizes = [size; 2];
        cases.add_scene(format!("rings of {size}"), scene);
    }
}

const BREAKAGES: &[(&str, usize, Damage)] = &[
    ("an unknown flag", 0, Damage::Flags(0x8000)),
    (
        "a first descriptor of the wrong direction",
        0,
        Damage::Flags(WRITE),
    ),
    (
        "a last descriptor of the wrong direction",
        2,
        Damage::Flags(WRITE),
    ),
    ("a chain that ends early", 0, Damage::Flags(NEXT)),
    ("a chain that does not end", 2, Damage::Flags(NEXT)),
    ("a table that is none", 1, Damage::Flags(INDIRECT)),
    (
        "a table that is none at the end",
        2,
        Damage::Flags(INDIRECT),
    ),
    ("a descriptor followed by itself", 1, Damage::Next(1)),
    ("a loop", 1, Damage::Next(0)),
    ("a next descriptor out of range", 0, Damage::Next(256)),
    ("the largest next descriptor", 0, Damage::Next(u16::MAX)),
    ("an empty descriptor", 1, Damage::Length(0)),
    ("an empty descriptor at the end", 2, Damage::Length(0)),
    ("a descriptor of 4 GiB", 1, Damage::Length(u32::MAX)),
    ("a descriptor of 2 GiB", 2, Damage::Length(1 << 31)),
    ("an unmapped descriptor", 0, Damage::Address(UNMAPPED)),
    ("a descriptor at zero", 2, Damage::Address(0)),
    ("a descriptor that wraps", 1, Damage::Address(u64::MAX - 3)),
    ("a descriptor across regions", 1, Damage::Address(SEAM - 10)),
    (
        "a descriptor in the kernel",
        1,
        Damage::Address(0xffff_8000_0000_0000),
    ),
];

/// Damages of a chain that is all in an indirect table; number 3 is the descriptor that points to it.
const TABLES: &[(&str, usize, Damage)] = &[
    ("an empty table", 3, Damage::Length(0)),
    (
        "a table of no whole number of descriptors",
        3,
        Damage::Length(40),
    ),
    ("a table that is cut off", 3, Damage::Length(32)),
    ("a table of 4 GiB", 3, Damage::Length(0xffff_fff0)),
    (
        "a table of 65537 descriptors",
        3,
        Damage::Length(65_537 * 16),
    ),
    ("an unmapped table", 3, Damage::Address(UNMAPPED)),
    ("a table across regions", 3, Damage::Address(SEAM - 16)),
    ("a table that is writable", 3, Damage::Flags(WRITE)),
    ("a table that is followed", 3, Damage::Flags(NEXT)),
    ("a table in a table", 1, Damage::Flags(INDIRECT)),
    ("a loop in a table", 1, Damage::Next(0)),
    ("a next descriptor out of the table", 1, Damage::Next(3)),
    ("a table that does not end", 2, Damage::Flags(NEXT)),
    (
        "an unmapped descriptor in a table",
        1,
        Damage::Address(UNMAPPED),
    ),
    ("an empty descriptor in a table", 1, Damage::Length(0)),
    ("the wrong direction in a table", 2, Damage::Flags(WRITE)),
];

fn breakages(cases: &mut Cases) {
    for (queue, queue_name) in [(TRANSMIT, "transmit"), (RECEIVE, "receive")] {
        let good = || match queue {
            TRANSMIT => readable(&[&packet(12, 4), &frame(40), &frame(30)]),
            _ => writable(0, &[12, 100, 1900]),
        };
        let play = |cases: &mut Cases, name: String, bad: Chain| {
            let steps = vec![
                offer(queue, vec![good()]),
                offer(queue, vec![good(), bad, good()]),
                Step::Arrive(vec![frame(60), frame(200), frame(100)]),
                Step::Restart { queue, skip: 0 },
                Step::Restart { queue, skip: 1 },
                Step::Arrive(vec![frame(70)]),
            ];
            cases.add_scene(name, Scene::plain(feature::VERSION_1, steps));
        };
        for (name, which, damage) in BREAKAGES {
            let bad = Chain {
                damage: Some((*which, *damage)),
                ..good()
            };
            play(cases, format!("{name} in a {queue_name} ring"), bad);
        }
        for (name, which, damage) in TABLES {
            let bad = Chain {
                damage: Some((*which, *damage)),
                table: Some((0, BUFFERS[queue] + 0x1_0000)),
                ..good()
            };
            play(cases, format!("{name} in a {queue_name} ring"), bad);
        }
        // The first element goes to a page of the used ring that nobody has touched.
        let bad = Chain {
            head: Some(u16::MAX),
            ..good()
        };
        let steps = vec![
            Step::Arrive(vec![frame(60), frame(61)]),
            offer(queue, vec![good(), bad]),
        ];
        let mut scene = Scene::plain(feature::VERSION_1, steps);
        scene.sizes = [2048; 2];
        scene.bases = [u16::MAX; 2];
        cases.add_scene(
            format!("a {queue_name} ring that breaks before its used ring is there"),
            scene,
        );
        for head in [255, 256, 0x8000, u16::MAX] {
            let bad = Chain {
                head: Some(head),
                ..good()
            };
            play(cases, format!("head {head} in a {queue_name} ring"), bad);
        }
        for by in [1, 255, 256, 257, 0x8000, u16::MAX] {
            let steps = vec![
                offer(queue, vec![good()]),
                Step::Jump { queue, by },
                Step::Arrive(vec![frame(60), frame(61)]),
            ];
            cases.add_scene(
                format!("an available index that jumps by {by} in a {queue_name} ring"),
                Scene::plain(feature::VERSION_1, steps),
            );
        }
    }
}

/// More buffers for a packet than it may have, behind some that wait to be given back (CVE-2018-16880).
fn many_buffers(cases: &mut Cases) {
    for features in [0, feature::IN_ORDER] {
        let chains = (0..2000).map(|number| {
            let mut chain = writable(0, &[1]);
            chain.pieces[0].address += number;
            chain
        });
        let steps = vec![
            offer(RECEIVE, chains.collect()),
            Step::Arrive([60, 61, 1514, 62].map(frame).into()),
        ];
        let features = features | feature::VERSION_1 | feature::MRG_RXBUF;
        let mut scene = Scene::plain(features, steps);
        scene.sizes = [2048; 2];
        cases.add_scene(
            format!("a packet in more buffers than there may be with features {features:#x}"),
            scene,
        );
    }
}

/// Adds the cases.
pub fn add(cases: &mut Cases) {
    lengths(cases);
    notifications(cases);
    breakages(cases);
    many_buffers(cases);
}
