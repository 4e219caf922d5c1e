// SPDX-License-Identifier: GPL-2.0

//! Who serves a device, who is told that there is work, and what a move is.

use super::device::{Status, RECEIVE, TRANSMIT};
use super::{Event, Host};
use crate::policy::Target;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Home,
    Worker(usize),
}

impl Host<'_> {
    /// A device that is opened goes to the worker that has the fewest, if there is any.
    pub(super) fn place_new(&mut self, number: usize) {
        let is_live = match self.devices[number].place {
            Place::Home => false,
            Place::Worker(worker) => !self.workers[worker].removed,
        };
        if is_live {
            return;
        }
        let fewest = self
            .live_workers()
            .map(|(worker, _)| worker)
            .min_by_key(|worker| {
                self.devices
                    .iter()
                    .filter(|device| device.present && device.place == Place::Worker(*worker))
                    .count()
            });
        self.devices[number].place = fewest.map_or(Place::Home, Place::Worker);
        for virtqueue in &mut self.devices[number].queues {
            virtqueue.status = Status::Armed;
        }
    }

    /// A notification, unless nobody needs one.
    pub(super) fn notify(&mut self, number: usize, queue: usize) {
        let device = &mut self.devices[number];
        let exit = if queue == TRANSMIT {
            self.costs.exit
        } else {
            0.0
        };
        match device.place {
            Place::Home => {
                if !device.home_active {
                    device.home_active = true;
                    device.queues[queue].counters.notifications += 1;
                    device.debt += exit;
                    self.used += exit;
                    let time = self.now + self.costs.wake_latency as u64;
                    self.push(time, Event::Home(number));
                }
            }
            Place::Worker(worker) => match device.queues[queue].status {
                Status::Armed => {
                    device.queues[queue].status = Status::Listed;
                    device.queues[queue].counters.notifications += 1;
                    device.debt += exit;
                    self.used += exit;
                    self.workers[worker].fresh.push_back((number, queue));
                    self.rouse(worker);
                }
                Status::Polled => self.rouse(worker),
                Status::Listed => (),
            },
        }
    }

    /// Gives a virtqueue that nobody serves to who serves its device.
    pub(super) fn hand_over(&mut self, number: usize, queue: usize) {
        if queue == self.entry(number) {
            self.pull(number, self.now);
        }
        if self.devices[number].queues[queue].waiting.is_empty() {
            self.arm(number);
        } else {
            self.notify(number, queue);
        }
    }

    pub(super) fn move_device(&mut self, number: usize, target: Target) {
        let place = match target {
            Target::Home => Place::Home,
            Target::Worker(worker) => Place::Worker(worker.0 as usize),
            Target::NewOn(cpu) => {
                let Some((worker, _)) = self.live_workers().find(|(_, worker)| worker.cpu == cpu)
                else {
                    return;
                };
                Place::Worker(worker)
            }
        };
        let before = std::mem::replace(&mut self.devices[number].place, place);
        if before == place {
            return;
        }
        self.moves += 1;
        let Place::Worker(worker) = before else {
            // A home thread that is at work hands over when it ends.
            if !self.devices[number].home_active {
                for queue in [RECEIVE, TRANSMIT] {
                    self.hand_over(number, queue);
                }
            }
            return;
        };
        let worker = &mut self.workers[worker];
        for list in [
            &mut worker.fresh,
            &mut worker.ready,
            &mut worker.spent,
            &mut worker.polled,
        ] {
            list.retain(|(device, _)| *device != number);
        }
        let served = worker.slice.map(|(device, queue, _)| (device, queue));
        for queue in [RECEIVE, TRANSMIT] {
            if served != Some((number, queue)) {
                let virtqueue = &mut self.devices[number].queues[queue];
                virtqueue.polling.park(self.now);
                virtqueue.status = Status::Armed;
                self.hand_over(number, queue);
            }
        }
    }
}
