// SPDX-License-Identifier: GPL-2.0

//! When parked workers are woken, what they borrow, and when they are parked again.

use proptest::prelude::*;
use vhost_iocm_engine::engine::abi::{parse_parked, split_creation, Malformed, WorkerId};
use vhost_iocm_engine::engine::sched::standby::{
    check, Act, Activity, Backlog, Found, Record, Split, State, Tunables, Verdict, View, Workers,
};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

fn tunables() -> Tunables {
    Tunables {
        interval: MS,
        wake_age: MS,
        park_load: 600,
        park_time: 100 * MS,
        woken_max: 1024,
    }
}

fn busy(age: u64) -> Option<Found> {
    Some(Found { busy: true, age })
}

const IDLE: Option<Found> = Some(Found {
    busy: false,
    age: 0,
});

fn backlog(devices: &[[Option<Found>; 2]]) -> Backlog {
    let mut backlog = Backlog::default();
    for device in devices {
        backlog.add(device);
    }
    backlog
}

/// Workers whose views a test sets.
struct Fixed(Vec<View>);

impl Workers for Fixed {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn view(&self, index: usize, _now: u64) -> View {
        self.0[index]
    }
    fn record(&mut self, index: usize) -> &mut Record {
        &mut self.0[index].record
    }
}

impl Fixed {
    fn check(&mut self, now: u64, tunables: &Tunables) -> Verdict {
        check(self, WorkerId(0), now, tunables)
    }

    /// Checks until something is to be done, for `checks` checks at most.
    fn act_within(&mut self, start: u64, checks: u64, tunables: &Tunables) -> Option<(u64, Act)> {
        (0..checks).find_map(|turn| {
            let verdict = self.check(start + turn * tunables.interval, tunables);
            verdict.act.map(|act| (turn, act))
        })
    }
}

fn view(worker: u32, state: State, backlog: Backlog) -> View {
    View {
        worker: WorkerId(worker),
        group: 0,
        state,
        locked: false,
        load: 0,
        virtqueues: 4,
        backlog,
        record: Record::default(),
    }
}

fn parked(worker: u32) -> View {
    View {
        virtqueues: 0,
        ..view(worker, State::Parked, Backlog::default())
    }
}

fn woken(worker: u32, lender: u32, backlog: Backlog) -> View {
    let lender = WorkerId(lender);
    view(worker, State::Woken { lender }, backlog)
}

/// Two devices, each with work in one virtqueue.
fn two_devices(age: u64) -> Backlog {
    backlog(&[[IDLE, busy(age)], [IDLE, busy(age / 2)]])
}

const LATE: u64 = MS + 1;

#[test]
fn a_parked_worker_is_woken_when_work_is_too_old_at_two_checks_in_a_row() {
    let mut workers = Fixed(vec![view(0, State::Active, two_devices(LATE)), parked(1)]);
    let first = workers.check(SECOND, &tunables());
    assert_eq!((first.act, first.again), (None, true));
    let act = Act::Wake {
        woken: 1,
        congested: 0,
        lender: WorkerId(0),
    };
    let second = workers.check(SECOND + MS, &tunables());
    assert_eq!((second.act, second.again), (Some(act), true));
}

#[test]
fn work_that_is_too_old_now_and_then_wakes_nobody() {
    let mut workers = Fixed(vec![view(0, State::Active, Backlog::default()), parked(1)]);
    for turn in 0..1000 {
        workers.0[0].backlog = two_devices([LATE, MS][turn % 2]);
        let verdict = workers.check(SECOND + turn as u64 * MS, &tunables());
        assert_eq!(verdict.act, None);
        // Nothing is checked any more when nothing is too old.
        assert_eq!(verdict.again, turn % 2 == 0);
    }
}

