// SPDX-License-Identifier: GPL-2.0

//! The arms on the model of a host that can die, as for the monitor, before every single operation.

use iocm::act::ground::{Found, Ground, Whom, WorkerState};
use iocm::act::journal::{Journal, Who};
use iocm::act::Arms;
use iocm::failure::{Failure, Result};
use iocm::host::control::Object;
use iocm::host::topology::{cpu_list, CpuSet};
use iocm::policy::plan::{Action, Plan, Target};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use vhost_iocm_engine::engine::abi::{DeviceId, VirtqueueId, WorkerId};

/// CPUs of the model.
const CPUS: u32 = 4;
/// The VM without a cgroup, by its first thread.
const VM: i32 = 500;
/// Devices of the model, with two virtqueues each.
const DEVICES: u32 = 3;

#[derive(Clone, Debug, PartialEq)]
struct Worker {
    cpu: Option<u32>,
    active: bool,
    locked: bool,
}

/// Everything that outlives a monitor.
#[derive(Clone, Debug, PartialEq)]
struct World {
    workers: BTreeMap<u32, Worker>,
    next: u32,
    default: u32,
    /// Worker and home of each virtqueue.
    served: BTreeMap<(u32, u32), (u32, bool)>,
    /// What is set for the VMs' cgroups; empty is all CPUs.
    cgroups: BTreeMap<String, String>,
    /// Where the threads of a VM without a cgroup may run.
    threads: BTreeMap<i32, String>,
    /// The journal as it is on the disk.
    journal: Option<String>,
}

impl World {
    fn new() -> Self {
        let worker = |cpu, active| Worker {
            cpu,
            active,
            locked: false,
        };
        Self {
            // A parked worker on the last CPU.
            workers: [(0, worker(None, true)), (1, worker(Some(CPUS - 1), false))].into(),
            next: 2,
            default: 0,
            served: (0..DEVICES)
                .flat_map(|device| (0..2).map(move |index| ((device, index), (0, false))))
                .collect(),
            cgroups: [
                ("a.scope".to_owned(), String::new()),
                ("b.scope".to_owned(), "1-3".to_owned()),
            ]
            .into(),
            // The second one was bound by somebody.
            threads: [(VM, "0-3".to_owned()), (VM + 1, "0-1".to_owned())].into(),
            journal: None,
        }
    }

    /// What holds at every instant, whoever is dead.
    fn check(&self) {
        for (virtqueue, (worker, home)) in &self.served {
            let serves = self.workers.get(worker).is_some_and(|worker| worker.active);
            assert!(
                serves || *home,
                "{virtqueue:?} is served by nobody: {self:?}"
            );
        }
        let default = &self.workers[&self.default];
        assert!(
            default.active && !default.locked,
            "no default worker: {self:?}"
        );
    }

    fn elect(&mut self, not: u32) {
        if self.default != not {
            return;
        }
        let other = self
            .workers
            .iter()
            .find(|(id, worker)| **id != not && worker.active && !worker.locked);
        self.default = match other {
            Some((id, _)) => *id,
            None => self.make(None),
        };
    }

    fn make(&mut self, cpu: Option<u32>) -> u32 {
        let id = self.next;
        self.next += 1;
        let worker = Worker {
            cpu,
            active: true,
            locked: false,
        };
        self.workers.insert(id, worker);
        id
    }
}

/// The model, and how many operations the monitor has left to live.
#[derive(Clone)]
struct Model {
    world: Rc<RefCell<World>>,
    left: Rc<RefCell<u32>>,
}

impl Model {
    fn new(world: World, left: u32) -> Self {
        Self {
            world: Rc::new(RefCell::new(world)),
            left: Rc::new(RefCell::new(left)),
        }
    }

    /// Counts an operation that changes something. Once none is left all of them fail.
    fn spend(&self) -> Result<()> {
        self.world.borrow().check();
        let mut left = self.left.borrow_mut();
        if *left == 0 {
            return Err(Failure::System {
                what: "the monitor was killed".into(),
                source: std::io::ErrorKind::Other.into(),
            });
        }
        *left -= 1;
        Ok(())
    }

