// SPDX-License-Identifier: GPL-2.0
//! Every allocation of an operation fails once: the operation says so, undoes what it did, and works
//! when it is tried again.
//!
//! The kernel's fault injection makes the Nth allocation, or copy from or to user space, of one thread
//! fail (fail-nth, Documentation/fault-injection), so they are gone through one by one.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};
use clap::Parser;
use nix::errno::Errno;
use vhost::vhost_kern::vhost_binding::vhost_memory_region;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::{knows_fork_owner, Device, ACCESS_PLATFORM, RECEIVE, TRANSMIT};
use vhost_iocm_selftests::header::NetHeader;
use vhost_iocm_selftests::iotlb;
use vhost_iocm_selftests::ktap::{diagnostic, skip, Outcome, Suite};
use vhost_iocm_selftests::nic::{new_event, Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::segment;
use vhost_iocm_selftests::tap::TapOptions;
use vhost_iocm_selftests::thread;
use vhost_iocm_selftests::wait;

/// More allocations than any of the operations makes.
const MOST: u32 = 1000;

fn main() -> ExitCode {
    let options = Options::parse();
    let node = options.node.as_path();
    let control = Control::default();
    let mut suite = Suite::new();
    suite.case("opening the node", || {
        injected(|faults| open(faults, node, &control))
    });
    suite.case("SET_OWNER", || injected(|faults| set_owner(faults, node)));
    suite.case("SET_OWNER with a kernel thread at home", || {
        if !knows_fork_owner() {
            return skip("this kernel has no VHOST_ENABLE_FORK_OWNER_CONTROL");
        }
        injected(|faults| set_owner_with_kernel_thread(faults, node))
    });
    suite.case("SET_MEM_TABLE", || {
        injected(|faults| set_memory_table(faults, node))
    });
    suite.case("SET_VRING_KICK", || {
        injected(|faults| set_kick(faults, node))
    });
    suite.case("SET_LOG_FD", || {
        injected(|faults| set_log_event(faults, node))
    });
    suite.case("SET_FEATURES with a device IOTLB", || {
        injected(|faults| set_iotlb(faults, node))
    });
    suite.case("NET_SET_BACKEND", || {
        injected(|faults| set_backend(faults, node))
    });
    suite.case("RESET_OWNER", || {
        injected(|faults| reset_owner(faults, node))
    });
    suite.case("creating a worker", || {
        injected(|faults| create_worker(faults, &control))
    });
    suite.case("locking the only worker", || {
        injected(|faults| lock_default(faults, &control))
    });
    suite.case("transmitting", || {
        injected(|_| transmit(node, &control, &NetHeader::default(), &[0x5a; 1000]))
    });
    suite.case("transmitting large packets", || {
        let packet = segment::encode(0, segment::MAXIMUM);
        let header = segment::segmentation_header(segment::SIZE);
        injected(|_| transmit(node, &control, &header, &packet))
    });
    suite.run(&options.filters)
}

/// Runs a case where the kernel injects faults, and skips it elsewhere.
fn injected(case: impl FnOnce(&mut Faults) -> Result<()>) -> Result<Outcome> {
    match Faults::new()? {
        Some(mut faults) => case(&mut faults).map(|()| Outcome::Pass),
        None => skip("the kernel has no fault injection"),
    }
}

/// The injection of faults into the current thread.
struct Faults {
    nth: File,
}

impl Faults {
    fn new() -> Result<Option<Self>> {
        let nth = Path::new("/proc/thread-self/fail-nth");
        if !nth.exists() {
            return Ok(None);
        }
        for kind in ["failslab", "fail_page_alloc", "fail_usercopy"] {
            let directory = PathBuf::from("/sys/kernel/debug").join(kind);
            let set = |name: &str, value: &str| {
                let path = directory.join(name);
                fs::write(&path, value).with_context(|| format!("write {}", path.display()))
            };
            // None of the failures is worth a stack dump.
            set("verbose", "0")?;
            if kind != "fail_usercopy" {
                // Allocations that may sleep fail as well.
                set("ignore-gfp-wait", "0")?;
            }
            if kind == "fail_page_alloc" {
                set("ignore-gfp-highmem", "0")?;
                set("min-order", "0")?;
            }
        }
        let nth = OpenOptions::new()
            .read(true)
            .write(true)
            .open(nth)
            .context("open fail-nth")?;
        Ok(Some(Self { nth }))
    }

    /// Runs an operation with its allocation number `count` failing. Says whether one failed.
    fn inject<T>(&mut self, count: u32, operation: impl FnOnce() -> T) -> Result<(T, bool)> {
        let text = count.to_string();
        let mut left = [0u8; 16];
        self.nth.write_all_at(text.as_bytes(), 0)?;
        let result = operation();
        // Reading and writing this file copy as well: if one of them is what fails, the operation
        // had less to fail.
        let bad_address = |error: &std::io::Error| errno(error) == Errno::EFAULT;
        let failed = match self.nth.read_at(&mut left, 0) {
            Ok(length) => std::str::from_utf8(&left[..length])?.trim() == "0",
            Err(error) if bad_address(&error) => false,
            Err(error) => bail!("read fail-nth: {error}"),
        };
        match self.nth.write_all_at(b"0", 0) {
            Err(error) if bad_address(&error) => self.nth.write_all_at(b"0", 0)?,
            written => written?,
        }
        Ok((result, failed))
    }

    /// Goes through all allocations of an operation. `check` looks at what is there after each
    /// failure, `undo` takes back a success, which a failed allocation may also end in.
    fn sweep<T>(
        &mut self,
        mut operation: impl FnMut() -> Result<T, Errno>,
        mut check: impl FnMut() -> Result<()>,
        mut undo: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let mut refused = 0;
        for count in 1..=MOST {
            let (result, failed) = self.inject(count, &mut operation)?;
            match result {
                Ok(value) => undo(value)?,
                Err(errno) => {
                    ensure!(failed, "{errno} without a failed allocation");
                    // Copies from and to user space are counted among the allocations.
                    let expected = matches!(errno, Errno::ENOMEM | Errno::EFAULT);
                    ensure!(expected, "allocation {count} failed: {errno}");
                    refused += 1;
                    check().with_context(|| format!("after allocation {count} failed"))?;
                }
            }
            if !failed {
                ensure!(refused > 0, "no allocation failed");
                diagnostic(format!("{} allocations, {refused} refused", count - 1));
                return Ok(());
            }
        }
        bail!("more than {MOST} allocations")
    }
}

/// The error of a system call by its number.
fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn open(faults: &mut Faults, node: &Path, control: &Control) -> Result<()> {
    let devices = control.devices()?;
    let virtqueues = control.virtqueues()?;
    faults.sweep(
        || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(node)
                .map_err(|error| errno(&error))
        },
        || {
            ensure!(control.devices()? == devices, "a device was left");
            ensure!(control.virtqueues()? == virtqueues, "a virtqueue was left");
            Ok(())
        },
        |file| {
            drop(file);
            Ok(())
        },
    )
}

