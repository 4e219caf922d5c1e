// SPDX-License-Identifier: GPL-2.0
//! The thread of a device's own, in which it does what may sleep, or everything.

use std::os::fd::AsRawFd;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::device::{
    Device, DEVICE_HEADER, MRG_RXBUF, RECEIVE, TRANSMIT, VERSION_1,
};
use vhost_iocm_selftests::frame::{self, Account};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::Owner;
use vhost_iocm_selftests::refusal::{expect_refused, MALFORMED_NUMBERS};
use vhost_iocm_selftests::thread::{self, Thread};
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};
use vhost_iocm_selftests::wait;
use vhost_iocm_selftests::wire::PacketSocket;

/// Frames in each direction.
const FRAMES: u64 = 100;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "a device has a home thread in its owner's process for as long as it is owned",
        move || {
            control.restore()?;
            let (device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let process = std::process::id();
            let title = format!("vhost-{process}");
            ensure!(home(control, &name)?.is_none(), "a home without owner");
            for _ in 0..3 {
                device.set_owner()?;
                // It is known once the thread has run.
                wait::until("a home", || Ok(home(control, &name)?.is_some()))?;
                let thread = home(control, &name)?.context("no home with an owner")?;
                let threads = thread::named(process, &title)?;
                ensure!(
                    threads == [thread],
                    "home is {thread:?}, {title} are {threads:?}"
                );
                device.reset_owner()?;
                ensure!(home(control, &name)?.is_none(), "a home after RESET_OWNER");
                wait::until("the home thread to end", || Ok(!thread.exists()))?;
            }
            Ok(())
        },
    );

    suite.case("a home thread ends with its process", move || {
        let (owner, name) = control.device_made_by(|| Owner::reflect(&options.node, "homed0"))?;
        // It is known once the thread has run.
        wait::until("a home", || Ok(home(control, &name)?.is_some()))?;
        let thread = home(control, &name)?.context("no home with an owner")?;
        owner.kill()?;
        wait::until("the home thread to end", || Ok(!thread.exists()))
    });

    suite.case(
        "a device that is set to run at home uses no worker",
        move || stays_home(options, control),
    );

    suite.case(
        "going home and back under traffic loses nothing",
        move || {
            let rounds = options.volume(200, 20);
            control.restore()?;
            let (mut nic, name) =
                control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
            let file = format!("dev/{name}/home");
            let sent = std::thread::scope(|scope| {
                let traffic = Background::start(scope, &mut nic)?;
                let switched = (0..rounds).try_for_each(|round| {
                    traffic.advance(1)?;
                    control.set(&file, if round % 2 == 0 { "1" } else { "0" })
                });
                traffic.conclude(switched)
            });
            sent.map(drop)
        },
    );

    suite.case(
        "a virtqueue that is set to run at home leaves the other one on its worker",
        move || one_stays_home(options, control),
    );

    suite.case(
        "home of a device sets and tells that of its virtqueues",
        move || {
            let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let file = format!("dev/{name}/home");
            let parts =
                [RECEIVE, TRANSMIT].map(|index| format!("vq/{}/home", virtqueue(&name, index)));
            let expect = |device: &str, virtqueues: [&str; 2]| -> Result<()> {
                ensure!(
                    control.read_line(&file)? == device,
                    "{file} is not {device}"
                );
                for (part, value) in parts.iter().zip(virtqueues) {
                    ensure!(control.read_line(part)? == value, "{part} is not {value}");
                }
                Ok(())
            };
            expect("0", ["0", "0"])?;
            control.set(&parts[1], "1")?;
            expect("0", ["0", "1"])?;
            control.set(&parts[0], "1")?;
            expect("1", ["1", "1"])?;
            control.set(&parts[1], "0")?;
            expect("0", ["1", "0"])?;
            control.set(&file, "1")?;
            expect("1", ["1", "1"])?;
            control.set(&file, "0")?;
            expect("0", ["0", "0"])
        },
    );

    suite.case("home takes 0 and 1, and nothing else", move || {
        let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
        takes_flags(control, &format!("dev/{name}/home"))?;
        takes_flags(control, &format!("vq/{}/home", virtqueue(&name, TRANSMIT)))
    });

    suite.case(
        "a packet socket is received from at home, and a tap on the worker again",
        move || packet_socket(options, control),
    );
}

fn takes_flags(control: &Control, file: &str) -> Result<()> {
    for text in ["1", "1\n", "0\n", "0", "1"] {
        control.set(file, text)?;
        let now = control.read_line(file)?;
        ensure!(now == text.trim_end(), "wrote {text:?}, reads {now:?}");
    }
    for text in MALFORMED_NUMBERS.iter().chain(&["2", "-1", "01", "auto"]) {
        expect_refused(control, file, text, Errno::EINVAL)?;
    }
    Ok(())
}

/// The home thread of a device, if it has one.
fn home(control: &Control, device: &str) -> Result<Option<Thread>> {
    let status = control.read_status(&format!("dev/{device}/status"))?;
    match status.get("home_pid").context("no home_pid")?.as_str() {
        "-1" => Ok(None),
        pid => Thread::parse(pid).map(Some),
    }
}