    fn unknown<T>(object: Object) -> Result<T> {
        Err(Failure::Unknown {
            kind: object.kind(),
            name: object.to_string(),
        })
    }
}

impl Ground for Model {
    fn workers(&mut self) -> Result<Vec<WorkerState>> {
        let world = self.world.borrow();
        let states = world.workers.iter().map(|(id, worker)| WorkerState {
            id: *id,
            pid: 100 + *id as i32,
            cpu: worker.cpu,
            active: worker.active,
            locked: worker.locked,
        });
        Ok(states.collect())
    }

    fn default_worker(&mut self) -> Result<u32> {
        Ok(self.world.borrow().default)
    }

    fn create(&mut self, cpu: u32) -> Result<u32> {
        self.spend()?;
        Ok(self.world.borrow_mut().make(Some(cpu)))
    }

    fn remove(&mut self, worker: u32, heir: Option<u32>) -> Result<()> {
        // As the control interface does it: two writes.
        self.set(Object::Worker(WorkerId(worker)), "locked", "1")?;
        self.spend()?;
        let mut world = self.world.borrow_mut();
        for (serves, _) in world.served.values_mut() {
            if *serves == worker {
                match heir {
                    Some(heir) => *serves = heir,
                    None => return Err(Failure::Refused(format!("w.{worker} serves"))),
                }
            }
        }
        world.workers.remove(&worker);
        Ok(())
    }

    fn set(&mut self, object: Object, attribute: &str, value: &str) -> Result<()> {
        self.spend()?;
        let mut world = self.world.borrow_mut();
        match (object, attribute, value) {
            (Object::Worker(WorkerId(id)), "locked", "1") => {
                match world.workers.get_mut(&id) {
                    Some(worker) => worker.locked = true,
                    None => return Self::unknown(object),
                }
                world.elect(id);
            }
            (Object::Worker(WorkerId(id)), "state", "parked") => {
                assert!(
                    world.served.values().all(|(worker, _)| *worker != id),
                    "w.{id} is parked while it serves"
                );
                match world.workers.get_mut(&id) {
                    Some(worker) => worker.active = false,
                    None => return Self::unknown(object),
                }
                world.elect(id);
            }
            (Object::Worker(WorkerId(id)), "state", "active") => match world.workers.get_mut(&id) {
                Some(worker) => worker.active = true,
                None => return Self::unknown(object),
            },
            (Object::Device(DeviceId(id)), "home", "1") => {
                if id >= DEVICES {
                    return Self::unknown(object);
                }
                for index in 0..2 {
                    world.served.get_mut(&(id, index)).expect("virtqueue").1 = true;
                }
            }
            other => panic!("unexpected: {other:?}"),
        }
        Ok(())
    }

    fn move_to(&mut self, object: Object, worker: u32) -> Result<()> {
        self.spend()?;
        let mut world = self.world.borrow_mut();
        match world.workers.get(&worker) {
            Some(state) if state.active && !state.locked => {}
            Some(_) => return Err(Failure::Refused(format!("w.{worker} takes nothing"))),
            None => return Self::unknown(Object::Worker(WorkerId(worker))),
        }
        let mut moved = false;
        for ((device, index), place) in &mut world.served {
            let wanted = match object {
                Object::Device(DeviceId(id)) => id == *device,
                Object::Virtqueue(id) => id.device.0 == *device && id.index == *index,
                _ => false,
            };
            if wanted {
                *place = (worker, false);
                moved = true;
            }
        }
        if moved {
            Ok(())
        } else {
            Self::unknown(object)
        }
    }

    fn served_by(&mut self, worker: u32) -> Result<Vec<VirtqueueId>> {
        let world = self.world.borrow();
        let served = world.served.iter().filter(|(_, (by, _))| *by == worker);
        Ok(served
            .map(|((device, index), _)| VirtqueueId {
                device: DeviceId(*device),
                index: *index,
            })
            .collect())
    }

