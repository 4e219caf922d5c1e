// SPDX-License-Identifier: GPL-2.0
//! Two-way traffic over every layout of rings, chains and headers.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::{
    DEVICE_HEADER, EVENT_IDX, INDIRECT_DESC, IN_ORDER, MRG_RXBUF, RECEIVE, TRANSMIT, UDP_TUNNELS,
    VERSION_1,
};
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::ktap::{skip, Outcome, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::ring::Chaining;
use vhost_iocm_selftests::tap::TapOptions;
use vhost_iocm_selftests::traffic::{Direction, Traffic};

use crate::{exchange, CHAIN_MAX};

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    let frames = options.volume(2000, 64);
    for combination in 0..16u32 {
        let nic = combine(combination);
        suite.case(
            format!("two-way traffic with {}", describe(&nic)),
            move || {
                let mut nic = Nic::new(&options.node, nic)?;
                let mut traffic = Traffic::new(&mut nic, Direction::Both)?;
                traffic.run(frames)?;
                let sent = [
                    (traffic.receive.sent, traffic.receive.sent_bytes),
                    (traffic.transmit.sent, traffic.transmit.sent_bytes),
                ];
                if options.stock {
                    return Ok(());
                }
                expect_counted(&nic, sent)
            },
        );
    }

    suite.case(
        "two-way traffic with the header supplied by the device",
        move || {
            let nic = NicOptions {
                features: VERSION_1 | MRG_RXBUF | EVENT_IDX | DEVICE_HEADER,
                ..NicOptions::default()
            };
            exchange(options, nic, Direction::Both, frames)
        },
    );

    suite.case(
        "two-way traffic with a legacy header supplied by the device",
        move || {
            let nic = NicOptions {
                features: DEVICE_HEADER,
                ..NicOptions::default()
            };
            exchange(options, nic, Direction::Both, frames)
        },
    );

    for (name, features) in [
        ("with event index", VERSION_1 | MRG_RXBUF | EVENT_IDX),
        ("with flags", VERSION_1 | MRG_RXBUF),
        ("with single buffers", VERSION_1 | EVENT_IDX),
    ] {
        suite.case(
            format!("two-way traffic with buffers used in order, {name}"),
            move || {
                for chaining in [Chaining::Direct, Chaining::Indirect] {
                    let nic = NicOptions {
                        features: features | IN_ORDER | INDIRECT_DESC,
                        chaining,
                        segments: 3,
                        // Where a packet may have several buffers it has.
                        receive_length: if features & MRG_RXBUF != 0 { 300 } else { 2048 },
                        ..NicOptions::default()
                    };
                    exchange(options, nic, Direction::Both, frames)?;
                }
                Ok(())
            },
        );
    }

    suite.case(
        "buffers are used in order also after a ring was stopped and started",
        move || {
            if options.stock {
                return skip("vhost_net counts descriptors, and starts that count elsewhere");
            }
            let nic = NicOptions {
                features: VERSION_1 | MRG_RXBUF | EVENT_IDX | IN_ORDER,
                // Chains of several descriptors: entries of the available ring and descriptors
                // are not numbered alike.
                segments: 3,
                receive_length: 300,
                ..NicOptions::default()
            };
            let mut nic = Nic::new(&options.node, nic)?;
            for _ in 0..3 {
                Traffic::new(&mut nic, Direction::Both)?.run(37)?;
                nic.stop()?;
                for index in [RECEIVE, TRANSMIT] {
                    let base = nic.device.base(index)?;
                    nic.device.set_base(index, base)?;
                }
                nic.start()?;
            }
            Ok(Outcome::Pass)
        },
    );

    for (name, device_header) in [("socket", 0), ("device", DEVICE_HEADER)] {
        for mergeable in [MRG_RXBUF, 0] {
            let kind = if mergeable == 0 {
                "single"
            } else {
                "mergeable"
            };
            suite.case(
                format!("two-way traffic with tunnel headers of the {name} and {kind} buffers"),
                move || {
                    let nic = NicOptions {
                        features: VERSION_1 | EVENT_IDX | mergeable | device_header,
                        high_features: UDP_TUNNELS,
                        ..NicOptions::default()
                    };
                    exchange(options, nic, Direction::Both, frames)
                },
            );
        }
    }

    suite.case(
        "indirect descriptors work without being acknowledged",
        move || {
            let nic = NicOptions {
                features: EVENT_IDX | MRG_RXBUF,
                chaining: Chaining::Indirect,
                ..NicOptions::default()
            };
            exchange(options, nic, Direction::Both, frames)
        },
    );

    for size in [2, 4, 16, 1024, 32768] {
        suite.case(format!("two-way traffic over rings of {size}"), move || {
            let nic = NicOptions {
                ring_size: size,
                receive_length: 1600,
                receive_chains: Some(8192),
                transmit_chains: Some(1024),
                segments: 1,
                ..NicOptions::default()
            };
            exchange(
                options,
                nic,
                Direction::Both,
                frames.min(u64::from(size) * 200),
            )
        });
    }

    suite.case("ring indices wrap at 65536", move || {
        for features in [VERSION_1 | MRG_RXBUF, VERSION_1 | MRG_RXBUF | EVENT_IDX] {
            let nic = NicOptions {
                features,
                start: 65500,
                ..NicOptions::default()
            };
            exchange(options, nic, Direction::Both, frames.min(500))?;
        }
        Ok(())
    });

    suite.case("ring indices go all the way round", move || {
        let nic = NicOptions {
            start: options.volume(0, 65_000),
            ..NicOptions::default()
        };
        let mut nic = Nic::new(&options.node, nic)?;
        let small = |_| frame::MINIMUM;
        let mut traffic = Traffic::with_lengths(&mut nic, Direction::Transmit, small)?;
        traffic.run(options.volume(66_000, 1_000))
    });

    suite.case("frames of every length", move || {
        let mut nic = Nic::new(&options.node, NicOptions::default())?;
        let step = options.volume(1, 29);
        let lengths = (1514 - frame::MINIMUM) / step + 1;
        let length = move |sequence| frame::MINIMUM + sequence as usize % lengths * step;
        Traffic::with_lengths(&mut nic, Direction::Both, length)?.run(lengths as u64)
    });

    for (name, features) in [("mergeable", VERSION_1 | MRG_RXBUF), ("large", VERSION_1)] {
        suite.case(
            format!("jumbo frames into {name} receive buffers"),
            move || {
                let large = features & MRG_RXBUF == 0;
                let nic = NicOptions {
                    features,
                    receive_length: if large { 10_000 } else { 2048 },
                    transmit_length: 10_000,
                    tap: TapOptions {
                        mtu: 9000,
                        ..TapOptions::default()
                    },
                    ..NicOptions::default()
                };
                let mut nic = Nic::new(&options.node, nic)?;
                let length = |sequence: u64| 9014 - (sequence % 100) as usize;
                Traffic::with_lengths(&mut nic, Direction::Both, length)?.run(frames / 4)
            },
        );
    }

    suite.case(
        "packets in the most buffers that a chain may have",
        move || {
            let nic = NicOptions {
                ring_size: 1024,
                segments: CHAIN_MAX,
                receive_chains: Some(0),
                ..NicOptions::default()
            };
            let mut nic = Nic::new(&options.node, nic)?;
            let length = |_| 1514;
            Traffic::with_lengths(&mut nic, Direction::Transmit, length)?.run(20)
        },
    );

    suite.case("buffers that span two memory regions", move || {
        for direction in [Direction::Transmit, Direction::Receive] {
            let nic = NicOptions {
                across_regions: true,
                transmit_chains: Some(1),
                receive_chains: Some(1),
                ..NicOptions::default()
            };
            exchange(options, nic, direction, frames / 10)?;
        }
        Ok(())
    });
}

