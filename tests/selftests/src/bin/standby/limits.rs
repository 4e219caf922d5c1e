// SPDX-License-Identifier: GPL-2.0
//! The limits that user space sets to the fast loop.

use anyhow::{ensure, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::wait;

use crate::crowd::{expect_becomes, expect_consistent, wake_easily, wakes, Crowd};

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "no more workers are woken than are allowed, and those too many are parked at once",
        move || {
            let _easily = wake_easily()?;
            let none = Parameter::set("max_woken", "0")?;
            let mut crowd = Crowd::new(options, control)?;
            let parked: Vec<_> = (0..2)
                .map(|_| control.create_parked())
                .collect::<Result<_>>()?;
            let devices = crowd.devices();
            let woken = || -> Result<usize> {
                let states: Vec<_> = parked
                    .iter()
                    .map(|worker| control.read_line(&format!("worker/{worker}/state")))
                    .collect::<Result<_>>()?;
                Ok(states.iter().filter(|state| *state == "woken").count())
            };
            crowd.push(|pushing| {
                pushing.advance(50)?;
                ensure!(woken()? == 0, "one was woken that must not be");
                let one = Parameter::set("max_woken", "1")?;
                expect_becomes(control, &parked[0], "woken")?;
                pushing.advance(50)?;
                ensure!(woken()? == 1, "two are awake");
                {
                    let _two = Parameter::set("max_woken", "2")?;
                    wait::until("both to be woken", || Ok(woken()? == 2))?;
                    pushing.advance(10)?;
                }
                // One again, and then none, under load.
                wait::until("one to be parked", || Ok(woken()? == 1))?;
                pushing.advance(10)?;
                drop(one);
                wait::until("all to be parked", || Ok(woken()? == 0))?;
                pushing.advance(10)?;
                expect_consistent(control, &devices)
            })?;
            drop(none);
            crowd.end()
        },
    );

    suite.case("nobody is woken for another group", move || {
        let _easily = wake_easily()?;
        let mut crowd = Crowd::new(options, control)?;
        let parked = control.create_parked()?;
        let group = format!("worker/{parked}/group");
        control.set(&group, "3")?;
        crowd.push(|pushing| {
            pushing.advance(50)?;
            ensure!(wakes(control, &parked)? == 0, "it was woken");
            control.set(&group, "0")?;
            expect_becomes(control, &parked, "woken")
        })?;
        crowd.end()
    });

    suite.case("a locked worker is neither woken nor helped", move || {
        let _easily = wake_easily()?;
        let mut crowd = Crowd::new(options, control)?;
        let parked = control.create_parked()?;
        let lock = |worker: &str, locked| control.set(&format!("worker/{worker}/locked"), locked);
        let lender = crowd.worker.clone();
        lock(&parked, "1")?;
        crowd.push(|pushing| {
            pushing.advance(50)?;
            ensure!(wakes(control, &parked)? == 0, "it was woken");
            lock(&lender, "1")?;
            lock(&parked, "0")?;
            pushing.advance(50)?;
            ensure!(
                wakes(control, &parked)? == 0,
                "it was woken for a locked one"
            );
            lock(&lender, "0")?;
            expect_becomes(control, &parked, "woken")
        })?;
        crowd.end()
    });
}