#[test]
fn the_only_virtqueue_with_work_is_never_moved() {
    for alone in [
        backlog(&[[IDLE, busy(SECOND)], [IDLE, IDLE], [IDLE, None]]),
        backlog(&[[None, busy(SECOND)]]),
        backlog(&[]),
    ] {
        let mut workers = Fixed(vec![view(0, State::Active, alone), parked(1)]);
        for turn in 0..1000 {
            let verdict = workers.check(SECOND + turn * MS, &tunables());
            assert_eq!(
                verdict,
                Verdict {
                    act: None,
                    again: false
                }
            );
        }
    }
    // Its sibling is something to separate it from.
    let pair = backlog(&[[busy(0), busy(LATE)]]);
    let mut workers = Fixed(vec![view(0, State::Active, pair), parked(1)]);
    assert!(workers.act_within(SECOND, 2, &tunables()).is_some());
}

#[test]
fn nobody_is_woken_for_another_group_nor_when_locked() {
    let congested = view(0, State::Active, two_devices(LATE));
    let other = View {
        group: 1,
        ..parked(1)
    };
    let locked = View {
        locked: true,
        ..parked(2)
    };
    let mut workers = Fixed(vec![congested, other, locked]);
    assert_eq!(workers.act_within(SECOND, 100, &tunables()), None);
    assert!(!workers.check(2 * SECOND, &tunables()).again);
    // What a locked worker serves is left alone.
    workers.0[0].locked = true;
    workers.0[1].group = 0;
    assert_eq!(workers.act_within(3 * SECOND, 100, &tunables()), None);
    workers.0[0].locked = false;
    assert!(workers.act_within(4 * SECOND, 2, &tunables()).is_some());
}

#[test]
fn the_one_whose_work_is_oldest_is_helped_by_the_parked_one_of_the_lowest_number() {
    let mut workers = Fixed(vec![
        view(0, State::Active, two_devices(LATE)),
        view(1, State::Active, two_devices(LATE + 1)),
        // Older, but there is nothing to separate.
        view(2, State::Active, backlog(&[[IDLE, busy(SECOND)]])),
        parked(9),
        parked(4),
    ]);
    let (_, act) = workers.act_within(SECOND, 2, &tunables()).expect("a wake");
    assert_eq!(
        act,
        Act::Wake {
            woken: 4,
            congested: 1,
            lender: WorkerId(1)
        }
    );
}

#[test]
fn what_was_borrowed_and_is_lent_again_goes_back_to_the_first_lender() {
    let mut workers = Fixed(vec![
        view(0, State::Active, Backlog::default()),
        woken(1, 0, two_devices(LATE)),
        parked(2),
    ]);
    let (_, act) = workers.act_within(SECOND, 2, &tunables()).expect("a wake");
    assert_eq!(
        act,
        Act::Wake {
            woken: 2,
            congested: 1,
            lender: WorkerId(0)
        }
    );
}

#[test]
fn no_more_are_woken_than_user_space_allows() {
    let limited = |woken_max| Tunables {
        woken_max,
        ..tunables()
    };
    let mut workers = Fixed(vec![
        view(0, State::Active, two_devices(LATE)),
        woken(1, 0, two_devices(LATE)),
        parked(2),
    ]);
    assert_eq!(workers.act_within(SECOND, 1000, &limited(1)), None);
    assert!(workers.act_within(3 * SECOND, 2, &limited(2)).is_some());
    // If the limit falls, who is too many is parked at once, busy or not.
    let act = workers.check(4 * SECOND, &limited(0)).act;
    assert_eq!(act, Some(Act::Park { parked: 1, heir: 0 }));
    workers.0[1] = parked(1);
    let off = workers.check(5 * SECOND, &limited(0));
    assert_eq!((off.act, off.again), (None, false));
}

#[test]
fn a_worker_that_serves_nothing_any_more_is_parked_at_once() {
    let mut workers = Fixed(vec![
        view(0, State::Active, two_devices(LATE)),
        View {
            virtqueues: 0,
            ..woken(1, 0, Backlog::default())
        },
    ]);
    let verdict = workers.check(SECOND, &tunables());
    assert_eq!(verdict.act, Some(Act::Park { parked: 1, heir: 0 }));
}

