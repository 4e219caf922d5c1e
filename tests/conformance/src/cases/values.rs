// SPDX-License-Identifier: GPL-2.0
//! Values at and beyond every limit.

use anyhow::Result;

use crate::case::{Cases, Node};
use crate::device::{long_words, memory_table, request, words, Addresses};
use crate::device::{RECEIVE, TRANSMIT, VIRTQUEUES};
use crate::memory::{Edge, REGION, STARTS};
use crate::rig::{done, Rig, State};
use crate::transcript::Transcript;

use super::messages::{settle, transmit_one};

/// An address that no process has.
const KERNEL: u64 = 0xffff_8000_0000_0000;
/// The last address that a process may have is below this one.
const USER_END: u64 = 0x7fff_ffff_f000;

/// Notes where the rings stand, and that they can be started, or why not.
fn rings(rig: &Rig, transcript: &mut Transcript<'_>) {
    use std::os::fd::AsRawFd;
    for index in 0..VIRTQUEUES {
        transcript.note(format!("base of {index}: {}", rig.base(index)));
        let answer = rig.set_backend(index, rig.ground.tap.as_raw_fd());
        transcript.answer("start", &answer);
    }
}

const STATES: [(&str, State); 2] = [("stopped", State::Stopped), ("running", State::Running)];

/// The longest busy loop that stock vhost_net is let run, 67 ms in units of 1.024 microseconds. It holds the
/// mutexes of both virtqueues as long as it polls, so that who waits for one of them hangs for as long.
const LONGEST_BUSY_LOOP: u32 = 0xffff;

/// Adds cases that issue one request with one of these values, stopped and running.
fn sizes_and_bases(cases: &mut Cases) {
    const VALUES: [u32; 14] = [
        0,
        1,
        2,
        3,
        5,
        128,
        255,
        256,
        0x7fff,
        0x8000,
        0xffff,
        0x1_0000,
        0x8000_0000,
        u32::MAX,
    ];
    for (request, name) in [
        (request::SET_VRING_NUM, "SET_VRING_NUM"),
        (request::SET_VRING_BASE, "SET_VRING_BASE"),
        (
            request::SET_VRING_BUSYLOOP_TIMEOUT,
            "SET_VRING_BUSYLOOP_TIMEOUT",
        ),
    ] {
        for (state_name, state) in STATES {
            for value in VALUES {
                let endless =
                    request == request::SET_VRING_BUSYLOOP_TIMEOUT && value > LONGEST_BUSY_LOOP;
                if endless && state == State::Running {
                    continue;
                }
                cases.add(
                    format!("{name} to {value:#x} {state_name}"),
                    move |node: &Node, transcript| {
                        let rig = node.rig(state)?;
                        for index in 0..VIRTQUEUES as u32 {
                            let answer = rig.device.set_state(request, index, value);
                            transcript.answer("set", &answer);
                            let timeout = request::GET_VRING_BUSYLOOP_TIMEOUT;
                            let timeout = rig.device.state(timeout, index);
                            transcript.note(format!("timeout {timeout:?}"));
                            if endless {
                                done(rig.device.set_state(request, index, 0))?;
                            }
                        }
                        rings(&rig, transcript);
                        Ok(())
                    },
                );
            }
        }
    }
}

/// Adds the case of the requests that say of which kind the thread is that serves the device.
fn home_threads(cases: &mut Cases) {
    cases.add(
        "SET_FORK_FROM_OWNER with all values, without owner, with one, and without again",
        |node: &Node, transcript| {
            let device = node.open()?;
            for state in ["fresh", "owned", "reset"] {
                match state {
                    "owned" => transcript.answer("own", &device.set_owner()),
                    "reset" => {
                        transcript.answer("reset", &device.set(request::RESET_OWNER, &[]));
                    }
                    _ => {}
                }
                for value in (0..=u8::MAX).rev() {
                    let mut kind = vec![0xee];
                    let answer = device.call(request::GET_FORK_FROM_OWNER, &mut kind);
                    transcript.answer(&format!("{state}: get"), &answer);
                    transcript.note(format!("{kind:x?}"));
                    let answer = device.set(request::SET_FORK_FROM_OWNER, &[value]);
                    transcript.answer(&format!("{state}: set {value}"), &answer);
                }
            }
            Ok(())
        },
    );
    cases.add(
        "a packet of a device with a kernel thread",
        |node: &Node, transcript| {
            let device = node.open()?;
            let answer = device.set(request::SET_FORK_FROM_OWNER, &[0]);
            transcript.answer("set", &answer);
            let rig = Rig::with(device, &node.ground, State::Running)?;
            transmit_one(&rig, 0)?;
            settle(&rig, transcript, TRANSMIT)
        },
    );
}

