// SPDX-License-Identifier: GPL-2.0
//! What single requests accept, refuse and remember.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{socket, AddressFamily, SockFlag, SockType};
use vhost::vhost_kern::vhost_binding::{
    vhost_memory_region, vhost_vring_addr, VHOST_SET_FEATURES, VHOST_SET_MEM_TABLE,
    VHOST_SET_VRING_NUM,
};
use vhost_iocm_selftests::device::{self, request, Device, TRANSMIT};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::traffic::{Direction, Traffic};

use crate::fixture::{Bench, EdgePage, State};

/// A request that may go either way, in a state.
struct Row {
    claim: &'static str,
    state: State,
    call: fn(&Nic) -> Result<Result<(), Errno>>,
    expected: Result<(), Errno>,
}

const fn accepts(
    claim: &'static str,
    state: State,
    call: fn(&Nic) -> Result<Result<(), Errno>>,
) -> Row {
    Row {
        claim,
        state,
        call,
        expected: Ok(()),
    }
}

const fn refuses(
    claim: &'static str,
    state: State,
    errno: Errno,
    call: fn(&Nic) -> Result<Result<(), Errno>>,
) -> Row {
    Row {
        claim,
        state,
        call,
        expected: Err(errno),
    }
}

/// An address that belongs to the kernel.
const KERNEL: u64 = 0xffff_8880_0000_0000;

fn ring_addresses(nic: &Nic) -> Result<vhost_vring_addr> {
    let layout = nic.transmit.ring.layout();
    Ok(vhost_vring_addr {
        index: TRANSMIT,
        flags: 0,
        desc_user_addr: nic.memory.host_address(layout.descriptors)?,
        used_user_addr: nic.memory.host_address(layout.used)?,
        avail_user_addr: nic.memory.host_address(layout.available)?,
        log_guest_addr: 0,
    })
}

fn with_addresses(nic: &Nic, change: fn(&mut vhost_vring_addr)) -> Result<Result<(), Errno>> {
    let mut addresses = ring_addresses(nic)?;
    change(&mut addresses);
    Ok(nic.device.set_addresses(addresses))
}

fn region(gpa: u64, size: u64, hva: u64) -> vhost_memory_region {
    vhost_memory_region {
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: hva,
        flags_padding: 0,
    }
}

fn table_of(nic: &Nic, count: u64) -> Result<Result<(), Errno>> {
    let hva = nic.memory.table()?[0].userspace_addr;
    let regions: Vec<_> = (0..count)
        .map(|n| region(n << 20, 4096, hva + n * 4096))
        .collect();
    Ok(nic.device.set_memory_table(&regions))
}

fn backend(nic: &Nic, fd: RawFd) -> Result<(), Errno> {
    nic.device.set_backend(TRANSMIT, Some(&fd))
}

fn socket_of(family: AddressFamily, kind: SockType) -> Result<OwnedFd> {
    socket(family, kind, SockFlag::SOCK_CLOEXEC, None).context("socket")
}

/// Issues one of the requests that only read their argument.
fn set(device: &Device, request: u64, argument: u64) -> Result<(), Errno> {
    // SAFETY: Nothing is written.
    unsafe { device.ioctl(request, argument) }.map(drop)
}

fn address<T>(argument: &T) -> u64 {
    std::ptr::from_ref(argument) as u64
}

/// A descriptor that no file has.
const CLOSED: RawFd = 9999;

use Errno::{E2BIG, EBADF, EFAULT, EINVAL, ENOTSOCK, EOPNOTSUPP};
use State::{Owned, Running, Stopped};

