// SPDX-License-Identifier: GPL-2.0

//! `iocm simulate`: each run can be asked for again.

use serde_json::Value;
use std::fs;
use std::process::{Command, Output};
use tempfile::TempDir;

const SCENARIO: &str = r#"
description = "a few requests"
duration_ms = 200
cores = 3
cores_max = 1
[[load]]
name = "requests"
receive_bytes = 100
target_us = 1000.0
arrival = { kind = "open", rate = 20000.0 }
"#;

/// A directory with the scenario in it.
fn directory() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("few.toml"), SCENARIO).expect("the scenario");
    directory
}

fn simulate(directory: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iocm"));
    command.current_dir(directory).arg("simulate");
    // Behind the options, so that none of them takes it for its value.
    let command = command.args(arguments).arg("few.toml");
    command.output().expect("run iocm")
}

/// The results with four seeds, as text.
fn results(first: &str) -> String {
    let directory = directory();
    let seeds = ["--seeds", "4", "--first-seed", first];
    let output = simulate(&directory, &[&seeds[..], &["--json", "results"]].concat());
    assert!(output.status.success(), "{output:?}");
    fs::read_to_string(directory.path().join("results")).expect("the results")
}

/// Something that each of the runs has.
fn of_runs(results: &str, key: &str) -> Vec<Value> {
    let results: Value = serde_json::from_str(results).expect("JSON");
    let runs = results[0]["runs"].as_array().expect("runs");
    runs.iter().map(|run| run[key].clone()).collect()
}

#[test]
fn load_and_costs_follow_from_the_first_seed() {
    let seven = results("7");
    assert_eq!(seven, results("7"));
    assert_eq!(of_runs(&seven, "seed"), [7, 8, 9, 10]);
    let eight = results("8");
    assert_eq!(of_runs(&eight, "seed"), [8, 9, 10, 11]);
    let (one, other) = (of_runs(&seven, "costs"), of_runs(&eight, "costs"));
    assert_eq!(one[..2], other[..2], "the smallest and the largest");
    assert_ne!(one[2], other[2]);
    assert_ne!(one[3], other[3]);
    // With the same costs another load costs something else.
    let (one, other) = (of_runs(&seven, "stock"), of_runs(&eight, "stock"));
    assert_ne!(one[0], other[0]);
    assert_ne!(one[1], other[1]);
}

#[test]
fn any_run_can_be_explained() {
    let directory = directory();
    let explain =
        |option: &str| simulate(&directory, &["--seeds", "4", "--first-seed", "7", option]);
    let costs = |option: &str| {
        let output = explain(option);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        let line = text.lines().next().expect("a line");
        assert!(line.starts_with("few with Costs"), "{line}");
        line.to_owned()
    };
    assert_eq!(costs("--explain"), costs("--explain=7"));
    assert_ne!(costs("--explain=9"), costs("--explain=10"));
    for seed in ["6", "11"] {
        let output = explain(&format!("--explain={seed}"));
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(&format!("none of the runs has the seed {seed}")));
    }
}