type Change = fn(&mut Addresses);

const ADDRESSES: &[(&str, Change)] = &[
    ("as they are", |_| ()),
    ("all zero", |a| {
        (a.descriptors, a.used, a.available) = (0, 0, 0)
    }),
    ("descriptors off by 1", |a| a.descriptors += 1),
    ("descriptors off by 8", |a| a.descriptors += 8),
    ("available off by 1", |a| a.available += 1),
    ("available off by 2", |a| a.available += 2),
    ("used off by 1", |a| a.used += 1),
    ("used off by 2", |a| a.used += 2),
    ("used off by 4", |a| a.used += 4),
    ("log off by 1", |a| a.log += 1),
    ("log off by 2", |a| a.log += 2),
    ("log off by 4", |a| a.log += 4),
    ("log at the end of the address space", |a| {
        a.log = u64::MAX - 3
    }),
    ("descriptors in the kernel", |a| a.descriptors = KERNEL),
    ("available in the kernel", |a| a.available = KERNEL),
    ("used in the kernel", |a| a.used = KERNEL),
    ("descriptors at the end of the address space", |a| {
        a.descriptors = !15
    }),
    ("available at the end of the address space", |a| {
        a.available = !15
    }),
    ("used at the end of the address space", |a| a.used = !15),
    ("descriptors across the end of user space", |a| {
        a.descriptors = USER_END - 16
    }),
    ("available across the end of user space", |a| {
        a.available = USER_END - 16
    }),
    ("used across the end of user space", |a| {
        a.used = USER_END - 16
    }),
    ("descriptors where nothing is mapped", |a| {
        a.descriptors = 0x1000
    }),
    ("available where nothing is mapped", |a| {
        a.available = 0x1000
    }),
    ("used where nothing is mapped", |a| a.used = 0x1000),
    ("flag 0", |a| a.flags = 1),
    ("flag 0, log in the kernel", |a| {
        (a.flags, a.log) = (1, KERNEL)
    }),
    ("flag 1", |a| a.flags = 2),
    ("flag 31", |a| a.flags = 1 << 31),
    ("flags and bad alignment", |a| (a.flags, a.used) = (2, 1)),
];

fn addresses(cases: &mut Cases) {
    for (name, change) in ADDRESSES {
        for (state_name, state) in STATES {
            cases.add(
                format!("SET_VRING_ADDR {name} {state_name}"),
                move |node: &Node, transcript| {
                    let rig = node.rig(state)?;
                    for index in [TRANSMIT, RECEIVE] {
                        let mut addresses = rig.addresses(index);
                        change(&mut addresses);
                        let answer = rig.device.set(request::SET_VRING_ADDR, &addresses.bytes());
                        transcript.answer("set", &answer);
                    }
                    rings(&rig, transcript);
                    Ok(())
                },
            );
        }
    }
}

/// Guest-physical address, length and host address of each.
type Regions = &'static [[u64; 3]];

/// Memory tables: their head, and a region or several.
const TABLES: &[(&str, [u32; 2], Regions)] = &[
    ("of no region", [0, 0], &[]),
    ("with padding", [0, 1], &[]),
    ("with padding and too many regions", [65, 1], &[]),
    ("of 2^32-1 regions", [u32::MAX, 0], &[]),
    ("of an empty region", [1, 0], &[[0x1000, 0, 0x10000]]),
    ("of an empty region at zero", [1, 0], &[[0, 0, 0]]),
    ("of a region of one byte", [1, 0], &[[3, 1, 0x10001]]),
    ("of the whole address space", [1, 0], &[[0, u64::MAX, 0]]),
    (
        "of a region that ends with the address space",
        [1, 0],
        &[[u64::MAX - 4095, 4096, 0x10000]],
    ),
    (
        "of a region that wraps",
        [1, 0],
        &[[u64::MAX - 4095, 8192, 0x10000]],
    ),
    (
        "of a region that wraps by one byte",
        [1, 0],
        &[[u64::MAX - 4095, 4097, 0x10000]],
    ),
    (
        "of a region whose host addresses wrap",
        [1, 0],
        &[[0, 8192, u64::MAX - 4095]],
    ),
    ("of a region in the kernel", [1, 0], &[[0, 4096, KERNEL]]),
    (
        "of a region across the end of user space",
        [1, 0],
        &[[0, 8192, USER_END - 4096]],
    ),
    (
        "of a region where nothing is mapped",
        [1, 0],
        &[[0, 4096, 0x1000]],
    ),
    (
        "of two regions that overlap",
        [2, 0],
        &[[0, 8192, 0x10000], [4096, 8192, 0x10000]],
    ),
    (
        "of the same region twice",
        [2, 0],
        &[[0, 8192, 0x10000], [0, 8192, 0x10000]],
    ),
    (
        "of a good and a bad region",
        [2, 0],
        &[[0, 8192, 0x10000], [0, 0, 0]],
    ),
];

