// SPDX-License-Identifier: GPL-2.0

//! Home threads, which run on guests' cores.

use super::device::{Moved, RECEIVE, TRANSMIT};
use super::place::Place;
use super::{Host, Job};

/// Packets of one work of a home thread, as stock vhost has it.
const HOME_BATCH: usize = 256;

impl Host<'_> {
    /// A home thread takes what waits.
    pub(super) fn run_home(&mut self, number: usize) {
        self.pull(number, self.now);
        self.begin_home_work(number, self.costs.wake_work);
    }

    fn begin_home_work(&mut self, number: usize, extra: f64) {
        let device = &mut self.devices[number];
        let first = 1 - device.home_queue;
        let Some(queue) = [first, 1 - first]
            .into_iter()
            .find(|queue| !device.queues[*queue].waiting.is_empty())
        else {
            device.home_active = false;
            self.arm(number);
            return;
        };
        device.home_queue = queue;
        let virtqueue = &mut device.queues[queue];
        let count = virtqueue.waiting.len().min(HOME_BATCH);
        if let Some(front) = virtqueue.waiting.front() {
            virtqueue
                .counters
                .begin(self.now.saturating_sub(front.since));
        }
        device.home_batch.clear();
        device
            .home_batch
            .extend(virtqueue.waiting.drain(..count).map(|packet| Moved {
                born: packet.born,
                done: 0,
            }));
        let work = (self.costs.slice + extra) as u64 + virtqueue.service * count as u64;
        device.home_work = work;
        self.used += work as f64;
        self.pool.add(self.now, work, Job::Home { device: number });
    }

    pub(super) fn end_home(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let queue = device.home_queue;
        let mut batch = std::mem::take(&mut device.home_batch);
        for moved in &mut batch {
            moved.done = self.now;
        }
        let virtqueue = &mut device.queues[queue];
        virtqueue.counters.served += device.home_work;
        virtqueue.counters.packets += batch.len() as u64;
        virtqueue.counters.bytes += batch.len() as u64 * u64::from(virtqueue.bytes);
        self.moved(number, queue, &batch);
        self.devices[number].home_batch = batch;
        self.pull(number, self.now);
        if self.devices[number].place == Place::Home {
            self.begin_home_work(number, 0.0);
        } else {
            self.devices[number].home_active = false;
            for queue in [RECEIVE, TRANSMIT] {
                self.hand_over(number, queue);
            }
        }
    }
}
