// SPDX-License-Identifier: GPL-2.0
//! Every request in every state with every kind of argument.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{fork, ForkResult};
use vhost::vhost_kern::vhost_binding as binding;
use vhost_iocm_selftests::device::{self, request, Device, VERSION_1};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::Nic;

use crate::fixture::{Bench, State, BAD_ADDRESS};

/// What a call is expected to return: nothing wrong, or this error.
type Answer = Result<(), Errno>;

/// Calls that a state leaves no sense in are not made.
type Expected = Option<Answer>;

const OK: Expected = Some(Ok(()));
const NONE: Expected = None;
const EPERM: Expected = Some(Err(Errno::EPERM));
const EFAULT: Expected = Some(Err(Errno::EFAULT));
const EBUSY: Expected = Some(Err(Errno::EBUSY));
const ENOBUFS: Expected = Some(Err(Errno::ENOBUFS));
const ENOTTY: Expected = Some(Err(Errno::ENOTTY));

/// One request with all its expectations.
struct Row {
    name: &'static str,
    number: u64,
    /// The argument as words of 32 bits, good for a card that is all set. The first word is the index
    /// of the virtqueue where the request has one.
    argument: fn(&Nic) -> Vec<u32>,
    /// Without owner, and in a process that is not the owner where `foreign` says nothing else.
    fresh: Expected,
    /// In a forked child of the owner.
    foreign: Expected,
    /// Without owner and with a bad pointer.
    fresh_bad: Expected,
    owned: Expected,
    bad: Expected,
    /// With virtqueue 2, which does not exist.
    index: Expected,
    running: Expected,
}

