// SPDX-License-Identifier: GPL-2.0

//! What the daemon makes of two looks at a host.

mod tree;

use iocm::daemon::observe::Observer;
use iocm::policy::{Limits, Observation, Place, Role};
use std::time::{Duration, Instant};
use tree::{host, Tree};
use vhost_iocm_engine::engine::abi::WorkerId;
use vhost_iocm_engine::engine::sched::polling::Mode;
use vhost_iocm_engine::engine::snapshot::{COUNTERS, PAGE_HEAD};
use vhost_iocm_engine::engine::stats::VirtqueueStats;

/// Words of a worker's record.
const CPU: usize = 5;
const STATE: usize = 8;
/// Words of a virtqueue's record.
const MODE: usize = 6;
const HOME: usize = 7;

/// Sets a word of the record of the only virtqueue of the host.
fn set(tree: &Tree, word: usize, value: u64) {
    // Its record is the second one of the third page.
    let word = 3 * 512 + PAGE_HEAD + 72 + word;
    tree.overwrite("sys/class/vhost/snapshot", word * 8, &value.to_ne_bytes());
}

/// Sets a counter of it.
fn count(tree: &Tree, name: &str, value: u64) {
    let fields = VirtqueueStats::FIELDS.iter();
    let field = fields.clone().find(|field| field.name == name);
    set(tree, COUNTERS + field.expect("a field").word, value);
}

fn observe(observer: &mut Observer) -> Observation {
    let observation = observer.observe(&Limits::default(), &[]);
    observation.expect("an observation").clone()
}

#[test]
fn notifications_of_a_guest_are_counted_wherever_it_is_served() {
    let tree = host();
    let mut observer = Observer::new(&tree.root()).expect("an observer");
    count(&tree, "kicks", 7);
    count(&tree, "home_works", 100);
    let virtqueue = observe(&mut observer).devices[0].virtqueues()[0].clone();
    assert_eq!((virtqueue.id.index, virtqueue.notifications), (1, 7));
    assert_eq!(virtqueue.slices, 100);
    count(&tree, "kicks", 12);
    count(&tree, "notif_works", 50);
    let virtqueue = observe(&mut observer).devices[0].virtqueues()[0].clone();
    assert_eq!((virtqueue.notifications, virtqueue.slices), (5, 50));
}

#[test]
fn what_is_counted_and_what_is_set_is_seen_in_the_next_interval() {
    let tree = host();
    let mut observer = Observer::new(&tree.root()).expect("an observer");
    let look = |observer: &mut Observer| observe(observer).devices[0].virtqueues()[0].clone();
    // What does not change is left as it was seen: it has to be right in each interval.
    for round in 1..=5 {
        let idle = look(&mut observer);
        assert_eq!(
            (idle.packets, idle.polls_empty, idle.notifications),
            (0, 0, 0)
        );
        // A slice ends, which is told by the sequence alone. There have been twelve packets before.
        count(&tree, "packets", 12 + 10 * round);
        set(&tree, COUNTERS, 2 * round);
        assert_eq!(look(&mut observer).packets, 10);
        assert_eq!(look(&mut observer).packets, 0);
        // A look finds nothing.
        count(&tree, "polls", round);
        count(&tree, "poll_empty", 3 * round);
        assert_eq!(look(&mut observer).polls_empty, 3);
        assert_eq!(look(&mut observer).polls_empty, 0);
        // The guest notifies.
        count(&tree, "kicks", 4 * round);
        assert_eq!(look(&mut observer).notifications, 4);
        // Somebody sets when it is polled, and where it is served.
        for (word, value) in [(MODE, round % 2), (HOME, (round + 1) % 2)] {
            set(&tree, word, value);
        }
        let virtqueue = look(&mut observer);
        let mode = [Mode::Never, Mode::Always][round as usize % 2];
        assert_eq!(virtqueue.poll, mode);
        assert_eq!(virtqueue.place == Place::Home, round % 2 == 0);
    }
}

#[test]
fn what_cpus_are_used_for_is_seen_in_each_interval() {
    let tree = host();
    let usage = |busy: u64, waited: u64| {
        let idle = "0 0 0 0 0 0 0 0 0";
        let text =
            format!("version 17\ncpu0 {idle}\ncpu1 0 0 0 0 0 0 {busy} {waited} 9\ncpu2 {idle}\n");
        tree.write("proc/schedstat", text);
    };
    // Its record is the second one of the first page.
    let worker = |word: usize, value: u64| {
        let word = 512 + PAGE_HEAD + 64 + word;
        tree.overwrite("sys/class/vhost/snapshot", word * 8, &value.to_ne_bytes());
    };
    usage(0, 0);
    let mut observer = Observer::new(&tree.root()).expect("an observer");
    let mut look = |taken: &[u32]| {
        let observation = observer.observe(&Limits::default(), taken);
        observation.expect("an observation").clone()
    };
    let roles = |observation: &Observation| -> [Role; 4] {
        let roles: Vec<Role> = observation.cores.iter().map(|core| core.role).collect();
        roles.try_into().expect("four CPUs")
    };
    let (guests, reserved, io) = (Role::Guests, Role::Reserved, Role::Io(WorkerId(5)));
    let observation = look(&[]);
    assert_eq!(roles(&observation), [guests, guests, io, reserved]);
    let core = &observation.cores[2];
    assert_eq!((core.cpu, core.node, &core.siblings[..]), (2, 1, &[3][..]));
    // What is kept is no guest's, whether its worker is there yet or not.
    assert_eq!(roles(&look(&[1, 2])), [guests, reserved, io, reserved]);
    assert_eq!(roles(&look(&[])), [guests, guests, io, reserved]);
    // A worker that is parked leaves its CPU, and so does one that may run anywhere.
    worker(STATE, 1);
    assert_eq!(roles(&look(&[])), [guests, guests, guests, reserved]);
    assert_eq!(roles(&look(&[2])), [guests, guests, reserved, reserved]);
    worker(STATE, 0);
    worker(CPU, u64::MAX);
    assert_eq!(roles(&look(&[])), [guests, guests, guests, reserved]);
    worker(CPU, 0);
    assert_eq!(roles(&look(&[])), [io, guests, guests, reserved]);
    // What they used is read now and then, and is each interval's part of that.
    assert!(look(&[]).cores.iter().all(|core| core.busy == 0));
    usage(u64::MAX / 2, u64::MAX / 4);
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = look(&[]);
        let busy: Vec<u64> = seen.cores.iter().map(|core| core.busy).collect();
        if busy == [0, seen.interval, 0, 0] {
            assert!(seen.cores[1].waited > seen.interval);
            assert_eq!(roles(&seen), [io, guests, guests, reserved]);
            break;
        }
        assert_eq!(busy, [0; 4]);
        assert!(Instant::now() < patience, "it was not noticed");
        std::thread::sleep(Duration::from_millis(50));
    }
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
