// SPDX-License-Identifier: GPL-2.0

//! `iocm doctor`: what is wrong with a host, and the command that mends it.

use super::print;
use crate::failure::{Failure, Result};
use crate::host::control::CLASS;
use crate::host::interrupt;
use crate::host::process::Process;
use crate::host::snapshot::{Reader, Snapshot};
use crate::host::topology::{cpu_list, format_cpus, CpuSet, Topology};
use crate::host::Root;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// All is well, in words.
    Good(String),
    /// Something that may be meant, and what would change it.
    Hint {
        /// What it is.
        what: String,
        /// The command.
        mend: String,
    },
    /// Something is wrong.
    Bad {
        /// What it is.
        what: String,
        /// The command that mends it.
        mend: String,
    },
}

use Finding::{Bad, Good, Hint};

/// Checks the host and prints what was found.
///
/// # Errors
///
/// [`Failure::Unhealthy`] if something is wrong.
pub fn run(root: &Root) -> Result<()> {
    let findings = examine(root);
    let mut text = String::new();
    for finding in &findings {
        text.push_str(&match finding {
            Good(what) => format!("ok    {what}\n"),
            Hint { what, mend } => format!("hint  {what}\n      {mend}\n"),
            Bad { what, mend } => format!("BAD   {what}\n      {mend}\n"),
        });
    }
    print(&text)?;
    let bad = findings
        .iter()
        .filter(|finding| matches!(finding, Bad { .. }))
        .count();
    match bad {
        0 => Ok(()),
        bad => Err(Failure::Unhealthy(bad)),
    }
}

/// All checks.
pub fn examine(root: &Root) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(module(root));
    findings.extend(stock(root));
    findings.push(node(root));
    let Ok(snapshot) = Reader::open(root).and_then(|mut reader| reader.read()) else {
        return findings;
    };
    let topology = Topology::read(root);
    findings.extend(workers(root, &snapshot, &topology));
    findings.extend(virtual_cpus(root, &snapshot));
    findings.extend(memory(&snapshot, &topology));
    findings.extend(interrupts(root, &snapshot));
    findings.extend(service(&snapshot));
    findings
}

fn module(root: &Root) -> Finding {
    let present = root.path(CLASS).join("worker").is_dir();
    match (present, Reader::open(root)) {
        (false, _) => Bad {
            what: "vhost_iocm is not loaded".into(),
            mend: "rmmod vhost_net; insmod vhost_iocm.ko".into(),
        },
        (true, Err(failure)) => Bad {
            what: format!("the module cannot be read: {failure}"),
            mend: "rmmod vhost_iocm; insmod vhost_iocm.ko".into(),
        },
        (true, Ok(_)) => {
            Good("vhost_iocm is loaded, of the version that this program knows".into())
        }
    }
}

/// Stock vhost_net serves what opens /dev/vhost-net if it was loaded first.
fn stock(root: &Root) -> Option<Finding> {
    let modules = root.read("proc/modules")?;
    let line = modules
        .lines()
        .find(|line| line.starts_with("vhost_net "))?;
    let users = line.split_ascii_whitespace().nth(2).unwrap_or("0");
    Some(match users {
        "0" => Bad {
            what: "vhost_net is loaded as well, and new guests may get that".into(),
            mend: "rmmod vhost_net".into(),
        },
        users => Bad {
            what: format!("vhost_net is loaded as well, and {users} devices use it"),
            mend: "migrate or stop the guests that use it, then: rmmod vhost_net".into(),
        },
    })
}

/// Whether the node that guests open is the module's: its misc device names the driver.
fn node(root: &Root) -> Finding {
    let misc = root.read("proc/misc").unwrap_or_default();
    let nodes: Vec<&str> = misc
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(1))
        .filter(|name| name.starts_with("vhost") && *name != "vhost-vsock")
        .collect();
    match nodes.as_slice() {
        [] => Bad {
            what: "there is no /dev/vhost-net, so guests are served by QEMU itself".into(),
            mend: "rmmod vhost_net; insmod vhost_iocm.ko".into(),
        },
        nodes if nodes.contains(&"vhost-net") => Good("/dev/vhost-net is there".into()),
        nodes => Hint {
            what: format!(
                "the module's node is /dev/{}; guests get it only if they ask for it",
                nodes[0]
            ),
            mend: format!(
                "libvirt: <backend vhost='/dev/{}'/>; or load the module without device=",
                nodes[0]
            ),
        },
    }
}

