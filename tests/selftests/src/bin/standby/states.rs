// SPDX-License-Identifier: GPL-2.0
//! The states of a worker as user space sets them.

use anyhow::{ensure, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::device::{Device, TRANSMIT};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::refusal::expect_refused;
use vhost_iocm_selftests::traffic::{Direction, Traffic};

/// Checks what a worker says of its state.
pub fn expect_state(control: &Control, worker: &str, expected: &str) -> Result<()> {
    let said = control.read_line(&format!("worker/{worker}/state"))?;
    let status = control.read_status(&format!("worker/{worker}/status"))?;
    ensure!(
        said == expected && status.get("state") == Some(&said),
        "{worker} is {said}, its status {:?}, expected {expected}",
        status.get("state")
    );
    Ok(())
}

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "a worker is created active, or parked where that is wanted",
        move || {
            control.restore()?;
            let active = control.create_worker(0)?;
            expect_state(control, &active, "active")?;
            for (text, cpu) in [("-1 parked", "-1"), ("0 parked\n", "0")] {
                let worker = control.create_worker_on(text)?;
                expect_state(control, &worker, "parked")?;
                let on = control.read_line(&format!("worker/{worker}/cpu"))?;
                ensure!(on == cpu, "{worker} is on {on}, expected {cpu}");
                let wakes = control.read_counter(&format!("worker/{worker}/status"), "wakes")?;
                ensure!(wakes == 0, "{worker} was woken {wakes} times");
            }
            control.restore().map(drop)
        },
    );

    suite.case("what describes no new worker creates none", move || {
        control.restore()?;
        for text in [
            "parked",
            " parked",
            "0  parked",
            "0 parked ",
            "0\tparked",
            "0,parked",
            "0 Parked",
            "0 woken",
            "0 active",
            "0 parked parked",
            "0\nparked",
            "0 parked\n\n",
        ] {
            expect_refused(control, "worker/create", text, Errno::EINVAL)?;
        }
        for text in ["-2 parked", "65536 parked"] {
            expect_refused(control, "worker/create", text, Errno::ERANGE)?;
        }
        control.restore().map(drop)
    });

    suite.case("a state takes its values, and nothing else", move || {
        control.restore()?;
        let worker = control.create_worker(-1)?;
        let file = format!("worker/{worker}/state");
        for (text, state) in [
            ("parked\n", "parked"),
            ("parked", "parked"),
            ("active\n", "active"),
            ("active", "active"),
            ("parked", "parked"),
        ] {
            control.set(&file, text)?;
            expect_state(control, &worker, state)?;
            for text in [
                "\n",
                "woken",
                "Parked",
                "parked ",
                " parked",
                "active\n\n",
                "park",
                "0",
                "1",
                "parked\0",
                "w.0",
            ] {
                expect_refused(control, &file, text, Errno::EINVAL)?;
            }
        }
        control.restore().map(drop)
    });

    suite.case(
        "a parked worker takes nothing that user space gives it",
        move || {
            let first = control.restore()?;
            let parked = control.create_parked()?;
            let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let on = control.read_line(&format!("dev/{name}/worker"))?;
            ensure!(on == first, "a new device is on {on}");
            let refused =
                |file: &str, text: &str| expect_refused(control, file, text, Errno::EBUSY);
            refused(&format!("dev/{name}/worker"), &parked)?;
            refused(
                &format!("vq/{}/worker", virtqueue(&name, TRANSMIT)),
                &parked,
            )?;
            refused("worker/default", &parked)?;
            let removed = control.create_worker(-1)?;
            control.set(&format!("worker/{removed}/locked"), "1")?;
            refused("worker/remove", &format!("{removed} {parked}"))?;
            control.set(&format!("worker/{parked}/state"), "active")?;
            control.move_device(&name, &parked)?;
            control.set("worker/default", &parked)?;
            control.restore().map(drop)
        },
    );

    suite.case(
        "a worker that serves something cannot be parked",
        move || {
            let first = control.restore()?;
            let worker = control.create_worker(-1)?;
            let (device, name) = control.device_made_by(|| Device::open(&options.node))?;
            let file = format!("worker/{worker}/state");
            control.move_virtqueue(&virtqueue(&name, TRANSMIT), &worker)?;
            expect_refused(control, &file, "parked", Errno::EBUSY)?;
            // Nor the default worker, which stays the default one.
            let default = format!("worker/{first}/state");
            expect_refused(control, &default, "parked", Errno::EBUSY)?;
            drop(device);
            control.set(&file, "parked")?;
            expect_state(control, &worker, "parked")?;
            control.restore().map(drop)
        },
    );

    suite.case(
        "parking the default worker makes another one the default, and creates one if need be",
        move || {
            let first = control.restore()?;
            let parked = control.create_parked()?;
            let locked = control.create_worker(-1)?;
            control.set(&format!("worker/{locked}/locked"), "1")?;
            control.set(&format!("worker/{first}/state"), "parked")?;
            let created = control.read_line("worker/default")?;
            ensure!(
                ![&first, &parked, &locked].contains(&&created),
                "the default worker is {created}"
            );
            expect_state(control, &created, "active")?;
            control.set(&format!("worker/{first}/state"), "active")?;
            control.set(&format!("worker/{created}/state"), "parked")?;
            let default = control.read_line("worker/default")?;
            ensure!(default == first, "the default worker is {default}");
            // Locking does not choose a parked one either.
            control.set(&format!("worker/{first}/locked"), "1")?;
            let default = control.read_line("worker/default")?;
            expect_state(control, &default, "active")?;
            control.restore().map(drop)
        },
    );

    suite.case(
        "placement chooses no parked worker, and a group of them means home",
        move || {
            let first = control.restore()?;
            let parked = control.create_parked()?;
            control.set(&format!("worker/{parked}/group"), "7")?;
            control.set("worker/placement", "least_loaded")?;
            for _ in 0..3 {
                let (_device, name) = control.device_made_by(|| Device::open(&options.node))?;
                let on = control.read_line(&format!("dev/{name}/worker"))?;
                ensure!(on == first, "a new device is on {on}");
            }
            control.set("worker/placement", "least_loaded 7")?;
            let (mut nic, name) =
                control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
            let placed = control.read_line(&format!("dev/{name}/placed"))?;
            ensure!(placed == "0", "placed is {placed}");
            Traffic::new(&mut nic, Direction::Both)?.run(20)?;
            drop(nic);
            control.restore().map(drop)
        },
    );

    suite.case("parked workers are no I/O cores", move || {
        control.restore()?;
        let parked = control.create_worker_on("0 parked")?;
        let cores = || -> Result<(String, String)> {
            let count = control.read_line("nr_iocores")?;
            Ok((count, control.read("iocores_utilization")?))
        };
        let (count, lines) = cores()?;
        ensure!(count == "1" && lines.is_empty(), "{count} cores: {lines:?}");
        control.set(&format!("worker/{parked}/state"), "active")?;
        let (count, lines) = cores()?;
        ensure!(
            count == "2" && lines.lines().count() == 1 && lines.starts_with("cpu0 "),
            "{count} cores: {lines:?}"
        );
        control.restore().map(drop)
    });

    suite.case(
        "a parked worker is locked, unlocked, moved and removed as others are",
        move || {
            control.restore()?;
            let parked = control.create_parked()?;
            expect_refused(control, "worker/remove", &parked, Errno::EBUSY)?;
            for (locked, cpus) in [("1", "0"), ("0", "0"), ("1", "0")] {
                control.set(&format!("worker/{parked}/locked"), locked)?;
                control.set(&format!("worker/{parked}/cpus"), cpus)?;
                expect_state(control, &parked, "parked")?;
            }
            control.set("worker/remove", &parked)?;
            ensure!(
                !control.exists(&format!("worker/{parked}")),
                "{parked} is still there"
            );
            let parked = control.create_parked()?;
            let first = control.read_line("worker/default")?;
            control.set(&format!("worker/{parked}/locked"), "1")?;
            control.set("worker/remove", &format!("{parked} {first}"))?;
            control.restore().map(drop)
        },
    );
}
