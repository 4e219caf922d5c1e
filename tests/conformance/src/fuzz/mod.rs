// SPDX-License-Identifier: GPL-2.0
//! Scenes made from seeds, played on both nodes.

mod iommu;
pub mod known;
pub mod play;
pub mod scene;
mod truth;

use std::ops::Range;
use std::process::ExitCode;

use anyhow::{bail, Context, Result};

use crate::case::{Case, Node};
use crate::ktap::Suite;
use scene::Scene;

/// Seeds of one test point.
const GROUP: u64 = 50;

/// Plays the scenes of these seeds, and reports how many were the same.
pub fn run(seeds: Range<u64>, stock: &Node, ours: &Node, records: bool) -> ExitCode {
    let mut suite = Suite::new();
    let mut from = seeds.start;
    while from < seeds.end {
        let group = from..seeds.end.min(from + GROUP);
        from = group.end;
        suite.case(
            format!("seeds {} to {} are the same", group.start, group.end - 1),
            move || {
                let mut different = Vec::new();
                for seed in group {
                    if let Err(error) = compare(seed, stock, ours, records) {
                        different.push(format!("seed {seed}: {error:#}"));
                    }
                }
                if different.is_empty() {
                    return Ok(());
                }
                bail!("{}", different.join("\n"))
            },
        );
    }
    suite.run(&[])
}

/// Plays the scene of a seed on both nodes.
fn compare(seed: u64, stock: &Node, ours: &Node, records: bool) -> Result<()> {
    let scene = Scene::new(seed);
    let summary = scene.summary();
    Case::of_scene(String::new(), scene)
        .run_patiently(stock, ours, records)
        .context(summary)
}
