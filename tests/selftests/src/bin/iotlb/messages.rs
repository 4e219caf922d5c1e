// SPDX-License-Identifier: GPL-2.0
//! Messages: what is taken and refused, and how questions are asked.

use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::device::{Device, RECEIVE, TRANSMIT, VERSION_1};
use vhost_iocm_selftests::iotlb::{
    invalidate, update, Iommu, Message, MEANT, MESSAGE, MESSAGES_V2, MISS, READ, SMALL, WRITE,
};
use vhost_iocm_selftests::ktap::{skip, Outcome, Suite};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::wait;

use crate::{nic_options, prepared, FEATURES};

/// An address that belongs to the kernel.
const KERNEL: u64 = 0xffff_8880_0000_0000;

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, answer: T, expected: T) -> Result<()> {
    ensure!(
        answer == expected,
        "{what}: {answer:?}, expected {expected:?}"
    );
    Ok(())
}

fn translating(options: &Options) -> Result<Device> {
    let device = Device::open(&options.node)?;
    device.set_features(FEATURES)?;
    Ok(device)
}

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    suite.case(
        "translations are taken by both layouts of messages",
        move || {
            let device = translating(options)?;
            for version in [1, 2] {
                for message in [update(0x1000, 0x1000, 0x10000), invalidate(0, 0)] {
                    let bytes = Message { version, ..message }.encode();
                    expect("a message", device.write(&bytes), Ok(MESSAGE))?;
                    let short = device.write(&bytes[..MEANT]);
                    expect("the part that means something", short, Ok(MESSAGE))?;
                }
            }
            Ok(())
        },
    );

    suite.case("what is no message is EINVAL", move || {
        let device = translating(options)?;
        let good = update(0x1000, 0x1000, 0x10000);
        let short = device.write(&good.encode()[..MEANT - 1]);
        expect("39 bytes", short, Err(Errno::EINVAL))?;
        expect("3 bytes", device.write(&[1, 0, 0]), Err(Errno::EINVAL))?;
        for version in [0, 3, u32::MAX] {
            let bytes = Message { version, ..good }.encode();
            expect(
                "an unknown layout",
                device.write(&bytes),
                Err(Errno::EINVAL),
            )?;
        }
        let empty = update(0x1000, 0, 0x10000).encode();
        expect("nothing", device.write(&empty), Err(Errno::EINVAL))
    });

    suite.case("what is refused is EFAULT", move || {
        let device = translating(options)?;
        for (what, message) in [
            ("a range that wraps", update(u64::MAX, 2, 0x10000)),
            ("memory of the kernel", update(0, 0x1000, KERNEL)),
            ("memory that wraps", update(0, 0x1000, u64::MAX)),
        ] {
            let answer = device.write(&message.encode());
            expect(what, answer, Err(Errno::EFAULT))?;
        }
        for kind in [0, 1, 4, 5, 6, 255] {
            let message = Message {
                kind,
                ..update(0, 0x1000, 0x10000)
            };
            let answer = device.write(&message.encode());
            expect("another kind", answer, Err(Errno::EFAULT))?;
        }
        let device = Device::open(&options.node)?;
        for message in [update(0, 0x1000, 0x10000), invalidate(0, 0)] {
            let answer = device.write(&message.encode());
            expect("without IOTLB", answer, Err(Errno::EFAULT))?;
        }
        Ok(())
    });

    suite.case(
        "reading without a question does as the file is open",
        move || {
            let mut bytes = [0; MESSAGE];
            for (features, blocking) in [(0, Err(Errno::EBADFD)), (FEATURES, Err(Errno::EAGAIN))] {
                let device = Device::open(&options.node)?;
                device.set_features(features)?;
                let short = device.read(&mut bytes[..MESSAGE - 1]);
                expect("71 bytes", short, Ok(0))?;
                device.set_blocking(false)?;
                expect("a read", device.read(&mut bytes), Err(Errno::EAGAIN))?;
                if features == 0 {
                    device.set_blocking(true)?;
                    expect("a blocking read", device.read(&mut bytes), blocking)?;
                }
            }
            Ok(())
        },
    );

    suite.case(
        "a reader that waits learns that the IOTLB is gone",
        move || {
            let device = translating(options)?;
            thread::scope(|scope| {
                let reader = scope.spawn(|| device.read(&mut [0; MESSAGE]));
                // So that it waits; if it comes later, it gets the same answer.
                thread::sleep(Duration::from_millis(100));
                device.set_features(VERSION_1)?;
                let answer = reader.join().ok().context("the reader panicked")?;
                expect("the read", answer, Err(Errno::EBADFD))
            })
        },
    );

    for (layout, features, version) in [("first", 0, 1), ("second", MESSAGES_V2, 2)] {
        suite.case(
            format!("a backend without its used ring asks for it, by the {layout} layout"),
            move || {
                let nic = prepared(options, nic_options())?;
                nic.device.set_backend_features(features)?;
                let iommu = Iommu::new(&nic, SMALL)?;
                let readable = || wait::readable(&[nic.device.as_fd()], Duration::ZERO);
                ensure!(!readable()?, "readable without a question");
                let answer = nic.device.set_backend(TRANSMIT, Some(&nic.tap));
                expect("the backend", answer, Err(Errno::EFAULT))?;
                ensure!(readable()?, "not readable with a question");
                let question = iommu.question()?.context("nothing is asked")?;
                let (used, _) = nic.transmit.ring.layout().used_part();
                let expected = Message {
                    version,
                    iova: used.0,
                    // Stock vhost asks to read what it writes.
                    perm: if options.stock { READ } else { WRITE },
                    kind: MISS,
                    ..Message::default()
                };
                expect("the question", question, expected)?;
                ensure!(!readable()?, "readable after the question");
                iommu.map_used(&nic.transmit)?;
                let answer = nic.device.set_backend(TRANSMIT, Some(&nic.tap));
                expect("the backend", answer, Ok(()))
            },
        );
    }

    suite.case("a reader that waits gets the question", move || {
        let nic = prepared(options, nic_options())?;
        let device = nic.device.try_clone()?;
        thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut bytes = [0xa5; MESSAGE];
                device.read(&mut bytes).map(|_| bytes)
            });
            let answer = nic.device.set_backend(TRANSMIT, Some(&nic.tap));
            expect("the backend", answer, Err(Errno::EFAULT))?;
            let bytes = reader.join().ok().context("the reader panicked")??;
            expect("the kind", Message::decode(&bytes)?.kind, MISS)
        })
    });

    suite.case("stopping forgets what was asked", move || {
        let nic = prepared(options, nic_options())?;
        let iommu = Iommu::new(&nic, SMALL)?;
        let answer = nic.device.set_backend(TRANSMIT, Some(&nic.tap));
        expect("the backend", answer, Err(Errno::EFAULT))?;
        nic.device.set_backend(TRANSMIT, None)?;
        expect("the question", iommu.question()?, None)
    });

    suite.case(
        "giving up the device ends its IOTLB and the layout of its messages",
        move || {
            let nic = prepared(options, nic_options())?;
            nic.device.set_backend_features(MESSAGES_V2)?;
            let iommu = Iommu::new(&nic, SMALL)?;
            let answer = nic.device.set_backend(RECEIVE, Some(&nic.tap));
            expect("the backend", answer, Err(Errno::EFAULT))?;
            nic.device.reset_owner()?;
            expect("the question", iommu.question()?, None)?;
            let answer = nic.device.write(&update(0, 1, 0).encode());
            expect("a translation", answer, Err(Errno::EFAULT))?;
            nic.set_up()?;
            let answer = nic.device.set_backend(RECEIVE, Some(&nic.tap));
            expect("the backend", answer, Err(Errno::EFAULT))?;
            expect("the layout", iommu.expect_question()?.version, 1)
        },
    );

    suite.case("a guest that kicks for ever asks one question", move || {
        one_question(options)
    });
}

fn one_question(options: &Options) -> Result<Outcome> {
    if options.stock {
        return skip("vhost_net asks without end");
    }
    let mut nic = prepared(options, nic_options())?;
    let iommu = Iommu::new(&nic, SMALL)?;
    for queue in [&nic.receive, &nic.transmit] {
        iommu.map_used(queue)?;
    }
    nic.start()?;
    for _ in 0..options.volume(2000, 200) {
        nic.transmit.kick()?;
        nic.receive.kick()?;
    }
    let first = iommu.expect_question()?;
    let mut questions = vec![first];
    // What is served after it was read may ask again, which is at most one for each virtqueue.
    while let Some(question) = iommu.question()? {
        questions.push(question);
    }
    ensure!(questions.len() <= 4, "{} questions", questions.len());
    Ok(Outcome::Pass)
}
