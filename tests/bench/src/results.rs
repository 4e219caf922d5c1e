// SPDX-License-Identifier: GPL-2.0
//! Files of records.

use std::fs;
use std::io::BufRead;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};

use crate::profile::{self, Row};
use crate::record::{Kind, Record};

/// How much a ratio may rise above the baseline.
const TOLERANCE: f64 = 1.01;

/// Writes the records among the lines of `input` to `path`.
pub fn collect(input: impl BufRead, path: &Path) -> Result<()> {
    let mut records: Vec<Record> = Vec::new();
    let mut rows: Vec<Row> = Vec::new();
    for line in input.split(b'\n') {
        let line = line?;
        // What a kernel says on the console is no record, whatever bytes it has.
        if line.starts_with(b"{\"metric\"") {
            let text = String::from_utf8_lossy(&line);
            records.push(serde_json::from_str(text.trim_end()).context("a broken record")?);
        } else if line.starts_with(b"{\"profile\"") {
            let text = String::from_utf8_lossy(&line);
            rows.push(serde_json::from_str(text.trim_end()).context("a broken profile")?);
        }
    }
    ensure!(!records.is_empty(), "nothing was measured");
    // A metric that compares has its parts beside it.
    let is_part =
        |record: &&Record| record.metric.ends_with("_stock") || record.metric.ends_with("_ours");
    for record in records.iter().filter(|record| !is_part(record)) {
        println!("{record}");
    }
    if !rows.is_empty() {
        let functions = path.with_file_name("functions.txt");
        fs::write(&functions, profile::tell(&rows))
            .with_context(|| format!("write {}", functions.display()))?;
    }
    let text = serde_json::to_string_pretty(&records)?;
    fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}

/// Compares the ratios in `results` with those in `baseline`.
pub fn check(results: &Path, baseline: &Path) -> Result<()> {
    let results = read(results)?;
    let mut above = Vec::new();
    for expected in read(baseline)? {
        let name = &expected.metric;
        let found = results.iter().find(|record| record.metric == *name);
        let found = found.with_context(|| format!("{name} was not measured"))?;
        if found.kind == Kind::Ratio && found.median > expected.median * TOLERANCE {
            above.push(format!(
                "{name}: {:.4}, {:.4} before",
                found.median, expected.median
            ));
        }
    }
    if !above.is_empty() {
        bail!("more than 1 % above the baseline: {}", above.join("; "));
    }
    Ok(())
}

/// The records of a file.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} has no records", path.display()))
}