fn set_owner(faults: &mut Faults, node: &Path) -> Result<()> {
    let device = Device::open(node)?;
    faults.sweep(
        || device.set_owner(),
        || {
            let answer = device.set_size(RECEIVE, 2);
            ensure!(answer == Err(Errno::EPERM), "there is an owner: {answer:?}");
            Ok(())
        },
        |()| Ok(device.reset_owner()?),
    )
}

fn set_owner_with_kernel_thread(faults: &mut Faults, node: &Path) -> Result<()> {
    const KERNEL_THREAD: u8 = 0;
    let device = Device::open(node)?;
    device.set_fork_from_owner(KERNEL_THREAD)?;
    let name = format!("vhost-{}", std::process::id());
    faults.sweep(
        || device.set_owner(),
        || {
            ensure!(thread::of_kernel(&name).is_err(), "a thread was left");
            let answer = device.set_size(RECEIVE, 2);
            ensure!(answer == Err(Errno::EPERM), "there is an owner: {answer:?}");
            let kind = device.fork_from_owner();
            ensure!(kind == Ok(KERNEL_THREAD), "the kind became {kind:?}");
            Ok(())
        },
        |()| {
            thread::of_kernel(&name)?;
            device.reset_owner()?;
            Ok(device.set_fork_from_owner(KERNEL_THREAD)?)
        },
    )
}

fn set_memory_table(faults: &mut Faults, node: &Path) -> Result<()> {
    let nic = Nic::prepare(Device::open(node)?, NicOptions::default())?;
    let other = vhost_memory_region {
        guest_phys_addr: 0,
        memory_size: 4096,
        userspace_addr: 4096,
        flags_padding: 0,
    };
    faults.sweep(
        || nic.device.set_memory_table(&[other]),
        // Ring and buffers are where they were, or starting and stopping would find out.
        || {
            nic.start()?;
            nic.stop()
        },
        |()| Ok(nic.device.set_memory_table(&nic.memory.table()?)?),
    )
}

fn set_kick(faults: &mut Faults, node: &Path) -> Result<()> {
    let device = Device::open(node)?;
    device.set_owner()?;
    let event = new_event()?;
    faults.sweep(
        || device.set_kick(TRANSMIT, Some(&event)),
        || Ok(device.set_kick(TRANSMIT, None)?),
        |()| Ok(device.set_kick(TRANSMIT, None)?),
    )
}

