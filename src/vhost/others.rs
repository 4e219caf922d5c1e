// SPDX-License-Identifier: GPL-2.0

//! The others on a worker, while it serves one virtqueue: whether the next one of them is stuck, see
//! `engine::sched::limits`.

use super::virtqueue::{Queue, Virtqueue};
use super::worker::Worker;
use crate::engine::sched::polling::Mode;
use crate::engine::sched::turn::{Place, Turn};
use crate::kern::cpu;
use crate::kern::inbox::Fifo;
use crate::kern::thread::Body;

/// What a worker has to do beside the virtqueue that it serves.
pub struct Others<'a> {
    /// The worker.
    pub worker: &'a Worker,
    /// Virtqueues that have got work after they had none.
    pub fresh: &'a mut Fifo<Virtqueue>,
    /// Virtqueues that may be served again in this round.
    pub ready: &'a Fifo<Virtqueue>,
    /// Virtqueues that are polled.
    pub polled: &'a mut Fifo<Virtqueue>,
    /// Who goes first when the slice has ended.
    pub turn: &'a mut Turn,
    /// The round of the worker.
    pub round: u64,
}

impl Others<'_> {
    /// Whether any of them can be found stuck. If not, nobody has to look.
    pub fn can_be_stuck(&self) -> bool {
        self.worker.limits.can_be_stuck()
            || self
                .polled
                .first()
                .is_some_and(|virtqueue| virtqueue.limits.can_be_stuck())
    }

    /// Whether one of them is stuck, which goes first then.
    pub fn is_stuck(&mut self, now: u64) -> bool {
        let place = if self.is_work_stuck(now) {
            Place::Work
        } else if self.is_polled_stuck(now) {
            Place::Polled
        } else {
            return false;
        };
        self.turn.set_first(place);
        true
    }

    /// Whether the virtqueue with work that is next has waited for too long.
    fn is_work_stuck(&mut self, now: u64) -> bool {
        if !self.worker.limits.can_be_stuck() {
            return false;
        }
        self.fresh.take_all(self.worker.inbox());
        let Some(next) = self.fresh.first().or(self.ready.first()) else {
            return false;
        };
        let waited = next.pending_age(now).unwrap_or(0);
        let stuck = self.worker.limits.is_stuck(cpu::to_cycles(waited));
        if stuck {
            self.worker.stats.stuck_works.add(1);
            next.note_stuck(waited);
        }
        stuck
    }

    /// Whether the virtqueue that is looked at next has waited for too long, or has too much to do.
    fn is_polled_stuck(&mut self, now: u64) -> bool {
        let can_be_stuck = |virtqueue: &Virtqueue| virtqueue.limits.can_be_stuck();
        if !self.polled.first().is_some_and(can_be_stuck) {
            return false;
        }
        // As for any look at it, except that it keeps its place.
        let slice = self
            .polled
            .pop()
            .and_then(|virtqueue| virtqueue.begin(self.worker.inbox(), true));
        let Some(mut slice) = slice else {
            return false;
        };
        let (virtqueue, queue) = slice.split();
        let waited = now.saturating_sub(queue.workless);
        let stuck = self.would_be_served(virtqueue, queue, now)
            && virtqueue
                .limits
                .is_stuck(cpu::to_cycles(waited), queue.pending_items());
        if stuck {
            virtqueue.note_stuck(waited);
        }
        if let Some(virtqueue) = slice.poll() {
            self.polled.push_first(virtqueue);
        }
        stuck
    }

    /// Whether a look at a polled virtqueue would bring about a slice now. One that has used its
    /// share up does not make others end theirs.
    fn would_be_served(&self, virtqueue: &Virtqueue, queue: &mut Queue, now: u64) -> bool {
        virtqueue.mode() != Mode::Never
            && queue.has_work()
            && !virtqueue.is_too_soon(queue, now)
            && virtqueue.common.record.share.throttled_until(now).is_none()
            && virtqueue.may_run(&mut queue.credit, self.worker.id, self.round)
    }
}
