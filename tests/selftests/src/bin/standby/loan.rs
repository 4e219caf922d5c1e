// SPDX-License-Identifier: GPL-2.0
//! What a woken worker borrows, and what becomes of it.

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::cpu;
use vhost_iocm_selftests::device::TRANSMIT;
use vhost_iocm_selftests::ktap::{diagnostic, skip, Outcome, Suite};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::traffic::{Direction, Traffic};
use vhost_iocm_selftests::wait;

use crate::crowd::{expect_becomes, expect_consistent, wake_easily, wakes, Crowd};
use crate::states::expect_state;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "under overload a parked worker is woken for some of the devices, and nothing is lost",
        move || overload(options, control),
    );

    suite.case(
        "when the load is gone everything goes back and the worker is parked",
        move || return_home(options, control),
    );

    suite.case(
        "a single virtqueue with work stays where it is",
        move || {
            let _easily = wake_easily()?;
            let mut crowd = Crowd::new(options, control)?;
            let parked = control.create_parked()?;
            // Only one direction of one device has work.
            let (nic, name) = &mut crowd.cards[0];
            Traffic::new(nic, Direction::Transmit)?.run(5_000)?;
            let on = control.read_list(&format!("dev/{name}/worker"))?;
            ensure!(
                on == [crowd.worker.clone()] && wakes(control, &parked)? == 0,
                "it is on {on:?}"
            );
            crowd.end()
        },
    );

    suite.case(
        "a woken worker takes nothing from user space, and what user space moves is no loan any more",
        move || {
            on_loan(options, control, |control, woken, lender, borrowed| {
                let other = control.create_worker(-1)?;
                let refused =
                    |file: &str, text: &str| expect_refused_busy(control, file, text);
                refused("worker/default", woken)?;
                refused(&format!("worker/{woken}/state"), "parked")?;
                let kept = virtqueue(&borrowed, TRANSMIT);
                // Otherwise the woken worker might help the other one as soon as that has the device,
                // and be given only what it has already.
                let _nobody = Parameter::set("wake_pending_us", "1000000")?;
                control.move_device(&borrowed, &other)?;
                refused(&format!("vq/{kept}/worker"), woken)?;
                let _stay = give_back(control, woken)?;
                let on = control.read_list(&format!("dev/{borrowed}/worker"))?;
                ensure!(on == [other], "it is on {on:?}, not back on {lender}");
                Ok(())
            })
        },
    );

    suite.case(
        "a woken worker that is made active keeps what it has",
        move || {
            on_loan(options, control, |control, woken, _lender, borrowed| {
                control.set(&format!("worker/{woken}/state"), "active")?;
                expect_state(control, woken, "active")?;
                let _all = quick_return()?;
                std::thread::sleep(std::time::Duration::from_millis(100));
                let on = control.read_list(&format!("dev/{borrowed}/worker"))?;
                ensure!(on.contains(&woken.to_owned()), "it is on {on:?}");
                expect_state(control, woken, "active")
            })
        },
    );

    suite.case(
        "if the lender is locked, the default worker takes over",
        move || {
            on_loan(options, control, |control, woken, lender, borrowed| {
                let heir = control.create_worker(-1)?;
                control.set("worker/default", &heir)?;
                control.set(&format!("worker/{lender}/locked"), "1")?;
                let _stay = give_back(control, woken)?;
                let on = control.read_list(&format!("dev/{borrowed}/worker"))?;
                ensure!(
                    on.contains(&heir) && !on.contains(&woken.to_owned()),
                    "it is on {on:?}"
                );
                Ok(())
            })
        },
    );

    suite.case(
        "if the lender is gone, the default worker takes over",
        move || {
            on_loan(options, control, |control, woken, lender, borrowed| {
                let heir = control.create_worker(-1)?;
                control.set("worker/default", &heir)?;
                control.set(&format!("worker/{lender}/locked"), "1")?;
                control.set("worker/remove", &format!("{lender} {heir}"))?;
                let on = control.read_list(&format!("dev/{borrowed}/worker"))?;
                ensure!(on.contains(&woken.to_owned()), "it is on {on:?} already");
                let _stay = give_back(control, woken)?;
                let on = control.read_list(&format!("dev/{borrowed}/worker"))?;
                ensure!(on == [heir], "it is on {on:?}");
                Ok(())
            })
        },
    );

    suite.case(
        "a woken worker is removed with all that it serves",
        move || {
            on_loan(options, control, |control, woken, lender, borrowed| {
                control.set(&format!("worker/{woken}/locked"), "1")?;
                expect_state(control, woken, "woken")?;
                expect_refused_busy(control, "worker/remove", woken)?;
                control.set("worker/remove", &format!("{woken} {lender}"))?;
                let on = control.read_list(&format!("dev/{borrowed}/worker"))?;
                ensure!(on == [lender.to_owned()], "it is on {on:?}");
                Ok(())
            })
        },
    );

    suite.case(
        "what is borrowed can be polled or not, go home, change its worker's CPUs, and come back",
        move || {
            on_loan(options, control, |control, woken, lender, borrowed| {
                for mode in ["0", "1", "auto"] {
                    control.set_poll_of_device(&borrowed, mode)?;
                }
                for home in ["1", "0"] {
                    control.set(&format!("dev/{borrowed}/home"), home)?;
                }
                control.set(&format!("worker/{woken}/cpus"), "0")?;
                let _stay = give_back(control, woken)?;
                let on = control.read_list(&format!("dev/{borrowed}/worker"))?;
                ensure!(on == [lender.to_owned()], "it is on {on:?}");
                Ok(())
            })
        },
    );

    suite.case(
        "a standby worker loses its CPU and gets it back, parked and woken",
        move || lost_cpu(options, control),
    );
}