fn set_log_event(faults: &mut Faults, node: &Path) -> Result<()> {
    let device = Device::open(node)?;
    device.set_owner()?;
    let event = new_event()?;
    faults.sweep(
        || device.set_log_event(Some(&event)),
        || Ok(device.set_log_event(None)?),
        |()| Ok(device.set_log_event(None)?),
    )
}

fn set_iotlb(faults: &mut Faults, node: &Path) -> Result<()> {
    let device = Device::open(node)?;
    let invalidate = iotlb::invalidate(0, 0).encode();
    faults.sweep(
        || device.set_features(ACCESS_PLATFORM),
        || {
            let answer = device.write(&invalidate);
            ensure!(
                answer == Err(Errno::EFAULT),
                "there is an IOTLB: {answer:?}"
            );
            Ok(())
        },
        |()| Ok(device.set_features(0)?),
    )
}

fn set_backend(faults: &mut Faults, node: &Path) -> Result<()> {
    let nic = Nic::prepare(Device::open(node)?, NicOptions::default())?;
    for queue in [&nic.receive, &nic.transmit] {
        faults.sweep(
            || nic.device.set_backend(queue.index, Some(&nic.tap)),
            || {
                let size = nic.options().ring_size.into();
                nic.device
                    .set_size(queue.index, size)
                    .context("a backend was left")
            },
            |()| nic.stop_queue(queue),
        )?;
    }
    Ok(())
}

fn reset_owner(faults: &mut Faults, node: &Path) -> Result<()> {
    let device = Device::open(node)?;
    device.set_owner()?;
    faults.sweep(
        || device.reset_owner(),
        || {
            let answer = device.set_owner();
            ensure!(answer == Err(Errno::EBUSY), "there is no owner: {answer:?}");
            Ok(())
        },
        |()| Ok(device.set_owner()?),
    )
}

/// Opens a file of the control interface, so that a write to it makes no other allocation.
fn open_control(control: &Control, file: &str) -> Result<File> {
    let path = control.path(file);
    OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}

fn create_worker(faults: &mut Faults, control: &Control) -> Result<()> {
    let workers = control.workers()?;
    let mut create = open_control(control, "worker/create")?;
    faults.sweep(
        || create.write_all(b"-1").map_err(|error| errno(&error)),
        || {
            ensure!(control.workers()? == workers, "a worker was left");
            Ok(())
        },
        |()| control.restore().map(drop),
    )
}

fn lock_default(faults: &mut Faults, control: &Control) -> Result<()> {
    let worker = control.restore()?;
    let file = format!("worker/{worker}/locked");
    let mut locked = open_control(control, &file)?;
    faults.sweep(
        || locked.write_all(b"1").map_err(|error| errno(&error)),
        || {
            ensure!(control.read_line(&file)? == "0", "the worker is locked");
            ensure!(control.workers()?.len() == 1, "a worker was left");
            Ok(())
        },
        |()| control.restore().map(drop),
    )
}

/// A packet for which there is no memory may be lost, but its chain comes back, at the latest after
/// another kick when the ring itself could not be read, and the next packet passes.
fn transmit(node: &Path, control: &Control, header: &NetHeader, packet: &[u8]) -> Result<()> {
    let nic = NicOptions {
        transmit_length: packet.len() as u32,
        transmit_chains: Some(16),
        tap: TapOptions {
            offload: true,
            ..TapOptions::default()
        },
        ..NicOptions::default()
    };
    let mut nic = Nic::new(node, nic)?;
    let device = control.device_of(nic.tap.name())?;
    let worker = control.read_line(&format!("dev/{device}/worker"))?;
    let pid = control.read_line(&format!("worker/{worker}/pid"))?;
    let nth = format!("/proc/{pid}/task/{pid}/fail-nth");
    for count in 1..=20 {
        fs::write(&nth, count.to_string()).with_context(|| format!("write {nth}"))?;
        for _ in 0..8 {
            ensure!(nic.add_transmit(header, packet)?, "the ring is full");
            nic.transmit.publish()?;
            wait::until("the chain of a packet to come back", || {
                nic.transmit.kick()?;
                Ok(nic.reclaim()? > 0)
            })
            .with_context(|| format!("with allocation {count} failing"))?;
        }
        fs::write(&nth, "0")?;
    }
    let before = control.read_counter(&format!("dev/{device}/status"), "handled_packets")?;
    ensure!(nic.add_transmit(header, packet)?, "the ring is full");
    nic.transmit.publish()?;
    nic.reclaim_all()?;
    let after = control.read_counter(&format!("dev/{device}/status"), "handled_packets")?;
    ensure!(
        after == before + 1,
        "{} packets passed instead of one",
        after - before
    );
    Ok(())
}
