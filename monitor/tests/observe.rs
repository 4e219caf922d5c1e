// SPDX-License-Identifier: GPL-2.0

//! What the daemon makes of two looks at a host.

mod tree;

use iocm::daemon::observe::Observer;
use iocm::host::topology::CpuSet;
use iocm::policy::{Limits, Observation, Role};
use std::time::{Duration, Instant};
use tree::{host, Tree};
use vhost_iocm_engine::engine::snapshot::{COUNTERS, PAGE_HEAD};
use vhost_iocm_engine::engine::stats::VirtqueueStats;

/// Sets a counter of the only virtqueue of the host.
fn count(tree: &Tree, name: &str, value: u64) {
    let fields = VirtqueueStats::FIELDS.iter();
    let field = fields.clone().find(|field| field.name == name);
    // Its record is the second one of the third page.
    let word = 3 * 512 + PAGE_HEAD + 72 + COUNTERS + field.expect("a field").word;
    tree.overwrite("sys/class/vhost/snapshot", word * 8, &value.to_ne_bytes());
}

fn observe(observer: &mut Observer) -> Observation {
    let observation = observer.observe(&Limits::default(), &CpuSet::new());
    observation.expect("an observation").clone()
}

#[test]
fn notifications_of_a_guest_are_counted_wherever_it_is_served() {
    let tree = host();
    let mut observer = Observer::new(&tree.root()).expect("an observer");
    count(&tree, "kicks", 7);
    count(&tree, "home_works", 100);
    let virtqueue = observe(&mut observer).devices[0].virtqueues[0].clone();
    assert_eq!((virtqueue.id.index, virtqueue.notifications), (1, 7));
    assert_eq!(virtqueue.slices, 100);
    count(&tree, "kicks", 12);
    count(&tree, "notif_works", 50);
    let virtqueue = observe(&mut observer).devices[0].virtqueues[0].clone();
    assert_eq!((virtqueue.notifications, virtqueue.slices), (5, 50));
}

#[test]
fn names_and_where_virtual_cpus_may_run_are_looked_at_again() {
    let tree = host();
    let mut observer = Observer::new(&tree.root()).expect("an observer");
    let mut look = || {
        let role = observe(&mut observer).cores[1].role;
        (role, observer.names()[&4242].clone())
    };
    assert_eq!(look(), (Role::Guests, "web,1".to_owned()));
    tree.write("proc/4242/cmdline", b"qemu\0-name\0shop\0");
    let status = "Name:\tCPU 0/KVM\nCpus_allowed_list:\t0\n";
    tree.write("proc/4242/task/4243/status", status);
    // The machine may be busy with other tests.
    let patience = Instant::now() + Duration::from_secs(60);
    while look() != (Role::Reserved, "shop".to_owned()) {
        assert!(Instant::now() < patience, "it was not noticed");
        std::thread::sleep(Duration::from_millis(50));
    }
}