/// A worker that lost its CPU is parked, woken and parked elsewhere, and goes back when the CPU is back.
fn lost_cpu(options: &Options, control: &Control) -> Result<Outcome> {
    let last = cpu::count()? - 1;
    let switch = format!("/sys/devices/system/cpu/cpu{last}/online");
    if last == 0 || std::fs::write(&switch, "1").is_err() {
        return skip("no CPU can be taken offline");
    }
    let _easily = wake_easily()?;
    let mut crowd = Crowd::new(options, control)?;
    let parked = control.create_worker_on(&format!("{last} parked"))?;
    let expect_displaced = |displaced: &str| {
        wait::until(&format!("displaced to be {displaced}"), || {
            Ok(control.read_line(&format!("worker/{parked}/displaced"))? == displaced)
        })
    };
    std::fs::write(&switch, "0").context("take the CPU away")?;
    let result = (|| {
        expect_displaced("1")?;
        expect_state(control, &parked, "parked")?;
        crowd.push(|pushing| {
            expect_becomes(control, &parked, "woken")?;
            pushing.advance(10)?;
            std::fs::write(&switch, "1").context("bring the CPU back")?;
            expect_displaced("0")?;
            expect_state(control, &parked, "woken")?;
            pushing.advance(10)?;
            give_back(control, &parked).map(drop)
        })
    })();
    std::fs::write(&switch, "1").context("bring the CPU back")?;
    result?;
    crowd.end()?;
    Ok(Outcome::Pass)
}

/// The tree is not compared before and after, since the fast loop may change it.
fn expect_refused_busy(control: &Control, file: &str, text: &str) -> Result<()> {
    let answer = control.write(file, text);
    ensure!(
        answer == Err(Errno::EBUSY),
        "writing {text:?} to {file} gave {answer:?}"
    );
    Ok(())
}

/// Lets a woken worker find that there is room, and nobody that there is congestion.
fn quick_return() -> Result<Vec<Parameter>> {
    [
        ("wake_pending_us", "1000000"),
        ("park_after_us", "1000"),
        ("park_load", "1000"),
    ]
    .into_iter()
    .map(|(name, text)| Parameter::set(name, text))
    .collect()
}

/// Lets a woken worker give everything back. Nobody is woken as long as what is returned is kept.
fn give_back(control: &Control, woken: &str) -> Result<Vec<Parameter>> {
    let all = quick_return()?;
    expect_becomes(control, woken, "parked")?;
    Ok(all)
}