fn combine(combination: u32) -> NicOptions {
    let on = |bit: u32| combination & (1 << bit) != 0;
    let mut features = 0;
    for (bit, feature) in [
        (0, EVENT_IDX),
        (1, INDIRECT_DESC),
        (2, MRG_RXBUF),
        (3, VERSION_1),
    ] {
        if on(bit) {
            features |= feature;
        }
    }
    let chaining = if on(1) {
        Chaining::Indirect
    } else {
        Chaining::Direct
    };
    NicOptions {
        features,
        chaining,
        segments: 3,
        ..NicOptions::default()
    }
}

fn describe(nic: &NicOptions) -> String {
    let choose = |feature, with: &'static str, without| {
        if nic.features & feature != 0 {
            with
        } else {
            without
        }
    };
    [
        choose(VERSION_1, "version 1", "legacy layout"),
        choose(EVENT_IDX, "event index", "flags"),
        choose(INDIRECT_DESC, "indirect chains", "direct chains"),
        choose(MRG_RXBUF, "mergeable buffers", "single buffers"),
    ]
    .join(", ")
}

/// Checks that the module's counters of both virtqueues are exactly what was sent.
fn expect_counted(nic: &Nic, sent: [(u64, u64); 2]) -> Result<()> {
    let control = Control::default();
    let device = control.device_of(nic.tap.name())?;
    let number = device.trim_start_matches("d.");
    for (index, (packets, bytes)) in sent.into_iter().enumerate() {
        let status = control.read_status(&format!("vq/vq.{number}.{index}/status"))?;
        let expected = [
            ("handled_packets", packets),
            ("handled_bytes", bytes),
            ("errors", 0),
            ("drops", 0),
        ];
        for (name, value) in expected {
            ensure!(
                status.get(name) == Some(&value.to_string()),
                "{name} of virtqueue {index} is {:?}, expected {value}",
                status.get(name)
            );
        }
        let queue = if index == 0 {
            &nic.receive
        } else {
            &nic.transmit
        };
        let kicks = control.read_counter(&format!("vq/vq.{number}.{index}/status"), "kicks")?;
        ensure!(
            kicks <= queue.kicks,
            "virtqueue {index} counts {kicks} kicks, the driver made {}",
            queue.kicks
        );
    }
    Ok(())
}
