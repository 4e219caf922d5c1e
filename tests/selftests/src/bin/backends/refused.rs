// SPDX-License-Identifier: GPL-2.0
//! Descriptors that are no backends.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::device::{Device, TRANSMIT};
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::nic::{new_event, Nic, NicOptions};
use vhost_iocm_selftests::options::Options;

/// More families than the kernel has.
const FAMILIES: libc::c_int = 64;

/// Types that sockets of some family have.
const KINDS: [libc::c_int; 4] = [
    libc::SOCK_STREAM,
    libc::SOCK_DGRAM,
    libc::SOCK_RAW,
    libc::SOCK_SEQPACKET,
];

fn prepared(options: &Options) -> Result<Nic> {
    Nic::prepare(Device::open(&options.node)?, NicOptions::default())
}

/// A new descriptor of a call of libc.
fn owned(fd: libc::c_int) -> Result<OwnedFd, Errno> {
    Errno::result(fd)?;
    // SAFETY: The call has just returned it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options) {
    // Stock vhost once asked a socket of any kind for its name, into a place that had room for that of a
    // packet socket (CVE-2020-10942).
    suite.case(
        "sockets of every family and type but raw packet sockets are refused",
        move || {
            let nic = prepared(options)?;
            let mut tried = 0;
            for family in 1..FAMILIES {
                for kind in KINDS {
                    // SAFETY: Making a socket touches no memory.
                    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
                    let socket = match owned(fd) {
                        Ok(socket) => socket,
                        // Each such call has the kernel look for a module.
                        Err(Errno::EAFNOSUPPORT) => break,
                        Err(_) => continue,
                    };
                    if (family, kind) == (libc::AF_PACKET, libc::SOCK_RAW) {
                        continue;
                    }
                    tried += 1;
                    let answer = nic.device.set_backend(TRANSMIT, Some(&socket));
                    ensure!(
                        answer == Err(Errno::ENOTSOCK),
                        "a socket of family {family} and type {kind}: {answer:?}"
                    );
                }
            }
            diagnostic(format!("{tried} kinds of sockets"));
            ensure!(tried > 3, "only {tried} kinds of sockets can be made");
            Ok(())
        },
    );

    suite.case("files that are no sockets are refused", move || {
        let nic = prepared(options)?;
        let refuse = |what: &str, fd: &dyn AsRawFd| {
            let answer = nic.device.set_backend(TRANSMIT, Some(fd));
            ensure!(answer == Err(Errno::ENOTSOCK), "{what}: {answer:?}");
            Ok(())
        };
        let (reader, writer) = std::io::pipe()?;
        refuse("the reading end of a pipe", &reader)?;
        refuse("the writing end of a pipe", &writer)?;
        refuse("a directory", &File::open("/")?)?;
        refuse("a file of procfs", &File::open("/proc/self/maps")?)?;
        refuse("/dev/zero", &File::open("/dev/zero")?)?;
        refuse("an eventfd", &new_event()?)?;
        refuse("another device", &File::open(&options.node)?)?;
        // SAFETY: These calls make descriptors and touch no memory.
        let made = unsafe {
            [
                (
                    "an epoll instance",
                    libc::epoll_create1(libc::EPOLL_CLOEXEC),
                ),
                (
                    "a timer",
                    libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC),
                ),
                ("an inotify instance", libc::inotify_init1(libc::IN_CLOEXEC)),
            ]
        };
        for (what, fd) in made {
            // A kernel without these has nothing to refuse.
            if let Ok(fd) = owned(fd) {
                refuse(what, &fd)?;
            }
        }
        let path = File::options()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open("/proc/self/exe")
            .context("open a file without access")?;
        refuse("a descriptor without access", &path)
    });

    // Stock vhost once looked the descriptor up twice, and used the second file as if it were the first
    // (CVE-2023-1838).
    suite.case(
        "a descriptor that is exchanged meanwhile is one file or the other",
        move || {
            let nic = prepared(options)?;
            let event = new_event()?;
            let target = owned(duplicate(nic.tap.as_raw_fd()))?;
            let (number, tap) = (target.as_raw_fd(), nic.tap.as_raw_fd());
            let done = AtomicBool::new(false);
            let rounds = options.volume(3000, 200);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst) {
                        for file in [event.as_raw_fd(), tap] {
                            // SAFETY: The number is the one of `target`, which is used for nothing else.
                            unsafe { libc::dup2(file, number) };
                        }
                    }
                });
                let mut taken = 0;
                let result = (0..rounds).try_for_each(|_| {
                    match nic.device.set_backend(TRANSMIT, Some(&number)) {
                        Ok(()) => taken += 1,
                        Err(Errno::ENOTSOCK) => {}
                        Err(error) => return Err(error).context("set the backend"),
                    }
                    nic.device.set_backend(TRANSMIT, None).context("stop")
                });
                done.store(true, Ordering::SeqCst);
                diagnostic(format!("{taken} of {rounds} were the tap"));
                result
            })
        },
    );
}

fn duplicate(fd: RawFd) -> libc::c_int {
    // SAFETY: Duplicating a descriptor touches no memory.
    unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 100) }
}
