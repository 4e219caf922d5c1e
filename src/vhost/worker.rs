// SPDX-License-Identifier: GPL-2.0

//! Workers: threads that serve the virtqueues of many devices of many processes.
//!
//! A worker never waits for one of them. In each turn of its loop it serves one slice of a
//! virtqueue that has work, in the order of `engine::sched::credit`, and looks at one of those that
//! it polls. What would have to wait for memory is left to the device's home thread.

use super::fast_loop::Bell;
use super::net::{self, How, Next};
use super::others::Others;
use super::virtqueue::{Queue, Virtqueue};
use crate::engine::abi::WorkerId;
use crate::engine::sched::limits::WorkerLimits;
use crate::engine::sched::load::Load;
use crate::engine::sched::polling::Mode;
use crate::engine::sched::turn::{Place, Turn};
use crate::engine::snapshot::WorkerRecord;
use crate::engine::stats::Tally;
use crate::kern::cpu::{self, SoftInterrupts};
use crate::kern::inbox::{Fifo, Inbox};
use crate::kern::mm::NoFaults;
use crate::kern::parameters;
use crate::kern::served::Slice;
use crate::kern::snapshot::{Slot, Snapshot};
use crate::kern::thread::{stolen_time, Body, Current};
use crate::kern::trace::{self, Reason};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::Arc;

/// What a worker is, apart from its thread.
pub struct Worker {
    /// Its name in the control interface.
    pub id: WorkerId,
    /// What is counted, and what the snapshot says beside that.
    pub stats: Slot<WorkerRecord>,
    /// How long works may wait for it, and batches take.
    pub limits: WorkerLimits,
    /// How busy it has been lately.
    pub load: Load,
    /// When it was created, in nanoseconds.
    pub created: u64,
    inbox: Arc<Inbox<Virtqueue>>,
    /// Whether a parked worker could help this one.
    has_helper: Atomic<bool>,
    /// Tells the fast loop that this one needs help.
    bell: Arc<Bell>,
}

impl Worker {
    /// Makes a worker that has no thread yet.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `ENOSPC` when the snapshot has no room for it.
    pub fn new(id: WorkerId, bell: Arc<Bell>, snapshot: &Arc<Snapshot>) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                id,
                stats: snapshot.take(|record: &WorkerRecord| record.id.store(id.0.into()))?,
                limits: WorkerLimits::new(),
                load: Load::new(),
                created: cpu::now(),
                inbox: Inbox::new()?,
                has_helper: Atomic::new(false),
                bell,
            },
            GFP_KERNEL,
        )?)
    }

    /// Where the virtqueues that this worker serves are handed to it.
    pub fn inbox_ref(&self) -> Arc<Inbox<Virtqueue>> {
        self.inbox.clone()
    }

    /// Sets whether a parked worker could help this one. It counts from the next slice on.
    pub fn set_has_helper(&self, has_helper: bool) {
        self.has_helper.store(has_helper, Relaxed);
    }

    /// Calls for help if the work whose slice begins has waited for too long. This is all that
    /// the data path does for standby workers: one look in each slice while there are none.
    fn call_for_help(&self, virtqueue: &Virtqueue, now: u64) {
        if self.has_helper.load(Relaxed)
            && virtqueue.waiting_time(now) > parameters::wake_age()
            && parameters::standby().woken_max > 0
        {
            self.bell.ring();
        }
    }
}

impl Body for Worker {
    type Service = Virtqueue;

    fn inbox(&self) -> &Inbox<Virtqueue> {
        &self.inbox
    }

    fn run(&self, current: &mut Current) {
        Loop::new(self, current).run();
    }
}

/// What brought a slice about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// A notification of the guest or the socket, or work that an earlier slice left.
    Notification,
    /// A look at a polled virtqueue.
    Look,
    /// A polled virtqueue is to be left to its guest to notify.
    Parking,
}

/// Whether a virtqueue may be served now.
enum Admission {
    /// It may.
    Now,
    /// In the next round.
    Spent,
    /// Not before this time.
    Throttled(u64),
    /// Not by a worker.
    AtHome,
}

/// A slice that was served.
struct Served {
    cause: Cause,
    next: Next,
    /// Whether the virtqueue had what it takes to be served.
    servable: bool,
    /// Whether the virtqueue is polled from now on.
    polled: bool,
    /// How old the work was when the slice began, if that is known, in nanoseconds.
    age: Option<u64>,
    /// How long ago the slice before had ended, in nanoseconds.
    since_slice: u64,
    /// How long ago it was seen last that there is no work, in nanoseconds.
    since_workless: u64,
    /// How long it took, in nanoseconds.
    took: u64,
    tally: Tally,
}

