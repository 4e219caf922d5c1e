// SPDX-License-Identifier: GPL-2.0

//! The ownership of virtqueues: each transition against its row of the table, and all
//! interleavings of workers, markers and control operations.

use std::collections::{HashMap, VecDeque};

use crate::atomics;
use crate::engine::sched::ownership::{Ownership, Then};

const PENDING: u32 = 1 << 0;
const LISTED: u32 = 1 << 1;
const SERVED: u32 = 1 << 2;
const HELD: u32 = 1 << 3;
const WANTED: u32 = 1 << 4;
const GRANTED: u32 = 1 << 5;
const WORDS: u32 = 1 << 6;

/// Applies a transition of the engine to `word`; returns the new word with the result.
fn apply<R>(word: u32, transition: impl FnOnce(&Ownership) -> R) -> (u32, R) {
    let ownership = Ownership::new();
    atomics::set_word(word);
    let result = transition(&ownership);
    (atomics::word(), result)
}

/// Checks a transition for all words that `from` accepts; there has to be one.
fn for_words<R: PartialEq + std::fmt::Debug>(
    from: impl Fn(u32) -> bool,
    transition: impl Fn(&Ownership) -> R,
    expected: impl Fn(u32) -> (u32, R),
) {
    let words: Vec<_> = (0..WORDS).filter(|word| from(*word)).collect();
    assert!(!words.is_empty());
    for word in words {
        assert_eq!(apply(word, &transition), expected(word), "from {word:#b}");
    }
}

fn has(word: u32, flags: u32) -> bool {
    word & flags == flags
}

fn has_any(word: u32, flags: u32) -> bool {
    word & flags != 0
}

#[test]
fn a_mark_lists_a_virtqueue_that_nobody_has() {
    for_words(
        |word| !has_any(word, LISTED | SERVED | HELD),
        Ownership::mark,
        |word| (word | PENDING | LISTED, Then::List),
    );
}

#[test]
fn a_mark_is_left_to_whoever_has_the_virtqueue() {
    for_words(
        |word| has_any(word, LISTED | SERVED | HELD),
        Ownership::mark,
        |word| (word | PENDING, Then::Rest),
    );
}

#[test]
fn a_slice_begins_with_a_pending_virtqueue_that_nobody_holds() {
    for_words(
        |word| has(word, LISTED | PENDING) && !has(word, HELD),
        Ownership::begin,
        |word| (word & !(LISTED | PENDING) | SERVED, true),
    );
}

#[test]
fn no_slice_begins_with_a_virtqueue_that_is_held_or_has_nothing_to_do() {
    for_words(
        |word| has(word, LISTED) && (has(word, HELD) || !has(word, PENDING)),
        Ownership::begin,
        |word| (word & !LISTED, false),
    );
}

#[test]
fn a_slice_that_ends_gives_the_virtqueue_to_who_wants_it() {
    for more in [false, true] {
        for_words(
            |word| has(word, SERVED | WANTED),
            |ownership| ownership.finish(more),
            |word| {
                let pending = if more { PENDING } else { 0 };
                let new = word & !(SERVED | WANTED) | HELD | GRANTED | pending;
                (new, Then::Wake)
            },
        );
    }
}

#[test]
fn a_slice_that_leaves_work_lists_the_virtqueue_again() {
    let from = |word| has(word, SERVED) && !has_any(word, WANTED | LISTED | HELD | GRANTED);
    for_words(
        from,
        |ownership| ownership.finish(true),
        |_| (PENDING | LISTED, Then::List),
    );
    for_words(
        |word| from(word) && has(word, PENDING),
        |ownership| ownership.finish(false),
        |_| (PENDING | LISTED, Then::List),
    );
}

#[test]
fn a_slice_that_leaves_nothing_ends_with_an_empty_word() {
    for_words(
        |word| word == SERVED,
        |ownership| ownership.finish(false),
        |_| (0, Then::Rest),
    );
}

