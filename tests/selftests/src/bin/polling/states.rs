// SPDX-License-Identifier: GPL-2.0
//! Whatever can happen to a virtqueue happens while it is polled.

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::card::{never_parked, Card};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::device::{RECEIVE, TRANSMIT};
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::process::Owner;
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};
use vhost_iocm_selftests::wait;

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case("a polled virtqueue moves, and is polled there", move || {
        let _parked = never_parked()?;
        let mut card = Card::polled(options, control, NicOptions::default())?;
        for _ in 0..options.volume(50, 10) {
            let next = control.create_worker(-1)?;
            for index in [RECEIVE, TRANSMIT] {
                control.move_virtqueue(&virtqueue(&card.device, index), &next)?;
                card.exchange(1)?;
            }
            card.expect_polled(0).context("where it was")?;
            let left = std::mem::replace(&mut card.worker, next);
            card.expect_polled(2).context("where it is")?;
            let unasked = card.exchange(5)?;
            ensure!(unasked == 5, "{} of 5 frames needed a kick", 5 - unasked);
            control.set("worker/default", &card.worker)?;
            control.remove_worker(&left)?;
        }
        drop(card);
        control.restore().map(drop)
    });

    suite.case("polled virtqueues are stopped and started", move || {
        let _parked = never_parked()?;
        let mut card = Card::polled(options, control, NicOptions::default())?;
        for round in 0..options.volume(100, 10) {
            let nic = &card.nic;
            for queue in [&nic.receive, &nic.transmit] {
                nic.stop_queue(queue)?;
                let base = nic.device.base(queue.index)?;
                let used = u32::from(queue.ring.used_index()?);
                ensure!(
                    base == used,
                    "round {round}: base {base}, but used index {used}"
                );
            }
            card.expect_polled(0)?;
            card.nic.start()?;
            card.exchange(2).with_context(|| format!("round {round}"))?;
        }
        Ok(())
    });

    suite.case("a polled device is closed, given up and reset", move || {
        let _parked = never_parked()?;
        for _ in 0..options.volume(20, 5) {
            let card = Card::polled(options, control, NicOptions::default())?;
            let (worker, device) = (card.worker.clone(), card.device.clone());
            card.nic.device.reset_owner()?;
            card.expect_polled(0)?;
            drop(card);
            let card = Card::polled(options, control, NicOptions::default())?;
            ensure!(
                card.worker != worker && card.device != device,
                "the same again"
            );
            drop(card);
            let left = control.devices()?;
            ensure!(!left.contains(&device), "{device} is still there");
        }
        control.restore().map(drop)
    });

    suite.case("the owner of a polled device is killed", move || {
        let _parked = never_parked()?;
        let _mode = Parameter::set("poll", "1")?;
        let mut card = Card::polled(options, control, NicOptions::default())?;
        for round in 0..options.volume(20, 3) {
            let name = format!("polled{round}");
            let owner = Owner::reflect(&options.node, &name)?;
            card.expect_polled(4)?;
            owner.kill()?;
            wait::until("its device to go", || Ok(control.device_of(&name).is_err()))?;
            // On a slow machine it may have taken so long that the card's were parked.
            card.exchange(2)?;
            card.expect_polled(2)?;
        }
        drop(card);
        control.restore().map(drop)
    });

    suite.case("switching modes under traffic loses nothing", move || {
        let _idle = Parameter::set("poll_idle_us", "100")?;
        let worker = control.side_core()?;
        let (mut nic, name) =
            control.device_made_by(|| Nic::new(&options.node, NicOptions::default()))?;
        let result = std::thread::scope(|scope| {
            let traffic = Background::start(scope, &mut nic)?;
            let rounds = options.volume(600, 60);
            let modes = ["1", "0", "auto", "1", "auto", "0"];
            let switched =
                (0..rounds)
                    .zip(modes.iter().cycle())
                    .try_for_each(|(round, mode)| -> Result<()> {
                        control.set_poll(&virtqueue(&name, round % 2), mode)?;
                        if round % 10 == 9 {
                            control.set_poll_of_device(&name, mode)?;
                        }
                        traffic.advance(1)
                    });
            traffic.conclude(switched)
        });
        result?;
        Traffic::new(&mut nic, Direction::Both)?.run(50)?;
        drop(nic);
        let list = control.read_list(&format!("worker/{worker}/dev_list"))?;
        ensure!(list.is_empty(), "{worker} still serves {list:?}");
        control.restore().map(drop)
    });
}
