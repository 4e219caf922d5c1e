// SPDX-License-Identifier: GPL-2.0
//! The machine's memory.

use std::fs;

use anyhow::{Context, Result};

/// Memory that could be had, in MiB.
pub fn available() -> Result<usize> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let line = line.context("no MemAvailable")?;
    let number = line.trim().strip_suffix(" kB").context("no kB")?;
    Ok(number.parse::<usize>()? >> 10)
}