#[test]
fn a_worker_is_parked_after_it_has_had_room_with_its_lender_for_long_enough() {
    let with_loads = |own, lenders| {
        Fixed(vec![
            View {
                load: lenders,
                ..view(0, State::Active, two_devices(MS / 2))
            },
            View {
                load: own,
                ..woken(1, 0, two_devices(MS / 2))
            },
        ])
    };
    let park = Act::Park { parked: 1, heir: 0 };
    let act = with_loads(300, 300).act_within(SECOND, 1000, &tunables());
    assert_eq!(act, Some((100, park)));
    assert_eq!(
        with_loads(301, 300).act_within(SECOND, 1000, &tunables()),
        None
    );
    for late in [0, 1] {
        let mut workers = with_loads(0, 0);
        workers.0[late].backlog = two_devices(MS / 2 + 1);
        assert_eq!(workers.act_within(SECOND, 1000, &tunables()), None);
    }
}

#[test]
fn room_is_counted_anew_after_every_moment_without() {
    let mut workers = Fixed(vec![
        view(0, State::Active, Backlog::default()),
        woken(1, 0, Backlog::default()),
    ]);
    for turn in 0..1000u64 {
        workers.0[1].load = if turn % 100 == 99 { 900 } else { 0 };
        let verdict = workers.check(SECOND + turn * MS, &tunables());
        assert_eq!((verdict.act, verdict.again), (None, true));
    }
}

#[test]
fn without_a_lender_the_default_worker_takes_over() {
    let lenders = [
        // Gone.
        vec![],
        vec![View {
            locked: true,
            ..view(7, State::Active, Backlog::default())
        }],
        vec![parked(7)],
        vec![woken(7, 0, Backlog::default())],
    ];
    for lender in lenders {
        let mut workers = vec![
            view(0, State::Active, Backlog::default()),
            woken(1, 7, Backlog::default()),
        ];
        workers.extend(lender);
        let mut workers = Fixed(workers);
        let (_, act) = workers
            .act_within(SECOND, 101, &tunables())
            .expect("a worker to park");
        assert_eq!(act, Act::Park { parked: 1, heir: 0 });
    }
    let mut workers = Fixed(vec![
        view(0, State::Active, Backlog::default()),
        woken(1, 7, Backlog::default()),
        view(7, State::Active, Backlog::default()),
    ]);
    let (_, act) = workers
        .act_within(SECOND, 101, &tunables())
        .expect("a worker to park");
    assert_eq!(act, Act::Park { parked: 1, heir: 2 });
}

#[test]
fn who_was_helped_is_left_alone_for_a_while_and_who_took_back_for_longer() {
    let mut workers = Fixed(vec![
        view(0, State::Active, two_devices(LATE)),
        parked(1),
        parked(2),
    ]);
    workers.act_within(SECOND, 2, &tunables()).expect("a wake");
    workers.0[1] = View {
        record: workers.0[1].record,
        ..woken(1, 0, Backlog::default())
    };
    let start = SECOND + 2 * MS;
    let (turn, _) = workers
        .act_within(start, 1000, &tunables())
        .expect("a wake");
    assert_eq!(turn, 7);

    let mut workers = Fixed(vec![
        view(0, State::Active, Backlog::default()),
        woken(1, 0, Backlog::default()),
    ]);
    workers
        .act_within(SECOND, 101, &tunables())
        .expect("a worker to park");
    workers.0[0].backlog = two_devices(LATE);
    workers.0[1] = parked(1);
    let start = SECOND + 101 * MS;
    let (turn, _) = workers
        .act_within(start, 1000, &tunables())
        .expect("a wake");
    assert_eq!(turn, 99);
}