/// A worker at work: what only its thread touches.
struct Loop<'a> {
    worker: &'a Worker,
    current: &'a mut Current,
    /// Virtqueues that have got work after they had none.
    fresh: Fifo<Virtqueue>,
    /// Virtqueues whose last slice left work, and which may be served again in this round.
    ready: Fifo<Virtqueue>,
    /// Virtqueues that have used up what they may use in this round.
    spent: Fifo<Virtqueue>,
    /// Virtqueues whose device has reached its ceiling.
    throttled: Fifo<Virtqueue>,
    /// When the first of these may be served again, in nanoseconds.
    release: u64,
    /// Virtqueues that are polled and had nothing at the last look.
    polled: Fifo<Virtqueue>,
    /// Who goes first.
    turn: Turn,
    round: u64,
    /// The end of the time that is accounted for, in nanoseconds.
    accounted: u64,
    /// The time that had been stolen from the thread then.
    stolen: u64,
    /// When a virtqueue was served last.
    served: u64,
}

impl<'a> Loop<'a> {
    fn new(worker: &'a Worker, current: &'a mut Current) -> Self {
        let stolen = stolen_time();
        Self {
            worker,
            current,
            fresh: Fifo::new(),
            ready: Fifo::new(),
            spent: Fifo::new(),
            throttled: Fifo::new(),
            release: u64::MAX,
            polled: Fifo::new(),
            turn: Turn::new(),
            round: 1,
            accounted: cpu::now(),
            stolen,
            served: 0,
        }
    }

    fn run(&mut self) {
        self.note_cpu();
        loop {
            self.worker.stats.loops.add(1);
            // Asked before the last look into the inbox: nothing comes any more once a thread is
            // being stopped, so empty lists are final then. What is to be passed on may be in there, too.
            let stopping = self.current.should_stop();
            let asked = self.worker.inbox.was_asked();
            self.fresh.take_all(&self.worker.inbox);
            if asked || stopping {
                self.forward_strangers();
            }
            if !self.throttled.is_empty() && self.accounted >= self.release {
                self.fresh.append(&mut self.throttled);
                self.release = u64::MAX;
            }
            let worked = self.turn.passes_over(Place::Work) || self.serve_next();
            let looked = self.turn.passes_over(Place::Polled)
                || (worked && self.attend_to_moves())
                || self.look_next();
            self.end_turn();
            if !worked && !looked {
                if stopping && self.throttled.is_empty() {
                    return;
                }
                self.rest();
            }
            if self.current.breathe() {
                self.note_cpu();
            }
        }
    }

    /// Attends to moves between two slices of a turn. Returns whether the turn has to end for one.
    fn attend_to_moves(&mut self) -> bool {
        if self.worker.inbox.is_move_waiting() {
            return true;
        }
        if self.worker.inbox.has_new() {
            self.fresh.take_all(&self.worker.inbox);
        }
        false
    }

    /// Notes what a turn of the loop has left.
    fn end_turn(&self) {
        let stats = &self.worker.stats;
        let lists = [&self.fresh, &self.ready, &self.spent, &self.throttled];
        let pending: usize = lists.iter().map(|list| list.len()).sum();
        stats.pending_works.set(pending as u64);
        stats.polled.set(self.polled.len() as u64);
        stats.last_loop.set(cpu::cycles());
    }

    /// Tells readers of the snapshot where the thread may run.
    fn note_cpu(&self) {
        let cpu = i64::from(self.current.cpu());
        self.worker.stats.cpu.store(cpu as u64);
    }

    /// Passes on the virtqueues that other workers serve now.
    fn forward_strangers(&mut self) {
        for list in [
            &mut self.fresh,
            &mut self.ready,
            &mut self.spent,
            &mut self.throttled,
            &mut self.polled,
        ] {
            list.forward_strangers(&self.worker.inbox);
        }
    }

    /// Sleeps until there is something to do.
    fn rest(&mut self) {
        self.current.mm.leave();
        self.worker.stats.wait.add(1);
        let timeout =
            (!self.throttled.is_empty()).then(|| self.release.saturating_sub(self.accounted));
        let took = self.account();
        self.worker.stats.spare_time.add(took);
        trace::sleep(self.worker.id);
        self.current.sleep_unless(&self.worker.inbox, timeout);
        trace::wake(self.worker.id);
        let asleep = self.account();
        self.worker.stats.idle_time.add(asleep);
    }

