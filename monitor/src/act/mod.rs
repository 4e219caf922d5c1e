// SPDX-License-Identifier: GPL-2.0

//! The arms: carry plans out.
//!
//! A core that is kept for I/O is a transaction: guests leave the CPU, a worker comes, and if
//! anything fails on the way all of it is undone. What is about to be changed stands in a journal
//! before it is, so a monitor that is killed at any instant leaves a host that serves, and the next
//! one finishes what was begun ([`Arms::recover`]). Every step is of a kind that can be done again.

pub mod ground;
pub mod journal;

use crate::failure::{Failure, Result};
use crate::host::control::Object;
use crate::host::topology::cpu_list;
use crate::policy::plan::{Action, Plan, Target};
use ground::{Found, Ground, Whom, WorkerState};
use journal::{Core, Journal, Phase, Place, Who};
use std::collections::BTreeSet;
use vhost_iocm_engine::engine::abi::{VirtqueueId, WorkerId};

/// What was done of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Steps that were carried out.
    pub done: usize,
    /// Steps about objects that were gone.
    pub gone: usize,
}

/// Carries out plans.
pub struct Arms<G> {
    ground: G,
    journal: Journal,
    /// Whether interrupts of network cards go where workers are.
    interrupts: bool,
}

impl<G: Ground> Arms<G> {
    /// Takes over what an earlier monitor has left: finishes what it gave back, undoes what it had
    /// not finished taking, and keeps the rest.
    ///
    /// # Errors
    ///
    /// A broken journal, and whatever the host fails with.
    pub fn recover(mut ground: G, interrupts: bool) -> Result<Self> {
        let journal = ground.load()?.unwrap_or_default();
        let mut arms = Self {
            ground,
            journal,
            interrupts,
        };
        let workers = arms.ground.workers()?;
        let cpus: Vec<u32> = arms.journal.cores.keys().copied().collect();
        for cpu in cpus {
            let core = &arms.journal.cores[&cpu];
            match core.phase {
                Phase::Taken if worker_of(core, cpu, &workers).is_some() => {
                    tracing::info!(cpu, "a core that is kept for I/O is taken over");
                }
                phase => {
                    tracing::info!(cpu, ?phase, "a change that was not finished is undone");
                    arms.give_back(cpu)?;
                }
            }
        }
        arms.tend(Whom::All)?;
        Ok(arms)
    }