fn workers(root: &Root, snapshot: &Snapshot, topology: &Topology) -> Vec<Finding> {
    let mut findings = Vec::new();
    let pinned: Vec<(u32, u32)> = snapshot
        .workers
        .iter()
        .filter_map(|worker| Some((worker.id, u32::try_from(worker.cpu).ok()?)))
        .collect();
    if pinned.is_empty() {
        findings.push(Hint {
            what: "no worker has a CPU of its own".into(),
            mend: "iocm worker create CPU, or: iocm monitor".into(),
        });
    }
    for (index, (worker, cpu)) in pinned.iter().enumerate() {
        if let Some((other, _)) = pinned[..index].iter().find(|(_, other)| other == cpu) {
            findings.push(Bad {
                what: format!("w.{other} and w.{worker} share CPU {cpu}"),
                mend: format!("iocm worker pin w.{worker} CPU, or: iocm worker remove w.{worker} --to w.{other}"),
            });
        }
        let path = format!("{CLASS}/worker/w.{worker}/displaced");
        if root.read(path).as_deref() == Some("1") {
            findings.push(Bad {
                what: format!("w.{worker} runs elsewhere, since its CPUs are offline"),
                mend: format!("iocm worker pin w.{worker} CPU, or bring its CPU online"),
            });
        }
        let directory = format!("sys/devices/system/cpu/cpu{cpu}/cpufreq");
        if let Some(governor) = root.read(format!("{directory}/scaling_governor")) {
            if governor != "performance" {
                findings.push(Hint {
                    what: format!("CPU {cpu} of w.{worker} follows the governor {governor}, so it is slow after each sleep"),
                    mend: format!("echo performance >/{directory}/scaling_governor"),
                });
            }
        }
        for sibling in topology.cpu(*cpu).into_iter().flat_map(|cpu| &cpu.siblings) {
            if !pinned.iter().any(|(_, other)| other == sibling) {
                findings.push(Hint {
                    what: format!("CPU {cpu} of w.{worker} shares its core with CPU {sibling}, which does something else"),
                    mend: format!("iocm worker create {sibling}"),
                });
            }
        }
    }
    findings
}

/// Virtual CPUs that may run where a worker has its own CPU.
fn virtual_cpus(root: &Root, snapshot: &Snapshot) -> Vec<Finding> {
    let io: CpuSet = snapshot
        .workers
        .iter()
        .filter(|worker| !worker.is_parked())
        .filter_map(|worker| u32::try_from(worker.cpu).ok())
        .collect();
    let owners = snapshot.owners();
    let mut findings = Vec::new();
    for process in owners.iter().filter_map(|pid| Process::read(root, *pid)) {
        let shared: CpuSet = process
            .threads
            .iter()
            .filter(|thread| thread.vcpu.is_some())
            .flat_map(|thread| thread.cpus.intersection(&io).copied())
            .collect();
        if shared.is_empty() {
            continue;
        }
        let others: CpuSet = root
            .read("sys/devices/system/cpu/online")
            .and_then(|text| cpu_list(&text))
            .unwrap_or_default()
            .difference(&io)
            .copied()
            .collect();
        let others = format_cpus(&others);
        findings.push(Bad {
            what: format!(
                "virtual CPUs of {} may run on CPU {}, which a worker has",
                process.name,
                format_cpus(&shared)
            ),
            mend: if process.cgroup.is_empty() {
                format!("taskset -a -p -c {others} {}", process.pid)
            } else {
                format!(
                    "echo {others} >/sys/fs/cgroup/{}/cpuset.cpus",
                    process.cgroup
                )
            },
        });
    }
    findings
}

/// Devices whose virtqueues are served on several nodes.
fn memory(snapshot: &Snapshot, topology: &Topology) -> Vec<Finding> {
    let node_of = |worker: u32| {
        let cpu = u32::try_from(snapshot.worker(worker)?.cpu).ok()?;
        Some(topology.cpu(cpu)?.node)
    };
    let mut findings = Vec::new();
    for device in &snapshot.devices {
        let mut nodes: Vec<u32> = snapshot
            .of_device(device.id)
            .filter_map(|virtqueue| node_of(virtqueue.worker))
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        if nodes.len() > 1 {
            findings.push(Hint {
                what: format!(
                    "the virtqueues of d.{} are served on several NUMA nodes",
                    device.id
                ),
                mend: format!("iocm move d.{} WORKER", device.id),
            });
        }
    }
    findings
}

/// irqbalance and interrupts of network cards.
fn interrupts(root: &Root, snapshot: &Snapshot) -> Option<Finding> {
    let io: CpuSet = snapshot
        .workers
        .iter()
        .filter_map(|worker| u32::try_from(worker.cpu).ok())
        .collect();
    let interrupts = interrupt::of_network_cards(root);
    if io.is_empty() || interrupts.is_empty() {
        return None;
    }
    let elsewhere = interrupts
        .iter()
        .filter(|interrupt| interrupt.cpus.is_disjoint(&io))
        .count();
    (elsewhere > 0).then(|| Hint {
        what: format!("{elsewhere} interrupts of network cards are handled on CPUs of guests"),
        mend: if interrupt::irqbalance_runs(root) {
            "irqbalance decides where; see its IRQBALANCE_BANNED_CPULIST".into()
        } else {
            "set interrupts = true in /etc/iocm.toml, or write /proc/irq/N/smp_affinity_list".into()
        },
    })
}

/// What counters tell.
fn service(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = Vec::new();
    for virtqueue in &snapshot.virtqueues {
        let name = format!("vq.{}.{}", virtqueue.device, virtqueue.index);
        if virtqueue.errors > 0 {
            findings.push(Hint {
                what: format!("the ring of {name} was broken {} times", virtqueue.errors),
                mend: "the guest's driver is at fault; reset its network interface".into(),
            });
        }
    }
    let locked = snapshot
        .workers
        .iter()
        .all(|worker| worker.locked || worker.is_parked());
    if locked {
        findings.push(Bad {
            what: "no worker takes new devices".into(),
            mend: "iocm worker unlock w.N".into(),
        });
    }
    findings
}
