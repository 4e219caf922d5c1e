// SPDX-License-Identifier: GPL-2.0
//! Devices that together want more than one worker can give, some of them with numbered frames.

use std::thread::Scope;

use anyhow::{Context, Result};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::cpu::{self, Left};
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::parameter::Parameter;
use vhost_iocm_selftests::process::{Owner, Packets};
use vhost_iocm_selftests::traffic::Background;
use vhost_iocm_selftests::wait;

/// Devices whose frames are followed.
pub const FOLLOWED: usize = 2;
/// Devices beside them that always want to be served.
const PUSHING: usize = 2;

/// Lets workers be woken as soon as anything waits, and parked as soon as there is room.
pub fn be_quick() -> Result<Vec<Parameter>> {
    [
        ("wake_pending_us", "10"),
        ("balance_us", "100"),
        ("park_after_us", "1000"),
        ("park_load", "1000"),
    ]
    .into_iter()
    .map(|(name, text)| Parameter::set(name, text))
    .collect()
}

/// Lets workers be woken as soon as anything waits, and not be parked as long as anything is served.
pub fn wake_easily() -> Result<Vec<Parameter>> {
    [
        ("wake_pending_us", "10"),
        ("balance_us", "100"),
        ("park_load", "0"),
        ("park_after_us", "1000"),
    ]
    .into_iter()
    .map(|(name, text)| Parameter::set(name, text))
    .collect()
}

/// The devices, all on one worker.
pub struct Crowd<'a> {
    options: &'a Options,
    control: &'a Control,
    /// The worker.
    pub worker: String,
    /// The cards whose frames are followed, with their devices.
    pub cards: Vec<(Nic, String)>,
    pushing: Vec<Owner>,
    _left: Left,
}

impl<'a> Crowd<'a> {
    /// Makes them, on a fresh worker. They are idle.
    pub fn new(options: &'a Options, control: &'a Control) -> Result<Self> {
        let worker = control.side_core()?;
        let _left = cpu::leave(cpu::count()? - 1)?;
        let cards = (0..FOLLOWED)
            .map(|_| control.device_made_by(|| Nic::new(&options.node, NicOptions::default())))
            .collect::<Result<_>>()?;
        Ok(Self {
            options,
            control,
            worker,
            cards,
            pushing: Vec::new(),
            _left,
        })
    }

    /// The devices whose frames are followed.
    pub fn devices(&self) -> Vec<String> {
        self.cards.iter().map(|(_, name)| name.clone()).collect()
    }

    /// Does something while all devices are busy, and expects every frame. `act` is given what it takes
    /// to make some of them stop.
    pub fn push<T>(&mut self, act: impl FnOnce(&mut Pushing<'_, '_>) -> Result<T>) -> Result<T> {
        for number in 0..PUSHING {
            let tap = format!("push{number}");
            let owner = Owner::saturate(&self.options.node, &tap, Packets::Frames)?;
            // Whatever placement says: all of them are in each other's way.
            let device = self.control.device_of(&tap)?;
            self.control.move_device(&device, &self.worker)?;
            owner.go_on()?;
            owner.expect_done()?;
            self.pushing.push(owner);
        }
        let pushing = &mut self.pushing;
        let cards = &mut self.cards;
        let result = std::thread::scope(|scope| {
            let mut flows = Vec::new();
            for (nic, name) in cards {
                flows.push((start(scope, nic)?, name.clone()));
            }
            let mut pushed = Pushing { flows, pushing };
            let result = act(&mut pushed);
            let result = result.and_then(|value| pushed.advance(2).map(|()| value));
            for (flow, name) in pushed.flows {
                let ended = flow.finish().map(drop);
                ended.with_context(|| {
                    format!("{name}; what was done: {:?}", result.as_ref().err())
                })?;
            }
            result
        })?;
        self.pushing.drain(..).try_for_each(Owner::release)?;
        Ok(result)
    }

    /// Ends everything.
    pub fn end(self) -> Result<()> {
        drop(self.cards);
        drop(self.pushing);
        self.control.restore().map(drop)
    }
}

fn start<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    nic: &'env mut Nic,
) -> Result<Background<'scope>> {
    Background::start(scope, nic)
}

/// Devices that are busy.
pub struct Pushing<'scope, 'a> {
    flows: Vec<(Background<'scope>, String)>,
    pushing: &'a mut Vec<Owner>,
}

impl Pushing<'_, '_> {
    /// Waits until this many more frames arrived on all devices that are followed.
    pub fn advance(&self, frames: u64) -> Result<()> {
        self.flows
            .iter()
            .try_for_each(|(flow, _)| flow.advance(frames))
    }

    /// Lets the devices that are not followed go.
    pub fn relax(&mut self) -> Result<()> {
        self.pushing.drain(..).try_for_each(Owner::release)
    }
}

/// Waits until a worker has this state.
pub fn expect_becomes(control: &Control, worker: &str, state: &str) -> Result<()> {
    wait::until(&format!("{worker} to be {state}"), || {
        Ok(control.read_line(&format!("worker/{worker}/state"))? == state)
    })
}

/// How often a worker was woken.
pub fn wakes(control: &Control, worker: &str) -> Result<u64> {
    control.read_counter(&format!("worker/{worker}/status"), "wakes")
}

/// Waits until workers, devices and virtqueues say the same about who serves what: between two looks the
/// fast loop may move something.
pub fn expect_consistent(control: &Control, devices: &[String]) -> Result<()> {
    wait::until("all to say the same about who serves what", || {
        for device in devices {
            let mut on = Vec::new();
            for virtqueue in control.read_list(&format!("dev/{device}/vq_list"))? {
                on.push(control.read_line(&format!("vq/{virtqueue}/worker"))?);
            }
            for worker in control.workers()? {
                let listed = control.read_list(&format!("worker/{worker}/dev_list"))?;
                if listed.contains(device) != on.contains(&worker) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    })
}