#[test]
fn of_several_devices_every_other_one_goes_as_a_whole() {
    let devices = [
        [busy(1), busy(1)],
        [IDLE, IDLE],
        [IDLE, busy(1)],
        [None, busy(1)],
        [None, None],
        [busy(1), None],
        [busy(1), IDLE],
    ];
    let mut split = Split::new(&backlog(&devices));
    let taken = devices.map(|device| split.takes(device.map(|found| found.map(|f| f.busy))));
    let expected = [
        [false, false],
        [false, false],
        [true, true],
        [false, false],
        [false, false],
        [true, false],
        [false, false],
    ];
    assert_eq!(taken, expected);
}

#[test]
fn of_a_single_device_one_virtqueue_goes() {
    let devices = [[IDLE, IDLE], [busy(1), busy(1)], [IDLE, None]];
    let mut split = Split::new(&backlog(&devices));
    let taken = devices.map(|device| split.takes(device.map(|found| found.map(|f| f.busy))));
    assert_eq!(taken, [[false, false], [false, true], [false, false]]);
}

#[test]
fn what_moved_or_waits_lately_is_busy() {
    let tunables = tunables();
    let mut activity = Activity::default();
    // What moved before anybody looked is no news.
    activity.note(1000, false, SECOND, &tunables);
    assert!(!activity.is_busy(SECOND, &tunables));
    activity.note(1000, false, SECOND + MS, &tunables);
    assert!(!activity.is_busy(SECOND + MS, &tunables));
    activity.note(1001, false, SECOND + 2 * MS, &tunables);
    assert!(activity.is_busy(SECOND + 2 * MS, &tunables));
    assert!(activity.is_busy(SECOND + 12 * MS, &tunables));
    assert!(!activity.is_busy(SECOND + 12 * MS + 1, &tunables));
    activity.note(1001, true, SECOND + 30 * MS, &tunables);
    assert!(activity.is_busy(SECOND + 30 * MS, &tunables));
    // Nor what moved since a check that was long ago.
    activity.note(2000, false, 2 * SECOND, &tunables);
    assert!(!activity.is_busy(2 * SECOND, &tunables));
}

#[test]
fn what_describes_a_new_worker_is_split() {
    for (text, cpus, parked) in [
        ("3 parked\n", "3", true),
        ("-1 parked", "-1", true),
        ("0,2-3 parked", "0,2-3", true),
        ("3\n", "3\n", false),
        ("-1", "-1", false),
        // These have no CPUs, or such as are none; who reads them refuses.
        ("parked", "parked", false),
        (" parked", "", true),
        ("3  parked", "3 ", true),
        ("3 parked ", "3 parked ", false),
        ("3 parked parked", "3 parked", true),
        ("3 active", "3 active", false),
        ("3\nparked", "3\nparked", false),
    ] {
        let expected = (cpus.as_bytes(), parked);
        assert_eq!(split_creation(text.as_bytes()), expected, "{text:?}");
    }
}

#[test]
fn a_state_is_written_as_it_is_read_but_for_woken() {
    assert_eq!(parse_parked(b"active\n"), Ok(false));
    assert_eq!(parse_parked(b"parked"), Ok(true));
    for text in [
        "",
        "\n",
        "woken",
        "Active",
        "parked ",
        " parked",
        "1",
        "0",
        "parked\n\n",
    ] {
        assert_eq!(parse_parked(text.as_bytes()), Err(Malformed), "{text:?}");
    }
    let lender = WorkerId(3);
    let shown = [State::Active, State::Parked, State::Woken { lender }];
    assert_eq!(
        shown.map(|state| state.to_string()),
        ["active", "parked", "woken"]
    );
}

/// A host in steps of a check: each device needs a part of a worker's time, a worker that is asked
/// for more than all falls behind.
struct Host {
    workers: Vec<View>,
    /// For each device its worker and what it needs, in parts per thousand.
    devices: Vec<(usize, u32)>,
    /// For each worker, how far it is behind, in nanoseconds.
    behind: Vec<u64>,
    now: u64,
    wakes: u32,
    parks: u32,
}