    /// Ends the time that is accounted for; returns how long it took, in nanoseconds, without what
    /// was stolen from it.
    fn account(&mut self) -> u64 {
        let now = cpu::now();
        let stolen = stolen_time();
        let lost = stolen.saturating_sub(self.stolen);
        let passed = now.saturating_sub(self.accounted);
        self.accounted = now;
        self.stolen = stolen;
        self.worker.stats.stolen_time.add(lost);
        passed.saturating_sub(lost)
    }

    /// Serves the next virtqueue that has work. Returns whether there was any.
    fn serve_next(&mut self) -> bool {
        let next = self.fresh.pop().or_else(|| self.ready.pop()).or_else(|| {
            // Everybody has had a share: the next round begins.
            self.round += 1;
            self.ready.append(&mut self.spent);
            self.ready.pop()
        });
        let Some(virtqueue) = next else {
            self.worker.stats.empty_works.add(1);
            return false;
        };
        if let Some(slice) = virtqueue.begin(&self.worker.inbox, false) {
            self.serve(slice, Cause::Notification);
        }
        true
    }

    /// Looks at the next virtqueue that is polled. Returns whether there was any.
    fn look_next(&mut self) -> bool {
        let Some(virtqueue) = self.polled.pop() else {
            return false;
        };
        let Some(mut slice) = virtqueue.begin(&self.worker.inbox, true) else {
            return true;
        };
        let (virtqueue, queue) = slice.split();
        let mode = queue.mode(virtqueue);
        let now = self.accounted;
        virtqueue.stats.polls.add(1);
        virtqueue.stats.last_poll.set(now);
        self.worker.stats.polls.add(1);
        let stale = now.saturating_sub(queue.looked_up) >= parameters::poll_recheck();
        let found = mode != Mode::Never && queue.has_work();
        if found && virtqueue.is_too_soon(queue, now) {
            virtqueue.stats.poll_coalesced.add(1);
            let took = self.account();
            self.worker.stats.spare_time.add(took);
            // That it waits is what user space wants, and no reason to ask for help.
            virtqueue.note_look(now);
            self.look_again(slice);
        } else if found || (mode != Mode::Never && stale) {
            self.serve(slice, Cause::Look);
        } else if queue.polling.keep(mode, now, &parameters::polling()) {
            virtqueue.stats.poll_empty.add(1);
            trace::poll(virtqueue.id, false);
            let took = self.account();
            virtqueue.stats.poll_empty_time.add(took);
            self.worker.stats.empty_polls.add(1);
            self.worker.stats.empty_poll_time.add(took);
            self.worker.stats.spare_time.add(took);
            queue.workless = self.accounted;
            virtqueue.forget_pending();
            virtqueue.note_look(now);
            self.look_again(slice);
        } else {
            self.serve(slice, Cause::Parking);
        }
        true
    }

    /// Leaves a polled virtqueue to the next look.
    fn look_again(&mut self, slice: Slice<Virtqueue>) {
        if let Some(virtqueue) = slice.poll() {
            self.polled.push(virtqueue);
        }
        // The address space is not kept for a process that may end meanwhile.
        if self.accounted.saturating_sub(self.served) >= parameters::poll_recheck() {
            self.current.mm.leave();
        }
        self.current.relax();
    }

