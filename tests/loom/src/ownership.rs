// SPDX-License-Identifier: GPL-2.0

//! The ownership machine between threads that kick, serve, poll, hold and move one virtqueue, and
//! take it home.
//!
//! `tests/engine/ownership.rs` visits every state of the machine where each transition is one step.
//! Here a transition is what it is: a guess and an exchange that may fail, between which others come
//! in, and what threads write before and read after is only as ordered as the exchange makes it.
//!
//! What threads do with a transition is what `kern/served.rs`, `kern/inbox.rs` and `kern/home.rs`
//! do, in short: whoever changes those looks here as well. To explore more, add a [`Step`] with what
//! a thread does in it, and scenarios that have it.

use std::sync::atomic::{AtomicBool as Own, AtomicUsize as Count};
use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{fence, AtomicBool, AtomicUsize, Ordering, Ordering::Relaxed};
use loom::sync::{Condvar, Mutex, RwLock};
use loom::thread;

use crate::engine;
use crate::engine::sched::ownership::Then;
use crate::explore::{explore, failure};

/// The ownership machine of the engine, or of a copy with a bug. The methods are those of
/// [`Ownership`](crate::engine::sched::ownership::Ownership).
trait Machine: Default + Send + Sync + 'static {
    fn mark(&self) -> Then;
    fn begin(&self) -> bool;
    fn begin_polled(&self) -> bool;
    fn is_away(&self) -> bool;
    fn finish(&self, more: bool) -> Then;
    fn leave(&self) -> Then;
    fn come_back(&self, more: bool) -> Then;
    fn poll(&self) -> Then;
    fn try_hold(&self, waited: bool) -> bool;
    fn release(&self) -> Then;
}

/// Implements [`Machine`] for the module `sched` of the engine or of a copy.
macro_rules! machine {
    ($($module:tt)+) => {
        const _: () = {
            use $($module)+::ownership as copy;

            fn translated(then: copy::Then) -> Then {
                match then {
                    copy::Then::Rest => Then::Rest,
                    copy::Then::List => Then::List,
                    copy::Then::Wake => Then::Wake,
                }
            }

            impl Machine for copy::Ownership {
                fn mark(&self) -> Then {
                    translated(copy::Ownership::mark(self))
                }
                fn begin(&self) -> bool {
                    copy::Ownership::begin(self)
                }
                fn begin_polled(&self) -> bool {
                    copy::Ownership::begin_polled(self)
                }
                fn is_away(&self) -> bool {
                    copy::Ownership::is_away(self)
                }
                fn finish(&self, more: bool) -> Then {
                    translated(copy::Ownership::finish(self, more))
                }
                fn leave(&self) -> Then {
                    translated(copy::Ownership::leave(self))
                }
                fn come_back(&self, more: bool) -> Then {
                    translated(copy::Ownership::come_back(self, more))
                }
                fn poll(&self) -> Then {
                    translated(copy::Ownership::poll(self))
                }
                fn try_hold(&self, waited: bool) -> bool {
                    copy::Ownership::try_hold(self, waited)
                }
                fn release(&self) -> Then {
                    translated(copy::Ownership::release(self))
                }
            }
        };
    };
}

machine!(engine::sched);

/// The readers of lists: two workers and the home thread.
const WORKERS: usize = 2;
const HOME: usize = WORKERS;
const READERS: usize = WORKERS + 1;
/// More turns than a reader needs that does not go around in circles.
const TURNS_MAX: usize = 20;

/// What a thread does. All steps of a worker are one thread's, and so are those of the home thread.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The guest makes work, and notifies unless it was told not to.
    Kick,
    /// A turn of a worker, in which its slice ends as told.
    Turn(usize, End),
    /// A turn of the home thread.
    AtHome,
    /// The same, and the virtqueue stays there.
    StayAtHome,
    /// The home thread ends.
    Retire,
    /// Holds the virtqueue.
    Hold,
    /// Gives the virtqueue to a worker.
    Move(usize),
}

