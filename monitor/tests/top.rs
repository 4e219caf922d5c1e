// SPDX-License-Identifier: GPL-2.0

//! `iocm top` on a terminal of 80 columns and 24 lines.

use iocm::command::top::{Change, Top, Wish};
use iocm::host::snapshot::{Device, Snapshot, Virtqueue, Worker};
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyCode;
use ratatui::Terminal;
use std::collections::BTreeMap;
use std::time::Duration;
use vhost_iocm_engine::engine::abi::{DeviceId, WorkerId};

/// A host after so many seconds: the first device is idle, each further one does more.
fn host(seconds: u64) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for id in 0..3u32 {
        snapshot.workers.push(Worker {
            id,
            cpu: i64::from(id) - 1,
            busy_time: seconds * u64::from(id) * 450_000_000,
            pending_average: 12_300,
            ..Worker::default()
        });
    }
    for id in 0..12u32 {
        snapshot.devices.push(Device {
            id,
            owner: 100 + i64::from(id),
            receive_backend: format!("vnet{id}").as_str().into(),
            weight: 100,
            placed: true,
            ..Device::default()
        });
        for index in 0..2 {
            snapshot.virtqueues.push(Virtqueue {
                device: id,
                index,
                worker: id % 3,
                packets: seconds * u64::from(id) * 1000,
                bytes: seconds * u64::from(12 - id) * 1_500_000,
                served_time: seconds * u64::from(id) * 10_000_000,
                ..Virtqueue::default()
            });
        }
    }
    snapshot
}

fn top() -> Top {
    let names: BTreeMap<i64, String> = (0..12).map(|id| (100 + id, format!("web-{id}"))).collect();
    let mut top = Top::new(host(1), names.clone());
    for seconds in 2..5 {
        top.update(host(seconds), Duration::from_secs(1), names.clone());
    }
    top
}

fn picture(top: &Top) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal");
    terminal.draw(|frame| top.draw(frame)).expect("draw");
    let buffer = terminal.backend().buffer().clone();
    let lines: Vec<String> = (0..24)
        .map(|y| (0..80).map(|x| buffer[(x, y)].symbol()).collect())
        .collect();
    lines
}

fn keys(top: &mut Top, text: &str) {
    for letter in text.chars() {
        top.key(KeyCode::Char(letter));
    }
}

fn line_of(lines: &[String], text: &str) -> usize {
    lines
        .iter()
        .position(|line| line.contains(text))
        .unwrap_or_else(|| panic!("no {text} in {lines:#?}"))
}

#[test]
fn utilisation_rates_and_names_fit_on_80_columns() {
    let lines = picture(&top());
    if std::env::var_os("SHOW").is_some() {
        println!("{}", lines.join("\n"));
    }
    let worker = &lines[line_of(&lines, "w.2 ")];
    assert!(worker.contains("90%"), "{worker}");
    assert!(worker.contains("12.3 us"), "{worker}");
    assert!(worker.contains('█'), "{worker}");
    let device = &lines[line_of(&lines, "d.11")];
    for text in ["web-11", "vnet11", "w.2", "22.0k", "3000.0kB", "22.0%"] {
        assert!(device.contains(text), "no {text} in {device}");
    }
}

#[test]
fn a_host_without_devices_has_no_packets() {
    let top = Top::new(Snapshot::default(), BTreeMap::new());
    let title = &picture(&top)[0];
    assert!(title.contains("  0 packets/s"), "{title}");
}

#[test]
fn devices_are_sorted_and_filtered() {
    let mut top = top();
    keys(&mut top, "s");
    let lines = picture(&top);
    assert!(line_of(&lines, "web-11") < line_of(&lines, "web-2 "));
    keys(&mut top, "/WEB-1");
    top.key(KeyCode::Enter);
    let lines = picture(&top);
    line_of(&lines, "web-10");
    assert!(!lines.iter().any(|line| line.contains("web-2 ")));
}

#[test]
fn a_device_moves_only_after_a_yes() {
    let mut top = top();
    top.key(KeyCode::Down);
    keys(&mut top, "m2");
    top.key(KeyCode::Enter);
    line_of(&picture(&top), "Move d.1 to w.2?");
    assert_eq!(top.key(KeyCode::Char('x')), Wish::Nothing);
    assert_eq!(
        top.key(KeyCode::Char('y')),
        Wish::Do(Change::Move(DeviceId(1), WorkerId(2)))
    );
    keys(&mut top, "m2");
    top.key(KeyCode::Enter);
    assert_eq!(top.key(KeyCode::Char('n')), Wish::Nothing);
    assert_eq!(top.key(KeyCode::Char('y')), Wish::Nothing);
}

#[test]
fn a_worker_is_pinned_and_locked_after_a_yes() {
    let mut top = top();
    top.key(KeyCode::Tab);
    top.key(KeyCode::Down);
    keys(&mut top, "p5");
    top.key(KeyCode::Enter);
    line_of(&picture(&top), "Let w.1 run on CPU 5?");
    assert_eq!(
        top.key(KeyCode::Char('y')),
        Wish::Do(Change::Pin(WorkerId(1), "5".into()))
    );
    keys(&mut top, "l");
    assert_eq!(
        top.key(KeyCode::Char('y')),
        Wish::Do(Change::Lock(WorkerId(1), true))
    );
}

#[test]
fn nothing_is_drawn_outside_of_a_tiny_terminal() {
    for (width, height) in [(1, 1), (10, 3), (40, 5), (200, 60)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| top().draw(frame)).expect("draw");
    }
}