impl Host {
    fn new(active: u32, parked_ones: u32, devices: &[(usize, u32)]) -> Self {
        let workers: Vec<_> = (0..active)
            .map(|id| view(id, State::Active, Backlog::default()))
            .chain((active..active + parked_ones).map(parked))
            .collect();
        Self {
            behind: vec![0; workers.len()],
            workers,
            devices: devices.to_vec(),
            now: SECOND,
            wakes: 0,
            parks: 0,
        }
    }

    fn set_need(&mut self, need: u32) {
        for device in &mut self.devices {
            device.1 = need;
        }
    }

    fn step(&mut self, tunables: &Tunables) {
        self.now += tunables.interval;
        for index in 0..self.workers.len() {
            let own: Vec<_> = self.devices.iter().filter(|d| d.0 == index).collect();
            let need: u32 = own.iter().map(|device| device.1).sum();
            let change = i64::from(need) - 1000;
            let behind = self.behind[index].saturating_add_signed(
                change * i64::try_from(tunables.interval / 1000).expect("a short time"),
            );
            // Rings are finite.
            self.behind[index] = behind.min(20 * MS);
            let mut backlog = Backlog::default();
            for device in &own {
                let found = Found {
                    busy: device.1 > 0,
                    age: self.behind[index],
                };
                backlog.add(&[IDLE, Some(found)]);
            }
            let load = need.min(1000);
            let worker = &mut self.workers[index];
            worker.backlog = backlog;
            worker.virtqueues = 2 * own.len() as u32;
            // As the engine's own average: a new window of ten checks counts for an eighth.
            let old = worker.load;
            worker.load = old - old / 80 + load / 80;
        }
        let mut fixed = Fixed(std::mem::take(&mut self.workers));
        let verdict = fixed.check(self.now, tunables);
        self.workers = fixed.0;
        match verdict.act {
            Some(Act::Wake {
                woken,
                congested,
                lender,
            }) => {
                self.wakes += 1;
                self.workers[woken].state = State::Woken { lender };
                let mut split = Split::new(&self.workers[congested].backlog);
                let all = self.devices.iter().filter(|d| d.0 == congested).count();
                let mut moved = 0;
                for device in self.devices.iter_mut().filter(|d| d.0 == congested) {
                    let taken = split.takes([Some(false), Some(device.1 > 0)]);
                    if taken != [false, false] {
                        assert_eq!(taken, [true, true], "a device is torn apart");
                        device.0 = woken;
                        moved += 1;
                    }
                }
                assert!(moved > 0 && moved < all, "{moved} of {all} moved");
            }
            Some(Act::Park { parked, heir }) => {
                self.parks += 1;
                self.workers[parked].state = State::Parked;
                for device in self.devices.iter_mut().filter(|d| d.0 == parked) {
                    device.0 = heir;
                }
            }
            None => (),
        }
        let awake = self
            .workers
            .iter()
            .filter(|w| matches!(w.state, State::Woken { .. }));
        assert!(awake.count() as u32 <= tunables.woken_max);
    }

    fn run(&mut self, time: u64, tunables: &Tunables) {
        let end = self.now + time;
        while self.now < end {
            self.step(tunables);
        }
    }

    fn is_late(&self, tunables: &Tunables) -> bool {
        self.behind.iter().any(|behind| *behind > tunables.wake_age)
    }
}

#[test]
fn under_overload_workers_are_woken_until_nothing_is_late_and_parked_when_it_is_over() {
    let tunables = tunables();
    let mut host = Host::new(1, 4, &[(0, 400); 8]);
    host.run(SECOND, &tunables);
    assert!(!host.is_late(&tunables), "{:?}", host.behind);
    // Three have to be; a fourth may be woken while the first ones make up for what was late.
    assert!((3..=4).contains(&host.wakes), "{} were woken", host.wakes);
    assert_eq!(host.parks, 0);
    host.set_need(20);
    host.run(2 * SECOND, &tunables);
    assert_eq!(host.wakes, host.parks);
    assert!(host.devices.iter().all(|device| device.0 == 0));
}