/// How a slice ends that leaves nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The guest is asked to notify.
    Wait,
    /// The worker polls.
    Poll,
    /// There is something to do, but not on a worker.
    Leave,
    /// There is something to do, but not now: the share is used up.
    Postpone,
}

use End::{Leave, Poll, Postpone, Wait};
use Step::{AtHome, Hold, Kick, Move, Retire, StayAtHome, Turn};

/// The steps before there are threads, and those of each thread.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    before: &'static [Step],
    threads: &'static [&'static [Step]],
}

impl Scenario {
    fn retires(&self) -> bool {
        let steps = self.threads.iter().copied().flatten();
        steps.into_iter().any(|step| matches!(step, Retire))
    }
}

/// What only who has the virtqueue may touch.
#[derive(Default)]
struct State {
    consumed: usize,
    /// The guest was told not to notify.
    quiet: bool,
}

/// A worker or the home thread, as far as one virtqueue goes.
struct Reader {
    /// Whether the virtqueue is in its inbox.
    inbox: AtomicBool,
    /// Whether it is to look through its lists.
    asked: AtomicBool,
    /// Whether the virtqueue is on its own lists, which no other thread touches.
    ready: Own,
    polled: Own,
}

struct Virtqueue<M> {
    ownership: M,
    /// Work that the guest made.
    produced: AtomicUsize,
    /// Whether the guest is told not to notify.
    no_notify: AtomicBool,
    /// The worker, and whether there is a home thread.
    worker: AtomicUsize,
    has_home: AtomicBool,
    readers: [Reader; READERS],
    /// On how many lists the virtqueue stands. Not the explored program's, so loom need not know.
    listed: Count,
    gate: Mutex<()>,
    free: Condvar,
    /// Held for reading while the pointer to a reader is used, where readers end.
    rcu: Option<RwLock<()>>,
    state: UnsafeCell<State>,
}

impl<M: Machine> Virtqueue<M> {
    fn new(readers_end: bool) -> Arc<Self> {
        let ownership = M::default();
        // Loom has to know the word before other threads do.
        assert!(!ownership.begin());
        let reader = || Reader {
            inbox: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            ready: Own::new(false),
            polled: Own::new(false),
        };
        Arc::new(Self {
            ownership,
            produced: AtomicUsize::new(0),
            no_notify: AtomicBool::new(false),
            worker: AtomicUsize::new(0),
            has_home: AtomicBool::new(true),
            readers: [reader(), reader(), reader()],
            listed: Count::new(0),
            gate: Mutex::new(()),
            free: Condvar::new(),
            rcu: readers_end.then(|| RwLock::new(())),
            state: UnsafeCell::new(State::default()),
        })
    }

    fn step(&self, step: Step) {
        match step {
            Kick => self.kick(),
            Turn(worker, end) => drop(self.turn(worker, end)),
            AtHome => drop(self.turn_at_home(false)),
            StayAtHome => drop(self.turn_at_home(true)),
            Retire => self.retire(),
            Hold => self.hold(),
            Move(to) => {
                let old = self.worker.swap(to, Ordering::AcqRel);
                self.readers[old].asked.swap(true, Ordering::AcqRel);
            }
        }
    }

    fn kick(&self) {
        self.produced.fetch_add(1, Relaxed);
        // The driver's barrier between its index and its look at the device's wish.
        fence(Ordering::SeqCst);
        if !self.no_notify.load(Relaxed) {
            self.follow(self.ownership.mark());
        }
    }

    fn follow(&self, then: Then) {
        match then {
            Then::Rest => (),
            Then::List => self.list(),
            Then::Wake => self.wake(),
        }
    }

    fn wake(&self) {
        drop(self.gate.lock().expect("a lock"));
        self.free.notify_all();
    }

    /// Who serves the virtqueue.
    fn reader(&self) -> usize {
        if self.ownership.is_away() && self.has_home.load(Ordering::Acquire) {
            HOME
        } else {
            self.worker.load(Ordering::Acquire)
        }
    }

