// SPDX-License-Identifier: GPL-2.0

//! Interrupts of the host's network cards.

use super::topology::{cpu_list, CpuSet};
use super::Root;
use serde::Serialize;

/// An interrupt of a network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interrupt {
    /// Its number.
    pub number: u32,
    /// The interface.
    pub interface: String,
    /// Where it may be handled.
    pub cpus: CpuSet,
}

/// The interrupts of all network cards: those that the PCI device behind an interface has.
pub fn of_network_cards(root: &Root) -> Vec<Interrupt> {
    let mut interrupts = Vec::new();
    for interface in root.names("sys/class/net") {
        // virtio-net has its interrupts one directory higher, at the PCI device.
        for directory in ["device/msi_irqs", "device/../msi_irqs"] {
            for name in root.names(format!("sys/class/net/{interface}/{directory}")) {
                let Ok(number) = name.parse() else { continue };
                let affinity = root.read(format!("proc/irq/{number}/smp_affinity_list"));
                let Some(cpus) = affinity.and_then(|text| cpu_list(&text)) else {
                    continue;
                };
                interrupts.push(Interrupt {
                    number,
                    interface: interface.clone(),
                    cpus,
                });
            }
        }
    }
    interrupts.sort_by_key(|interrupt| interrupt.number);
    interrupts.dedup_by_key(|interrupt| interrupt.number);
    interrupts
}

/// Whether irqbalance runs, which would undo what somebody else sets.
pub fn irqbalance_runs(root: &Root) -> bool {
    root.names("proc")
        .iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .any(|pid| root.read(format!("proc/{pid}/comm")).as_deref() == Some("irqbalance"))
}