fn tables(cases: &mut Cases) {
    for (name, head, regions) in TABLES {
        for (state_name, state) in STATES {
            cases.add(
                format!("SET_MEM_TABLE {name} {state_name}"),
                move |node: &Node, transcript| {
                    let rig = node.rig(state)?;
                    let mut table = memory_table(regions);
                    table[..8].copy_from_slice(&words(head));
                    let answer = rig.device.set(request::SET_MEM_TABLE, &table);
                    transcript.answer("set", &answer);
                    rings(&rig, transcript);
                    Ok(())
                },
            );
        }
    }
    for count in [1, 2, 63, 64, 65, 66, 509] {
        cases.add(
            format!("SET_MEM_TABLE of {count} regions"),
            move |node: &Node, transcript| {
                let rig = node.rig(State::Stopped)?;
                let host = rig.arena().host(STARTS[0]);
                let regions: Vec<_> = (0..count)
                    .map(|number| [number * REGION, REGION, host])
                    .collect();
                let answer = rig
                    .device
                    .set(request::SET_MEM_TABLE, &memory_table(&regions));
                transcript.answer("set", &answer);
                rings(&rig, transcript);
                Ok(())
            },
        );
    }
    for length in [7, 8, 9, 39] {
        cases.add(
            format!("SET_MEM_TABLE of which only {length} bytes can be read"),
            move |node: &Node, transcript| {
                let rig = node.rig(State::Stopped)?;
                let table = memory_table(&[[0, 4096, 0x10000]]);
                let place = Edge::new()?.put(&table[..length]);
                // SAFETY: The request only reads.
                let answer = unsafe { rig.device.call_at(request::SET_MEM_TABLE, place) };
                transcript.answer("set", &answer);
                rings(&rig, transcript);
                Ok(())
            },
        );
    }
}

/// Notes the answers for each bit of a word.
fn each_bit(transcript: &mut Transcript<'_>, call: impl Fn(u64) -> crate::device::Answer) {
    for bit in 0..64 {
        transcript.answer(&format!("bit {bit}"), &call(1 << bit));
    }
}