    /// The CPUs that the monitor keeps for I/O.
    pub fn taken(&self) -> impl Iterator<Item = u32> + '_ {
        self.journal.taken()
    }

    /// What the arms work on.
    pub fn ground(&mut self) -> &mut G {
        &mut self.ground
    }

    /// Sets whether interrupts go where workers are, from the next [`Self::tend`] on.
    pub fn set_interrupts(&mut self, interrupts: bool) {
        self.interrupts = interrupts;
    }

    /// Keeps guests off the CPUs that are kept for I/O: all of them, or those that came since. Whoever
    /// was put elsewhere by somebody else meanwhile has a new place of his own.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if somebody would have no CPU left; nothing was changed then.
    pub fn tend(&mut self, whom: Whom) -> Result<()> {
        let kept = self.journal.kept();
        if kept.is_empty() && self.journal.places.is_empty() {
            return Ok(());
        }
        let before = self.journal.clone();
        let noted = self.journal.places.iter();
        let noted = noted.filter_map(|place| place.who.process()).collect();
        let found = self.ground.find(self.interrupts, whom, &kept, &noted)?;
        if whom == Whom::New && found.is_empty() {
            return Ok(());
        }
        let mut places = Vec::new();
        let mut todo = Vec::new();
        for mut place in self.journal.places.drain(..).collect::<Vec<_>>() {
            if whom == Whom::New {
                let current = place.set.clone();
                places.push((place, current));
                continue;
            }
            let Some(current) = self.ground.current(&place.who) else {
                continue;
            };
            if !place.knows(&current) {
                let Some(now) = found.iter().find(|found| found.who == place.who) else {
                    continue;
                };
                place = Place::new(place.who, now.text.clone(), now.allowed.clone());
            }
            places.push((place, current));
        }
        let is_kept_from = |found: &Found| match found.who {
            Who::Interrupt(_) => !kept.is_empty(),
            _ => !found.allowed.is_disjoint(&kept),
        };
        // All threads of a process are noted if one of them moves, to know later who is new.
        let mut processes: BTreeSet<i32> = places
            .iter()
            .filter_map(|(place, _)| place.who.process())
            .collect();
        let moving = found.iter().filter(|found| is_kept_from(found));
        processes.extend(moving.filter_map(|found| found.who.process()));
        for found in found {
            if places.iter().any(|(place, _)| place.who == found.who) {
                continue;
            }
            let current = found.text.clone();
            let process = found.who.process();
            let is_noted = process.is_some_and(|pid| processes.contains(&pid));
            let place = match places.iter().find(|(place, _)| place.made(&found)) {
                Some((creator, _)) => Place {
                    who: found.who,
                    before: found.text,
                    ..creator.clone()
                },
                None if is_noted || is_kept_from(&found) => {
                    Place::new(found.who, found.text, found.allowed)
                }
                None => continue,
            };
            places.push((place, current));
        }
        for (place, current) in &mut places {
            let Some(wanted) = place.wanted(&kept) else {
                self.journal = before;
                return Err(Failure::Refused(format!(
                    "{:?} would have no CPU left",
                    place.who
                )));
            };
            if wanted != place.set {
                place.before.clone_from(current);
                place.set.clone_from(&wanted);
            }
            // Thread masks and interrupts read back with ranges of their own.
            if cpu_list(&wanted) != cpu_list(current) {
                todo.push((place.who.clone(), wanted));
            }
        }
        self.journal.places = places.into_iter().map(|(place, _)| place).collect();
        if self.journal != before {
            self.ground.save(&self.journal)?;
        }
        for (who, wanted) in todo {
            self.ground.place(&who, &wanted)?;
        }
        // Who is where he was before is nobody's business any more, unless others of his are not.
        let moved = self.journal.places.len();
        let away: BTreeSet<i32> = self
            .journal
            .places
            .iter()
            .filter(|place| place.is_away())
            .filter_map(|place| place.who.process())
            .collect();
        self.journal.places.retain(|place| {
            let process = place.who.process();
            place.is_away() || process.is_some_and(|pid| away.contains(&pid))
        });
        if self.journal.places.len() != moved {
            self.ground.save(&self.journal)?;
        }
        Ok(())
    }

    /// Carries out a plan, from its beginning as far as it goes.
    ///
    /// # Errors
    ///
    /// What the first step failed with that failed; it was undone, and those behind it were not
    /// begun.
    pub fn execute(&mut self, plan: &Plan) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        for step in &plan.steps {
            tracing::info!(action = %step.action, reason = %step.reason, "a change");
            match self.act(&step.action) {
                Ok(()) => outcome.done += 1,
                Err(Failure::Unknown { kind, name }) => {
                    tracing::info!("{kind} {name} is gone, so there is nothing to change");
                    outcome.gone += 1;
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(outcome)
    }

    fn act(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::AddCore { cpu } => self.take(*cpu),
            Action::GiveCoreBack { worker } => self.release(worker.0),
            Action::MoveDevice { device, target } => self.put(Object::Device(*device), *target),
            Action::MoveVirtqueue { virtqueue, target } => {
                self.put(Object::Virtqueue(*virtqueue), *target)
            }
            Action::SetPoll { virtqueue, mode } => {
                let value = mode.to_string();
                self.ground
                    .set(Object::Virtqueue(*virtqueue), "poll", &value)
            }
            Action::SetWeight { device, weight } => {
                let value = weight.to_string();
                self.ground.set(Object::Device(*device), "weight", &value)
            }
        }
    }

    fn put(&mut self, object: Object, target: Target) -> Result<()> {
        match target {
            Target::Worker(worker) => self.ground.move_to(object, worker.0),
            Target::Home => self.ground.set(object, "home", "1"),
            Target::NewOn(cpu) => {
                let workers = self.ground.workers()?;
                let core = self.journal.cores.get(&cpu);
                let worker = core.and_then(|core| worker_of(core, cpu, &workers));
                match worker.map(|worker| worker.id) {
                    Some(worker) => self.ground.move_to(object, worker),
                    None => Err(Failure::Refused(format!(
                        "there is no worker on CPU {cpu} for {object}"
                    ))),
                }
            }
        }
    }

    /// Keeps a CPU for I/O: guests off, the worker there.
    fn take(&mut self, cpu: u32) -> Result<()> {
        if self.journal.cores.contains_key(&cpu) {
            return Ok(());
        }
        let workers = self.ground.workers()?;
        let there = workers.iter().find(|worker| worker.cpu == Some(cpu));
        let parked = there.filter(|worker| !worker.active);
        if there.is_some() && parked.is_none() {
            return Err(Failure::Refused(format!(
                "CPU {cpu} has a worker already that the monitor did not create"
            )));
        }
        let core = Core {
            phase: Phase::Taking,
            worker: parked.map(|worker| worker.id),
            pid: parked.map_or(0, |worker| worker.pid),
            was_parked: parked.is_some(),
            others: workers.iter().map(|worker| worker.id).collect(),
        };
        self.journal.cores.insert(cpu, core);
        let result = self
            .ground
            .save(&self.journal)
            .and_then(|()| self.finish_taking(cpu));
        if let Err(failure) = &result {
            tracing::warn!(cpu, %failure, "a core cannot be taken, so all of it is undone");
            self.give_back(cpu)?;
        }
        result
    }

    fn finish_taking(&mut self, cpu: u32) -> Result<()> {
        self.tend(Whom::All)?;
        let parked = self.journal.cores.get(&cpu).and_then(|core| core.worker);
        let worker = match parked {
            Some(worker) => {
                let object = Object::Worker(WorkerId(worker));
                self.ground.set(object, "state", "active")?;
                worker
            }
            None => self.ground.create(cpu)?,
        };
        let workers = self.ground.workers()?;
        let pid = workers
            .iter()
            .find(|state| state.id == worker)
            .map_or(0, |state| state.pid);
        if let Some(core) = self.journal.cores.get_mut(&cpu) {
            core.phase = Phase::Taken;
            core.worker = Some(worker);
            core.pid = pid;
        }
        self.ground.save(&self.journal)
    }

    /// Gives the CPU of a worker back.
    fn release(&mut self, worker: u32) -> Result<()> {
        let workers = self.ground.workers()?;
        let mut cores = self.journal.cores.iter();
        let ours = cores.find(|(cpu, core)| {
            worker_of(core, **cpu, &workers).is_some_and(|state| state.id == worker)
        });
        match ours.map(|(cpu, _)| *cpu) {
            Some(cpu) => self.give_back(cpu),
            // It was there before the monitor: it is not the monitor's to remove.
            None => {
                self.empty(worker, &workers)?;
                let object = Object::Worker(WorkerId(worker));
                self.ground.set(object, "state", "parked")
            }
        }
    }

    /// Gives all cores back, and puts everybody where he was.
    ///
    /// # Errors
    ///
    /// Whatever the host fails with.
    pub fn restore(&mut self) -> Result<()> {
        let cpus: Vec<u32> = self.journal.cores.keys().copied().collect();
        for cpu in cpus {
            self.give_back(cpu)?;
        }
        self.tend(Whom::All)
    }

    /// Gives a CPU back, however far it was taken.
    fn give_back(&mut self, cpu: u32) -> Result<()> {
        let Some(core) = self.journal.cores.get_mut(&cpu) else {
            return Ok(());
        };
        core.phase = Phase::Returning;
        let core = core.clone();
        self.ground.save(&self.journal)?;
        let workers = self.ground.workers()?;
        if let Some(worker) = worker_of(&core, cpu, &workers) {
            if core.was_parked {
                self.empty(worker.id, &workers)?;
                let object = Object::Worker(WorkerId(worker.id));
                self.ground.set(object, "state", "parked")?;
            } else {
                let mut heir = self.heir(worker.id, &workers)?;
                if heir.is_none() && !self.ground.served_by(worker.id)?.is_empty() {
                    // Locking the last one makes the module create another default worker.
                    let object = Object::Worker(WorkerId(worker.id));
                    self.ground.set(object, "locked", "1")?;
                    heir = Some(self.ground.default_worker()?);
                }
                match self.ground.remove(worker.id, heir) {
                    Ok(()) | Err(Failure::Unknown { .. }) => {}
                    Err(failure) => return Err(failure),
                }
            }
        }
        self.journal.cores.remove(&cpu);
        self.ground.save(&self.journal)?;
        self.tend(Whom::All)
    }

    /// Moves all that a worker serves to another one.
    fn empty(&mut self, worker: u32, workers: &[WorkerState]) -> Result<()> {
        let served = self.ground.served_by(worker)?;
        if served.is_empty() {
            return Ok(());
        }
        let Some(heir) = self.heir(worker, workers)? else {
            return Err(Failure::Refused(format!(
                "no other worker takes what w.{worker} serves"
            )));
        };
        for VirtqueueId { device, index } in served {
            let virtqueue = Object::Virtqueue(VirtqueueId { device, index });
            match self.ground.move_to(virtqueue, heir) {
                Ok(()) | Err(Failure::Unknown { .. }) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Who gets what a worker serves when that goes: the default worker if it can, or another one.
    fn heir(&mut self, worker: u32, workers: &[WorkerState]) -> Result<Option<u32>> {
        let default = self.ground.default_worker()?;
        let takes = |state: &&WorkerState| state.id != worker && state.active && !state.locked;
        let mut takers = workers.iter().filter(takes);
        Ok(takers
            .clone()
            .find(|state| state.id == default)
            .or_else(|| takers.next())
            .map(|state| state.id))
    }
}

/// The worker of a core that is kept for I/O, if it is there.
fn worker_of<'a>(core: &Core, cpu: u32, workers: &'a [WorkerState]) -> Option<&'a WorkerState> {
    workers.iter().find(|worker| match core.worker {
        Some(id) => worker.id == id && (core.pid == 0 || core.pid == worker.pid),
        None => worker.cpu == Some(cpu) && !core.others.contains(&worker.id),
    })
}
