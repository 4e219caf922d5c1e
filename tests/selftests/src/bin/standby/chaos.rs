// SPDX-License-Identifier: GPL-2.0
//! Whatever user space does while workers are woken and parked all the time.

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::device::{RECEIVE, TRANSMIT};
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::random::Random;
use vhost_iocm_selftests::wait;

use crate::crowd::{be_quick, expect_consistent, wakes, Crowd};

/// Parked workers that stay.
const STANDBY: usize = 2;
/// After how many changes the traffic must have gone on.
const PACE: u32 = 20;

pub fn add<'a>(
    suite: &mut Suite<'a>,
    options: &'a Options,
    control: &'a Control,
    changes: u32,
    seed: u64,
) {
    suite.case(
        format!("{changes} changes while workers are woken and parked lose, duplicate and reorder nothing"),
        move || chaos(options, control, changes, seed),
    );
}

fn chaos(options: &Options, control: &Control, changes: u32, seed: u64) -> Result<()> {
    diagnostic(format!("seed {seed}"));
    let _quick = be_quick()?;
    let mut crowd = Crowd::new(options, control)?;
    let standby: Vec<_> = (0..STANDBY)
        .map(|_| control.create_parked())
        .collect::<Result<_>>()?;
    let devices = crowd.devices();
    let first = crowd.worker.clone();
    let others = [control.create_worker(-1)?, control.create_worker(0)?];
    crowd.push(|pushing| {
        let run = |role: Role, seed: u64| -> Result<()> {
            let mut actor = Actor {
                options,
                control,
                devices: &devices,
                standby: &standby,
                active: [&first, &others[0], &others[1]],
                random: Random::new(seed),
                role,
            };
            for change in 0..changes / 2 {
                actor.act().with_context(|| format!("change {change}"))?;
                if change % PACE == 0 {
                    pushing.advance(1)?;
                }
            }
            actor.clear()
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(|| run(Role::Devices(None), seed + 1));
            let result = run(Role::Workers(None), seed);
            let other = other.join().unwrap_or_else(|_| bail!("an actor panicked"));
            result.and(other)
        })?;
        let woken: u64 = standby
            .iter()
            .map(|worker| wakes(control, worker))
            .sum::<Result<_>>()?;
        diagnostic(format!("woken {woken} times"));
        ensure!(woken > 0, "nobody was ever woken");
        // Until nothing is on its way any more, who serves what may change between two looks.
        let _none = Parameter::set("max_woken", "0")?;
        for worker in &standby {
            wait::until("nobody to be awake", || {
                Ok(control.read_line(&format!("worker/{worker}/state"))? != "woken")
            })?;
        }
        expect_consistent(control, &devices)
    })?;
    crowd.end()
}

/// What an actor has beside what is there for all.
enum Role {
    /// A worker that it makes and removes.
    Workers(Option<String>),
    /// A device that it opens and closes.
    Devices(Option<Box<(Nic, String)>>),
}

struct Actor<'a> {
    options: &'a Options,
    control: &'a Control,
    devices: &'a [String],
    standby: &'a [String],
    active: [&'a String; 3],
    random: Random,
    role: Role,
}

impl Actor<'_> {
    fn act(&mut self) -> Result<()> {
        let device = self.random.choose(self.devices).clone();
        match self.random.below(100) {
            // Mostly to where the crowd is, so that there is a crowd.
            0..20 => {
                for device in self.control.devices()? {
                    let file = format!("dev/{device}/worker");
                    let answer = self.control.write(&file, self.active[0]);
                    expect(answer, &[Errno::ENOENT, Errno::ENODEV])?;
                }
                Ok(())
            }
            20..30 => {
                let index = *self.random.choose(&[RECEIVE, TRANSMIT]);
                let worker = (*self.random.choose(&self.active)).clone();
                let virtqueue = virtqueue(&device, index);
                self.control.move_virtqueue(&virtqueue, &worker)
            }
            30..40 => {
                // It may be parked or woken.
                let worker = self.random.choose(self.standby).clone();
                let answer = self.control.write(&format!("dev/{device}/worker"), &worker);
                expect(answer, &[Errno::EBUSY])
            }
            40..50 => {
                let mode = *self.random.choose(&["0", "1", "auto"]);
                self.control.set_poll_of_device(&device, mode)
            }
            50..55 => {
                let home = *self.random.choose(&["0", "1"]);
                self.control.set(&format!("dev/{device}/home"), home)
            }
            55..65 => {
                let worker = self.random.choose(self.standby).clone();
                let locked = *self.random.choose(&["0", "0", "0", "1"]);
                self.control.set(&format!("worker/{worker}/locked"), locked)
            }
            65..75 => {
                let worker = self.random.choose(self.standby).clone();
                let state = *self
                    .random
                    .choose(&["active", "parked", "parked", "parked"]);
                let answer = self.control.write(&format!("worker/{worker}/state"), state);
                expect(answer, &[Errno::EBUSY])
            }
            75..80 => {
                let worker = self.random.choose(self.standby).clone();
                let group = *self.random.choose(&["0", "0", "0", "1"]);
                self.control.set(&format!("worker/{worker}/group"), group)
            }
            80..90 => self.grow(),
            _ => self.clear(),
        }
    }

    fn grow(&mut self) -> Result<()> {
        match &mut self.role {
            Role::Workers(own @ None) => *own = Some(self.control.create_parked()?),
            Role::Devices(own @ None) => {
                let made = self
                    .control
                    .device_made_by(|| Nic::new(&self.options.node, NicOptions::default()))?;
                self.control.move_device(&made.1, self.active[0])?;
                *own = Some(Box::new(made));
            }
            _ => {}
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        match &mut self.role {
            Role::Workers(own) => {
                if let Some(worker) = own.take() {
                    self.control.set(&format!("worker/{worker}/locked"), "1")?;
                    let heir = format!("{worker} {}", self.active[1]);
                    self.control.set("worker/remove", &heir)?;
                }
            }
            Role::Devices(own) => drop(own.take()),
        }
        Ok(())
    }
}

fn expect(answer: Result<(), Errno>, allowed: &[Errno]) -> Result<()> {
    match answer {
        Err(errno) if !allowed.contains(&errno) => bail!("refused with {errno}"),
        _ => Ok(()),
    }
}