    /// Notes that the virtqueue is put on a list.
    fn note_listed(&self) {
        assert_eq!(self.listed.fetch_add(1, Relaxed), 0, "on two lists at once");
    }

    fn list(&self) {
        let _guard = self.rcu.as_ref().map(|rcu| rcu.read().expect("a lock"));
        let reader = self.reader();
        self.note_listed();
        self.readers[reader].inbox.swap(true, Ordering::AcqRel);
    }

    fn forward(&self) {
        assert_eq!(self.ownership.mark(), Then::Rest, "listed and not LISTED");
        self.list();
    }

    fn take(&self, reader: usize) -> bool {
        let taken = self.readers[reader].inbox.swap(false, Ordering::AcqRel);
        if taken {
            self.listed.fetch_sub(1, Relaxed);
        }
        taken
    }

    fn take_own(&self, list: &Own) -> bool {
        let taken = list.swap(false, Relaxed);
        if taken {
            self.listed.fetch_sub(1, Relaxed);
        }
        taken
    }

    fn put_own(&self, list: &Own) {
        self.note_listed();
        list.store(true, Relaxed);
    }

    /// Runs `work` as the only one who does, which loom checks.
    fn alone<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        // SAFETY: The reference ends before the closure does, and loom panics if another thread has
        // one meanwhile or has had one without being ordered before this.
        self.state.with_mut(|state| work(unsafe { &mut *state }))
    }

    /// Begins a slice of what `reader` took from a list of its own.
    fn begin(&self, reader: usize, polled: bool) -> bool {
        if self.reader() != reader {
            self.forward();
            return false;
        }
        if polled {
            self.ownership.begin_polled()
        } else {
            self.ownership.begin()
        }
    }

    /// One turn of a worker. Returns whether it did anything.
    fn turn(&self, worker: usize, end: End) -> bool {
        let Reader {
            ready,
            polled,
            asked,
            ..
        } = &self.readers[worker];
        if self.take(worker) {
            self.put_own(ready);
        }
        if asked.load(Relaxed) && asked.swap(false, Ordering::AcqRel) {
            for list in [ready, polled] {
                if list.load(Relaxed) && self.reader() != worker && self.take_own(list) {
                    self.forward();
                    return true;
                }
            }
        }
        if self.take_own(ready) {
            if self.begin(worker, false) {
                self.serve(worker, end);
            }
            return true;
        }
        if self.take_own(polled) {
            if self.begin(worker, true) {
                let produced = self.produced.load(Relaxed);
                let has_work = self.alone(|state| state.consumed < produced);
                if end == Postpone || end == Poll && !has_work {
                    self.hand_over(self.ownership.poll(), polled);
                } else {
                    self.serve(worker, end);
                }
            }
            return true;
        }
        false
    }

    /// Serves a piece of work, if there is one. Returns whether there is more.
    fn work(&self, end: End) -> bool {
        self.alone(|state| {
            let produced = self.produced.load(Relaxed);
            if state.consumed < produced {
                // One at a time, so that there may be more to do.
                state.consumed += 1;
            }
            if state.consumed < produced {
                return true;
            }
            if end == Poll {
                state.quiet = true;
                self.no_notify.store(true, Relaxed);
            } else if state.quiet {
                state.quiet = false;
                self.no_notify.store(false, Relaxed);
                // The device's barrier between its wish and its last look.
                fence(Ordering::SeqCst);
                return state.consumed < self.produced.load(Relaxed);
            }
            false
        })
    }

    fn serve(&self, worker: usize, end: End) {
        let Reader { ready, polled, .. } = &self.readers[worker];
        if end == Leave && self.has_home.load(Ordering::Acquire) {
            return self.follow(self.ownership.leave());
        }
        let more = end == Postpone || self.work(end);
        if end == Poll && !more {
            self.hand_over(self.ownership.poll(), polled);
        } else {
            self.hand_over(self.ownership.finish(more), ready);
        }
    }

    /// Follows the transition that ended a worker's slice; `list` is the one of its own that the
    /// virtqueue comes on.
    fn hand_over(&self, then: Then, list: &Own) {
        match then {
            Then::List => self.put_own(list),
            then => self.follow(then),
        }
    }

    fn turn_at_home(&self, stay: bool) -> bool {
        if !self.take(HOME) {
            return false;
        }
        if self.begin(HOME, false) {
            // The guest of a virtqueue that is polled is not asked to notify, so its worker has to
            // look as soon as it is back.
            let polled = !stay && self.alone(|state| state.quiet);
            let more = self.work(if polled { Poll } else { Wait }) || polled;
            self.follow(if stay {
                self.ownership.finish(more)
            } else {
                self.ownership.come_back(more)
            });
        }
        true
    }

    fn retire(&self) {
        self.has_home.swap(false, Ordering::AcqRel);
        // Whoever found the inbox before has pushed when there is no reader any more.
        drop(self.rcu.as_ref().expect("a scenario that retires").write());
        if self.take(HOME) {
            self.forward();
        }
    }

    fn hold(&self) {
        let mut guard = self.gate.lock().expect("a lock");
        let mut waited = false;
        while !self.ownership.try_hold(waited) {
            guard = self.free.wait(guard).expect("a lock");
            waited = true;
        }
        drop(guard);
        self.alone(|_| ());
        self.follow(self.ownership.release());
    }

    /// Lets everybody go on until there is nothing to do, when all other threads have ended.
    fn settle(&self) {
        for _ in 0..TURNS_MAX {
            let mut worked = self.turn_at_home(false);
            for worker in 0..WORKERS {
                worked |= self.turn(worker, Wait);
            }
            if !worked {
                return self.check_end();
            }
        }
        panic!("a virtqueue goes around in circles");
    }

    fn check_end(&self) {
        let consumed = self.alone(|state| state.consumed);
        assert_eq!(consumed, self.produced.load(Relaxed), "work was lost");
        assert_eq!(self.listed.load(Relaxed), 0, "lost on a list");
        let home = self.has_home.load(Relaxed);
        assert!(!home || !self.ownership.is_away(), "did not come back");
        assert!(self.ownership.try_hold(false), "left in somebody's hands");
        assert_eq!(self.ownership.release(), Then::Rest, "something was left");
    }
}

