// SPDX-License-Identifier: GPL-2.0

//! Which worker serves which device, and which CPU becomes an I/O core.
//!
//! Devices go where most time is left, the largest first (Graham's rule for machines with equal
//! speed, 1969), on the NUMA node of their memory if that has a worker with time left. What is served
//! well where it is stays there: each move has to take a noticeable part of what makes one worker
//! busier than another.

use super::observation::{Core, Device, Observation, Place, Role};
use super::plan::{Action, Plan, Target};
use serde::{Deserialize, Serialize};
use vhost_iocm_engine::engine::abi::DeviceId;

/// How devices are divided among workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// All workers have the same load.
    #[default]
    Spread,
    /// Devices stay where they are as long as they are served in time (Snap, SOSP 2019).
    Compact,
}

/// What another NUMA node costs: as much as a worker that is busy for this much more of its time.
const REMOTE: f64 = 0.25;
/// The difference between two workers' loads that is worth a move.
const IMBALANCE: f64 = 0.2;
/// The smallest load of a device that is worth a move.
const WORTH: f64 = 0.02;

/// A worker to place on.
#[derive(Clone, Debug)]
struct Bin {
    target: Target,
    node: Option<u32>,
    load: f64,
    devices: u32,
}

/// A device that is placed.
#[derive(Clone, Debug)]
struct Item {
    device: DeviceId,
    node: Option<u32>,
    load: f64,
    /// Its worker, by its place among the bins.
    bin: Option<usize>,
}

/// The CPUs that are taken next for I/O, the best first: on the node where most I/O is and fewest
/// workers are, no hardware thread next to an I/O core's, and the least busy one.
pub fn choose_cpus(observation: &Observation, count: usize) -> Vec<u32> {
    let limits = &observation.limits;
    let mut io: Vec<&Core> = observation
        .cores
        .iter()
        .filter(|core| matches!(core.role, Role::Io(_)))
        .collect();
    let mut left: Vec<&Core> = observation
        .guest_cores()
        .filter(|core| limits.cpus.is_empty() || limits.cpus.contains(&core.cpu))
        .collect();
    let demand = |node: u32| {
        let served: u64 = observation
            .devices
            .iter()
            .filter(|device| device.node == Some(node))
            .map(Device::served)
            .fold(0, u64::saturating_add);
        served as f64
    };
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let key = |core: &Core| {
            let sibling = io.iter().any(|other| core.siblings.contains(&other.cpu));
            let workers = io.iter().filter(|other| other.node == core.node).count();
            (sibling, demand(core.node) / (workers as f64 + 1.0))
        };
        let best = left.iter().enumerate().min_by(|(_, one), (_, other)| {
            let ((sibling, need), (other_sibling, other_need)) = (key(one), key(other));
            sibling
                .cmp(&other_sibling)
                .then(other_need.total_cmp(&need))
                .then(one.busy.cmp(&other.busy))
                .then(one.cpu.cmp(&other.cpu))
        });
        let Some((index, _)) = best else {
            break;
        };
        let core = left.remove(index);
        io.push(core);
        chosen.push(core.cpu);
    }
    chosen
}

/// Plans that there are `cores` I/O cores, and where devices go. `congested` says whether work waits
/// for too long.
pub fn arrange(
    observation: &Observation,
    cores: u32,
    mode: Mode,
    congested: bool,
    reason: &str,
) -> Plan {
    let mut plan = Plan::default();
    let mut bins: Vec<Bin> = observation
        .io_workers()
        .map(|worker| Bin {
            target: Target::Worker(worker.id),
            node: worker.node,
            load: 0.0,
            devices: 0,
        })
        .collect();
    let before = bins.len();
    let cores = cores as usize;
    let has_homeless = load(observation, &mut bins);
    // Most of the time everybody has a worker, and all of them have as much to do.
    if cores == before && !has_homeless && gap(&bins) < IMBALANCE {
        return plan;
    }
    let mut items = items(observation, &bins);
    let mut removed = Vec::new();
    if cores > before {
        for cpu in choose_cpus(observation, cores - before) {
            plan.push(Action::AddCore { cpu }, reason);
            bins.push(Bin {
                target: Target::NewOn(cpu),
                node: observation.core(cpu).map(|core| core.node),
                load: 0.0,
                devices: 0,
            });
        }
    } else {
        // Those with the least load go: it has to be moved.
        while bins.len() > cores {
            let Some((index, _)) = bins
                .iter()
                .enumerate()
                .min_by(|(_, one), (_, other)| one.load.total_cmp(&other.load))
            else {
                break;
            };
            removed.push(bins.remove(index).target);
            for item in &mut items {
                item.bin = match item.bin {
                    Some(bin) if bin == index => None,
                    Some(bin) if bin > index => Some(bin - 1),
                    other => other,
                };
            }
        }
    }
    let changed = bins.len() != before;
    items.sort_by(|one, other| {
        other
            .load
            .total_cmp(&one.load)
            .then(one.device.cmp(&other.device))
    });
    place_homeless(observation, &mut plan, &mut bins, &mut items, reason);
    for target in removed {
        if let Target::Worker(worker) = target {
            plan.push(Action::GiveCoreBack { worker }, reason);
        }
    }
    let moves = if cores > before {
        items.len()
    } else if changed || (mode == Mode::Compact && !congested) {
        0
    } else {
        observation.limits.moves_max as usize
    };
    balance(&mut plan, &mut bins, &mut items, moves);
    plan
}