#[test]
fn a_virtqueue_that_nobody_has_is_held_at_once() {
    for_words(
        |word| !has_any(word, SERVED | HELD | GRANTED),
        |ownership| ownership.try_hold(false),
        |word| (word | HELD, true),
    );
}

#[test]
fn a_virtqueue_that_was_granted_is_held_by_the_one_who_comes_for_it() {
    for_words(
        |word| has(word, HELD | GRANTED),
        |ownership| ownership.try_hold(true),
        |word| (word & !GRANTED, true),
    );
}

#[test]
fn a_newcomer_waits_behind_the_one_whom_the_virtqueue_was_granted_to() {
    for_words(
        |word| has(word, HELD | GRANTED),
        |ownership| ownership.try_hold(false),
        |word| (word | WANTED, false),
    );
}

#[test]
fn a_request_for_a_virtqueue_that_somebody_has_is_noted() {
    for_words(
        |word| has_any(word, SERVED | HELD) && !has(word, GRANTED),
        |ownership| ownership.try_hold(false),
        |word| (word | WANTED, false),
    );
    for_words(
        |word| has_any(word, SERVED | HELD) && !has(word, GRANTED),
        |ownership| ownership.try_hold(true),
        |word| (word | WANTED, false),
    );
}

#[test]
fn a_release_gives_the_virtqueue_to_who_wants_it() {
    for_words(
        |word| has(word, HELD | WANTED),
        Ownership::release,
        |word| (word & !WANTED | GRANTED, Then::Wake),
    );
}

#[test]
fn a_release_lists_a_virtqueue_that_was_marked_meanwhile() {
    for_words(
        |word| has(word, HELD | PENDING) && !has_any(word, WANTED | LISTED),
        Ownership::release,
        |word| (word & !HELD | LISTED, Then::List),
    );
}

#[test]
fn a_release_lists_nothing_that_has_nothing_to_do_or_stands_on_a_list() {
    for_words(
        |word| has(word, HELD) && !has(word, WANTED) && (!has(word, PENDING) || has(word, LISTED)),
        Ownership::release,
        |word| (word & !HELD, Then::Rest),
    );
}

#[test]
fn a_new_virtqueue_is_not_held_and_has_nothing_to_do() {
    for ownership in [Ownership::new(), Ownership::default()] {
        atomics::set_word(0);
        assert!(!ownership.begin());
        assert!(ownership.try_hold(false));
        assert_eq!(ownership.release(), Then::Rest);
    }
}

#[test]
fn a_transition_that_another_thread_comes_before_starts_from_the_new_word() {
    let overtaken = |other: u32, transition: &dyn Fn(&Ownership)| {
        let (word, ()) = apply(0, |ownership| {
            atomics::interfere(other);
            transition(ownership);
        });
        word
    };
    let mark = |ownership: &Ownership| assert_eq!(ownership.mark(), Then::Rest);
    assert_eq!(overtaken(SERVED, &mark), SERVED | PENDING);
    let hold = |ownership: &Ownership| assert!(!ownership.try_hold(false));
    assert_eq!(overtaken(SERVED, &hold), SERVED | WANTED);
    let begin = |ownership: &Ownership| assert!(ownership.begin());
    assert_eq!(overtaken(PENDING | LISTED, &begin), SERVED);
    let release = |ownership: &Ownership| assert_eq!(ownership.release(), Then::Wake);
    assert_eq!(overtaken(HELD | WANTED, &release), HELD | GRANTED);
    let finish = |ownership: &Ownership| assert_eq!(ownership.finish(false), Then::List);
    assert_eq!(overtaken(SERVED | PENDING, &finish), PENDING | LISTED);
}

// The exploration. One virtqueue, two workers, markers and control operations. Each transition of
// the engine is one step, and so is everything that its caller does afterwards: reading who owns
// the virtqueue, putting it on that worker's list, waking who waits.

/// What remains to be done after a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum After {
    Nothing,
    /// The owner is still to be read.
    List,
    /// The owner was read; the virtqueue is still to be put on its list.
    ListOn(u8),
    Wake,
}

