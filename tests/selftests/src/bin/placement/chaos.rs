// SPDX-License-Identifier: GPL-2.0
//! Everything that can be done to workers, devices and virtqueues, at random and at once, under traffic.

use anyhow::{bail, ensure, Context, Result};
use vhost_iocm_selftests::control::{virtqueue, Control};
use vhost_iocm_selftests::counters::Counters;
use vhost_iocm_selftests::device::{Device, RECEIVE, TRANSMIT};
use vhost_iocm_selftests::ktap::{diagnostic, Suite};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::{self, Parameter};
use vhost_iocm_selftests::random::Random;
use vhost_iocm_selftests::traffic::{Background, Direction, Traffic};

/// Workers that are there all the time.
const WORKERS: usize = 4;
/// Workers beside them, at most.
const EXTRA_WORKERS: usize = 4;
/// Devices whose traffic is followed.
const DEVICES: usize = 3;
/// Devices beside them, at most.
const EXTRA_DEVICES: usize = 6;
/// After how many acts the traffic must have gone on, on all devices.
const PACE: u32 = 20;

pub fn add<'a>(
    suite: &mut Suite<'a>,
    options: &'a Options,
    control: &'a Control,
    moves: u32,
    seed: u64,
) {
    suite.case(
        format!(
            "{moves} moves amid all else under two-way traffic lose, duplicate and reorder nothing"
        ),
        move || chaos(options, control, moves, seed),
    );
}

fn chaos(options: &Options, control: &Control, moves: u32, seed: u64) -> Result<()> {
    diagnostic(format!("seed {seed}"));
    // A virtqueue is parked as soon as the traffic of its device falters for a moment.
    let _idle = Parameter::set("poll_idle_us", "50")?;
    let mut workers = vec![control.restore()?];
    for number in 1..WORKERS {
        // Some on a CPU of their own, some where there is room.
        workers.push(control.create_worker([-1, 0][number % 2])?);
    }
    let mut cards: Vec<_> = (0..DEVICES)
        .map(|_| control.device_made_by(|| Nic::new(&options.node, NicOptions::default())))
        .collect::<Result<_>>()?;
    let devices: Vec<_> = cards.iter().map(|(_, name)| name.clone()).collect();
    let ended = std::thread::scope(|scope| {
        let mut flows = Vec::new();
        for (nic, _) in &mut cards {
            flows.push(Background::start(scope, nic)?);
        }
        let acted = act_at_once(moves, &flows, |role, seed_offset| Actor {
            options,
            control,
            devices: &devices,
            workers: &workers,
            random: Random::new(seed + seed_offset),
            role,
        });
        let acted = acted.and_then(|()| flows.iter().try_for_each(|flow| flow.advance(2)));
        let ended: Vec<_> = flows.into_iter().map(Background::finish).collect();
        for (device, end) in devices.iter().zip(ended) {
            let sent = end.with_context(|| format!("{device}; the actors: {acted:?}"))?;
            diagnostic(format!(
                "{device}: {} frames to the host and {} to the driver; {}",
                sent.0,
                sent.1,
                longest_wait(control, device)?
            ));
        }
        acted
    });
    ended?;
    expect_consistent(control, &devices)?;
    for device in &devices {
        expect_short_moves(control, device)?;
    }
    // What is left must work as at the beginning.
    for (nic, name) in &mut cards {
        control.set_poll_of_device(name, "auto")?;
        Traffic::new(nic, Direction::Both)?.run(100)?;
    }
    drop(cards);
    control.restore().map(drop)
}

/// Lets two actors act at once: one has its hands on workers as well, the other on other devices.
fn act_at_once<'a>(
    moves: u32,
    flows: &[Background<'_>],
    actor: impl Fn(Role, u64) -> Actor<'a> + Sync,
) -> Result<()> {
    let run = |mut actor: Actor<'_>| -> Result<()> {
        let (mut acts, mut moved) = (0, 0);
        while moved < moves / 2 {
            moved += actor.act().with_context(|| format!("act {acts}"))?;
            acts += 1;
            if acts % PACE == 0 {
                flows.iter().try_for_each(|flow| flow.advance(1))?;
            }
        }
        actor.clear()
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(actor(Role::Devices(Vec::new()), 1)));
        let result = run(actor(Role::Workers(Vec::new()), 0));
        let other = other.join().unwrap_or_else(|_| bail!("an actor panicked"));
        result.and(other)
    })
}

/// What an actor does beside moving and switching polling, and what of it is still there.
enum Role {
    /// Creates and removes these workers.
    Workers(Vec<String>),
    /// Opens and closes these devices, some of them running.
    Devices(Vec<(Extra, String)>),
}

/// A device beside those whose traffic is followed: only opened, or running.
enum Extra {
    Opened(#[expect(dead_code, reason = "it is there to be open")] Device),
    Running(Box<Nic>),
}

struct Actor<'a> {
    options: &'a Options,
    control: &'a Control,
    devices: &'a [String],
    workers: &'a [String],
    random: Random,
    role: Role,
}

