// SPDX-License-Identifier: GPL-2.0

//! Cores that are kept for I/O, and the plans by which they change hands.

use super::{Event, Host, MILLISECOND};
use crate::policy::{Action, Policy};

impl Host<'_> {
    pub(super) fn account_kept(&mut self) {
        self.used += f64::from(self.kept) * (self.now - self.kept_since) as f64;
        self.kept_since = self.now;
    }

    pub(super) fn take_core(&mut self) {
        self.account_kept();
        self.kept += 1;
        self.guest_cores = self.guest_cores.saturating_sub(1);
        self.pool.set_cores(self.now, self.guest_cores);
    }

    pub(super) fn note_change(&mut self) {
        let count = self.live_workers().count() as u32;
        self.changes
            .push((self.now as f64 / MILLISECOND as f64, count));
    }

    pub(super) fn decide(&mut self, policy: &mut dyn Policy) {
        if !self.plan.is_empty() || !self.taking.is_empty() {
            return;
        }
        let observation = self.observe();
        let plan = policy.decide(&observation);
        if plan.is_empty() {
            return;
        }
        self.plan = plan.steps.iter().map(|step| step.action.clone()).collect();
        if let Some(log) = &mut self.log {
            log.push((self.now, plan));
        }
        self.carry_on();
    }

    /// Does the next steps of the plan, up to one that takes time.
    pub(super) fn carry_on(&mut self) {
        let handover = self.costs.handover as u64;
        for cpu in std::mem::take(&mut self.taking) {
            self.make_worker(cpu);
        }
        while let Some(action) = self.plan.pop_front() {
            match action {
                Action::AddCore { cpu } => {
                    self.take_core();
                    self.taking.push(cpu);
                    // Cores that are added one after the other are taken at the same time.
                    if matches!(self.plan.front(), Some(Action::AddCore { .. })) {
                        continue;
                    }
                    self.push(self.now + handover, Event::Continue);
                    return;
                }
                Action::GiveCoreBack { worker } => {
                    self.workers[worker.0 as usize].removed = true;
                    self.note_change();
                    self.returning.push_back(1);
                    self.push(self.now + handover, Event::Return);
                }
                Action::MoveDevice { device, target } => {
                    self.move_device(device.0 as usize, target);
                }
                Action::SetPoll { virtqueue, mode } => {
                    self.devices[virtqueue.device.0 as usize].queues[virtqueue.index as usize]
                        .mode = mode;
                }
                Action::SetWeight { device, weight } => {
                    self.devices[device.0 as usize].weight = weight;
                }
                // Both virtqueues of a device have one place in this model.
                Action::MoveVirtqueue { .. } => (),
            }
        }
    }
}
