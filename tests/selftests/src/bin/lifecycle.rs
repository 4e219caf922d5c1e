// SPDX-License-Identifier: GPL-2.0
//! The module comes and goes, and so do its devices, in every way that they can.
//!
//! The suite loads and unloads the module itself: it must not be loaded when it starts.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};
use clap::Parser;
use nix::errno::Errno;
use vhost_iocm_selftests::cgroup::{self, Group};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::device::{self, Device};
use vhost_iocm_selftests::frame;
use vhost_iocm_selftests::ktap::{skip, Outcome, Suite};
use vhost_iocm_selftests::load::Load;
use vhost_iocm_selftests::module;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter;
use vhost_iocm_selftests::process::{receive_fd, Owner, Packets, Part};
use vhost_iocm_selftests::tap;
use vhost_iocm_selftests::thread::{self, Thread};
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};
use vhost_iocm_selftests::userfault::Faults;
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

/// Device number of the node under its own name, as the kernel has assigned it to vhost_net.
const NODE_NUMBER: (u64, u64) = (10, 238);
const NAMED: &str = "vhost-selftest";

fn main() -> ExitCode {
    let options = &Options::parse();
    if module::iocm_is_loaded() || module::is_loaded("vhost_net") {
        eprintln!("lifecycle: unload vhost_iocm and vhost_net first");
        return ExitCode::FAILURE;
    }
    let mut suite = Suite::new();

    suite.case(
        "the module loads and unloads again and again, with and without traffic",
        || load_and_unload(options, options.volume(20, 4)),
    );

    suite.case("the node is vhost-net's own, for root alone", || {
        with_module("", || {
            let metadata = std::fs::metadata(&options.node)?;
            let number = metadata.rdev();
            let number = (libc::major(number).into(), libc::minor(number).into());
            ensure!(
                metadata.file_type().is_char_device(),
                "the node is no character device"
            );
            ensure!(number == NODE_NUMBER, "the node's number is {number:?}");
            let mode = metadata.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "the node's mode is {mode:o}");
            Ok(())
        })
    });

    suite.case("the module cannot be loaded twice", || {
        with_module("", || {
            let error = module::load("").err().context("it was loaded twice")?;
            let errno = error.downcast_ref::<Errno>();
            ensure!(
                errno == Some(&Errno::EEXIST),
                "loading it twice gave {error:#}"
            );
            Ok(())
        })
    });

    suite.case("the module cannot be unloaded while a node is open", || {
        with_module("", || {
            let device = Device::open(&options.node)?;
            expect_in_use().context("open")?;
            device.set_owner()?;
            expect_in_use().context("owned")?;
            drop(device);
            let nic = Nic::new(&options.node, NicOptions::default())?;
            expect_in_use().context("running")?;
            drop(nic);
            module::unload().context("closed")?;
            module::load("")
        })
    });

    suite.case("the module unloads while a parked worker is awake", || {
        with_module("", || {
            let control = Control::default();
            for round in 0..options.volume(5, 2) {
                module::unload()?;
                module::load("wake_pending_us=10 balance_us=100 park_load=0")?;
                let load = Load::new(&options.node, &control, 4, Packets::Frames)?;
                let parked = control.create_parked()?;
                load.begin()?;
                let state = format!("worker/{parked}/state");
                wait::until("the parked worker to be woken", || {
                    Ok(control.read_line(&state)? == "woken")
                })?;
                // The drivers are killed, and the fast loop has not heard of it yet.
                drop(load);
                module::unload().with_context(|| format!("round {round}"))?;
                module::load("")?;
            }
            Ok(())
        })
    });

    suite.case("the module unloads with workers in every state", || {
        with_module("", || {
            let control = Control::default();
            let mut pids = vec![worker_pid(&control, "w.0")?];
            for locked in ["0", "1"] {
                let worker = control.create_worker(0)?;
                control.set(&format!("worker/{worker}/locked"), locked)?;
                pids.push(worker_pid(&control, &worker)?);
            }
            module::unload()?;
            for pid in pids {
                ensure!(
                    !Path::new("/proc").join(&pid).exists(),
                    "worker thread {pid} lives on"
                );
            }
            ensure!(!control.exists(""), "the control tree is still there");
            ensure!(!options.node.exists(), "the node is still there");
            module::load("")
        })
    });

    suite.case("devices are opened and closed in a storm", || {
        with_module("", || open_storm(options, options.volume(300, 20)))
    });

    suite.case(
        "a device outlives the process that owned it, in another that got it",
        || with_module("", || passed_on(options)),
    );

    suite.case("a device that was given up can be used again", || {
        with_module("", || reuse(options, options.volume(20, 3)))
    });

    suite.case(
        "a process that exits with running devices leaves nothing",
        || with_module("", || exit_running(options, options.volume(10, 3))),
    );

    suite.case(
        "the module is loaded with limits in their bounds, and with no others",
        limits,
    );

    suite.case(
        "a device is told of which kind its home thread is, until it has an owner",
        || with_fork_owner("", || home_kinds(options)),
    );

    suite.case(
        "a home thread is a kernel thread where that is asked for, and serves in its owner's cgroup",
        || with_fork_owner("fork_from_owner_default=0", || kernel_thread(options)),
    );

    suite.case(
        "a kernel thread at home leaves an owner's memory alone when that is killed, and ends with the device",
        || with_fork_owner("fork_from_owner_default=0", || kill_owner(options)),
    );

    suite.case(
        "a kernel thread at home that waits for an owner's memory ends when the owner is killed",
        || with_fork_owner("fork_from_owner_default=0", || kill_in_fault(options)),
    );

    suite.case(
        "a parameter of vhost_net that has no meaning here keeps nobody from loading the module",
        || {
            with_module("experimental_zcopytx=1", || {
                let mut nic = Nic::new(&options.node, NicOptions::default())?;
                Traffic::new(&mut nic, Direction::Both)?.run(50)
            })
        },
    );

    suite.case(
        "the node gets the name asked for, and a number of its own",
        || {
            with_module(&format!("device={NAMED}"), || {
                ensure!(
                    !options.node.exists(),
                    "the node's usual name is there as well"
                );
                let node = named_node();
                let number = std::fs::metadata(&node)?.rdev();
                ensure!(
                    (
                        u64::from(libc::major(number)),
                        u64::from(libc::minor(number))
                    ) != NODE_NUMBER,
                    "the node has vhost-net's number"
                );
                let mut nic = Nic::new(&node, NicOptions::default())?;
                Traffic::new(&mut nic, Direction::Both)?.run(100)
            })
        },
    );

    suite.case(
        "vhost_net and this module serve a device each in one boot",
        || side_by_side(options),
    );

    suite.case(
        "the module is not loaded over vhost_net without a name of its own",
        || {
            if module::modprobe(&["vhost_net"]).is_err() {
                return skip("this kernel has no vhost_net");
            }
            let answer = module::load("");
            if answer.is_ok() {
                module::unload()?;
            }
            module::modprobe(&["-r", "vhost_net"])?;
            let error = answer.err().context("it was loaded")?;
            let errno = error.downcast_ref::<Errno>();
            ensure!(errno == Some(&Errno::EBUSY), "loading it gave {error:#}");
            // The failed attempt left nothing behind that would be in the way.
            with_module("", || {
                Nic::new(&options.node, NicOptions::default()).map(drop)
            })?;
            Ok(Outcome::Pass)
        },
    );

    suite.run(&options.filters)
}