const fn word(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

fn no_argument(_: &Nic) -> Vec<u32> {
    vec![]
}

fn features(_: &Nic) -> Vec<u32> {
    word(VERSION_1).to_vec()
}

fn state(nic: &Nic) -> Vec<u32> {
    vec![nic.transmit.index, nic.options().ring_size.into()]
}

fn base(nic: &Nic) -> Vec<u32> {
    vec![nic.transmit.index, 0]
}

fn kick(nic: &Nic) -> Vec<u32> {
    vec![nic.transmit.index, nic.transmit.kick.as_raw_fd() as u32]
}

fn call(nic: &Nic) -> Vec<u32> {
    vec![nic.transmit.index, nic.transmit.call.as_raw_fd() as u32]
}

fn backend(nic: &Nic) -> Vec<u32> {
    vec![nic.transmit.index, nic.tap.as_raw_fd() as u32]
}

fn memory_table(nic: &Nic) -> Vec<u32> {
    let regions = nic.memory.table().expect("a card has mapped its memory");
    let mut words = vec![regions.len() as u32, 0];
    for region in regions {
        for field in [
            region.guest_phys_addr,
            region.memory_size,
            region.userspace_addr,
            0,
        ] {
            words.extend(word(field));
        }
    }
    words
}

fn addresses(nic: &Nic) -> Vec<u32> {
    let layout = nic.transmit.ring.layout();
    let mut words = vec![nic.transmit.index, 0];
    for address in [layout.descriptors, layout.used, layout.available] {
        let host = nic
            .memory
            .host_address(address)
            .expect("a ring is in guest memory");
        words.extend(word(host));
    }
    words.extend(word(0));
    words
}

/// The request without expectations: an owner gets it, nobody else.
fn row(name: &'static str, number: u64, argument: fn(&Nic) -> Vec<u32>) -> Row {
    Row {
        name,
        number,
        argument,
        fresh: EPERM,
        foreign: EPERM,
        fresh_bad: EPERM,
        owned: OK,
        bad: EFAULT,
        index: NONE,
        running: OK,
    }
}

/// A request about one virtqueue.
fn vring(name: &'static str, number: u64, argument: fn(&Nic) -> Vec<u32>) -> Row {
    Row {
        index: ENOBUFS,
        ..row(name, number, argument)
    }
}

/// A request that anybody may make at any time.
fn anybody(name: &'static str, number: u64, argument: fn(&Nic) -> Vec<u32>) -> Row {
    Row {
        fresh: OK,
        foreign: OK,
        fresh_bad: EFAULT,
        ..row(name, number, argument)
    }
}

/// The requests about the kind of the home thread, where the kernel's own vhost has them: anybody may ask,
/// and say which kind it is to be while there is none.
fn fork_owner() -> [Row; 2] {
    const SET: &str = "VHOST_SET_FORK_FROM_OWNER";
    const GET: &str = "VHOST_GET_FORK_FROM_OWNER";
    let (set, get) = (
        request::VHOST_SET_FORK_FROM_OWNER(),
        request::VHOST_GET_FORK_FROM_OWNER(),
    );
    if !device::knows_fork_owner() {
        return [unknown(SET, set), unknown(GET, get)];
    }
    [
        Row {
            foreign: EBUSY,
            owned: EBUSY,
            bad: EBUSY,
            running: EBUSY,
            ..anybody(SET, set, |_| vec![0])
        },
        anybody(GET, get, |_| vec![0]),
    ]
}

/// A request that the node does not know.
fn unknown(name: &'static str, number: u64) -> Row {
    Row {
        owned: ENOTTY,
        running: ENOTTY,
        ..vring(name, number, state)
    }
}

fn rows() -> Vec<Row> {
    let mut rows = vec![
        anybody(
            "VHOST_GET_FEATURES",
            binding::VHOST_GET_FEATURES(),
            features,
        ),
        anybody(
            "VHOST_SET_FEATURES",
            binding::VHOST_SET_FEATURES(),
            features,
        ),
        Row {
            fresh: OK,
            foreign: EBUSY,
            fresh_bad: NONE,
            owned: EBUSY,
            bad: NONE,
            running: EBUSY,
            ..row("VHOST_SET_OWNER", binding::VHOST_SET_OWNER(), no_argument)
        },
        Row {
            fresh_bad: NONE,
            bad: NONE,
            ..row(
                "VHOST_RESET_OWNER",
                binding::VHOST_RESET_OWNER(),
                no_argument,
            )
        },
        row(
            "VHOST_SET_MEM_TABLE",
            binding::VHOST_SET_MEM_TABLE(),
            memory_table,
        ),
        Row {
            running: EBUSY,
            ..vring("VHOST_SET_VRING_NUM", binding::VHOST_SET_VRING_NUM(), state)
        },
        vring(
            "VHOST_SET_VRING_ADDR",
            binding::VHOST_SET_VRING_ADDR(),
            addresses,
        ),
        Row {
            running: EBUSY,
            ..vring(
                "VHOST_SET_VRING_BASE",
                binding::VHOST_SET_VRING_BASE(),
                base,
            )
        },
        vring(
            "VHOST_GET_VRING_BASE",
            binding::VHOST_GET_VRING_BASE(),
            base,
        ),
        vring(
            "VHOST_SET_VRING_KICK",
            binding::VHOST_SET_VRING_KICK(),
            kick,
        ),
        vring(
            "VHOST_SET_VRING_CALL",
            binding::VHOST_SET_VRING_CALL(),
            call,
        ),
        vring("VHOST_SET_VRING_ERR", binding::VHOST_SET_VRING_ERR(), call),
        Row {
            // The structure is read before anything is checked, the owner before the index.
            fresh_bad: EFAULT,
            // There is no memory table yet.
            owned: EFAULT,
            ..vring(
                "VHOST_NET_SET_BACKEND",
                binding::VHOST_NET_SET_BACKEND(),
                backend,
            )
        },
        anybody(
            "VHOST_GET_BACKEND_FEATURES",
            binding::VHOST_GET_BACKEND_FEATURES(),
            |_| vec![0, 0],
        ),
        anybody(
            "VHOST_SET_BACKEND_FEATURES",
            binding::VHOST_SET_BACKEND_FEATURES(),
            |_| vec![0, 0],
        ),
        anybody(
            "VHOST_GET_FEATURES_ARRAY",
            request::VHOST_GET_FEATURES_ARRAY(),
            |_| vec![2, 0, 0, 0, 0, 0],
        ),
        anybody(
            "VHOST_SET_FEATURES_ARRAY",
            request::VHOST_SET_FEATURES_ARRAY(),
            |_| vec![2, 0, 0, 0, 0, 0],
        ),
        row("VHOST_SET_LOG_BASE", binding::VHOST_SET_LOG_BASE(), |_| {
            vec![0, 0]
        }),
        row("VHOST_SET_LOG_FD", binding::VHOST_SET_LOG_FD(), |_| {
            vec![u32::MAX]
        }),
        vring(
            "VHOST_SET_VRING_BUSYLOOP_TIMEOUT",
            request::VHOST_SET_VRING_BUSYLOOP_TIMEOUT(),
            base,
        ),
        vring(
            "VHOST_GET_VRING_BUSYLOOP_TIMEOUT",
            request::VHOST_GET_VRING_BUSYLOOP_TIMEOUT(),
            base,
        ),
        unknown("VHOST_NEW_WORKER", 0x8004_af08),
        unknown("VHOST_FREE_WORKER", 0x4004_af09),
        unknown("VHOST_ATTACH_VRING_WORKER", 0x4008_af15),
        unknown("VHOST_GET_VRING_WORKER", 0xc008_af16),
        unknown("VHOST_VSOCK_SET_GUEST_CID", 0x4008_af60),
        unknown("an unknown request", 0x4008_aff0),
        unknown("a request of another driver", 0x5401),
    ];
    rows.extend(fork_owner());
    rows
}

impl Row {
    fn call(&self, device: &Device, nic: &Nic) -> Answer {
        self.call_with(device, &mut (self.argument)(nic))
    }

    fn call_index(&self, device: &Device, nic: &Nic) -> Answer {
        let mut words = (self.argument)(nic);
        words[0] = 2;
        self.call_with(device, &mut words)
    }

    fn call_with(&self, device: &Device, words: &mut Vec<u32>) -> Answer {
        words.resize(words.len().max(WORDS_MIN), 0);
        // SAFETY: The words are the request's structure, and more than any request of a row writes.
        unsafe { device.ioctl(self.number, words.as_mut_ptr() as u64) }.map(drop)
    }

    fn call_bad(&self, device: &Device) -> Answer {
        // SAFETY: Nothing is mapped there.
        unsafe { device.ioctl(self.number, BAD_ADDRESS) }.map(drop)
    }
}

/// Words of every argument: the features array, the largest that is written, takes six.
const WORDS_MIN: usize = 16;

/// A column of the matrix.
struct Column {
    name: &'static str,
    state: State,
    expected: fn(&Row) -> Expected,
    call: fn(&Row, &Nic) -> Result<Answer>,
}

const COLUMNS: &[Column] = &[
    Column {
        name: "without owner",
        state: State::Fresh,
        expected: |row| row.fresh,
        call: |row, nic| Ok(row.call(&nic.device, nic)),
    },
    Column {
        name: "without owner and with a bad pointer",
        state: State::Fresh,
        expected: |row| row.fresh_bad,
        call: |row, nic| Ok(row.call_bad(&nic.device)),
    },
    Column {
        name: "by the owner",
        state: State::Owned,
        expected: |row| row.owned,
        call: |row, nic| Ok(row.call(&nic.device, nic)),
    },
    Column {
        name: "by the owner with a bad pointer",
        state: State::Stopped,
        expected: |row| row.bad,
        call: |row, nic| Ok(row.call_bad(&nic.device)),
    },
    Column {
        name: "by the owner for virtqueue 2",
        state: State::Stopped,
        expected: |row| row.index,
        call: |row, nic| Ok(row.call_index(&nic.device, nic)),
    },
    Column {
        name: "on a running device",
        state: State::Running,
        expected: |row| row.running,
        call: |row, nic| Ok(row.call(&nic.device, nic)),
    },
    Column {
        name: "after the owner gave the device up",
        state: State::Reset,
        expected: |row| row.fresh,
        call: |row, nic| Ok(row.call(&nic.device, nic)),
    },
    Column {
        name: "by a forked child of the owner",
        state: State::Stopped,
        expected: |row| row.foreign,
        call: |row, nic| in_child(|| row.call(&nic.device, nic)),
    },
];

pub fn add<'a>(suite: &mut Suite<'a>, bench: &'a Bench<'a>) {
    for row in rows() {
        suite.case(
            format!("{} is answered as its state demands", row.name),
            move || check(bench, &row),
        );
    }
}

