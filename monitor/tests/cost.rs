// SPDX-License-Identifier: GPL-2.0

//! What the daemon itself costs. Times say something only where nothing else runs, so this is not run
//! with the other tests; docs/monitor.md has the command.

mod tree;

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;
use tree::Tree;
use vhost_iocm_engine::engine::snapshot::{MAGIC, PAGE_HEAD, VERSION};

/// VMs with a device of two virtqueues each, and their threads.
const VMS: u64 = 64;
const THREADS: u64 = 8;
/// For how long the daemon is watched, and how often: others use the machine as well.
const TIME: Duration = Duration::from_secs(10);
const TIMES: usize = 5;
/// Words of a page.
const PAGE: usize = 512;

/// Pages of records of a kind, each of so many words.
fn pages(kind: u64, size: usize, records: &[Vec<(usize, u64)>]) -> Vec<u64> {
    let mut words = Vec::new();
    for records in records.chunks((PAGE - PAGE_HEAD) / size) {
        let mut page = vec![0; PAGE];
        page[..3].copy_from_slice(&[kind, size as u64 * 8, records.len() as u64]);
        for (record, fields) in page[PAGE_HEAD..].chunks_exact_mut(size).zip(records) {
            for (word, value) in [(1, 4), (2, 1)].iter().chain(fields) {
                record[*word] = *value;
            }
        }
        words.extend(page);
    }
    words
}

/// A host whose VMs are all on a worker that a monitor has put on CPU 3.
fn crowd() -> Tree {
    let tree = Tree::new();
    let name = |text: &[u8; 8]| u64::from_ne_bytes(*text);
    let workers = [
        vec![(3, 0), (4, 70), (5, u64::MAX)],
        vec![(3, 1), (4, 77), (5, 3)],
    ];
    let devices: Vec<_> = (0..VMS)
        .map(|vm| {
            vec![
                (3, vm),
                (4, 1000 + vm),
                (5, name(b"qemu-sys")),
                (7, name(b"vnet0\0\0\0")),
                (11, 1),
                (17, 100),
            ]
        })
        .collect();
    let virtqueues: Vec<_> = (0..2 * VMS)
        .map(|number| vec![(3, number / 2), (4, number % 2), (5, 1)])
        .collect();
    let mut words = vec![0; PAGE];
    words.extend(pages(1, 64, &workers));
    words.extend(pages(2, 24, &devices));
    words.extend(pages(3, 72, &virtqueues));
    let count = (words.len() / PAGE) as u64;
    words[..7].copy_from_slice(&[MAGIC, VERSION, PAGE as u64 * 8, count, count, 1, 0]);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    tree.write("sys/class/vhost/snapshot", bytes);
    for (worker, cpu) in [(0, "-1"), (1, "3")] {
        for (file, value) in [("cpu", cpu), ("pending_ns_now", "0"), ("locked", "0")] {
            tree.write(
                &format!("sys/class/vhost/worker/w.{worker}/{file}"),
                format!("{value}\n"),
            );
        }
    }
    tree.write("sys/class/vhost/worker/default", "w.0\n");
    tree.write("sys/devices/system/cpu/online", "0-3\n");
    let idle = "0 0 0 0 0 0 5000 70 9\n";
    let usage: String = (0..4).map(|cpu| format!("cpu{cpu} {idle}")).collect();
    tree.write("proc/schedstat", format!("version 17\n{usage}"));
    let rest = format!("{}Cpus_allowed_list:\t0-2\n", "Other:\t0\n".repeat(40));
    let stat = "(qemu) S 1 1 1 0 0 0 0 0 0 0 30 12 0 0 20 0 1 0 12345 1 1";
    for pid in 1000..1000 + VMS {
        tree.write(&format!("proc/{pid}/comm"), "qemu-system-x86\n");
        tree.write(
            &format!("proc/{pid}/cmdline"),
            format!("qemu\0-name\0guest=vm{pid}\0"),
        );
        tree.write(&format!("proc/{pid}/cgroup"), "0::/\n");
        tree.write(&format!("proc/{pid}/stat"), format!("{pid} {stat}\n"));
        for thread in 0..THREADS {
            let tid = if thread == 0 {
                pid
            } else {
                pid * 1000 + thread
            };
            let task = format!("proc/{pid}/task/{tid}");
            let comm = if thread == 1 {
                "CPU 0/KVM"
            } else {
                "qemu-system-x86"
            };
            tree.write(&format!("{task}/comm"), format!("{comm}\n"));
            tree.write(&format!("{task}/status"), format!("Name:\t{comm}\n{rest}"));
            tree.write(&format!("{task}/stat"), format!("{tid} {stat}\n"));
        }
    }
    tree.write(
        "run/iocm/journal.json",
        r#"{"cores": {"3": {"phase": "taken", "worker": 1, "pid": 77, "was_parked": false, "others": [0]}}, "places": []}"#,
    );
    tree.write(
        "etc/iocm.toml",
        "interval_ms = 10\n[limits]\ncores_min = 1\ncores_max = 1\n",
    );
    tree
}

/// How long the daemon has run, in nanoseconds, by the account of the scheduler.
fn runtime(child: &Child) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/schedstat", child.id())).expect("schedstat");
    let first = text.split(' ').next().expect("a number");
    first.parse().expect("a number")
}

#[test]
#[ignore = "measures, see docs/monitor.md"]
fn an_interval_of_10_ms_costs_less_than_a_hundredth_of_a_cpu() {
    let tree = crowd();
    let mut child = tree
        .iocm(&["monitor"])
        .stdout(Stdio::null())
        .spawn()
        .expect("run iocm");
    std::thread::sleep(Duration::from_secs(1));
    let mut parts = [(); TIMES].map(|()| {
        let before = runtime(&child);
        std::thread::sleep(TIME);
        let used = Duration::from_nanos(runtime(&child) - before);
        let part = 100.0 * used.as_secs_f64() / TIME.as_secs_f64();
        println!("{VMS} VMs with {THREADS} threads: {used:?} in {TIME:?}, {part:.2} % of a CPU");
        part
    });
    child.kill().expect("kill");
    child.wait().expect("wait");
    parts.sort_by(f64::total_cmp);
    let median = parts[TIMES / 2];
    println!("median: {median:.2} % of a CPU");
    assert!(median < 1.0);
}