impl From<Then> for After {
    fn from(then: Then) -> Self {
        match then {
            Then::Rest => Self::Nothing,
            Then::List => Self::List,
            Then::Wake => Self::Wake,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Worker {
    Idle,
    /// It took the virtqueue from its list.
    Took,
    Serves,
    /// It took a virtqueue that it does not own.
    Returns,
    Finished(After),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Marker {
    left: u8,
    after: After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Control {
    Idle,
    /// Its last look and its way to sleep are one step: the waker takes the lock in between.
    Sleeps,
    Woken,
    Holds,
    Released(After),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Operator {
    control: Control,
    /// Operations that it has yet to begin.
    left: u8,
    /// Slices of the owner that began since its request was noted.
    slices: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    word: u32,
    owner: u8,
    /// How often the virtqueue stands on each worker's list.
    lists: [u8; 2],
    workers: [Worker; 2],
    markers: Vec<Marker>,
    operators: Vec<Operator>,
    /// Slices that may still end with more to do.
    more_left: u8,
    /// There was a mark, or a slice that left work, and no slice began since.
    unserved: bool,
}

impl State {
    fn new(markers: &[u8], operations: &[u8], more_left: u8) -> Self {
        let marker = |left: &u8| Marker {
            left: *left,
            after: After::Nothing,
        };
        let operator = |left: &u8| Operator {
            control: Control::Idle,
            left: *left,
            slices: 0,
        };
        Self {
            word: 0,
            owner: 0,
            lists: [0; 2],
            workers: [Worker::Idle; 2],
            markers: markers.iter().map(marker).collect(),
            operators: operations.iter().map(operator).collect(),
            more_left,
            unserved: false,
        }
    }

    fn transition<R>(&mut self, transition: impl FnOnce(&Ownership) -> R) -> R {
        let (word, result) = apply(self.word, transition);
        self.word = word;
        result
    }

    /// Does the next step of what follows a transition.
    fn follow(&mut self, after: After) -> After {
        match after {
            After::List => After::ListOn(self.owner),
            After::ListOn(worker) => {
                self.lists[usize::from(worker)] += 1;
                After::Nothing
            }
            After::Wake => {
                for operator in &mut self.operators {
                    if operator.control == Control::Sleeps {
                        operator.control = Control::Woken;
                    }
                }
                After::Nothing
            }
            After::Nothing => unreachable!("nothing has no step"),
        }
    }

    /// All states that one step leads to.
    fn successors(&self) -> Vec<State> {
        let mut successors = Vec::new();
        for index in 0..self.workers.len() {
            self.worker_steps(index, &mut successors);
        }
        for index in 0..self.markers.len() {
            self.marker_step(index, &mut successors);
        }
        for index in 0..self.operators.len() {
            self.operator_steps(index, &mut successors);
        }
        successors
    }

    fn worker_steps(&self, index: usize, successors: &mut Vec<State>) {
        let mut next = self.clone();
        next.workers[index] = match self.workers[index] {
            Worker::Idle if self.lists[index] == 0 => return,
            Worker::Idle => {
                next.lists[index] -= 1;
                Worker::Took
            }
            Worker::Took => {
                if !next.transition(Ownership::begin) {
                    Worker::Idle
                } else if usize::from(next.owner) == index {
                    next.unserved = false;
                    self.check_sleepers();
                    for operator in &mut next.operators {
                        if matches!(operator.control, Control::Woken | Control::Sleeps) {
                            operator.slices += 1;
                        }
                    }
                    Worker::Serves
                } else {
                    Worker::Returns
                }
            }
            Worker::Serves => {
                if self.more_left > 0 {
                    let mut again = self.clone();
                    again.more_left -= 1;
                    again.unserved = true;
                    let then = again.transition(|ownership| ownership.finish(true));
                    again.workers[index] = Worker::Finished(then.into());
                    successors.push(again);
                }
                let then = next.transition(|ownership| ownership.finish(false));
                Worker::Finished(then.into())
            }
            Worker::Returns => {
                let then = next.transition(|ownership| ownership.finish(true));
                Worker::Finished(then.into())
            }
            Worker::Finished(After::Nothing) => Worker::Idle,
            Worker::Finished(after) => Worker::Finished(next.follow(after)),
        };
        successors.push(next);
    }

    fn marker_step(&self, index: usize, successors: &mut Vec<State>) {
        let mut next = self.clone();
        let Marker { left, after } = self.markers[index];
        next.markers[index] = if after != After::Nothing {
            let after = next.follow(after);
            Marker { left, after }
        } else if left > 0 {
            let after = next.transition(Ownership::mark).into();
            next.unserved = true;
            Marker {
                left: left - 1,
                after,
            }
        } else {
            return;
        };
        successors.push(next);
    }

    fn operator_steps(&self, index: usize, successors: &mut Vec<State>) {
        let mut next = self.clone();
        let operator = self.operators[index];
        let control = match operator.control {
            Control::Idle if operator.left == 0 => return,
            Control::Idle => {
                next.operators[index].left -= 1;
                next.operators[index].slices = 0;
                if next.transition(|ownership| ownership.try_hold(false)) {
                    Control::Holds
                } else {
                    Control::Sleeps
                }
            }
            Control::Woken => {
                if next.transition(|ownership| ownership.try_hold(true)) {
                    Control::Holds
                } else {
                    Control::Sleeps
                }
            }
            Control::Sleeps => return,
            Control::Holds => {
                // One operation moves the virtqueue, the other only looks.
                let mut moved = self.clone();
                moved.owner = 1 - self.owner;
                let then = moved.transition(Ownership::release);
                moved.operators[index].control = Control::Released(then.into());
                successors.push(moved);
                let then = next.transition(Ownership::release);
                Control::Released(then.into())
            }
            Control::Released(After::Nothing) => Control::Idle,
            Control::Released(after) => Control::Released(next.follow(after)),
        };
        next.operators[index].control = control;
        successors.push(next);
    }

    /// How many threads have the virtqueue.
    fn having(&self) -> usize {
        let workers = self.workers.iter();
        let workers = workers.filter(|it| matches!(it, Worker::Serves | Worker::Returns));
        let operators = self.operators.iter();
        let operators = operators.filter(|it| it.control == Control::Holds);
        workers.count() + operators.count()
    }

    /// On how many lists the virtqueue stands, is about to be put, or was just taken from.
    fn listed(&self) -> usize {
        let after = |after: &After| matches!(after, After::List | After::ListOn(_));
        let lists: u8 = self.lists.iter().sum();
        let workers = self.workers.iter().filter(|worker| match worker {
            Worker::Took => true,
            Worker::Finished(it) => after(it),
            _ => false,
        });
        let markers = self.markers.iter().filter(|it| after(&it.after));
        let operators = self.operators.iter();
        let operators =
            operators.filter(|it| matches!(&it.control, Control::Released(it) if after(it)));
        usize::from(lists) + workers.count() + markers.count() + operators.count()
    }

    fn check(&self) {
        assert!(self.having() <= 1, "served or held twice: {self:?}");
        let listed = usize::from(has(self.word, LISTED));
        assert_eq!(self.listed(), listed, "lists differ: {self:?}");
        let returned = self.workers.contains(&Worker::Returns);
        assert!(
            !self.unserved || has(self.word, PENDING) || returned,
            "a mark was lost: {self:?}"
        );
        // Nobody is granted a virtqueue who does not come for it.
        let waiting =
            |operator: &Operator| matches!(operator.control, Control::Woken | Control::Sleeps);
        if has_any(self.word, WANTED | GRANTED) {
            assert!(self.operators.iter().any(waiting), "stale: {self:?}");
        }
    }

    /// Checks that a slice may begin: who sleeps asked for the virtqueue before, so it has to be
    /// his turn, unless he is just being woken.
    fn check_sleepers(&self) {
        let waking = self.workers.contains(&Worker::Finished(After::Wake));
        let released = Control::Released(After::Wake);
        let waking = waking || self.operators.iter().any(|it| it.control == released);
        let sleeps = |operator: &Operator| operator.control == Control::Sleeps;
        assert!(
            waking || !self.operators.iter().any(sleeps),
            "a sleeper is passed over: {self:?}"
        );
    }

    /// Checks a state in which nobody can do anything any more.
    fn check_end(&self) {
        assert!(!self.unserved, "a mark was not served: {self:?}");
        for operator in &self.operators {
            assert_eq!(operator.left, 0, "an operation never began: {self:?}");
            let idle = operator.control == Control::Idle;
            assert!(idle, "a holder waits for ever: {self:?}");
        }
        assert_eq!(self.word, 0, "something was left behind: {self:?}");
        assert_eq!(self.lists, [0; 2]);
    }
}

/// Several times the states that the explorations have, so that one without an end fails.
const STATES_MAX: usize = 500_000;

/// Visits all states that can be reached, checks each, and checks that every way ends: then
/// everything that has to happen does happen, whatever the schedule.
fn explore(start: State, check: impl Fn(&State)) -> usize {
    let mut numbers = HashMap::from([(start.clone(), 0)]);
    let mut queue = VecDeque::from([start]);
    let mut successors_of: Vec<Vec<usize>> = Vec::new();
    while let Some(state) = queue.pop_front() {
        assert!(numbers.len() < STATES_MAX, "there is no end of states");
        state.check();
        check(&state);
        let successors = state.successors();
        if successors.is_empty() {
            state.check_end();
        }
        let numbered = successors.into_iter().map(|successor| {
            let fresh = numbers.len();
            *numbers.entry(successor).or_insert_with_key(|successor| {
                queue.push_back(successor.clone());
                fresh
            })
        });
        successors_of.push(numbered.collect());
    }
    assert!(is_acyclic(&successors_of), "a schedule goes on for ever");
    numbers.len()
}

/// Takes states without predecessors away until none is left, which only a cycle prevents.
fn is_acyclic(successors_of: &[Vec<usize>]) -> bool {
    let mut predecessors = vec![0; successors_of.len()];
    for successor in successors_of.iter().flatten() {
        predecessors[*successor] += 1;
    }
    let mut free: Vec<_> = (0..predecessors.len())
        .filter(|state| predecessors[*state] == 0)
        .collect();
    let mut taken = 0;
    while let Some(state) = free.pop() {
        taken += 1;
        for successor in &successors_of[state] {
            predecessors[*successor] -= 1;
            if predecessors[*successor] == 0 {
                free.push(*successor);
            }
        }
    }
    taken == predecessors.len()
}

#[test]
fn in_all_interleavings_of_two_markers_and_two_operators_nothing_goes_wrong() {
    let states = explore(State::new(&[2, 1], &[1, 1], 1), |_| ());
    println!("{states} states");
    assert!(states > 10_000, "{states} states only");
}

#[test]
fn in_all_interleavings_of_a_busy_marker_and_busy_operators_nothing_goes_wrong() {
    let states = explore(State::new(&[2], &[2, 2], 0), |_| ());
    println!("{states} states");
    assert!(states > 10_000, "{states} states only");
}

#[test]
fn an_operation_that_no_other_competes_with_waits_for_no_slice_but_the_one_being_served() {
    let states = explore(State::new(&[2, 1], &[3], 2), |state| {
        for operator in &state.operators {
            assert_eq!(operator.slices, 0, "a slice came before: {state:?}");
        }
    });
    assert!(states > 1_000, "{states} states only");
}

#[test]
fn a_virtqueue_that_nobody_moves_is_never_returned_unserved() {
    let states = explore(State::new(&[3, 2], &[], 2), |state| {
        assert!(!state.workers.contains(&Worker::Returns));
        assert_eq!(state.workers[1], Worker::Idle);
    });
    assert!(states > 100, "{states} states only");
}