fn check(bench: &Bench<'_>, row: &Row) -> Result<()> {
    let mut wrong = Vec::new();
    for column in COLUMNS {
        let Some(expected) = (column.expected)(row) else {
            continue;
        };
        let nic = bench.card(column.state).context(column.name)?;
        let answer = (column.call)(row, &nic).context(column.name)?;
        if answer != expected {
            wrong.push(format!(
                "{}: {answer:?}, expected {expected:?}",
                column.name
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Makes the call in a forked child, which has the device's descriptor but an address space of its own.
fn in_child(call: impl FnOnce() -> Answer) -> Result<Answer> {
    let (mut reader, mut writer) = std::io::pipe()?;
    // SAFETY: This program has one thread, so that the child may do all that its parent may.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            let errno = call().err().map_or(0, |errno| errno as i32);
            let told = writer.write_all(&errno.to_ne_bytes());
            // The parent's destructors and its report are not the child's.
            // SAFETY: Ends the child at once; it holds nothing that anybody waits for.
            unsafe { libc::_exit(i32::from(told.is_err())) }
        }
        ForkResult::Parent { child } => {
            let mut bytes = [0; 4];
            let read = reader.read_exact(&mut bytes);
            let status = waitpid(child, None).context("wait for the child")?;
            ensure!(
                status == WaitStatus::Exited(child, 0),
                "the child ended as {status:?}"
            );
            read.context("read the child's answer")?;
            let errno = i32::from_ne_bytes(bytes);
            Ok(if errno == 0 {
                Ok(())
            } else {
                Err(Errno::from_raw(errno))
            })
        }
    }
}