#[test]
fn overload_is_relieved_within_some_checks() {
    let tunables = tunables();
    let mut host = Host::new(1, 1, &[(0, 900); 2]);
    let start = host.now;
    while host.wakes == 0 {
        host.step(&tunables);
        assert!(host.now - start < 20 * MS);
    }
}

#[test]
fn a_load_that_one_worker_can_do_wakes_nobody() {
    let tunables = tunables();
    let mut host = Host::new(1, 4, &[(0, 120); 8]);
    host.run(5 * SECOND, &tunables);
    assert_eq!((host.wakes, host.parks), (0, 0));
}

#[test]
fn one_device_that_wants_more_than_everything_wakes_nobody() {
    let tunables = tunables();
    let mut host = Host::new(1, 4, &[(0, 5000), (0, 0), (0, 0)]);
    host.run(5 * SECOND, &tunables);
    assert_eq!((host.wakes, host.parks), (0, 0));
}

/// Lets the load of two devices go up and down with this period, for ten seconds.
fn oscillate(period: u64) -> Host {
    let tunables = tunables();
    let mut host = Host::new(1, 1, &[(0, 0); 2]);
    for _ in 0..10 * SECOND / period {
        host.set_need(800);
        host.run(period / 2, &tunables);
        host.set_need(50);
        host.run(period / 2, &tunables);
    }
    host
}

#[test]
fn a_load_that_comes_and_goes_faster_than_workers_are_parked_wakes_one_once() {
    let host = oscillate(40 * MS);
    assert_eq!((host.wakes, host.parks), (1, 0));
}

#[test]
fn a_load_that_comes_and_goes_slowly_is_followed_once_in_each_period() {
    let host = oscillate(2 * SECOND);
    assert_eq!((host.wakes, host.parks), (5, 5));
}

proptest! {
    #![proptest_config(crate::cases(64))]

    #[test]
    fn whatever_the_load_does_changes_are_rare_and_limits_hold(
        period in 2u64..2000,
        high in 0u32..2000,
        low in 0u32..2000,
        woken_max in 0u32..4,
        devices in 1usize..12,
    ) {
        let tunables = Tunables { woken_max, ..tunables() };
        let mut host = Host::new(2, 3, &vec![(0, 0); devices]);
        for _ in 0..4000 / period + 1 {
            host.set_need(high);
            host.run(period * MS / 2, &tunables);
            host.set_need(low);
            host.run(period * MS / 2, &tunables);
        }
        let parks_max = (host.now - SECOND) / tunables.park_time * u64::from(woken_max);
        prop_assert!(u64::from(host.parks) <= parks_max);
        prop_assert!(host.wakes <= host.parks + woken_max);
        host.set_need(0);
        host.run(2 * SECOND, &tunables);
        // All of it is where it was, and nobody is awake.
        prop_assert_eq!(host.wakes, host.parks);
        prop_assert!(host.devices.iter().all(|device| device.0 == 0));
    }

    #[test]
    fn any_split_leaves_and_takes_something_with_work(
        devices in prop::collection::vec(
            [prop::option::of(any::<bool>()), prop::option::of(any::<bool>())], 0..20),
    ) {
        let found: Vec<[Option<Found>; 2]> = devices
            .iter()
            .map(|device| device.map(|entry| entry.map(|busy| Found { busy, age: 1 })))
            .collect();
        let mut split = Split::new(&backlog(&found));
        let (mut taken, mut left) = (0, 0);
        for device in &devices {
            for (entry, takes) in device.iter().zip(split.takes(*device)) {
                prop_assert!(!takes || entry.is_some(), "it takes what others serve");
                if *entry == Some(true) {
                    *(if takes { &mut taken } else { &mut left }) += 1;
                }
            }
        }
        prop_assert_eq!(taken > 0, taken + left > 1);
        prop_assert!(taken == 0 || left > 0);
    }
}
