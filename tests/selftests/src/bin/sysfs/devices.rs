// SPDX-License-Identifier: GPL-2.0
//! Devices: when they are there, what they say of themselves, where they go.

use std::os::fd::AsFd;

use anyhow::{ensure, Context};
use nix::errno::Errno;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::device::Device;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::process::Owner;
use vhost_iocm_selftests::refusal::{expect_refused, MALFORMED_WORKERS};
use vhost_iocm_selftests::traffic::{Direction, Traffic};

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "a device is there from open until its last descriptor is closed",
        move || {
            control.restore()?;
            let (device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let number = name.trim_start_matches("d.");
            let files = [
                format!("dev/{name}"),
                format!("vq/vq.{number}.0"),
                format!("vq/vq.{number}.1"),
            ];
            for file in &files {
                ensure!(control.exists(file), "{file} is not there");
            }
            let copy = Device::from(device.as_fd().try_clone_to_owned()?);
            drop(device);
            ensure!(
                files.iter().all(|file| control.exists(file)),
                "gone before the last descriptor"
            );
            drop(copy);
            for file in &files {
                ensure!(!control.exists(file), "{file} is still there");
            }
            let (_device, next) = control.device_made_by(|| Device::open(&options.node))?;
            ensure!(next != name, "the id {name} was used again");
            Ok(())
        },
    );

    suite.case(
        "a device names its owner from SET_OWNER to RESET_OWNER",
        move || {
            let (device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let expect = |owner: i64, command: &str| {
                let said = control.read_line(&format!("dev/{name}/owner"))?;
                let status = control.read_status(&format!("dev/{name}/status"))?;
                ensure!(
                    said == owner.to_string()
                        && status.get("owner") == Some(&said)
                        && status.get("comm").is_some_and(|comm| comm == command),
                    "owner says {said}, status {status:?}, expected {owner} {command:?}"
                );
                Ok(())
            };
            let own = std::fs::read_to_string("/proc/self/comm")?;
            expect(-1, "").context("just opened")?;
            for _ in 0..2 {
                device.set_owner()?;
                expect(std::process::id().into(), own.trim_end()).context("owned")?;
                device.reset_owner()?;
                expect(-1, "").context("given up")?;
            }
            Ok(())
        },
    );

    suite.case(
        "a device of another process names that process",
        move || {
            let (owner, name) =
                control.device_made_by(|| Owner::reflect(&options.node, "named0"))?;
            let status = control.read_status(&format!("dev/{name}/status"))?;
            for (field, expected) in [
                ("owner", owner.pid().to_string()),
                ("comm", "owner".into()),
                ("backend", "named0".into()),
            ] {
                let said = status.get(field);
                ensure!(
                    said == Some(&expected),
                    "{field} is {said:?}, expected {expected}"
                );
            }
            owner.release()?;
            vhost_iocm_selftests::wait::until("the device to go with its owner", || {
                Ok(!control.exists(&format!("dev/{name}")))
            })
        },
    );

    suite.case("a device names its backend while it has one", move || {
        let (nic, name) =
            control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
        let backend = || {
            let status = control.read_status(&format!("dev/{name}/status"))?;
            status.get("backend").cloned().context("no backend line")
        };
        ensure!(
            backend()? == nic.tap.name(),
            "the backend is {:?}",
            backend()?
        );
        nic.stop_queue(&nic.receive)?;
        ensure!(
            backend()? == nic.tap.name(),
            "with one virtqueue it is {:?}",
            backend()?
        );
        nic.stop_queue(&nic.transmit)?;
        ensure!(
            backend()?.is_empty(),
            "after the stop it is {:?}",
            backend()?
        );
        Ok(())
    });

    suite.case(
        "a device lists its virtqueues, and they their device",
        move || {
            let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let number = name.trim_start_matches("d.");
            let list = control.read(&format!("dev/{name}/vq_list"))?;
            let expected = format!("vq.{number}.0\tvq.{number}.1\n");
            ensure!(
                list == expected,
                "vq_list is {list:?}, expected {expected:?}"
            );
            for virtqueue in control.read_list(&format!("dev/{name}/vq_list"))? {
                let device = control.read_line(&format!("vq/{virtqueue}/dev"))?;
                ensure!(device == name, "{virtqueue} is of {device}");
                ensure!(
                    control.virtqueues()?.contains(&virtqueue),
                    "{virtqueue} is not listed"
                );
            }
            Ok(())
        },
    );

    suite.case(
        "a device's counters are the sums of its virtqueues'",
        move || {
            let (mut nic, name) =
                control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
            Traffic::new(&mut nic, Direction::Both)?.run(77)?;
            nic.stop()?;
            let number = name.trim_start_matches("d.");
            for counter in [
                "handled_packets",
                "handled_bytes",
                "kicks",
                "notif_works",
                "interrupts",
            ] {
                let read = |file: String| control.read_counter(&file, counter);
                let whole = read(format!("dev/{name}/status"))?;
                let parts = read(format!("vq/vq.{number}.0/status"))?
                    + read(format!("vq/vq.{number}.1/status"))?;
                ensure!(whole == parts && whole > 0, "{counter}: {whole} of {parts}");
            }
            Ok(())
        },
    );

    suite.case(
        "a device is on the worker that it was moved to, and on no other",
        move || {
            let first = control.restore()?;
            let second = control.create_worker(-1)?;
            let (device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let file = format!("dev/{name}/worker");
            for (to, other) in [(&second, &first), (&first, &second), (&first, &second)] {
                control.set(&file, &format!("{to}\n"))?;
                let on = control.read_list(&format!("worker/{to}/dev_list"))?;
                let off = control.read_list(&format!("worker/{other}/dev_list"))?;
                ensure!(
                    control.read_line(&file)? == *to && on == [name.clone()] && off.is_empty(),
                    "moved to {to}: it lists {on:?}, {other} lists {off:?}"
                );
            }
            for text in MALFORMED_WORKERS {
                expect_refused(control, &file, text, Errno::EINVAL)?;
            }
            expect_refused(control, &file, "w.999999", Errno::ENOENT)?;
            control.set(&format!("worker/{second}/locked"), "1")?;
            expect_refused(control, &file, &second, Errno::EBUSY)?;
            drop(device);
            control.restore().map(drop)
        },
    );

    suite.case(
        "a locked worker keeps its devices and serves them",
        move || {
            let first = control.restore()?;
            let (mut nic, name) =
                control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
            control.set(&format!("worker/{first}/locked"), "1")?;
            Traffic::new(&mut nic, Direction::Both)?.run(30)?;
            let on = control.read_line(&format!("dev/{name}/worker"))?;
            ensure!(on == first, "the device went to {on}");
            drop(nic);
            control.restore().map(drop)
        },
    );
}
