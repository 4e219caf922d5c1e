// SPDX-License-Identifier: GPL-2.0

//! What is found on a host, from a tree of files that looks like one.

mod tree;

use iocm::act::ground::{Ground, Host, Whom};
use iocm::command::doctor::{examine, Finding};
use iocm::host::control::{Control, Object};
use iocm::host::interrupt;
use iocm::host::process::Process;
use iocm::host::snapshot::Reader;
use iocm::host::topology::{cpu_list, format_cpus, usage, CpuSet, Topology, Usage};
use proptest::prelude::*;
use tree::{host, snapshot, Tree};
use vhost_iocm_engine::engine::abi::WorkerId;

#[test]
fn a_snapshot_is_read_and_mapped_alike() {
    let tree = host();
    let read = Reader::open(&tree.root()).and_then(|mut reader| reader.read());
    let read = read.expect("read");
    let mapped = Reader::map(&tree.root()).and_then(|mut reader| reader.read());
    assert_eq!(read, mapped.expect("mapped"));
    let worker = &read.workers[0];
    assert_eq!((worker.id, worker.pid, worker.cpu), (5, 77, 2));
    assert!(worker.locked);
    assert_eq!((worker.busy_time, worker.pending_average), (1000, 9));
    let device = &read.devices[0];
    assert_eq!((device.id, device.owner, device.weight), (6, 4242, 150));
    assert_eq!(device.comm.to_string(), "qemu-sys");
    assert_eq!(device.receive_backend.to_string(), "vnet0");
    let virtqueue = &read.virtqueues[0];
    assert_eq!(
        (virtqueue.device, virtqueue.index, virtqueue.worker),
        (6, 1, 5)
    );
    assert_eq!((virtqueue.packets, virtqueue.bytes), (12, 3400));
    assert_eq!(read.default_worker, 5);
}

#[test]
fn a_snapshot_of_another_version_is_refused() {
    let tree = host();
    let mut bytes = snapshot();
    bytes[8] = 9;
    tree.write("sys/class/vhost/snapshot", bytes);
    let failure = Reader::open(&tree.root()).err().expect("a failure");
    assert!(failure.to_string().contains("version 9"), "{failure}");
}

#[test]
fn without_the_module_that_is_what_is_said() {
    let failure = Control::open(&Tree::new().root()).expect_err("a failure");
    assert_eq!(failure.status(), 3);
    assert!(failure.to_string().contains("insmod"), "{failure}");
}

#[test]
fn a_process_is_a_vm_with_virtual_cpus() {
    let process = Process::read(&host().root(), 4242).expect("a process");
    assert_eq!(process.name, "web,1");
    assert_eq!(process.cgroup, "machine.slice/web.scope/libvirt");
    assert_eq!(process.threads[1].vcpu, Some(0));
    assert_eq!(process.threads[1].cpus, CpuSet::from([0, 1, 2]));
    assert_eq!(Process::read(&host().root(), 1), None);
}

#[test]
fn threads_that_are_no_concern_are_left_out() {
    let tree = host();
    for tid in [4242, 4243] {
        let stat = format!("{tid} (a) b) S {} 12345 0\n", "0 ".repeat(17));
        tree.write(&format!("proc/4242/task/{tid}/stat"), stat);
    }
    let mut host = Host::open(&tree.root()).expect("a host");
    let mut find = |cpu, noted: &[i32]| {
        let (kept, noted) = (CpuSet::from([cpu]), noted.iter().copied().collect());
        let found = host.find(false, Whom::All, &kept, &noted);
        found.expect("threads").len()
    };
    assert_eq!(find(3, &[]), 0);
    assert_eq!(find(2, &[]), 2);
    assert_eq!(find(3, &[4242]), 2);
}

#[test]
fn names_cannot_command_a_terminal() {
    let tree = host();
    tree.write("proc/4242/cmdline", b"qemu\0-name\0a\x1b[2J\nb\0");
    let name = Process::name(&tree.root(), 4242);
    assert_eq!(name.as_deref(), Some("a?[2J?b"));
}

#[test]
fn nodes_and_siblings_are_known() {
    let topology = Topology::read(&host().root());
    let cpu = topology.cpu(2).expect("CPU 2");
    assert_eq!((cpu.node, cpu.siblings.as_slice()), (1, [3].as_slice()));
    assert_eq!(topology.isolated, CpuSet::from([3]));
}

