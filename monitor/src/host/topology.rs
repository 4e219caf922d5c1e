// SPDX-License-Identifier: GPL-2.0

//! CPUs: which there are, which belong together, what they did.

use super::Root;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use vhost_iocm_engine::engine::abi::{self, Malformed};

/// The most CPUs that Linux can have. A list that names more is broken.
const CPUS_MAX: u32 = 8192;

/// A set of CPUs.
pub type CpuSet = BTreeSet<u32>;

/// Reads a list of CPUs such as `0,2-3`; `None` if it is none. An empty text is the empty list.
pub fn cpu_list(text: &str) -> Option<CpuSet> {
    let mut cpus = CpuSet::new();
    if text.trim().is_empty() {
        return Some(cpus);
    }
    abi::parse_cpu_list(text.trim().as_bytes(), |first, last| {
        if last >= CPUS_MAX {
            return Err(Malformed);
        }
        cpus.extend(first..=last);
        Ok(())
    })
    .ok()?;
    Some(cpus)
}

/// Prints a list of CPUs with ranges, as the kernel does.
pub fn format_cpus(cpus: &CpuSet) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let texts: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            _ => format!("{first}-{last}"),
        })
        .collect();
    texts.join(",")
}

/// A logical CPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Its number.
    pub cpu: u32,
    /// Its NUMA node.
    pub node: u32,
    /// The other hardware threads of its core.
    pub siblings: Vec<u32>,
}

/// The CPUs of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// Those that are online.
    pub cpus: Vec<Cpu>,
    /// Those that were taken from the scheduler with isolcpus.
    pub isolated: CpuSet,
}

impl Topology {
    /// Reads it. Without NUMA all is one node.
    pub fn read(root: &Root) -> Self {
        const CPU: &str = "sys/devices/system/cpu";
        let list = |path: String| root.read(path).and_then(|text| cpu_list(&text));
        let mut nodes = BTreeMap::new();
        for name in root.names("sys/devices/system/node") {
            let Some(Ok(node)) = name.strip_prefix("node").map(str::parse::<u32>) else {
                continue;
            };
            let cpus = list(format!("sys/devices/system/node/{name}/cpulist"));
            nodes.extend(cpus.into_iter().flatten().map(|cpu| (cpu, node)));
        }
        let online = list(format!("{CPU}/online")).unwrap_or_else(|| CpuSet::from([0]));
        let siblings = |cpu: u32| {
            let all = list(format!("{CPU}/cpu{cpu}/topology/thread_siblings_list"));
            let others = all.unwrap_or_default().into_iter();
            others.filter(|other| *other != cpu).collect()
        };
        Self {
            cpus: online
                .iter()
                .map(|cpu| Cpu {
                    cpu: *cpu,
                    node: nodes.get(cpu).copied().unwrap_or(0),
                    siblings: siblings(*cpu),
                })
                .collect(),
            isolated: list(format!("{CPU}/isolated")).unwrap_or_default(),
        }
    }

    /// The CPUs that are online.
    pub fn online(&self) -> CpuSet {
        self.cpus.iter().map(|cpu| cpu.cpu).collect()
    }

    /// The CPU with this number.
    pub fn cpu(&self, cpu: u32) -> Option<&Cpu> {
        self.cpus.iter().find(|other| other.cpu == cpu)
    }
}

/// What a CPU did since the host was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time in which something ran, in nanoseconds.
    pub busy: u64,
    /// Time that runnable threads waited for it, the sum over threads, in nanoseconds.
    pub waited: u64,
}

/// What each CPU did since the host was started. /proc/schedstat says how long threads ran and
/// waited in nanoseconds (fields 7 and 8 of a cpu line, Documentation/scheduler/sched-stats.rst); a
/// kernel without it has ticks in /proc/stat.
pub fn usage(root: &Root) -> BTreeMap<u32, Usage> {
    if let Some(text) = root.read("proc/schedstat") {
        let parse = |line: &str| {
            let mut words = line.strip_prefix("cpu")?.split_ascii_whitespace();
            let cpu = words.next()?.parse().ok()?;
            let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
            let (busy, waited) = (*numbers.get(6)?, *numbers.get(7)?);
            Some((cpu, Usage { busy, waited }))
        };
        let usage: BTreeMap<u32, Usage> = text.lines().filter_map(parse).collect();
        if !usage.is_empty() {
            return usage;
        }
    }
    // USER_HZ is 100 for every program on x86 and arm64.
    const TICK: u64 = 10_000_000;
    let parse = |line: &str| {
        let mut words = line.strip_prefix("cpu")?.split_ascii_whitespace();
        let cpu = words.next()?.parse().ok()?;
        let ticks: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal
        let busy: u64 = [0, 1, 2, 5, 6]
            .iter()
            .filter_map(|index| ticks.get(*index))
            .sum();
        Some((
            cpu,
            Usage {
                busy: busy * TICK,
                waited: 0,
            },
        ))
    };
    let text = root.read("proc/stat").unwrap_or_default();
    text.lines()
        .filter(|line| !line.starts_with("cpu "))
        .filter_map(parse)
        .collect()
}