const ROWS: &[Row] = &[
    refuses(
        "SET_VRING_NUM refuses a ring of 0",
        Stopped,
        EINVAL,
        |nic| Ok(nic.device.set_size(TRANSMIT, 0)),
    ),
    refuses(
        "SET_VRING_NUM refuses a ring of 3",
        Stopped,
        EINVAL,
        |nic| Ok(nic.device.set_size(TRANSMIT, 3)),
    ),
    refuses(
        "SET_VRING_NUM refuses a ring of 65535",
        Stopped,
        EINVAL,
        |nic| Ok(nic.device.set_size(TRANSMIT, 65535)),
    ),
    refuses(
        "SET_VRING_NUM refuses a ring of 65536",
        Stopped,
        EINVAL,
        |nic| Ok(nic.device.set_size(TRANSMIT, 65536)),
    ),
    refuses(
        "SET_VRING_NUM refuses a ring of 2^31",
        Stopped,
        EINVAL,
        |nic| Ok(nic.device.set_size(TRANSMIT, 1 << 31)),
    ),
    accepts("SET_VRING_NUM takes a ring of 1", Stopped, |nic| {
        Ok(nic.device.set_size(TRANSMIT, 1))
    }),
    accepts("SET_VRING_NUM takes a ring of 32768", Stopped, |nic| {
        Ok(nic.device.set_size(TRANSMIT, 32768))
    }),
    refuses("SET_VRING_BASE refuses 65536", Stopped, EINVAL, |nic| {
        Ok(nic.device.set_base(TRANSMIT, 65536))
    }),
    refuses(
        "SET_VRING_ADDR refuses an unknown flag",
        Stopped,
        EOPNOTSUPP,
        |nic| with_addresses(nic, |a| a.flags = 2),
    ),
    refuses(
        "SET_VRING_ADDR refuses an odd available ring",
        Stopped,
        EINVAL,
        |nic| with_addresses(nic, |a| a.avail_user_addr += 1),
    ),
    refuses(
        "SET_VRING_ADDR refuses a used ring off its alignment",
        Stopped,
        EINVAL,
        |nic| with_addresses(nic, |a| a.used_user_addr += 2),
    ),
    refuses(
        "SET_VRING_ADDR refuses a log address off its alignment",
        Stopped,
        EINVAL,
        |nic| with_addresses(nic, |a| a.log_guest_addr = 2),
    ),
    accepts(
        "SET_VRING_ADDR takes descriptors at any address",
        Stopped,
        |nic| with_addresses(nic, |a| a.desc_user_addr += 1),
    ),
    accepts(
        "SET_VRING_ADDR takes an inaccessible ring while stopped",
        Stopped,
        |nic| with_addresses(nic, |a| a.desc_user_addr = KERNEL),
    ),
    refuses(
        "SET_VRING_ADDR refuses inaccessible descriptors while running",
        Running,
        EINVAL,
        |nic| with_addresses(nic, |a| a.desc_user_addr = KERNEL),
    ),
    refuses(
        "SET_VRING_ADDR refuses an inaccessible used ring while running",
        Running,
        EINVAL,
        |nic| with_addresses(nic, |a| a.used_user_addr = KERNEL),
    ),
    refuses(
        "SET_MEM_TABLE refuses padding",
        Stopped,
        EOPNOTSUPP,
        |nic| Ok(set(&nic.device, VHOST_SET_MEM_TABLE(), address(&[0u32, 1]))),
    ),
    refuses(
        "SET_MEM_TABLE refuses more than 64 regions",
        Stopped,
        E2BIG,
        |nic| table_of(nic, 65),
    ),
    refuses(
        "SET_MEM_TABLE refuses 2^32-1 regions",
        Stopped,
        E2BIG,
        |nic| {
            Ok(set(
                &nic.device,
                VHOST_SET_MEM_TABLE(),
                address(&[u32::MAX, 0]),
            ))
        },
    ),
    accepts("SET_MEM_TABLE takes 64 regions", Stopped, |nic| {
        table_of(nic, 64)
    }),
    accepts("SET_MEM_TABLE takes no region", Stopped, |nic| {
        table_of(nic, 0)
    }),
    refuses(
        "SET_MEM_TABLE refuses an empty region",
        Stopped,
        EFAULT,
        |nic| Ok(nic.device.set_memory_table(&[region(0x1000, 0, 0x1000)])),
    ),
    refuses(
        "SET_MEM_TABLE refuses a region that wraps",
        Stopped,
        EFAULT,
        |nic| {
            Ok(nic
                .device
                .set_memory_table(&[region(u64::MAX - 4095, 8192, 0x1000)]))
        },
    ),
    accepts("SET_MEM_TABLE takes regions that overlap", Stopped, |nic| {
        let hva = nic.memory.table()?[0].userspace_addr;
        let regions = [region(0, 8192, hva), region(4096, 8192, hva)];
        Ok(nic.device.set_memory_table(&regions))
    }),
    accepts(
        "SET_MEM_TABLE takes a region of no whole pages",
        Stopped,
        |nic| {
            let hva = nic.memory.table()?[0].userspace_addr;
            Ok(nic.device.set_memory_table(&[region(3, 5, hva + 1)]))
        },
    ),
    accepts("SET_MEM_TABLE ignores a region's flags", Stopped, |nic| {
        let mut table = nic.memory.table()?;
        table[0].flags_padding = u64::MAX;
        Ok(nic.device.set_memory_table(&table))
    }),
    accepts(
        "SET_MEM_TABLE takes inaccessible memory while stopped",
        Stopped,
        |nic| Ok(nic.device.set_memory_table(&[region(0, 4096, KERNEL)])),
    ),
    refuses(
        "SET_MEM_TABLE refuses inaccessible memory while running",
        Running,
        EFAULT,
        |nic| Ok(nic.device.set_memory_table(&[region(0, 4096, KERNEL)])),
    ),
    refuses(
        "SET_MEM_TABLE refuses regions beyond readable memory",
        Stopped,
        EFAULT,
        |nic| {
            let header = [1u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
            let mut edge = EdgePage::new()?;
            let request = VHOST_SET_MEM_TABLE();
            Ok(set(&nic.device, request, edge.put(&header)))
        },
    ),
    refuses(
        "SET_VRING_NUM refuses a size beyond readable memory",
        Stopped,
        EFAULT,
        |nic| {
            let mut edge = EdgePage::new()?;
            let request = VHOST_SET_VRING_NUM();
            Ok(set(&nic.device, request, edge.put(&[0; 4])))
        },
    ),
    refuses(
        "SET_VRING_KICK refuses what is no eventfd",
        Stopped,
        EINVAL,
        |nic| Ok(nic.device.set_kick(TRANSMIT, Some(&nic.tap))),
    ),
    refuses(
        "SET_VRING_CALL refuses what is no eventfd",
        Stopped,
        EINVAL,
        |nic| Ok(nic.device.set_call(TRANSMIT, Some(&nic.tap))),
    ),
    refuses(
        "SET_VRING_ERR refuses what is no eventfd",
        Stopped,
        EINVAL,
        |nic| Ok(nic.device.set_error(TRANSMIT, Some(&nic.tap))),
    ),
    refuses(
        "SET_VRING_KICK refuses a closed descriptor",
        Stopped,
        EBADF,
        |nic| Ok(nic.device.set_kick(TRANSMIT, Some(&CLOSED))),
    ),
    refuses(
        "SET_VRING_CALL refuses a closed descriptor",
        Stopped,
        EBADF,
        |nic| Ok(nic.device.set_call(TRANSMIT, Some(&CLOSED))),
    ),
    refuses(
        "SET_VRING_ERR refuses a closed descriptor",
        Stopped,
        EBADF,
        |nic| Ok(nic.device.set_error(TRANSMIT, Some(&CLOSED))),
    ),
    refuses("SET_VRING_KICK refuses -2", Stopped, EBADF, |nic| {
        Ok(nic.device.set_kick(TRANSMIT, Some(&-2)))
    }),
    accepts("SET_VRING_KICK unbinds by -1", Running, |nic| {
        Ok(nic.device.set_kick(TRANSMIT, None))
    }),
    accepts("SET_VRING_CALL unbinds by -1", Running, |nic| {
        Ok(nic.device.set_call(TRANSMIT, None))
    }),
    accepts("SET_VRING_ERR unbinds by -1", Running, |nic| {
        Ok(nic.device.set_error(TRANSMIT, None))
    }),
    refuses(
        "SET_BACKEND refuses to stop without memory table",
        Owned,
        EFAULT,
        |nic| Ok(nic.device.set_backend(TRANSMIT, None)),
    ),
    refuses(
        "SET_BACKEND refuses a tap without memory table",
        Owned,
        EFAULT,
        |nic| Ok(backend(nic, nic.tap.as_raw_fd())),
    ),
    accepts(
        "SET_BACKEND stops a virtqueue that never ran",
        Stopped,
        |nic| Ok(nic.device.set_backend(TRANSMIT, None)),
    ),
    accepts("SET_BACKEND takes a tap", Stopped, |nic| {
        Ok(backend(nic, nic.tap.as_raw_fd()))
    }),
    accepts("SET_BACKEND takes the same tap again", Running, |nic| {
        Ok(backend(nic, nic.tap.as_raw_fd()))
    }),
    accepts("SET_BACKEND takes a raw packet socket", Stopped, |nic| {
        let raw = socket_of(AddressFamily::Packet, SockType::Raw)?;
        Ok(backend(nic, raw.as_raw_fd()))
    }),
    refuses(
        "SET_BACKEND refuses a closed descriptor",
        Stopped,
        ENOTSOCK,
        |nic| Ok(backend(nic, CLOSED)),
    ),
    refuses("SET_BACKEND refuses -2", Stopped, ENOTSOCK, |nic| {
        Ok(backend(nic, -2))
    }),
    refuses("SET_BACKEND refuses a file", Stopped, ENOTSOCK, |nic| {
        Ok(backend(nic, File::open("/proc/self/exe")?.as_raw_fd()))
    }),
    refuses("SET_BACKEND refuses /dev/null", Stopped, ENOTSOCK, |nic| {
        Ok(backend(nic, File::open("/dev/null")?.as_raw_fd()))
    }),
    refuses(
        "SET_BACKEND refuses the device itself",
        Stopped,
        ENOTSOCK,
        |nic| {
            use std::os::fd::AsFd;
            Ok(backend(nic, nic.device.as_fd().as_raw_fd()))
        },
    ),
    refuses("SET_BACKEND refuses an eventfd", Stopped, ENOTSOCK, |nic| {
        Ok(backend(nic, nic.transmit.kick.as_raw_fd()))
    }),
    refuses(
        "SET_BACKEND refuses a TCP socket",
        Stopped,
        ENOTSOCK,
        |nic| Ok(backend(nic, TcpListener::bind("127.0.0.1:0")?.as_raw_fd())),
    ),
    refuses(
        "SET_BACKEND refuses a UDP socket",
        Stopped,
        ENOTSOCK,
        |nic| Ok(backend(nic, UdpSocket::bind("127.0.0.1:0")?.as_raw_fd())),
    ),
    refuses(
        "SET_BACKEND refuses a Unix socket",
        Stopped,
        ENOTSOCK,
        |nic| Ok(backend(nic, UnixDatagram::unbound()?.as_raw_fd())),
    ),
    refuses(
        "SET_BACKEND refuses a packet socket that is not raw",
        Stopped,
        ENOTSOCK,
        |nic| {
            let cooked = socket_of(AddressFamily::Packet, SockType::Datagram)?;
            Ok(backend(nic, cooked.as_raw_fd()))
        },
    ),
    refuses(
        "SET_BACKEND refuses a tap without interface",
        Stopped,
        EINVAL,
        |nic| {
            let bare = File::options()
                .read(true)
                .write(true)
                .open("/dev/net/tun")?;
            Ok(backend(nic, bare.as_raw_fd()))
        },
    ),
    refuses(
        "SET_BACKEND refuses an inaccessible ring",
        Stopped,
        EFAULT,
        |nic| {
            with_addresses(nic, |a| a.desc_user_addr = KERNEL)??;
            Ok(backend(nic, nic.tap.as_raw_fd()))
        },
    ),
    refuses(
        "SET_BACKEND refuses a used ring at an unmapped address",
        Stopped,
        EFAULT,
        |nic| {
            with_addresses(nic, |a| a.used_user_addr = 0x1000)??;
            Ok(backend(nic, nic.tap.as_raw_fd()))
        },
    ),
    accepts(
        "requests ignore the upper half of their number",
        Stopped,
        |nic| {
            let request = VHOST_SET_FEATURES() | 0xdead_beef << 32;
            Ok(set(&nic.device, request, address(&device::VERSION_1)))
        },
    ),
];

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, bench: &'a Bench<'a>) {
    for row in ROWS {
        suite.case(row.claim, move || {
            let nic = bench.card(row.state)?;
            let answer = (row.call)(&nic)?;
            ensure!(
                answer == row.expected,
                "the answer is {answer:?}, expected {:?}",
                row.expected
            );
            Ok(())
        });
    }

    suite.case(
        "the features offered are exactly the documented ones",
        move || {
            let expected = device::FEATURES;
            let features = Device::open(&options.node)?.features()?;
            ensure!(
                features == expected,
                "offered {features:#x}, expected {expected:#x}"
            );
            Ok(())
        },
    );

    suite.case(
        "every feature offered can be acknowledged, and no other",
        move || {
            let device = Device::open(&options.node)?;
            let offered = device.features()?;
            for bit in 0..64 {
                let feature = 1u64 << bit;
                let expected = if offered & feature != 0 {
                    Ok(())
                } else {
                    Err(EOPNOTSUPP)
                };
                let answer = device.set_features(feature);
                ensure!(
                    answer == expected,
                    "bit {bit}: {answer:?}, expected {expected:?}"
                );
            }
            Ok(())
        },
    );

    suite.case("the features array holds the features", move || {
        features_array(options)
    });

    suite.case("the ring base is what was set, and 0 at first", move || {
        let nic = bench.card(Owned)?;
        ensure!(
            nic.device.base(TRANSMIT)? == 0,
            "a fresh ring starts elsewhere than at 0"
        );
        for base in [1, 65535, 0] {
            nic.device.set_base(TRANSMIT, base)?;
            let read = nic.device.base(TRANSMIT)?;
            ensure!(read == base, "set {base}, read {read}");
        }
        Ok(())
    });

    suite.case(
        "the ring base advances with every chain, running or stopped",
        move || {
            let mut nic = running(options)?;
            Traffic::new(&mut nic, Direction::Transmit)?.run(37)?;
            let running = nic.device.base(TRANSMIT)?;
            nic.stop()?;
            let stopped = nic.device.base(TRANSMIT)?;
            ensure!(
                (running, stopped) == (37, 37),
                "after 37 packets the base is {running} running, {stopped} stopped"
            );
            Ok(())
        },
    );

    suite.case("a refused request leaves the ring as it was", move || {
        let mut nic = running(options)?;
        let bare = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?;
        let refused = [
            nic.device.set_size(TRANSMIT, 3),
            nic.device.set_base(TRANSMIT, 5),
            nic.device.set_kick(TRANSMIT, Some(&nic.tap)),
            nic.device.set_call(TRANSMIT, Some(&nic.tap)),
            nic.device.set_features(1 << 63),
            nic.device.set_memory_table(&[region(0, 0, 0)]),
            with_addresses(&nic, |a| a.avail_user_addr += 1)?,
            backend(&nic, bare.as_raw_fd()),
            backend(&nic, CLOSED),
        ];
        for (number, answer) in refused.into_iter().enumerate() {
            ensure!(answer.is_err(), "request {number} was accepted");
        }
        Traffic::new(&mut nic, Direction::Both)?.run(50)
    });

    suite.case("any thread of the owner is the owner", move || {
        let nic = bench.card(Stopped)?;
        let device = &nic.device;
        std::thread::scope(|scope| {
            let answer = scope.spawn(move || device.set_base(TRANSMIT, 3)).join();
            ensure!(matches!(answer, Ok(Ok(()))), "the thread got {answer:?}");
            Ok(())
        })
    });

    suite.case(
        "a device that was given up starts from nothing",
        move || {
            let mut nic = running(options)?;
            Traffic::new(&mut nic, Direction::Both)?.run(20)?;
            nic.device.reset_owner()?;
            let answer = nic.device.base(TRANSMIT);
            ensure!(
                answer == Err(Errno::EPERM),
                "without owner the base is {answer:?}"
            );
            nic.device.set_owner()?;
            ensure!(nic.device.base(TRANSMIT)? == 0, "the base survived");
            // The memory table is an empty one, so that stopping is allowed, and starting is not refused
            // for want of a table.
            nic.device.set_backend(TRANSMIT, None).context("stop")?;
            Ok(())
        },
    );

    suite.case("seeking on the node does nothing", move || {
        let mut file = File::options().read(true).write(true).open(&options.node)?;
        let position = file.seek(SeekFrom::Start(100))?;
        ensure!(position == 0, "the node's position is {position}");
        Ok(())
    });
}

