// SPDX-License-Identifier: GPL-2.0
//! A virtqueue is polled for as long as that pays.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use vhost_iocm_selftests::card::{never_parked, Card};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::nic::NicOptions;
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::wait;

use crate::idle::{expect_asleep, PROMPTNESS};

/// How long nothing may happen before what could still happen is taken for not happening.
const QUIET: Duration = Duration::from_millis(200);

pub fn add<'a>(suite: &mut Suite<'a>, options: &'a Options, control: &'a Control) {
    suite.case(
        "a virtqueue without work is parked after poll_idle_us, and its worker sleeps",
        move || parked(options, control),
    );

    suite.case(
        "a parked virtqueue is looked at again after a kick, and not before",
        move || {
            let mut card = Card::new(options, control, NicOptions::default(), "1")?;
            for _ in 0..10 {
                card.exchange(2)?;
                card.expect_polled(0)?;
                card.expect_armed()?;
                ensure!(card.publish()?, "a parked virtqueue wants no kick");
                std::thread::sleep(QUIET);
                ensure!(
                    !card.nic.transmit.ring.has_used()?,
                    "a parked virtqueue was served without a kick"
                );
                let parks = card.counters(card.nic.transmit.index)?.get("parks")?;
                card.nic.transmit.kick()?;
                card.expect_transmitted()?;
                // By the kick it is polled again, or it could not be parked again.
                wait::until("the virtqueue to be parked once more", || {
                    Ok(card.counters(card.nic.transmit.index)?.get("parks")? > parks)
                })?;
            }
            Ok(())
        },
    );

    suite.case("nothing is lost on the edge of parking", move || {
        // A time in the middle of what a round trip takes here: the frames come before, while and after the
        // virtqueue is being parked.
        let rounds = options.volume(3000, 300);
        let mut card = Card::new(options, control, NicOptions::default(), "1")?;
        let start = Instant::now();
        card.exchange(50)?;
        let idle = start.elapsed() / 100;
        let _idle = Parameter::set_time("poll_idle_us", idle)?;
        let unasked = card.exchange(rounds)?;
        let parks: Vec<_> = card
            .both_counters()?
            .iter()
            .map(|counters| counters.get("parks"))
            .collect::<Result<_>>()?;
        diagnostic(format!(
            "poll_idle_us {}: {unasked} of {rounds} rounds without a kick, parks {parks:?}",
            idle.as_micros()
        ));
        ensure!(parks.iter().all(|parks| *parks > 0), "never parked");
        Ok(())
    });

    suite.case("work that comes rarely is not polled for", move || {
        let _start = Parameter::set("poll_start_us", "1000")?;
        let mut card = Card::new(options, control, NicOptions::default(), "auto")?;
        for _ in 0..30 {
            card.transmit()?;
            card.expect_transmitted()?;
            std::thread::sleep(Duration::from_millis(20));
        }
        let counters = card.counters(card.nic.transmit.index)?;
        ensure!(
            counters.get("polls")? == 0 && counters.get("parks")? == 0,
            "a frame every 20 ms: {:?}",
            counters.moved()
        );
        Ok(())
    });

    suite.case("work that comes often is polled for", move || {
        // Often by the measure of an emulated machine.
        let _start = Parameter::set("poll_start_us", "50000")?;
        let _parked = never_parked()?;
        let mut card = Card::new(options, control, NicOptions::default(), "auto")?;
        wait::until("frequent work to be polled for", || {
            card.exchange(20)?;
            let [receive, transmit] = card.both_counters()?;
            Ok(receive.get("poll_kicks")? > 0 && transmit.get("poll_kicks")? > 0)
        })?;
        // And then without kicks, for a while at least: a machine that halts in the middle of it for
        // longer than a virtqueue is given at first has it parked.
        wait::until("50 rounds without a kick", || Ok(card.exchange(50)? == 50))?;
        Ok(())
    });

    suite.case(
        "a virtqueue that is switched to 0 while it is polled asks for kicks at once",
        move || {
            let _parked = never_parked()?;
            let mut card = Card::polled(options, control, NicOptions::default())?;
            control.set_poll_of_device(&card.device, "0")?;
            card.expect_polled(0)?;
            for _ in 0..20 {
                card.expect_armed()?;
                ensure!(card.transmit()?, "it wants no kick");
                card.expect_transmitted()?;
            }
            card.expect_armed()?;
            expect_asleep(&card)
        },
    );
}

fn parked(options: &Options, control: &Control) -> Result<()> {
    let _parked = never_parked()?;
    let mut card = Card::polled(options, control, NicOptions::default())?;
    for idle in [100, 20, 300, 1].map(Duration::from_millis) {
        let _idle = Parameter::set_time("poll_idle_us", idle)?;
        let start = Instant::now();
        card.exchange(2)?;
        let exchanged = Instant::now();
        card.expect_polled(0)?;
        let end = Instant::now();
        let (longest, shortest) = (end - start, end - exchanged);
        diagnostic(format!(
            "poll_idle {idle:?}: parked {shortest:?} to {longest:?} after the last work"
        ));
        ensure!(
            longest >= idle,
            "parked at most {longest:?} after the last work, poll_idle is {idle:?}"
        );
        ensure!(
            shortest <= idle + PROMPTNESS,
            "parked at least {shortest:?} after the last work, poll_idle is {idle:?}"
        );
        expect_asleep(&card)?;
    }
    Ok(())
}