#[test]
fn usage_is_read_of_either_file() {
    let tree = Tree::new();
    tree.write("proc/stat", "cpu 1 1\ncpu0 1 2 3 400 5 6 7 0\nintr 1\n");
    let busy = usage(&tree.root())[&0];
    assert_eq!(
        busy,
        Usage {
            busy: 190_000_000,
            waited: 0
        }
    );
    tree.write(
        "proc/schedstat",
        "version 17\ncpu0 0 0 0 0 0 0 5000 70 9\ndomain0 MC 3 1\n",
    );
    assert_eq!(
        usage(&tree.root())[&0],
        Usage {
            busy: 5000,
            waited: 70
        }
    );
}

#[test]
fn interrupts_of_network_cards_are_found() {
    let tree = Tree::new();
    tree.write("sys/class/net/eth0/device/msi_irqs/33", "msi\n");
    tree.write("proc/irq/33/smp_affinity_list", "0-1\n");
    tree.write("sys/class/net/lo/mtu", "65536\n");
    let interrupts = interrupt::of_network_cards(&tree.root());
    assert_eq!(interrupts.len(), 1);
    assert_eq!(
        (interrupts[0].number, interrupts[0].interface.as_str()),
        (33, "eth0")
    );
}

/// What the doctor says is wrong, and how it is mended.
fn complaints(tree: &Tree) -> Vec<(String, String)> {
    let findings = examine(&tree.root()).into_iter();
    findings
        .filter_map(|finding| match finding {
            Finding::Bad { what, mend } => Some((what, mend)),
            _ => None,
        })
        .collect()
}

#[test]
fn the_doctor_finds_virtual_cpus_on_side_cores() {
    let tree = host();
    let found = complaints(&tree);
    let (what, mend) = found
        .iter()
        .find(|(what, _)| what.contains("virtual CPUs of web,1"))
        .expect("the complaint");
    assert!(what.contains("CPU 2"), "{what}");
    assert!(
        mend.starts_with("echo 0-1,3 >/sys/fs/cgroup/machine.slice"),
        "{mend}"
    );
}

#[test]
fn the_doctor_finds_stock_vhost_net_and_no_module() {
    let tree = Tree::new();
    tree.write("proc/modules", "vhost_net 45056 3 - Live 0x0\n");
    let found = complaints(&tree);
    assert!(found
        .iter()
        .any(|(what, _)| what.contains("3 devices use it")));
    assert!(found.iter().any(|(_, mend)| mend.contains("insmod")));
}

#[test]
fn unknown_attributes_and_objects_are_refused_with_what_there_is() {
    let tree = host();
    let control = Control::open(&tree.root()).expect("control");
    let worker = Object::Worker(WorkerId(5));
    let failure = control.set(worker, "colour", "1").expect_err("a failure");
    assert!(failure.to_string().contains("nice"), "{failure}");
    assert_eq!(failure.status(), 2);
    let other = Object::Worker(WorkerId(6));
    let failure = control.set(other, "nice", "1").expect_err("a failure");
    assert_eq!(failure.status(), 5);
}

#[test]
fn names_of_objects_have_one_spelling() {
    for name in ["w.5", "d.0", "vq.3.1", "module"] {
        let object: Object = name.parse().expect(name);
        assert_eq!(object.to_string(), name);
    }
    for name in ["w.05", "w.", "w.-1", "vq.3", "vq.3.x", "x", ""] {
        assert!(name.parse::<Object>().is_err(), "{name}");
    }
}

proptest! {
    #[test]
    fn lists_of_cpus_are_read_as_they_are_printed(cpus: std::collections::BTreeSet<u8>) {
        let cpus: CpuSet = cpus.into_iter().map(u32::from).collect();
        prop_assert_eq!(cpu_list(&format_cpus(&cpus)), Some(cpus));
    }

    #[test]
    fn no_list_of_cpus_is_too_much(text in "[0-9,-]{0,24}") {
        if let Some(cpus) = cpu_list(&text) {
            prop_assert!(cpus.len() <= 8192);
        }
    }
}