fn named_node() -> PathBuf {
    Path::new("/dev").join(NAMED)
}

/// Loads the module, runs the closure, and unloads the module whatever came of it.
fn with_module(parameters: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    module::load(parameters)?;
    let result = run();
    let unloaded = module::ensure_unloaded();
    result.and(unloaded)
}

/// Like [`with_module`], where the kernel's own vhost offers a choice of home threads.
fn with_fork_owner(parameters: &str, run: impl FnOnce() -> Result<()>) -> Result<Outcome> {
    let mut offered = true;
    with_module(parameters, || {
        offered = device::knows_fork_owner();
        if offered {
            run()
        } else {
            Ok(())
        }
    })?;
    if offered {
        Ok(Outcome::Pass)
    } else {
        skip("this kernel has no VHOST_ENABLE_FORK_OWNER_CONTROL")
    }
}

fn home_kinds(options: &Options) -> Result<()> {
    let device = Device::open(&options.node)?;
    let expect = |kind: u8, when: &str| {
        let says = device.fork_from_owner();
        ensure!(says == Ok(kind), "{when} it is {says:?} and not {kind}");
        Ok(())
    };
    expect(1, "at first")?;
    for (kind, answer) in [
        (0, Ok(())),
        (2, Err(Errno::EINVAL)),
        (u8::MAX, Err(Errno::EINVAL)),
    ] {
        let got = device.set_fork_from_owner(kind);
        ensure!(got == answer, "{kind} was answered by {got:?}");
        expect(0, "after that")?;
    }
    device.set_owner()?;
    for kind in [0, 1, 2] {
        let got = device.set_fork_from_owner(kind);
        ensure!(got == Err(Errno::EBUSY), "{kind} was answered by {got:?}");
    }
    expect(0, "with an owner")?;
    device.reset_owner()?;
    expect(1, "without owner again")
}

