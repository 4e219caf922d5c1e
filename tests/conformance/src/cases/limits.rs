// SPDX-License-Identifier: GPL-2.0
//! Limits that are set when a module is loaded, to what stock vhost says they are: `run` gives both modules
//! the same.

use std::path::Path;

use crate::case::{Cases, Node};
use crate::device::{memory_table, request, Message, TRANSMIT};
use crate::memory::{REGION, STARTS};
use crate::rig::{done, Rig, State};

use super::messages::{behind_iommu, drain, readable, settle, transmit_one, update};

/// A parameter of stock vhost, or what it is by default.
fn parameter(name: &str, default: u64) -> u64 {
    let path = Path::new("/sys/module/vhost/parameters").join(name);
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(default)
}

/// A memory table of so many regions: the guest's memory, at its end or its beginning, and others that
/// lie above.
fn table(rig: &Rig, count: u64, memory_is_last: bool) -> Vec<u8> {
    let mut regions = rig.arena().regions();
    let others = count.saturating_sub(regions.len() as u64);
    let others = (0..others).map(|number| [elsewhere(number), REGION, rig.arena().host(STARTS[0])]);
    if memory_is_last {
        regions.splice(..0, others);
    } else {
        regions.extend(others);
    }
    memory_table(&regions)
}

/// Addresses that the guest does not use.
fn elsewhere(number: u64) -> u64 {
    (1 << 40) + number * REGION
}

/// Adds the cases.
pub fn add(cases: &mut Cases) {
    let regions = parameter("max_mem_regions", 64);
    let translations = parameter("max_iotlb_entries", 2048);
    let tables = [
        ("one region less than there may be", regions - 1, true),
        ("as many regions as there may be", regions, true),
        ("one region more than there may be", regions + 1, true),
        (
            "more regions than there may be translations",
            regions,
            false,
        ),
    ];
    // With the usual limits there is no such table as the last one.
    let possible = if regions > translations { 4 } else { 3 };
    for (name, count, memory_is_last) in tables.into_iter().take(possible) {
        cases.add(
            format!("a memory table of {name}"),
            move |node: &Node, transcript| {
                let rig = node.rig(State::Running)?;
                let table = table(&rig, count, memory_is_last);
                let answer = rig.device.set(request::SET_MEM_TABLE, &table);
                transcript.answer("set", &answer);
                transmit_one(&rig, 0)?;
                settle(&rig, transcript, TRANSMIT)
            },
        );
    }
    cases.add(
        "as many translations as there may be, and one more",
        move |node: &Node, transcript| {
            let rig = behind_iommu(node, 2)?;
            // The region that packets are in is the oldest.
            for region in [2, 0, 1] {
                done(rig.device.write(&update(&rig, 2, region, 3).bytes()))?;
            }
            let add = |number: u64| {
                let message = Message {
                    iova: elsewhere(number),
                    ..update(&rig, 2, 0, 3)
                };
                done(rig.device.write(&message.bytes()))
            };
            (STARTS.len() as u64..translations).try_for_each(add)?;
            rig.start_queue(TRANSMIT)?;
            transmit_one(&rig, 0)?;
            settle(&rig, transcript, TRANSMIT)?;
            transcript.note(drain(&rig.device)?);
            add(translations)?;
            transmit_one(&rig, 1)?;
            transcript.settle(&rig.device, || readable(&rig.device))?;
            settle(&rig, transcript, TRANSMIT)?;
            transcript.note(drain(&rig.device)?);
            Ok(())
        },
    );
}