impl Actor<'_> {
    /// Does one thing, and returns how many moves that was.
    fn act(&mut self) -> Result<u32> {
        match self.random.below(100) {
            0..40 => {
                let (device, worker) = (self.device(), self.worker());
                self.control.move_device(&device, &worker)?;
                return Ok(1);
            }
            40..85 => {
                let (virtqueue, worker) = (self.virtqueue(), self.worker());
                self.control.move_virtqueue(&virtqueue, &worker)?;
                return Ok(1);
            }
            85..95 => {
                let virtqueue = self.virtqueue();
                let mode = self.random.choose(&["0", "1", "auto"]);
                self.control.set_poll(&virtqueue, mode)?;
            }
            95..98 => self.grow()?,
            _ => self.shrink()?,
        }
        Ok(0)
    }

    /// A device whose traffic is followed, or one's own.
    fn device(&mut self) -> String {
        match &self.role {
            Role::Devices(own) if !own.is_empty() && self.random.below(4) == 0 => {
                self.random.choose(own).1.clone()
            }
            _ => self.random.choose(self.devices).clone(),
        }
    }

    fn virtqueue(&mut self) -> String {
        let device = self.device();
        virtqueue(&device, *self.random.choose(&[RECEIVE, TRANSMIT]))
    }

    /// A worker that stays, or one's own.
    fn worker(&mut self) -> String {
        match &self.role {
            Role::Workers(own) if !own.is_empty() && self.random.below(2) == 0 => {
                self.random.choose(own).clone()
            }
            _ => self.random.choose(self.workers).clone(),
        }
    }

    fn grow(&mut self) -> Result<()> {
        let running = self.random.below(2) == 0;
        match &mut self.role {
            Role::Workers(own) if own.len() < EXTRA_WORKERS => {
                own.push(self.control.create_worker(-1)?);
            }
            Role::Devices(own) if own.len() < EXTRA_DEVICES => {
                let device = self.control.device_made_by(|| {
                    if !running {
                        return Device::open(&self.options.node).map(Extra::Opened);
                    }
                    let mut nic = Nic::new(&self.options.node, NicOptions::default())?;
                    Traffic::new(&mut nic, Direction::Both)?.run(4)?;
                    Ok(Extra::Running(Box::new(nic)))
                })?;
                own.push(device);
            }
            _ => {}
        }
        Ok(())
    }

    fn shrink(&mut self) -> Result<()> {
        let heir = self.random.choose(self.workers).clone();
        match &mut self.role {
            Role::Workers(own) if !own.is_empty() => {
                let worker = own.swap_remove(self.random.below(own.len()));
                self.control.set(&format!("worker/{worker}/locked"), "1")?;
                self.control
                    .set("worker/remove", &format!("{worker} {heir}"))?;
                ensure!(
                    !self.control.exists(&format!("worker/{worker}")),
                    "{worker} is still there"
                );
            }
            Role::Devices(own) if !own.is_empty() => {
                let (mut device, name) = own.swap_remove(self.random.below(own.len()));
                if let Extra::Running(nic) = &mut device {
                    Traffic::new(nic, Direction::Both)?.run(4)?;
                }
                drop(device);
                ensure!(
                    !self.control.exists(&format!("dev/{name}")),
                    "{name} is still there"
                );
            }
            _ => {}
        }
        Ok(())
    }

    /// Removes what is left of one's own.
    fn clear(&mut self) -> Result<()> {
        while match &self.role {
            Role::Workers(own) => !own.is_empty(),
            Role::Devices(own) => !own.is_empty(),
        } {
            self.shrink()?;
        }
        Ok(())
    }
}

/// How long work of a device waited at most. It is shown, not judged: an emulated machine halts a worker for
/// longer than any slice.
fn longest_wait(control: &Control, device: &str) -> Result<String> {
    let longest = Counters::of_device(control, device)?.get("pending_ns_max")?;
    let slice = parameter::read_time("slice_us")?;
    Ok(format!(
        "work waited at most {} us, {} slices",
        longest / 1000,
        u128::from(longest) / slice.as_nanos()
    ))
}

/// Checks that no move of a device's virtqueues waited for more than the two slices that the workers
/// were in. Slices are counted and not timed, see [`longest_wait`].
pub fn expect_short_moves(control: &Control, device: &str) -> Result<()> {
    for index in [RECEIVE, TRANSMIT] {
        let name = virtqueue(device, index);
        let status = format!("vq/{name}/status");
        let number = |counter| control.read_counter(&status, counter);
        let (moves, slices) = (number("moves")?, number("move_slices_max")?);
        diagnostic(format!(
            "{name} was moved {moves} times with work, in {} us and {slices} slices at most",
            number("move_ns_max")? / 1000
        ));
        ensure!(moves > 0, "no move of {name} with work was counted");
        ensure!(slices <= 2, "a move of {name} waited for {slices} slices");
    }
    Ok(())
}

/// Checks that workers, devices and virtqueues say the same about who is where.
fn expect_consistent(control: &Control, devices: &[String]) -> Result<()> {
    let workers = control.workers()?;
    ensure!(workers.len() == WORKERS, "left are {workers:?}");
    for device in devices {
        let mut on = Vec::new();
        for index in [RECEIVE, TRANSMIT] {
            let name = virtqueue(device, index);
            on.push(control.read_line(&format!("vq/{name}/worker"))?);
        }
        on.sort();
        on.dedup();
        let mut said = control.read_list(&format!("dev/{device}/worker"))?;
        said.sort();
        ensure!(
            said == on,
            "{device} says {said:?}, its virtqueues are on {on:?}"
        );
        for worker in &workers {
            let listed = control.read_list(&format!("worker/{worker}/dev_list"))?;
            ensure!(
                listed.contains(device) == on.contains(worker),
                "{worker} lists {listed:?}, {device} is on {on:?}"
            );
        }
    }
    Ok(())
}
