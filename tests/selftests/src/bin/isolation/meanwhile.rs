// SPDX-License-Identifier: GPL-2.0
//! What can be done while a device sleeps in a page fault: everything.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::device::{Device, RECEIVE, TRANSMIT};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::{Owner, Part};
use vhost_iocm_selftests::tap;
use vhost_iocm_selftests::thread::Thread;
use vhost_iocm_selftests::traffic::{Direction, Traffic};
use vhost_iocm_selftests::wait;

use crate::stalled::{Stalled, TAP};

/// Frames over a device beside the stalled one.
const FRAMES: u64 = 50;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    for part in [Part::TransmitBuffers, Part::Available] {
        suite.case(
            format!("a device moves while it sleeps in a page fault ({part:?})"),
            move || moves(options, control, part),
        );
    }

    for part in [
        Part::ReceiveBuffers,
        Part::TransmitBuffers,
        Part::Available,
        Part::Used,
    ] {
        suite.case(
            format!("a device sleeps while the server of the file in which its memory lies is stopped ({part:?})"),
            move || in_file(options, control, part),
        );
    }

    suite.case(
        "the worker of a device that sleeps in a page fault is removed",
        move || {
            let worker = control.side_core()?;
            let stalled = begun(options, control)?;
            let other = control.create_worker(-1)?;
            stalled.meanwhile("remove its worker", || {
                control.set("worker/default", &other)?;
                control.set(&format!("worker/{worker}/locked"), "1")?;
                control.set("worker/remove", &format!("{worker} {other}"))
            })?;
            ensure!(
                !control.exists(&format!("worker/{worker}")),
                "{worker} is still there"
            );
            stalled.end()?;
            control.restore().map(drop)
        },
    );

    suite.case(
        "the polling of a device is switched while it sleeps in a page fault",
        move || {
            control.side_core()?;
            let stalled = begun(options, control)?;
            for mode in ["1", "0", "auto", "1"] {
                stalled.meanwhile("switch polling", || {
                    control.set_poll_of_device(&stalled.device, mode)
                })?;
            }
            stalled.end()?;
            control.restore().map(drop)
        },
    );

    suite.case(
        "other devices start, stop and close while one sleeps in a page fault",
        move || others(options, control),
    );

    suite.case(
        "a process killed in a page fault of its device leaves nothing",
        move || leaves_nothing(options, control, Stalled::kill),
    );

    suite.case(
        "a process that exits in a page fault of its device leaves nothing",
        move || leaves_nothing(options, control, Stalled::exit),
    );
}

/// A device that sleeps in a page fault of its transmit buffers.
fn begun(options: &Options, control: &Control) -> Result<Stalled> {
    let mut stalled = Stalled::new(&options.node, control, Part::TransmitBuffers)?;
    stalled.begin()?;
    Ok(stalled)
}

fn in_file(options: &Options, control: &Control, part: Part) -> Result<()> {
    let first = control.side_core()?;
    let second = control.create_worker(-1)?;
    let mut neighbour = Nic::new(&options.node, NicOptions::default())?;
    let mut stalled = Stalled::in_file(&options.node, control, part)?;
    let left = |stalled: &Stalled| -> Result<u64> {
        Counters::of_device(control, &stalled.device)?.get("left_fault")
    };
    let before = left(&stalled)?;
    stalled.begin()?;
    ensure!(
        left(&stalled)? > before,
        "the device did not leave its worker"
    );
    for worker in [&second, &first] {
        stalled.meanwhile("move the device", || {
            control.move_device(&stalled.device, worker)
        })?;
        stalled.meanwhile("traffic of another device", || {
            Traffic::new(&mut neighbour, Direction::Both)?.run(FRAMES)
        })?;
    }
    stalled.end()?;
    drop(neighbour);
    control.restore().map(drop)
}

fn moves(options: &Options, control: &Control, part: Part) -> Result<()> {
    let first = control.side_core()?;
    let second = control.create_worker(-1)?;
    let mut stalled = Stalled::new(&options.node, control, part)?;
    stalled.begin()?;
    let device = &stalled.device;
    let expect_on = |expected: &[&String]| {
        let on = control.read_list(&format!("dev/{device}/worker"))?;
        ensure!(
            on.iter().eq(expected.iter().copied()),
            "{device} is on {on:?}, expected {expected:?}"
        );
        Ok(())
    };
    for worker in [&second, &first, &second] {
        stalled.meanwhile("move the device", || control.move_device(device, worker))?;
        expect_on(&[worker])?;
    }
    for index in [TRANSMIT, RECEIVE] {
        let name = virtqueue(device, index);
        stalled.meanwhile("move a virtqueue", || control.move_virtqueue(&name, &first))?;
    }
    expect_on(&[&first])?;
    stalled.end()?;
    control.restore().map(drop)
}

fn others(options: &Options, control: &Control) -> Result<()> {
    control.side_core()?;
    let mut before = Nic::new(&options.node, NicOptions::default())?;
    let stalled = begun(options, control)?;
    stalled.meanwhile("traffic of another device", || {
        Traffic::new(&mut before, Direction::Both)?.run(FRAMES)
    })?;
    stalled.meanwhile("stop and close another device", || {
        before.stop()?;
        drop(before);
        Ok(())
    })?;
    let mut fresh = stalled.meanwhile("start another device", || {
        Nic::new(&options.node, NicOptions::default())
    })?;
    stalled.meanwhile("traffic of a fresh device", || {
        Traffic::new(&mut fresh, Direction::Both)?.run(FRAMES)
    })?;
    stalled.meanwhile("give another device up", || {
        Ok(fresh.device.reset_owner()?)
    })?;
    stalled.meanwhile("open and close another device", || {
        Device::open(&options.node).map(drop)
    })?;
    let killed = Owner::reflect(&options.node, "killed0")?;
    stalled.meanwhile("kill another owner", || killed.kill().map(drop))?;
    stalled.end()?;
    drop(fresh);
    control.restore().map(drop)
}

/// Ends the process of a device in this way while its memory is missing.
fn leaves_nothing(
    options: &Options,
    control: &Control,
    end: impl FnOnce(Stalled) -> Result<()>,
) -> Result<()> {
    control.side_core()?;
    let mut neighbour = Nic::new(&options.node, NicOptions::default())?;
    let before = control.devices()?;
    let stalled = begun(options, control)?;
    let status = control.read_status(&format!("dev/{}/status", stalled.device))?;
    let home = status.get("home_pid").map(|pid| Thread::parse(pid));
    end(stalled)?;
    wait::until("the device and the tap to go", || {
        Ok(!tap::interface_exists(TAP) && control.devices()? == before)
    })?;
    if let Some(home) = home.transpose()? {
        wait::until("the home thread to end", || Ok(!home.exists()))?;
    }
    Traffic::new(&mut neighbour, Direction::Both)?.run(FRAMES)?;
    drop(neighbour);
    control.restore().map(drop)
}