fn features(cases: &mut Cases) {
    for (name, state) in [("without owner", State::Fresh), ("stopped", State::Stopped)] {
        cases.add(
            format!("SET_FEATURES of each bit {name}"),
            move |node: &Node, transcript| {
                let rig = node.rig(state)?;
                each_bit(transcript, |word| rig.device.set_features(word));
                rings(&rig, transcript);
                Ok(())
            },
        );
        cases.add(
            format!("SET_FEATURES_ARRAY of each bit {name}"),
            move |node: &Node, transcript| {
                let rig = node.rig(state)?;
                each_bit(transcript, |word| rig.device.set_features_array([word, 0]));
                each_bit(transcript, |word| rig.device.set_features_array([0, word]));
                Ok(())
            },
        );
        cases.add(
            format!("SET_BACKEND_FEATURES of each bit {name}"),
            move |node: &Node, transcript| {
                let rig = node.rig(state)?;
                each_bit(transcript, |word| {
                    rig.device
                        .set(request::SET_BACKEND_FEATURES, &word.to_ne_bytes())
                });
                Ok(())
            },
        );
    }
    cases.add(
        "SET_FEATURES of each bit running",
        |node: &Node, transcript| {
            let rig = node.rig(State::Running)?;
            each_bit(transcript, |word| rig.device.set_features(word));
            Ok(())
        },
    );
    for count in [0, 1, 2, 3, 4, 100, 1000] {
        cases.add(
            format!("GET_FEATURES_ARRAY of {count} words"),
            move |node: &Node, transcript| {
                let device = node.open()?;
                let mut array = vec![u64::MAX; count + 2];
                array[0] = count as u64;
                let mut bytes = long_words(&array);
                transcript.answer("get", &device.call(request::GET_FEATURES_ARRAY, &mut bytes));
                transcript.note(format!("{:x?}", &bytes[..bytes.len().min(48)]));
                transcript.note(format!("{:x}", crc32fast::hash(&bytes)));
                Ok(())
            },
        );
        cases.add(
            format!("SET_FEATURES_ARRAY of {count} words"),
            move |node: &Node, transcript| {
                let device = node.open()?;
                let mut array = vec![0; count + 1];
                array[0] = count as u64;
                transcript.answer(
                    "zero",
                    &device.set(request::SET_FEATURES_ARRAY, &long_words(&array)),
                );
                if let Some(last) = array[1..].last_mut() {
                    *last = 1 << 32;
                    let answer = device.set(request::SET_FEATURES_ARRAY, &long_words(&array));
                    transcript.answer("last word", &answer);
                }
                Ok(())
            },
        );
    }
    for words in [0, 1, 2, 3] {
        cases.add(
            format!("GET_FEATURES_ARRAY of 4 words of which {words} can be written"),
            move |node: &Node, transcript| {
                let device = node.open()?;
                let mut array = vec![u64::MAX; words + 1];
                array[0] = 4;
                let edge = Edge::new()?;
                let place = edge.put(&long_words(&array));
                for request in [request::GET_FEATURES_ARRAY, request::SET_FEATURES_ARRAY] {
                    // SAFETY: What can be written is the edge's.
                    let answer = unsafe { device.call_at(request, place) };
                    transcript.answer("call", &answer);
                }
                Ok(())
            },
        );
    }
    cases.add(
        "the upper half of a request's number",
        |node: &Node, transcript| {
            let rig = node.rig(State::Stopped)?;
            let mut features = 0u64;
            let number = 0xdead_beef_0000_0000u64 | u64::from(request::GET_FEATURES);
            // SAFETY: The request writes the 64 bits of the variable.
            let answer = unsafe {
                use std::os::fd::AsRawFd;
                libc::ioctl(rig.device.as_raw_fd(), number as _, &raw mut features)
            };
            transcript.note(format!("{answer} {features:#x}"));
            Ok(())
        },
    );
}

/// Adds the cases.
pub fn add(cases: &mut Cases) {
    sizes_and_bases(cases);
    addresses(cases);
    tables(cases);
    features(cases);
    lifetime(cases);
    home_threads(cases);
}

/// What survives when a device is given up, or its owner executes another program.
fn lifetime(cases: &mut Cases) {
    cases.add(
        "everything is forgotten by RESET_OWNER",
        |node: &Node, transcript| -> Result<()> {
            let rig = node.rig(State::Stopped)?;
            for index in 0..VIRTQUEUES as u32 {
                for (request, value) in [
                    (request::SET_VRING_BASE, 17),
                    (request::SET_VRING_BUSYLOOP_TIMEOUT, 23),
                ] {
                    transcript.answer("set", &rig.device.set_state(request, index, value));
                }
            }
            transcript.answer("reset", &rig.device.set(request::RESET_OWNER, &[]));
            transcript.answer("reset", &rig.device.set(request::RESET_OWNER, &[]));
            transcript.answer("own", &rig.device.set_owner());
            for index in 0..VIRTQUEUES as u32 {
                let timeout = rig.device.state(request::GET_VRING_BUSYLOOP_TIMEOUT, index);
                transcript.note(format!("timeout {timeout:?}"));
            }
            rings(&rig, transcript);
            transcript.answer("stop", &rig.set_backend(TRANSMIT, -1));
            Ok(())
        },
    );
    cases.add("RESET_OWNER a hundred times", |node: &Node, transcript| {
        let rig = node.rig(State::Running)?;
        for _ in 0..100 {
            transcript.answer("reset", &rig.device.set(request::RESET_OWNER, &[]));
            transcript.answer("own", &rig.device.set_owner());
        }
        rings(&rig, transcript);
        Ok(())
    });
}