/// Does something while a worker is awake and has borrowed a device whose frames are followed.
fn on_loan(
    options: &Options,
    control: &Control,
    act: impl FnOnce(&Control, &str, &str, String) -> Result<()>,
) -> Result<()> {
    let _easily = wake_easily()?;
    let mut crowd = Crowd::new(options, control)?;
    let lender = crowd.worker.clone();
    let parked = control.create_parked()?;
    let devices = crowd.devices();
    crowd.push(|pushing| {
        let mut borrowed = None;
        wait::until("a device whose frames are followed to be on loan", || {
            expect_becomes(control, &parked, "woken")?;
            let listed = control.read_list(&format!("worker/{parked}/dev_list"))?;
            borrowed = devices.iter().find(|device| listed.contains(device));
            if borrowed.is_none() {
                // It did not happen to be one of them: once more.
                let _none = Parameter::set("max_woken", "0")?;
                expect_becomes(control, &parked, "parked")?;
            }
            Ok(borrowed.is_some())
        })?;
        pushing.advance(2)?;
        act(
            control,
            &parked,
            &lender,
            borrowed.cloned().unwrap_or_default(),
        )?;
        pushing.advance(2)?;
        expect_consistent(control, &devices)
    })?;
    crowd.end()
}

fn overload(options: &Options, control: &Control) -> Result<()> {
    let _easily = wake_easily()?;
    let mut crowd = Crowd::new(options, control)?;
    let parked = control.create_parked()?;
    let devices = crowd.devices();
    let lender = crowd.worker.clone();
    crowd.push(|pushing| {
        expect_becomes(control, &parked, "woken")?;
        let wakes = wakes(control, &parked)?;
        ensure!(wakes == 1, "it was woken {wakes} times");
        let lists = [&lender, &parked].map(|worker| {
            control
                .read_list(&format!("worker/{worker}/dev_list"))
                .unwrap_or_default()
        });
        diagnostic(format!(
            "{lender} has {:?}, {parked} {:?}",
            lists[0], lists[1]
        ));
        ensure!(
            !lists[0].is_empty() && !lists[1].is_empty(),
            "all moved, or none"
        );
        let cores = control.read_line("nr_iocores")?;
        ensure!(cores == "3", "{cores} I/O cores");
        expect_consistent(control, &devices)?;
        // It serves what it has.
        let before = control.read_counter(&format!("worker/{parked}/status"), "works")?;
        pushing.advance(20)?;
        let works = control.read_counter(&format!("worker/{parked}/status"), "works")?;
        ensure!(works > before, "it served nothing");
        Ok(())
    })?;
    crowd.end()
}

fn return_home(options: &Options, control: &Control) -> Result<()> {
    let mut crowd = Crowd::new(options, control)?;
    let parked = control.create_parked()?;
    let devices = crowd.devices();
    let lender = crowd.worker.clone();
    {
        let _easily = wake_easily()?;
        crowd.push(|pushing| {
            expect_becomes(control, &parked, "woken")?;
            pushing.advance(2)
        })?;
    }
    // By the defaults: nothing is late now.
    expect_becomes(control, &parked, "parked")?;
    wait::until("all devices to be back", || {
        let on: Vec<_> = devices
            .iter()
            .map(|device| control.read_list(&format!("dev/{device}/worker")))
            .collect::<Result<_>>()?;
        Ok(on.iter().all(|workers| *workers == [lender.clone()]))
    })?;
    let listed = control.read(&format!("worker/{parked}/dev_list"))?;
    ensure!(listed.is_empty(), "{parked} lists {listed:?}");
    // The same once more, with frames while it goes back.
    crowd.push(|pushing| {
        {
            let _easily = wake_easily()?;
            expect_becomes(control, &parked, "woken")?;
        }
        pushing.relax()?;
        let _all = quick_return()?;
        expect_becomes(control, &parked, "parked")?;
        pushing.advance(2)?;
        ensure!(wakes(control, &parked)? >= 2, "it was not woken again");
        expect_consistent(control, &devices)
    })?;
    crowd.end()
}