/// Runs a scenario in all interleavings; returns how many there are.
fn run<M: Machine>(scenario: Scenario, preemptions: usize) -> usize {
    explore(preemptions, move || {
        let virtqueue = Virtqueue::<M>::new(scenario.retires());
        for step in scenario.before {
            virtqueue.step(*step);
        }
        let [own, others @ ..] = scenario.threads else {
            panic!("a scenario without threads");
        };
        let others = others.iter().map(|steps| {
            let virtqueue = virtqueue.clone();
            thread::spawn(move || {
                for step in *steps {
                    virtqueue.step(*step);
                }
            })
        });
        let others: Vec<_> = others.collect();
        for step in *own {
            virtqueue.step(*step);
        }
        for thread in others {
            thread.join().expect("a thread that ends");
        }
        virtqueue.settle();
    })
}

fn nothing_goes_wrong(scenario: Scenario) {
    let runs = run::<engine::sched::ownership::Ownership>(scenario, PREEMPTIONS);
    println!("{runs} interleavings");
    assert!(runs > FEW, "{runs} interleavings only");
}

/// How often threads are interrupted, unless the environment says otherwise: one more multiplies the
/// time by five.
const PREEMPTIONS: usize = 3;
/// Interleavings below which a scenario would not be what it claims to be.
const FEW: usize = 50;

/// Declares the scenarios, each of them a test. Those with many interleavings come last, since
/// planted bugs are looked for from the first on.
macro_rules! scenarios {
    ($($name:ident: [$($before:expr),*] then $([$($step:expr),+])+;)+) => {
        /// All of them, for the planted bugs.
        const SCENARIOS: &[Scenario] = &[$(
            Scenario {
                before: &[$($before),*],
                threads: &[$(&[$($step),+]),+],
            }
        ),+];
        $(
            #[test]
            fn $name() {
                nothing_goes_wrong(Scenario {
                    before: &[$($before),*],
                    threads: &[$(&[$($step),+]),+],
                });
            }
        )+
    };
}