    /// Serves a slice, if the virtqueue may be served now, and puts it on the list where it belongs
    /// then.
    fn serve(&mut self, mut slice: Slice<Virtqueue>, cause: Cause) {
        let has_home = slice.has_home();
        let (virtqueue, queue) = slice.split();
        match self.admit(virtqueue, queue, has_home) {
            Admission::Now => (),
            // It is looked at again, by which time it may be served; until then its work waits.
            Admission::Spent if cause == Cause::Look => {
                if let Some(virtqueue) = slice.poll() {
                    self.polled.push(virtqueue);
                }
                return;
            }
            Admission::Spent => {
                virtqueue.note_look(0);
                if let Some(virtqueue) = slice.finish(true) {
                    self.spent.push(virtqueue);
                }
                return;
            }
            Admission::Throttled(until) => {
                self.release = self.release.min(until);
                virtqueue.note_look(0);
                if let Some(virtqueue) = slice.finish(true) {
                    self.throttled.push(virtqueue);
                }
                return;
            }
            Admission::AtHome => {
                virtqueue.note_look(0);
                return slice.leave();
            }
        }

        self.worker.call_for_help(virtqueue, self.accounted);
        virtqueue.note_look(0);
        let begun = self.accounted;
        let age = virtqueue.take_pending_age(begun);
        let servable = queue.is_servable();
        trace::slice_begin(self.worker.id, virtqueue.id);
        let soft_interrupts = SoftInterrupts::now();
        let mut tally = Tally::default();
        let mut next = self.serve_queue(virtqueue, queue, cause, &mut tally);
        if next == Next::Fault {
            if has_home {
                trace::leave(virtqueue.id, Reason::Fault);
            } else {
                // Its process is being killed: there is nobody who could wait for the memory.
                tally.errors += 1;
                next = Next::Wait;
            }
        }
        let delay = virtqueue.common.delay.of(tally.packets, tally.bytes);
        if delay > 0 {
            let end = cpu::now().saturating_add(cpu::from_cycles(delay));
            let slice_end = begun.saturating_add(parameters::slice());
            cpu::spin_until(end.min(slice_end));
        }
        let passed = self.account();
        let interrupted = self.account_soft_interrupts(&soft_interrupts, passed);
        let took = passed - interrupted;
        self.worker.load.charge(took, self.accounted);
        if cause == Cause::Look {
            trace::poll(virtqueue.id, tally.packets > 0);
        }
        let served = Served {
            cause,
            next,
            servable,
            polled: queue.polling.is_active(),
            age,
            since_slice: begun.saturating_sub(queue.served),
            since_workless: begun.saturating_sub(queue.workless),
            took,
            tally,
        };
        self.charge(virtqueue, &served);
        self.worker.inbox.count_slice();
        queue.report(&served.tally);
        self.served = self.accounted;
        if cause != Cause::Look || served.tally.packets > 0 {
            queue.served = self.accounted;
        }
        if next == Next::Look {
            queue.workless = self.accounted;
        }

        trace::slice_end(
            self.worker.id,
            virtqueue.id,
            served.tally.packets,
            served.tally.bytes,
            took,
        );

        // The frames that a guest sends can raise soft interrupts. Their time is not its service, but
        // the worker's others do without it as well, so it counts where time is divided.
        let left = queue.credit.charge(passed);
        virtqueue.common.record.share.charge(passed, self.accounted);
        match next {
            Next::Again => {
                virtqueue.set_backlog(Some(self.worker.id));
                virtqueue.note_pending();
                if let Some(virtqueue) = slice.finish(true) {
                    let list = if left {
                        &mut self.ready
                    } else {
                        &mut self.spent
                    };
                    list.push(virtqueue);
                }
            }
            Next::Look => {
                virtqueue.set_backlog(None);
                virtqueue.note_look(self.accounted);
                if let Some(virtqueue) = slice.poll() {
                    self.polled.push(virtqueue);
                }
            }
            Next::Wait => {
                virtqueue.set_backlog(None);
                if let Some(virtqueue) = slice.finish(false) {
                    self.fresh.push(virtqueue);
                }
            }
            Next::Fault => {
                virtqueue.set_backlog(None);
                slice.leave();
            }
        }
    }

    /// Whether a virtqueue may be served now.
    fn admit(&self, virtqueue: &Virtqueue, queue: &mut Queue, has_home: bool) -> Admission {
        if has_home {
            if virtqueue.is_home() {
                virtqueue.stats.left_home.add(1);
                trace::leave(virtqueue.id, Reason::Home);
                return Admission::AtHome;
            }
            if !queue.is_sharable() {
                virtqueue.stats.left_backend.add(1);
                trace::leave(virtqueue.id, Reason::Backend);
                return Admission::AtHome;
            }
        }
        if let Some(until) = virtqueue
            .common
            .record
            .share
            .throttled_until(self.accounted)
        {
            return Admission::Throttled(until);
        }
        if virtqueue.may_run(&mut queue.credit, self.worker.id, self.round) {
            Admission::Now
        } else {
            Admission::Spent
        }
    }