    fn find(
        &mut self,
        _interrupts: bool,
        _whom: Whom,
        kept: &CpuSet,
        noted: &BTreeSet<i32>,
    ) -> Result<Vec<Found>> {
        let world = self.world.borrow();
        let found = world.cgroups.iter().map(|(name, text)| Found {
            who: Who::Cgroup(name.clone()),
            text: text.clone(),
            allowed: match text.as_str() {
                "" => (0..CPUS).collect(),
                text => cpu_list(text).expect("a list"),
            },
        });
        let threads = world.threads.iter().map(|(tid, text)| Found {
            who: thread(*tid),
            text: text.clone(),
            allowed: cpu_list(text).expect("a list"),
        });
        let is_left_out = !noted.contains(&VM)
            && threads
                .clone()
                .all(|thread| thread.allowed.is_disjoint(kept));
        let threads = threads.filter(|_| !is_left_out);
        Ok(found.chain(threads).collect())
    }

    fn current(&mut self, who: &Who) -> Option<String> {
        match who {
            Who::Cgroup(name) => self.world.borrow().cgroups.get(name).cloned(),
            Who::Thread { tid, .. } => self.world.borrow().threads.get(tid).cloned(),
            Who::Interrupt(_) => None,
        }
    }

    fn place(&mut self, who: &Who, text: &str) -> Result<()> {
        self.spend()?;
        let mut world = self.world.borrow_mut();
        let place = match who {
            Who::Cgroup(name) => world.cgroups.get_mut(name),
            Who::Thread { tid, .. } => world.threads.get_mut(tid),
            Who::Interrupt(_) => None,
        };
        text.clone_into(place.expect("somebody"));
        Ok(())
    }

    fn load(&mut self) -> Result<Option<Journal>> {
        let text = self.world.borrow().journal.clone();
        Ok(text.map(|text| serde_json::from_str(&text).expect("a journal")))
    }

    fn save(&mut self, journal: &Journal) -> Result<()> {
        self.spend()?;
        let text = serde_json::to_string(journal).expect("text");
        self.world.borrow_mut().journal = Some(text);
        Ok(())
    }
}

/// A thread of the VM without a cgroup.
fn thread(tid: i32) -> Who {
    Who::Thread {
        pid: VM,
        tid,
        start: 1,
    }
}

fn plan(actions: impl IntoIterator<Item = Action>) -> Plan {
    let mut plan = Plan::default();
    for action in actions {
        plan.push(action, "it is a test");
    }
    plan
}

fn grow(cpu: u32, device: u32) -> Plan {
    plan([
        Action::AddCore { cpu },
        Action::MoveDevice {
            device: DeviceId(device),
            target: Target::NewOn(cpu),
        },
    ])
}

/// Nobody is left on a CPU that is kept, and whoever is kept off one has a reason.
fn check_guests(arms: &mut Arms<Model>) {
    let taken: CpuSet = arms.taken().collect();
    let world = arms.ground().world.borrow();
    for (name, original) in World::new().cgroups {
        let all: CpuSet = match original.as_str() {
            "" => (0..CPUS).collect(),
            text => cpu_list(text).expect("a list"),
        };
        let now = &world.cgroups[&name];
        if all.is_disjoint(&taken) {
            assert_eq!(now, &original, "{name} is not where it was");
        } else {
            let left: CpuSet = all.difference(&taken).copied().collect();
            assert_eq!(cpu_list(now), Some(left), "{name} is wrong");
        }
    }
    for (tid, original) in World::new().threads {
        let all = cpu_list(&original).expect("a list");
        let left: CpuSet = all.difference(&taken).copied().collect();
        let now = &world.threads[&tid];
        assert_eq!(cpu_list(now), Some(left), "thread {tid} is wrong");
    }
}

/// Gives everything back: the host is as it was before.
fn check_restored(world: World) {
    let mut arms = Arms::recover(Model::new(world, u32::MAX), false).expect("recover");
    check_guests(&mut arms);
    arms.restore().expect("restore");
    check_guests(&mut arms);
    let world = arms.ground().world.borrow();
    world.check();
    let fresh = World::new();
    assert_eq!(world.cgroups, fresh.cgroups);
    assert_eq!(world.threads, fresh.threads);
    assert_eq!(world.workers, fresh.workers);
}

