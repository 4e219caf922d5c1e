// SPDX-License-Identifier: GPL-2.0

//! What the fast loop sees of the pool and does to it; the rules are those of
//! `engine::sched::standby`.

use super::{Assigned, Employed, Pool, State, VIRTQUEUES};
use crate::engine::abi::WorkerId;
use crate::engine::sched::standby::{
    self, Act, Backlog, Found, Record, Split, Tunables, View, Workers,
};
use crate::kern::cpu;
use crate::kern::parameters;
use crate::kern::served::Served;
use crate::kern::trace;
use crate::vhost::virtqueue::Virtqueue;
use kernel::prelude::*;
use kernel::sync::Arc;

/// What a worker is there for, and what the fast loop knows of it.
#[derive(Default)]
pub(super) struct Standing {
    /// What it is there for.
    pub(super) state: standby::State,
    /// What is remembered from check to check.
    record: Record,
    /// What the last check found of what it serves.
    backlog: Backlog,
    /// Its load at the last check, in parts per thousand.
    load: u32,
}

impl Standing {
    /// For a new worker.
    pub(super) fn new(state: standby::State) -> Self {
        Self {
            state,
            ..Self::default()
        }
    }
}

impl Employed {
    /// Sets what it is there for.
    pub(super) fn set_state(&mut self, state: standby::State) {
        self.standing.state = state;
        self.worker.stats.state.store(state.number());
    }

    /// Whether it takes virtqueues.
    pub(super) fn is_usable(&self) -> bool {
        !self.locked && self.standing.state == standby::State::Active
    }

    /// Whether it can be woken to help another of its group.
    fn can_help(&self) -> bool {
        !self.locked && self.standing.state == standby::State::Parked
    }

    /// Whether it is not parked.
    pub(super) fn is_awake(&self) -> bool {
        self.standing.state != standby::State::Parked
    }
}

/// For how long work of a virtqueue may have waited for its worker, in nanoseconds. What waits for
/// the home thread, or for the ceiling of its device, is none of the worker's.
fn waiting_time(virtqueue: &Served<Virtqueue>, now: u64) -> u64 {
    let share = &virtqueue.common.record.share;
    if virtqueue.is_home() || virtqueue.is_at_home() || share.is_throttled(now) {
        return 0;
    }
    virtqueue.waiting_time(now)
}

impl Assigned {
    /// Notes what the virtqueues do now.
    fn check(&mut self, now: u64, tunables: &Tunables) {
        for (virtqueue, activity) in self.device.virtqueues().iter().zip(&mut self.activity) {
            let waits = virtqueue.pending_age(now).is_some() && waiting_time(virtqueue, now) > 0;
            activity.note(virtqueue.stats.packets.get(), waits, now, tunables);
        }
    }

    /// What was found of the virtqueues that a worker serves.
    fn found(
        &self,
        worker: WorkerId,
        now: u64,
        tunables: &Tunables,
    ) -> [Option<Found>; VIRTQUEUES] {
        core::array::from_fn(|index| {
            let virtqueue = &self.device.virtqueues()[index];
            (self.workers[index] == worker).then(|| Found {
                // What is to be served at home is no work of the worker's, however much it is.
                busy: self.activity[index].is_busy(now, tunables) && !virtqueue.is_home(),
                age: waiting_time(virtqueue, now),
            })
        })
    }
}

impl Workers for State {
    fn count(&self) -> usize {
        self.workers.len()
    }

    fn view(&self, index: usize, _now: u64) -> View {
        let entry = &self.workers[index];
        View {
            worker: entry.worker.id,
            group: entry.group,
            state: entry.standing.state,
            locked: entry.locked,
            load: entry.standing.load,
            virtqueues: entry.virtqueues,
            backlog: entry.standing.backlog,
            record: entry.standing.record,
        }
    }

    fn record(&mut self, index: usize) -> &mut Record {
        &mut self.workers[index].standing.record
    }
}

impl State {
    /// Looks at all workers and virtqueues.
    fn observe(&mut self, now: u64, tunables: &Tunables) {
        for entry in self.workers.iter_mut() {
            entry.standing.backlog = Backlog::default();
            entry.standing.load = entry.worker.load.share(now);
        }
        let mut position = 0;
        for assigned in self.devices.iter_mut() {
            assigned.check(now, tunables);
            for index in 0..VIRTQUEUES {
                let id = assigned.workers[index];
                if assigned.workers[..index].contains(&id) {
                    continue;
                }
                // Devices that were made one after the other often have the same worker.
                let is_it = |entry: &Employed| entry.worker.id == id;
                if !self.workers.get(position).is_some_and(is_it) {
                    position = self.workers.iter().position(is_it).unwrap_or(0);
                }
                if let Some(entry) = self.workers.get_mut(position) {
                    let found = assigned.found(id, now, tunables);
                    entry.standing.backlog.add(&found);
                }
            }
        }
    }

