// SPDX-License-Identifier: GPL-2.0

//! What a policy sees of the host.

use super::device::Device;
use super::place::Place;
use super::Host;
use crate::policy::{
    Core, Device as DeviceView, Limits, Observation, Place as PlaceView, Role,
    Virtqueue as VirtqueueView, Worker as WorkerView,
};
use vhost_iocm_engine::engine::abi::{DeviceId, VirtqueueId, WorkerId};
use vhost_iocm_engine::engine::sched::standby::State;

impl Host<'_> {
    pub(super) fn observe(&mut self) -> Observation {
        let interval = self.now - self.last_interval;
        self.last_interval = self.now;
        self.pool.advance(self.now);
        let usage = self.pool.usage();
        let share = f64::from(self.guest_cores.max(1));
        let busy = ((usage.0 - self.last_usage.0) / share) as u64;
        let waited = ((usage.1 - self.last_usage.1) / share) as u64;
        self.last_usage = usage;
        let cores = (0..self.scenario.cores)
            .map(|cpu| {
                let worker = self.live_workers().find(|(_, worker)| worker.cpu == cpu);
                Core {
                    cpu,
                    node: 0,
                    siblings: Vec::new(),
                    role: worker
                        .map_or(Role::Guests, |(index, _)| Role::Io(WorkerId(index as u32))),
                    busy: worker.map_or(busy.min(interval), |(_, worker)| worker.busy),
                    waited: if worker.is_some() { 0 } else { waited },
                }
            })
            .collect();
        let now = self.now;
        let workers = self
            .workers
            .iter_mut()
            .enumerate()
            .filter(|(_, worker)| !worker.removed)
            .map(|(index, worker)| {
                let view = WorkerView {
                    id: WorkerId(index as u32),
                    cpu: Some(worker.cpu),
                    node: Some(0),
                    state: State::Active,
                    locked: false,
                    busy: worker.busy,
                    polled_empty: worker.polled_empty,
                    total: interval.min(now - worker.made),
                    pending_average: worker.pending_sum / worker.slices.max(1),
                };
                worker.busy = 0;
                worker.polled_empty = 0;
                worker.pending_sum = 0;
                worker.slices = 0;
                view
            })
            .collect();
        let devices = self
            .devices
            .iter_mut()
            .enumerate()
            .filter(|(_, device)| device.present)
            .map(|(index, device)| view_device(index, device))
            .collect();
        Observation {
            time: self.now,
            interval,
            cores,
            workers,
            devices,
            limits: Limits {
                cores_max: self.scenario.cores_max,
                ..Limits::default()
            },
        }
    }
}

fn view_device(index: usize, device: &mut Device) -> DeviceView {
    let id = DeviceId(index as u32);
    let place = match device.place {
        Place::Home => PlaceView::Home,
        Place::Worker(worker) => PlaceView::Worker(WorkerId(worker as u32)),
    };
    let virtqueues = device
        .queues
        .iter_mut()
        .zip(0..)
        .map(|(virtqueue, index)| {
            let counters = std::mem::take(&mut virtqueue.counters);
            VirtqueueView {
                id: VirtqueueId { device: id, index },
                place,
                poll: virtqueue.mode,
                served: counters.served,
                packets: counters.packets,
                bytes: counters.bytes,
                slices: counters.slices,
                notifications: counters.notifications,
                polls_empty: counters.polls_empty,
                pending_max: counters.pending_max,
                pending_average: counters.pending_sum / counters.slices.max(1),
            }
        })
        .collect();
    DeviceView::new(id, device.vm, Some(0), device.weight, virtqueues)
}