#[test]
fn a_core_is_taken_and_given_back() {
    let model = Model::new(World::new(), u32::MAX);
    let mut arms = Arms::recover(model.clone(), false).expect("recover");
    arms.execute(&grow(2, 1)).expect("grow");
    assert!(arms.taken().eq([2]));
    {
        let world = model.world.borrow();
        assert_eq!(world.cgroups["a.scope"], "0-1,3");
        assert_eq!(world.cgroups["b.scope"], "1,3");
        assert_eq!(world.served[&(1, 0)], (2, false));
    }
    let back = Action::GiveCoreBack {
        worker: WorkerId(2),
    };
    arms.execute(&plan([back])).expect("give back");
    assert_eq!(arms.taken().count(), 0);
    assert_eq!(model.world.borrow().served[&(1, 0)], (0, false));
    drop(arms);
    let world = model.world.borrow().clone();
    assert_eq!(world.cgroups, World::new().cgroups);
    check_restored(world);
}

#[test]
fn a_parked_worker_is_woken_and_parked_again() {
    let model = Model::new(World::new(), u32::MAX);
    let mut arms = Arms::recover(model.clone(), false).expect("recover");
    arms.execute(&grow(CPUS - 1, 0)).expect("grow");
    assert!(model.world.borrow().workers[&1].active);
    let back = Action::GiveCoreBack {
        worker: WorkerId(1),
    };
    arms.execute(&plan([back])).expect("give back");
    assert_eq!(model.world.borrow().workers, World::new().workers);
}

#[test]
fn who_would_have_no_cpu_left_keeps_the_core() {
    let mut world = World::new();
    world.cgroups.insert("b.scope".into(), "2".into());
    let model = Model::new(world.clone(), u32::MAX);
    let mut arms = Arms::recover(model.clone(), false).expect("recover");
    assert!(matches!(
        arms.execute(&grow(2, 1)),
        Err(Failure::Refused(_))
    ));
    let after = model.world.borrow().clone();
    assert_eq!(after.cgroups, world.cgroups);
    assert_eq!(after.workers, world.workers);
}

#[test]
fn what_an_operator_changed_meanwhile_stays() {
    let model = Model::new(World::new(), u32::MAX);
    let mut arms = Arms::recover(model.clone(), false).expect("recover");
    arms.execute(&grow(2, 1)).expect("grow");
    let change = |text: &str| {
        let mut world = model.world.borrow_mut();
        world.cgroups.insert("a.scope".into(), text.into());
    };
    change("0");
    arms.tend(Whom::All).expect("tend");
    assert_eq!(model.world.borrow().cgroups["a.scope"], "0");
    // Whoever is put back on the core leaves it, and gets what he was given afterwards.
    change("2-3");
    arms.tend(Whom::All).expect("tend");
    assert_eq!(model.world.borrow().cgroups["a.scope"], "3");
    arms.restore().expect("restore");
    assert_eq!(model.world.borrow().cgroups["a.scope"], "2-3");
}

#[test]
fn a_thread_that_was_made_off_the_core_comes_back_with_its_maker() {
    let model = Model::new(World::new(), u32::MAX);
    let mut arms = Arms::recover(model.clone(), false).expect("recover");
    arms.execute(&grow(2, 1)).expect("grow");
    let set = |tid: i32, text: &str| {
        let mut world = model.world.borrow_mut();
        world.threads.insert(tid, text.into());
    };
    assert_eq!(model.world.borrow().threads[&VM], "0-1,3");
    // One that inherits what its maker has, one that somebody has bound, and one that is seen for
    // the first time when everything is given back.
    set(VM + 2, "0-1,3");
    set(VM + 3, "0");
    arms.tend(Whom::All).expect("tend");
    set(VM + 4, "0-1,3");
    arms.restore().expect("restore");
    let world = model.world.borrow();
    let threads: Vec<&str> = world.threads.values().map(String::as_str).collect();
    assert_eq!(threads, ["0-3", "0-1", "0-3", "0", "0-3"]);
    drop(world);
    // Where somebody had bound a thread before is where it stays.
    let mut world = World::new();
    world.threads.insert(VM + 1, "0-1,3".into());
    let model = Model::new(world, u32::MAX);
    let mut arms = Arms::recover(model.clone(), false).expect("recover");
    arms.execute(&grow(2, 1)).expect("grow");
    arms.tend(Whom::All).expect("tend");
    arms.restore().expect("restore");
    assert_eq!(model.world.borrow().threads[&(VM + 1)], "0-1,3");
}