/// A running card of its own, for cases that leave packets behind.
fn running(options: &Options) -> Result<Nic> {
    Nic::new(&options.node, NicOptions::default())
}

fn features_array(options: &Options) -> Result<()> {
    let device = Device::open(&options.node)?;
    let mut array = [3, u64::MAX, u64::MAX, u64::MAX];
    let request = request::VHOST_GET_FEATURES_ARRAY();
    // SAFETY: The request writes as many words as the first of these says that there are behind it.
    unsafe { device.ioctl(request, array.as_mut_ptr() as u64) }?;
    ensure!(
        array == [3, device.features()?, device::HIGH_FEATURES, 0],
        "the features array is {array:x?}"
    );
    for (words, expected) in [
        ([2, 0, 0, 0], Ok(())),
        ([2, 0, 0xa, 0], Ok(())),
        ([2, 0, 1, 0], Err(EOPNOTSUPP)),
        ([3, 0, 0, 0], Ok(())),
        ([3, 0, 0, 1], Err(EOPNOTSUPP)),
        ([0, 0, 0, 0], Ok(())),
    ] {
        let words: [u64; 4] = words;
        let answer = set(
            &device,
            request::VHOST_SET_FEATURES_ARRAY(),
            address(&words),
        );
        ensure!(
            answer == expected,
            "{words:x?}: {answer:?}, expected {expected:?}"
        );
    }
    Ok(())
}