    /// Serves a virtqueue in its owner's address space, without waiting for memory.
    fn serve_queue(
        &mut self,
        virtqueue: &Virtqueue,
        queue: &mut Queue,
        cause: Cause,
        tally: &mut Tally,
    ) -> Next {
        let now = self.accounted;
        let Self {
            worker, current, ..
        } = self;
        let mut others = Others {
            worker,
            fresh: &mut self.fresh,
            ready: &self.ready,
            polled: &mut self.polled,
            turn: &mut self.turn,
            round: self.round,
        };
        let can_be_stuck = others.can_be_stuck();
        let mut is_other_stuck = |now| others.is_stuck(now);
        let Some(owner) = &queue.owner else {
            return Next::Wait;
        };
        // A process that has ended has no memory to serve.
        let Some(mm) = current.mm.enter(owner) else {
            return Next::Wait;
        };
        if mm.switched {
            tally.mm_switches += 1;
        }
        let _no_faults = NoFaults::new();
        let tunables = parameters::polling();
        let mode = queue.mode(virtqueue);
        if cause == Cause::Notification {
            queue.polling.work(now, &tunables);
        }
        let mut how = How {
            shared: true,
            polling: cause != Cause::Parking && queue.polling.start(mode, &tunables),
            end: now.saturating_add(parameters::slice()),
            data: virtqueue.limits.data(),
            is_other_stuck: can_be_stuck.then_some(&mut is_other_stuck),
        };
        let batch_time = worker.limits.max_disabled_soft_interrupts.get();
        queue.batches.set_limit(match batch_time {
            0 => 0,
            cycles => cpu::from_cycles(cycles).max(1),
        });
        let mut next = net::serve(virtqueue, queue, &mm, &mut how, tally);
        if cause == Cause::Look && tally.packets > 0 {
            queue.polling.work(now, &tunables);
        }
        if next == Next::Look
            && !(queue.polling.keep(mode, now, &tunables) && queue.look_up(&mm, now))
        {
            // Nothing has come for too long, or nothing can be seen from outside.
            how.polling = false;
            next = net::serve(virtqueue, queue, &mm, &mut how, tally);
        }
        worker
            .stats
            .enabled_interrupts
            .add(queue.batches.take_sent());
        if next == Next::Wait && queue.polling.park(now) {
            tally.parks += 1;
            trace::park(virtqueue.id);
        }
        if next != Next::Look {
            queue.avail_idx = None;
        }
        next
    }

    /// Accounts for the soft interrupts of a slice that took so many nanoseconds; returns how many
    /// of these they took.
    fn account_soft_interrupts(&self, before: &SoftInterrupts, passed: u64) -> u64 {
        let stats = &self.worker.stats;
        let (count, time) = before.since();
        if count == 0 {
            return 0;
        }
        let time = time.min(passed);
        stats.softirq_slices.add(1);
        stats.softirqs.add(count);
        stats.softirq_time.add(time);
        time
    }

    /// Accounts for a slice. Nothing here takes long: readers of the snapshot have to try again
    /// while a section lasts.
    fn charge(&self, virtqueue: &Virtqueue, served: &Served) {
        let Served { took, tally, .. } = served;
        let (took, found) = (*took, tally.packets > 0);
        let looked = served.cause == Cause::Look;
        {
            let stats = &virtqueue.stats;
            let _section = stats.sequence.write();
            stats.add(tally);
            stats.served_time.add(took);
            stats.left_fault.add(u64::from(served.next == Next::Fault));
            stats.polled.set(served.polled.into());
            if let Some(age) = served.age {
                stats.pending.add(age);
                if served.cause == Cause::Notification {
                    stats.notif_wait.add(age);
                }
            }
            let limited = u64::from(served.next == Next::Again);
            if looked {
                if found {
                    stats.poll_wait.add(served.since_slice);
                    stats.poll_pending.add(served.since_workless);
                }
                stats.poll_kicks.add(u64::from(found));
                stats.poll_empty.add(u64::from(!found));
                stats.poll_time.add(took);
                stats.poll_bytes.add(tally.bytes);
                stats.poll_limited.add(limited);
            } else {
                stats.notif_works.add(1);
                stats.notif_time.add(took);
                stats.notif_bytes.add(tally.bytes);
                stats.notif_limited.add(limited);
            }
        }
        let stats = &self.worker.stats;
        let _section = stats.sequence.write();
        stats.works.add(1);
        stats.noqueue_works.add(u64::from(!served.servable));
        stats.busy_time.add(took);
        stats.mm_switches.add(tally.mm_switches);
        if let Some(age) = served.age {
            stats.pending.add(age);
        }
        if looked {
            stats.empty_polls.add(u64::from(!found));
            stats.poll_time.add(took);
        } else {
            stats.notif_time.add(took);
        }
    }
}