#[test]
fn a_step_about_what_is_gone_does_not_stop_a_plan() {
    let model = Model::new(World::new(), u32::MAX);
    let mut arms = Arms::recover(model.clone(), false).expect("recover");
    let mut steps = grow(2, DEVICES);
    steps.steps.extend(grow(2, 0).steps);
    let outcome = arms.execute(&steps).expect("execute");
    assert_eq!((outcome.done, outcome.gone), (3, 1));
    assert_eq!(model.world.borrow().served[&(0, 1)], (2, false));
}

/// Everything that the arms do, with a monitor that dies before each single operation in turn.
#[test]
fn killed_before_any_operation_the_host_serves_and_converges() {
    let story = |arms: &mut Arms<Model>| -> Result<()> {
        arms.execute(&grow(1, 0))?;
        arms.execute(&grow(CPUS - 1, 1))?;
        let home = Action::MoveDevice {
            device: DeviceId(2),
            target: Target::Home,
        };
        arms.execute(&plan([home]))?;
        arms.execute(&plan([Action::GiveCoreBack {
            worker: WorkerId(2),
        }]))?;
        arms.execute(&plan([Action::GiveCoreBack {
            worker: WorkerId(1),
        }]))?;
        Ok(())
    };
    let mut finished = false;
    for life in 0..200 {
        let model = Model::new(World::new(), life);
        let result = Arms::recover(model.clone(), false).and_then(|mut arms| story(&mut arms));
        let world = model.world.borrow().clone();
        world.check();
        // The next monitor may die as well, before each of its operations.
        for second in 0..30 {
            let model = Model::new(world.clone(), second);
            let recovered = Arms::recover(model.clone(), false);
            let after = model.world.borrow().clone();
            let whole = recovered.is_ok();
            check_restored(after);
            if whole {
                break;
            }
        }
        if result.is_ok() {
            assert!(life > 20, "the story has only {life} operations");
            finished = true;
            break;
        }
    }
    assert!(finished, "the story never ended");
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        (0..CPUS).prop_map(|cpu| Action::AddCore { cpu }),
        (0..6u32).prop_map(|worker| Action::GiveCoreBack {
            worker: WorkerId(worker)
        }),
        (0..=DEVICES, 0..6u32).prop_map(|(device, worker)| Action::MoveDevice {
            device: DeviceId(device),
            target: Target::Worker(WorkerId(worker)),
        }),
        (0..DEVICES, 0..CPUS).prop_map(|(device, cpu)| Action::MoveDevice {
            device: DeviceId(device),
            target: Target::NewOn(cpu),
        }),
        (0..DEVICES).prop_map(|device| Action::MoveDevice {
            device: DeviceId(device),
            target: Target::Home,
        }),
    ]
}

proptest! {
    /// Plans that no policy would make, and deaths between them and within them.
    #[test]
    fn whatever_is_planned_and_whenever_it_ends_the_host_serves(
        lives in prop::collection::vec((prop::collection::vec(actions(), 1..8), 0..60u32), 1..5)
    ) {
        let mut world = World::new();
        for (actions, life) in lives {
            let model = Model::new(world, life);
            if let Ok(mut arms) = Arms::recover(model.clone(), false) {
                for action in actions {
                    // Worker 1 was parked before, and worker 0 was there: operators may be asked to
                    // park them, the monitor never removes them.
                    if action == (Action::GiveCoreBack { worker: WorkerId(0) }) {
                        continue;
                    }
                    let _ = arms.execute(&plan([action]));
                }
            }
            world = model.world.borrow().clone();
            world.check();
        }
        check_restored(world);
    }
}