    /// Wakes a worker for another. Returns how many virtqueues it got.
    fn wake(&mut self, woken: usize, congested: usize, now: u64, tunables: &Tunables) -> u32 {
        let (from, to) = (
            self.workers[congested].worker.id,
            self.workers[woken].worker.id,
        );
        let inbox = self.workers[woken].worker.inbox_ref();
        let mut split = Split::new(&self.workers[congested].standing.backlog);
        let mut moved = 0;
        for assigned in self.devices.iter_mut() {
            let found = assigned.found(from, now, tunables);
            let taken = split.takes(found.map(|found| found.map(|found| found.busy)));
            for (index, taken) in taken.into_iter().enumerate() {
                moved += u32::from(taken && assigned.move_virtqueue(index, to, &inbox));
            }
        }
        self.add_virtqueues(from, -(moved as i32));
        self.add_virtqueues(to, moved as i32);
        self.workers[woken].worker.stats.wakes.add(1);
        trace::standby_wake(to, from, moved);
        moved
    }

    /// Moves all that a worker serves to another.
    fn park(&mut self, parked: usize, heir: usize) {
        let (from, to) = (self.workers[parked].worker.id, self.workers[heir].worker.id);
        let inbox = self.workers[heir].worker.inbox_ref();
        let moved = self.move_all(from, to, &inbox);
        trace::standby_park(from, to, moved);
    }

    /// Tells each worker whether a parked one could help it. To be called whenever a worker comes
    /// or goes, or its state, its group or its lock changes.
    pub(super) fn note_helpers(&self) {
        let helpers = || self.workers.iter().filter(|entry| entry.can_help());
        // Where nobody is parked, which is usual, this is one look at each worker.
        let any = helpers().next().is_some();
        for entry in self.workers.iter() {
            let has_helper = any && helpers().any(|helper| helper.group == entry.group);
            entry.worker.set_has_helper(has_helper);
        }
    }
}

impl Pool {
    /// One check of the fast loop. Returns whether there is to be another one.
    pub(in crate::vhost) fn balance(&self) -> bool {
        let tunables = parameters::standby();
        let mut state = self.state.lock();
        let now = cpu::now();
        state.observe(now, &tunables);
        let default = state.default;
        let verdict = standby::check(&mut *state, default, now, &tunables);
        match verdict.act {
            Some(Act::Wake {
                woken,
                congested,
                lender,
            }) => {
                state.workers[woken].set_state(standby::State::Woken { lender });
                state.wake(woken, congested, now, &tunables);
            }
            Some(Act::Park { parked, heir }) => {
                state.workers[parked].set_state(standby::State::Parked);
                state.park(parked, heir);
            }
            None => (),
        }
        if verdict.act.is_some() {
            state.note_helpers();
        }
        verdict.again
    }

    /// What a worker is there for.
    pub(in crate::vhost) fn state_of(&self, id: WorkerId) -> Result<standby::State> {
        Ok(self.state.lock().worker(id).ok_or(ENODEV)?.standing.state)
    }

    /// Parks a worker, which serves nothing, or lets it be an ordinary one. If it is the default
    /// one that is parked, another takes over that part.
    ///
    /// # Errors
    ///
    /// `EBUSY` when a worker that is to be parked serves something; those of
    /// [`Pool::create_worker`].
    pub(in crate::vhost) fn set_parked(self: &Arc<Self>, id: WorkerId, parked: bool) -> Result {
        self.change_worker(id, parked, |entry| {
            if !parked {
                entry.set_state(standby::State::Active);
            } else if entry.virtqueues > 0 {
                return Err(EBUSY);
            } else {
                entry.set_state(standby::State::Parked);
            }
            Ok(())
        })
    }

    /// For how long the oldest work of a worker may have waited by now, in nanoseconds.
    pub(in crate::vhost) fn waiting_time_of(&self, id: WorkerId) -> u64 {
        let state = self.state.lock();
        let now = cpu::now();
        let ages = state.devices.iter().flat_map(|assigned| {
            let virtqueues = assigned.device.virtqueues().iter();
            virtqueues
                .zip(assigned.workers)
                .filter(|(_, worker)| *worker == id)
                .map(|(virtqueue, _)| waiting_time(virtqueue, now))
        });
        ages.max().unwrap_or(0)
    }
}
