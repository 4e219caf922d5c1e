// SPDX-License-Identifier: GPL-2.0

//! The configuration, and the files that come with it.

use iocm::daemon::config::{Config, Listen};
use iocm::daemon::metrics::State;
use iocm::host::snapshot::{Device, Snapshot, Virtqueue, Worker};
use std::collections::BTreeMap;

/// What is shipped, from this package's directory.
fn shipped(name: &str) -> String {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("a file that is shipped")
}

#[test]
fn the_file_that_is_shipped_has_all_keys_with_their_defaults() {
    let text = shipped("iocm.toml");
    assert_eq!(Config::parse(&text), Ok(Config::default()));
    let all: toml::Table = toml::from_str(&Config::default().show()).expect("a table");
    let documented: toml::Table = toml::from_str(&text).expect("a table");
    assert_eq!(all, documented);
}

#[test]
fn an_empty_configuration_is_the_default() {
    assert_eq!(Config::parse(""), Ok(Config::default()));
}

#[test]
fn what_is_broken_is_said_with_its_line() {
    for (text, words) in [
        (
            "interval_ms = 100\nintervall = 3\n",
            "line 2: unknown field",
        ),
        ("\n\n[limits]\ncores_max = -1\n", "line 4: "),
        ("interval_ms = 9", "10 to 60000"),
        ("[limits]\ncores_min = 9", "more than limits.cores_max"),
        ("metrics = \"0.0.0.0:80\"", "loopback"),
        ("metrics = \"nowhere\"", "neither"),
        ("interval_ms = ", "line 1: "),
    ] {
        let error = Config::parse(text).expect_err(text);
        assert!(error.contains(words), "{text:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn metrics_are_offered_to_this_machine_only() {
    let listen =
        |text: &str| Config::parse(&format!("metrics = {text:?}")).map(|config| config.listen());
    assert!(matches!(
        listen("[::1]:9469"),
        Ok(Ok(Some(Listen::Address(_))))
    ));
    assert!(matches!(
        listen("unix:/run/x"),
        Ok(Ok(Some(Listen::Socket(_))))
    ));
}

/// A VM with a device, after so much work.
fn host(work: u64) -> Snapshot {
    Snapshot {
        workers: vec![Worker {
            id: 3,
            cpu: 2,
            busy_time: work,
            ..Worker::default()
        }],
        devices: vec![Device {
            id: 7,
            owner: 42,
            ..Device::default()
        }],
        virtqueues: vec![Virtqueue {
            device: 7,
            worker: 3,
            packets: work / 1_000_000,
            served_time: work,
            ..Virtqueue::default()
        }],
        ..Snapshot::default()
    }
}

#[test]
fn vms_are_charged_also_for_devices_that_they_have_closed() {
    let names = BTreeMap::from([(42, "web \"1\"".to_owned())]);
    let mut state = State::default();
    state.update(&host(2_000_000_000), &names);
    // The device is closed and another one opened: its counters begin anew.
    let mut other = host(500_000_000);
    other.devices[0].id = 8;
    other.virtqueues[0].device = 8;
    state.update(&other, &names);
    let text = state.encode();
    for line in [
        "iocm_vm_worker_seconds_total{vm=\"web \\\"1\\\"\",pid=\"42\"} 2.5",
        "iocm_vm_packets_total{vm=\"web \\\"1\\\"\",pid=\"42\"} 2500",
        "iocm_worker_busy_seconds_total{worker=\"w.3\"} 0.5",
        "iocm_worker_cpu{worker=\"w.3\"} 2",
        "# EOF",
    ] {
        assert!(
            text.lines().any(|other| other.starts_with(line)),
            "no {line} in {text}"
        );
    }
    state.update(&Snapshot::default(), &BTreeMap::new());
    assert!(!state.encode().contains("pid=\"42\""));
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&shipped("dashboard.json")).expect("JSON");
    let mut state = State::default();
    state.update(&host(1), &BTreeMap::new());
    let text = state.encode();
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            let name: String = expression
                .trim_start_matches("rate(")
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                .collect();
            let known = text
                .lines()
                .any(|line| line.split(['{', ' ']).next() == Some(name.as_str()));
            assert!(known, "no {name} in {text}");
            asked += 1;
        }
    }
    assert!(asked > 5);
}
