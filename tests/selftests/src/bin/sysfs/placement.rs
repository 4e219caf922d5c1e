// SPDX-License-Identifier: GPL-2.0
//! Placement: which worker a new device gets.

use anyhow::{ensure, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::Device;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::refusal::expect_refused;
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};
use vhost_iocm_selftests::wait;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "the rule of placement takes its values, and nothing else",
        move || {
            control.restore()?;
            for rule in ["least_loaded", "least_loaded 0", "least_loaded 4294967295"] {
                control.set("worker/placement", &format!("{rule}\n"))?;
                let now = control.read_line("worker/placement")?;
                ensure!(now == rule, "wrote {rule}, reads {now}");
            }
            for text in [
                "\n",
                "0",
                "w.0",
                "Default",
                "default ",
                "default 0",
                "least_loaded ",
                "least_loaded -1",
                "least_loaded x",
                "least_loaded 4294967296",
            ] {
                expect_refused(control, "worker/placement", text, Errno::EINVAL)?;
            }
            control.restore().map(drop)
        },
    );

    suite.case(
        "a worker belongs to group 0, or to the one that is set",
        move || {
            control.restore()?;
            let worker = control.create_worker(-1)?;
            let file = format!("worker/{worker}/group");
            let expect = |group: &str| {
                let now = control.read_line(&file)?;
                ensure!(now == group, "the group is {now}, expected {group}");
                Ok(())
            };
            expect("0")?;
            for group in ["4294967295", "1", "0", "7"] {
                control.set(&file, group)?;
                expect(group)?;
            }
            for text in ["\n", "-1", "01", "x", "1 ", "4294967296"] {
                expect_refused(control, &file, text, Errno::EINVAL)?;
            }
            control.restore().map(drop)
        },
    );

    suite.case(
        "devices that rest are spread over the least loaded workers",
        move || {
            let first = control.restore()?;
            let workers = [
                first,
                control.create_worker(-1)?,
                control.create_worker(-1)?,
            ];
            let locked = control.create_worker(-1)?;
            control.set(&format!("worker/{locked}/locked"), "1")?;
            control.set("worker/placement", "least_loaded")?;
            rest(control, &workers)?;
            let mut devices = Vec::new();
            for turn in 0..6 {
                let (device, on) = open(options, control)?;
                let expected = &workers[turn % workers.len()];
                ensure!(
                    on == *expected,
                    "device {turn} is on {on}, expected {expected}"
                );
                devices.push(device);
            }
            drop(devices);
            // What was closed does not count any more.
            let (_device, on) = open(options, control)?;
            ensure!(on == workers[0], "after all were closed, one is on {on}");
            control.restore().map(drop)
        },
    );

    suite.case(
        "a busy worker gets no device while another rests",
        move || {
            let busy = control.restore()?;
            let other = control.create_worker(-1)?;
            let mut nic = Nic::new(&options.node, NicOptions::default())?;
            control.set("worker/placement", "least_loaded")?;
            std::thread::scope(|scope| {
                let traffic = Background::start(scope, &mut nic)?;
                let placed = (|| {
                    wait::until("a load on the busy worker", || {
                        Ok(load(control, &busy)? >= 150)
                    })?;
                    // More than the busy one has.
                    let mut devices = Vec::new();
                    for turn in 0..3 {
                        let (device, on) = open(options, control)?;
                        ensure!(on == other, "device {turn} is on {on}, expected {other}");
                        devices.push(device);
                    }
                    Ok(())
                })();
                traffic.conclude(placed)
            })?;
            drop(nic);
            rest(control, &[busy])?;
            control.restore().map(drop)
        },
    );

    suite.case(
        "without a worker to choose a device runs at home, and says so",
        move || {
            let first = control.restore()?;
            let member = control.create_worker(-1)?;
            control.set(&format!("worker/{member}/group"), "7")?;
            control.set("worker/placement", "least_loaded 7")?;
            let (device, on) = open(options, control)?;
            ensure!(on == member, "the device is on {on}, expected {member}");
            drop(device);

            control.set(&format!("worker/{member}/locked"), "1")?;
            let (mut nic, device) =
                control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
            let placed = |expected: &str| {
                let said = control.read_line(&format!("dev/{device}/placed"))?;
                let status = control.read_status(&format!("dev/{device}/status"))?;
                ensure!(
                    said == expected && status.get("placed") == Some(&said),
                    "placed is {said}, status {status:?}, expected {expected}"
                );
                Ok(())
            };
            let counter = |name: &str| control.read_counter(&format!("dev/{device}/status"), name);
            placed("0")?;
            Traffic::new(&mut nic, Direction::Both)?.run(20)?;
            let works = counter("home_works")?;
            ensure!(works > 0, "nothing was done at home");
            let done = counter("notif_works")? + counter("poll_kicks")?;
            ensure!(done == 0, "workers served {done} slices");

            // Also to the worker to which it is assigned for the time being.
            expect_refused(
                control,
                &format!("dev/{device}/worker"),
                &member,
                Errno::EBUSY,
            )?;
            placed("0")?;
            control.move_device(&device, &first)?;
            placed("1")?;
            Traffic::new(&mut nic, Direction::Both)?.run(20)?;
            let done = counter("notif_works")? + counter("poll_kicks")?;
            ensure!(done > 0, "workers served nothing after the move");
            drop(nic);
            control.restore().map(drop)
        },
    );
}

/// Opens a device; returns it and its worker.
fn open(options: &Options, control: &Control) -> Result<(Device, String)> {
    let (device, name) = control.device_made_by(|| Device::open(&options.node))?;
    let worker = control.read_line(&format!("dev/{name}/worker"))?;
    Ok((device, worker))
}

fn load(control: &Control, worker: &str) -> Result<u32> {
    Ok(control
        .read_line(&format!("worker/{worker}/load"))?
        .parse()?)
}

/// Waits until the workers have no load any more.
fn rest(control: &Control, workers: &[String]) -> Result<()> {
    wait::until("the workers to rest", || {
        for worker in workers {
            if load(control, worker)? > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    })
}