/// The home thread of a device.
fn home_of(control: &Control, device: &str) -> Result<Thread> {
    let status = control.read_status(&format!("dev/{device}/status"))?;
    Thread::parse(status.get("home_pid").context("no home_pid")?)
}

fn kernel_thread(options: &Options) -> Result<()> {
    let control = Control::default();
    let process = std::process::id();
    let group = Group::with_own_process("vhost-iocm-lifecycle")?;
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    let device = control.device_of(nic.tap.name())?;
    let home = home_of(&control, &device)?;
    let name = format!("vhost-{process}");
    ensure!(home.name()? == name, "it is called {}", home.name()?);
    ensure!(
        thread::named(process, &name)?.is_empty(),
        "there is a thread of the owner"
    );
    ensure!(home.parent()? == 2, "its parent is {}", home.parent()?);
    let place = cgroup::of(home.id)?;
    ensure!(
        place.trim_end().ends_with(group.name()),
        "it is in {place:?}"
    );
    for (at_home, moves) in [("1", true), ("0", false)] {
        control.set(&format!("dev/{device}/home"), at_home)?;
        let works = || -> Result<u64> {
            (0..2)
                .map(|index| {
                    let file = format!("vq/{}/home_works", virtqueue(&device, index));
                    Ok(control.read_line(&file)?.parse::<u64>()?)
                })
                .sum()
        };
        // The slice that is on may be the other one's still.
        Traffic::new(&mut nic, Direction::Both)?.run(20)?;
        let before = works()?;
        Traffic::new(&mut nic, Direction::Both)?.run(500)?;
        let served = works()? - before;
        ensure!(
            (served > 0) == moves,
            "with home at {at_home} the thread served {served} slices"
        );
    }
    nic.device.reset_owner()?;
    wait::until("the thread to end", || Ok(!home.exists()))
}

fn kill_owner(options: &Options) -> Result<()> {
    const INTERFACE: &str = "killed0";
    let control = Control::default();
    let (owner, lent) = Owner::lend(&options.node, INTERFACE)?;
    let lent = Device::from(lent);
    let device = control.device_of(INTERFACE)?;
    let home = home_of(&control, &device)?;
    control.set(&format!("dev/{device}/home"), "1")?;
    let wire = PacketSocket::new(INTERFACE, frame::ETHERTYPE)?;
    let disturb = || {
        (0..50).try_for_each(|sequence| -> Result<()> {
            // A full tap drops them.
            wire.send(&frame::encode(2, sequence, 60))?;
            Ok(())
        })
    };
    disturb()?;
    owner.kill()?;
    disturb()?;
    // Nothing is served any more, and nobody is hurt.
    ensure!(home.exists(), "the thread ended with a process not its own");
    let mut neighbour = Nic::new(&options.node, NicOptions::default())?;
    Traffic::new(&mut neighbour, Direction::Both)?.run(50)?;
    drop(lent);
    wait::until("the thread to end", || Ok(!home.exists()))?;
    wait::until("the tap to go with the device", || {
        Ok(!tap::interface_exists(INTERFACE))
    })
}