scenarios! {
    kicks_race_with_slices:
        [] then [Kick, Kick] [Turn(0, Wait), Turn(0, Wait)];
    a_kick_races_with_a_hold:
        [] then [Kick] [Hold] [Turn(0, Wait)];
    holds_race_with_each_other_and_a_kick:
        [] then [Kick] [Hold] [Hold];
    a_move_races_with_slices_of_both_workers:
        [Kick] then [Turn(0, Wait)] [Turn(1, Wait)] [Move(1)];
    moves_race_with_each_other_and_a_slice:
        [Kick] then [Turn(0, Wait)] [Move(1)] [Move(0)];
    kicks_race_with_looks:
        [Kick, Turn(0, Poll)] then [Kick, Kick] [Turn(0, Poll), Turn(0, Poll)];
    a_kick_races_with_parking:
        [Kick, Turn(0, Poll)] then [Kick] [Turn(0, Wait), Turn(0, Wait)];
    a_look_races_with_a_hold_and_a_kick:
        [Kick, Turn(0, Poll)] then [Kick] [Hold] [Turn(0, Poll)];
    a_look_races_with_a_move_and_a_kick:
        [Kick, Turn(0, Poll)] then [Kick] [Move(1), Turn(1, Poll)] [Turn(0, Poll)];
    looks_that_are_postponed_race_with_a_hold_and_a_kick:
        [Kick, Turn(0, Poll)] then [Kick] [Hold] [Turn(0, Postpone)];
    a_polled_one_that_leaves_races_with_home_and_a_kick:
        [Kick, Turn(0, Poll), Kick] then [Turn(0, Leave)] [AtHome] [Kick];
    leaving_races_with_home_and_a_kick:
        [Kick] then [Turn(0, Leave)] [AtHome] [Kick];
    leaving_races_with_a_hold_and_a_move:
        [Kick] then [Turn(0, Leave)] [Hold] [Move(1)];
    coming_back_races_with_a_kick_and_the_worker:
        [Kick, Turn(0, Leave)] then [AtHome] [Kick] [Turn(0, Wait)];
    coming_back_races_with_a_hold_and_a_move:
        [Kick, Turn(0, Leave)] then [AtHome] [Hold] [Move(1), Turn(1, Wait)];
    a_kick_races_with_the_end_of_home:
        [Kick, Turn(0, Leave)] then [StayAtHome, Retire] [Kick] [Turn(0, Wait)];
    kicks_race_with_kicks_and_a_slice:
        [Kick] then [Kick] [Kick] [Turn(0, Wait)];
    a_slice_races_with_a_hold_and_a_kick:
        [Kick] then [Kick] [Hold] [Turn(0, Wait)];
    leaving_races_with_the_end_of_home:
        [Kick] then [Turn(0, Leave)] [AtHome, Retire] [Kick];
    staying_at_home_races_with_a_kick_and_a_hold:
        [Kick, Turn(0, Leave)] then [StayAtHome] [Kick] [Hold];
}

fn is_found<M: Machine>() {
    let why = SCENARIOS
        .iter()
        .find_map(|scenario| failure(|| run::<M>(*scenario, PREEMPTIONS)));
    println!("{}", why.expect("a bug that is found"));
}

macro_rules! planted_bugs_are_found {
    ($($bug:ident)+) => {
        $(machine!(crate::planted::sched::$bug);)+
        /// One test for each planted bug.
        mod finds {
            $(
                #[test]
                fn $bug() {
                    super::is_found::<crate::planted::sched::$bug::ownership::Ownership>();
                }
            )+
        }
    };
}

crate::planted::planted_bugs!(sched, planted_bugs_are_found);