/// The difference between the loads of the busiest worker and the one with the most time left.
fn gap(bins: &[Bin]) -> f64 {
    let loads = || bins.iter().map(|bin| bin.load);
    loads().fold(0.0, f64::max) - loads().fold(f64::INFINITY, f64::min)
}

/// Adds up what each worker has to do. Returns whether there are devices that have none.
fn load(observation: &Observation, bins: &mut [Bin]) -> bool {
    let mut has_homeless = false;
    for device in &observation.devices {
        match bin_of(device, bins) {
            Some(bin) => {
                bins[bin].load += load_of(device, observation);
                bins[bin].devices += 1;
            }
            None => has_homeless = true,
        }
    }
    has_homeless
}

/// The worker that serves a device, by its place among the bins.
fn bin_of(device: &Device, bins: &[Bin]) -> Option<usize> {
    let Some(Place::Worker(worker)) = device.place() else {
        return None;
    };
    bins.iter()
        .position(|bin| bin.target == Target::Worker(worker))
}

/// The part of the interval for which a device was served.
fn load_of(device: &Device, observation: &Observation) -> f64 {
    device.served() as f64 / observation.interval.max(1) as f64
}

/// The devices.
fn items(observation: &Observation, bins: &[Bin]) -> Vec<Item> {
    let devices = observation.devices.iter();
    devices
        .map(|device| Item {
            device: device.id,
            node: device.node,
            load: load_of(device, observation),
            bin: bin_of(device, bins),
        })
        .collect()
}

/// Places the devices that have no worker; at home if there is none.
fn place_homeless(
    observation: &Observation,
    plan: &mut Plan,
    bins: &mut [Bin],
    items: &mut [Item],
    reason: &str,
) {
    for item in items.iter_mut().filter(|item| item.bin.is_none()) {
        let Some(index) = best_bin(bins, item) else {
            let is_home = observation
                .devices
                .iter()
                .any(|device| device.id == item.device && device.place() == Some(Place::Home));
            if !is_home {
                let action = Action::MoveDevice {
                    device: item.device,
                    target: Target::Home,
                };
                plan.push(action, reason);
            }
            continue;
        };
        bins[index].load += item.load;
        bins[index].devices += 1;
        item.bin = Some(index);
        let action = Action::MoveDevice {
            device: item.device,
            target: bins[index].target,
        };
        plan.push(action, reason);
    }
}

/// What a bin would cost a device.
fn price(bin: &Bin, node: Option<u32>) -> f64 {
    let remote = matches!((bin.node, node), (Some(bin), Some(node)) if bin != node);
    bin.load + if remote { REMOTE } else { 0.0 }
}

fn best_bin(bins: &[Bin], item: &Item) -> Option<usize> {
    (0..bins.len()).min_by(|one, other| {
        let (one, other) = (&bins[*one], &bins[*other]);
        price(one, item.node)
            .total_cmp(&price(other, item.node))
            .then(one.devices.cmp(&other.devices))
    })
}

/// Moves devices from the busiest worker to the one with the most time left, while that pays.
fn balance(plan: &mut Plan, bins: &mut [Bin], items: &mut [Item], moves: usize) {
    for _ in 0..moves {
        let order = |one: &usize, other: &usize| bins[*one].load.total_cmp(&bins[*other].load);
        let (Some(most), Some(least)) =
            ((0..bins.len()).max_by(order), (0..bins.len()).min_by(order))
        else {
            return;
        };
        let gap = bins[most].load - bins[least].load;
        if gap < IMBALANCE {
            return;
        }
        // The one that leaves the two most alike. It has to be smaller than the gap, or the other
        // one would be the busier one afterwards.
        let best = items
            .iter_mut()
            .filter(|item| item.bin == Some(most) && item.load > WORTH)
            .filter(|item| {
                let cost = price(&bins[least], item.node) - price(&bins[most], item.node);
                item.load < gap && cost < -IMBALANCE / 2.0
            })
            .min_by(|one, other| {
                let rest = |item: &Item| (gap - 2.0 * item.load).abs();
                rest(one).total_cmp(&rest(other))
            });
        let Some(item) = best else {
            return;
        };
        // Leaving them as unlike as they are, the other way round, is no gain.
        if (gap - 2.0 * item.load).abs() > gap - IMBALANCE / 2.0 {
            return;
        }
        item.bin = Some(least);
        bins[most].load -= item.load;
        bins[least].load += item.load;
        let action = Action::MoveDevice {
            device: item.device,
            target: bins[least].target,
        };
        let reason = format!(
            "a worker is busy for {:.2} of its time and another one for {:.2}",
            bins[most].load + item.load,
            bins[least].load - item.load
        );
        plan.push(action, reason);
    }
}