fn kill_in_fault(options: &Options) -> Result<()> {
    const INTERFACE: &str = "waiting0";
    let control = Control::default();
    let owner = Owner::stall(&options.node, INTERFACE, Part::TransmitBuffers)?;
    let device = control.device_of(INTERFACE)?;
    let home = home_of(&control, &device)?;
    owner.go_on()?;
    // Nobody answers them as long as this is there, which is not the owner's.
    let mut faults = Faults::from(receive_fd(&owner.channel)?);
    PacketSocket::new(INTERFACE, frame::ETHERTYPE)?.send(&frame::encode(2, 0, 60))?;
    let waits = faults.expect()?.thread;
    ensure!(
        waits == home,
        "{waits:?} waits for memory, and not {home:?}"
    );
    owner.kill()?;
    wait::until("the thread to end", || Ok(!home.exists()))?;
    wait::until("the device and the tap to go", || {
        Ok(!control.exists(&format!("dev/{device}")) && !tap::interface_exists(INTERFACE))
    })
}

/// The limits that are set when the module is loaded, each with its highest value. What they do is compared
/// with stock vhost by the conformance tests.
const LIMITS: [(&str, u32); 2] = [("max_mem_regions", 1024), ("max_iotlb_entries", 65536)];

fn limits() -> Result<()> {
    for (name, highest) in LIMITS {
        for text in ["", "0", "-1", "many", &(highest + 1).to_string()] {
            let setting = format!("{name}={text}");
            let answer = module::load(&setting);
            module::ensure_unloaded()?;
            let error = answer
                .err()
                .with_context(|| format!("{setting} was taken"))?;
            let errno = error.downcast_ref::<Errno>();
            ensure!(errno == Some(&Errno::EINVAL), "{setting} gave {error:#}");
        }
        for value in [1, highest] {
            with_module(&format!("{name}={value}"), || {
                let says = parameter::read(name)?;
                ensure!(says == value.to_string(), "{name}={value} became {says}");
                let answer = parameter::write(name, "2");
                ensure!(
                    answer == Err(Errno::EACCES),
                    "changing {name} afterwards gave {answer:?}"
                );
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn expect_in_use() -> Result<()> {
    match module::unload() {
        Err(Errno::EBUSY | Errno::EWOULDBLOCK) => Ok(()),
        Err(error) => Err(error).context("unload while in use"),
        Ok(()) => bail!("the module was unloaded while in use"),
    }
}

fn worker_pid(control: &Control, worker: &str) -> Result<String> {
    control.read_line(&format!("worker/{worker}/pid"))
}

fn load_and_unload(options: &Options, rounds: u32) -> Result<()> {
    for round in 0..rounds {
        with_module("", || {
            let control = Control::default();
            ensure!(
                control.workers()?.iter().eq(["w.0"]) && control.devices()?.is_empty(),
                "a fresh module has {:?} and {:?}",
                control.workers()?,
                control.devices()?
            );
            if round % 4 == 1 {
                let mut nic = Nic::new(&options.node, NicOptions::default())?;
                Traffic::new(&mut nic, Direction::Both)?.run(50)?;
            }
            if round % 4 == 3 {
                control.create_worker(0)?;
            }
            Ok(())
        })
        .with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

fn open_storm(options: &Options, rounds: u32) -> Result<()> {
    const THREADS: usize = 4;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    for round in 0..rounds {
                        let device = Device::open(&options.node)?;
                        if round % 2 == 1 {
                            device.set_owner()?;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("panicked")))
    })?;
    // Many at a time as well.
    let devices: Vec<_> = (0..64)
        .map(|_| Device::open(&options.node))
        .collect::<Result<_>>()?;
    devices.iter().try_for_each(Device::set_owner)?;
    let control = Control::default();
    let listed = control.devices()?.len();
    ensure!(
        listed == devices.len(),
        "{} devices are open, {listed} listed",
        devices.len()
    );
    drop(devices);
    let left = control.devices()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn passed_on(options: &Options) -> Result<()> {
    const FRAMES: u64 = 20;
    let control = Control::default();
    let (owner, lent) = Owner::lend(&options.node, "passed0")?;
    let device = Device::from(lent);
    let name = control.device_of("passed0")?;
    let answer = device.base(0);
    ensure!(
        answer == Err(Errno::EPERM),
        "who is not the owner asked for a base: {answer:?}"
    );
    owner.release()?;

    // The owner is gone, and so are its descriptors of device and tap. The device still holds the tap,
    // whose packets have nowhere to go any more. That is no harm to others on the same worker.
    ensure!(
        tap::interface_exists("passed0"),
        "the tap went with the process"
    );
    let wire = PacketSocket::new("passed0", frame::ETHERTYPE)?;
    for sequence in 0..FRAMES {
        ensure!(
            wire.send(&frame::encode(2, sequence, 60))?,
            "the wire is full"
        );
    }
    let mut neighbour = Nic::new(&options.node, NicOptions::default())?;
    Traffic::new(&mut neighbour, Direction::Both)?.run(FRAMES)?;
    ensure!(
        control.exists(&format!("dev/{name}")),
        "{name} went with its owner"
    );
    for (what, answer) in [("reset", device.reset_owner()), ("own", device.set_owner())] {
        ensure!(
            answer.is_err(),
            "could {what} a device of a process that is gone"
        );
    }
    drop(device);
    ensure!(
        !control.exists(&format!("dev/{name}")),
        "{name} is still there"
    );
    wait::until("the tap to go with the device", || {
        Ok(!tap::interface_exists("passed0"))
    })
}

fn reuse(options: &Options, rounds: u32) -> Result<()> {
    let control = Control::default();
    let (mut nic, name) =
        control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
    for round in 0..rounds {
        Traffic::new(&mut nic, Direction::Both)?
            .run(50)
            .with_context(|| format!("round {round}"))?;
        // Frames on their way to the driver, and none to take them in: these go with the device's state.
        nic.device.reset_owner()?;
        let answer = nic.start();
        ensure!(answer.is_err(), "a device without owner was started");
        nic.receive.restart(round as u16)?;
        nic.transmit.restart(round as u16)?;
        nic.set_up()?;
        nic.replenish()?;
        nic.start()?;
        ensure!(
            control.exists(&format!("dev/{name}")),
            "{name} went with its owner"
        );
    }
    Traffic::new(&mut nic, Direction::Both)?.run(50)
}

fn exit_running(options: &Options, rounds: u32) -> Result<()> {
    let control = Control::default();
    let mut survivor = Nic::new(&options.node, NicOptions::default())?;
    let before = control.devices()?;
    std::thread::scope(|scope| {
        let traffic = Background::start(scope, &mut survivor)?;
        let exits = (0..rounds).try_for_each(|round| {
            let interface = format!("exiting{round}");
            let owner = Owner::reflect(&options.node, &interface)?;
            let mut wire = PacketSocket::new(&interface, frame::ETHERTYPE)?;
            for sequence in 0..10 {
                ensure!(
                    wire.send(&frame::encode(2, sequence, 60))?,
                    "the wire is full"
                );
            }
            frame::decode(&wire.expect()?)?;
            owner.release()?;
            wait::until("the tap of the process to go", || {
                Ok(!tap::interface_exists(&interface))
            })?;
            traffic.advance(1)
        });
        traffic.conclude(exits)
    })?;
    let after = control.devices()?;
    ensure!(
        after == before,
        "devices before: {before:?}, after: {after:?}"
    );
    Ok(())
}

fn side_by_side(options: &Options) -> Result<Outcome> {
    if module::modprobe(&["vhost_net"]).is_err() {
        return skip("this kernel has no vhost_net");
    }
    let result = with_module(&format!("device={NAMED}"), || {
        let mut stock = Nic::new(&options.node, NicOptions::default())?;
        let mut own = Nic::new(&named_node(), NicOptions::default())?;
        let control = Control::default();
        let name = control.device_of(own.tap.name())?;
        let other = control.device_of(stock.tap.name());
        ensure!(
            other.is_err(),
            "the device of vhost_net is listed as {other:?}"
        );
        let (to_host, to_driver) = std::thread::scope(|scope| {
            let traffic = Background::start(scope, &mut own)?;
            let both = Traffic::new(&mut stock, Direction::Both)
                .and_then(|mut traffic| traffic.run(options.volume(500, 50)))
                .context("the device of vhost_net")
                .and_then(|()| traffic.advance(10));
            traffic.conclude(both)
        })?;
        let counted = control.read_counter(&format!("dev/{name}/status"), "handled_packets")?;
        ensure!(
            counted == to_host + to_driver,
            "{} packets were sent over the module's device, it counts {counted}",
            to_host + to_driver
        );
        Ok(())
    });
    module::modprobe(&["-r", "vhost_net"])?;
    result.map(|()| Outcome::Pass)
}