fn stays_home(options: &Options, control: &Control) -> Result<()> {
    control.restore()?;
    let (mut nic, name) =
        control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
    nic.touch_buffers()?;
    let file = format!("dev/{name}/home");
    let mut served = |at_home: bool| {
        control.set(&file, if at_home { "1" } else { "0" })?;
        if !at_home {
            // It counts from the next slice on: the one that comes is served where it was.
            Traffic::new(&mut nic, Direction::Both)?.run(1)?;
        }
        let before = Counters::of_device(control, &name)?;
        Traffic::new(&mut nic, Direction::Both)?.run(FRAMES)?;
        let moved = Counters::of_device(control, &name)?.since(&before);
        for counter in ["home_ns", "home_works", "left_home"] {
            ensure!((moved.get(counter)? > 0) == at_home, "{:?}", moved.moved());
        }
        ensure!(
            (moved.get("served_ns")? > 0) != at_home,
            "{:?}",
            moved.moved()
        );
        for counter in ["left_fault", "left_backend"] {
            ensure!(moved.get(counter)? == 0, "{:?}", moved.moved());
        }
        Ok(())
    };
    served(false).context("on its worker")?;
    served(true).context("at home")?;
    served(false).context("on its worker again")
}

fn one_stays_home(options: &Options, control: &Control) -> Result<()> {
    control.restore()?;
    let (mut nic, name) =
        control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
    nic.touch_buffers()?;
    let names = [RECEIVE, TRANSMIT].map(|index| virtqueue(&name, index));
    for (home, worker) in [(0, 1), (1, 0)] {
        control.set(&format!("vq/{}/home", names[home]), "1")?;
        control.set(&format!("vq/{}/home", names[worker]), "0")?;
        // It counts from the next slice on: the one that comes is served where it was.
        Traffic::new(&mut nic, Direction::Both)?.run(1)?;
        let look = |index: usize| Counters::of_virtqueue(control, &names[index]);
        let before = (look(home)?, look(worker)?);
        Traffic::new(&mut nic, Direction::Both)?.run(FRAMES)?;
        let moved = (look(home)?.since(&before.0), look(worker)?.since(&before.1));
        ensure!(
            moved.0.get("home_works")? > 0 && moved.0.get("served_ns")? == 0,
            "at home: {:?}",
            moved.0.moved()
        );
        ensure!(
            moved.1.get("home_works")? == 0 && moved.1.get("served_ns")? > 0,
            "on its worker: {:?}",
            moved.1.moved()
        );
    }
    Ok(())
}

/// Frames between a card whose backend is a packet socket on a tap, and that tap.
fn packet_socket(options: &Options, control: &Control) -> Result<()> {
    control.restore()?;
    let nic = NicOptions {
        // A packet socket has no header before its packets, and so the tap has none either.
        features: VERSION_1 | MRG_RXBUF | DEVICE_HEADER,
        ..NicOptions::default()
    };
    let (mut nic, name) = control.device_made_by(|| Nic::new(&options.node, nic))?;
    nic.touch_buffers()?;
    let left =
        |index| Counters::of_virtqueue(control, &virtqueue(&name, index))?.get("left_backend");
    Traffic::new(&mut nic, Direction::Both)?.run(FRAMES)?;
    let indices = [nic.receive.index, nic.transmit.index];
    for index in indices {
        ensure!(left(index)? == 0, "a tap made virtqueue {index} leave");
    }

    let socket = PacketSocket::new(nic.tap.name(), frame::ETHERTYPE)?;
    nic.stop()?;
    for index in indices {
        nic.device
            .set_backend(index, Some(&socket as &dyn AsRawFd))
            .context("a packet socket as backend")?;
    }
    let before = Counters::of_device(control, &name)?;
    let mut account = Account::default();
    for sequence in 0..FRAMES {
        let sent = frame::encode(1, sequence, 200);
        ensure!(nic.transmit(&sent)?, "no room");
        nic.reclaim_all()?;
        // Back the same way.
        let arrived = nic.tap.expect()?;
        ensure!(arrived == sent, "the tap got something else");
        nic.tap.send(&arrived)?;
        account.note(frame::decode(&nic.receive()?.packet)?.sequence);
        nic.replenish()?;
    }
    account.expect_all(FRAMES)?;
    // Receiving from a packet socket cannot be repeated; sending to it can.
    let receive = Counters::of_virtqueue(control, &virtqueue(&name, nic.receive.index))?;
    let moved = Counters::of_device(control, &name)?.since(&before);
    ensure!(
        moved.get("home_ns")? > 0 && receive.get("left_backend")? == 1,
        "{:?}",
        moved.moved()
    );

    nic.stop()?;
    drop(socket);
    nic.start()?;
    let before = Counters::of_device(control, &name)?;
    Traffic::new(&mut nic, Direction::Both)?.run(FRAMES)?;
    let moved = Counters::of_device(control, &name)?.since(&before);
    ensure!(
        moved.get("home_ns")? == 0 && moved.get("served_ns")? > 0,
        "{:?}",
        moved.moved()
    );
    Ok(())
}
