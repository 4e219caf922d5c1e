// SPDX-License-Identifier: GPL-2.0

//! Cores that are shared equally by all that want to run: processor sharing, the fluid limit of a
//! fair scheduler (Kleinrock, Queueing Systems II, 1976).

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// Work that goes on, ordered by when it ends.
struct Job<T> {
    /// The service that everybody has had when it ends, in nanoseconds.
    end: f64,
    /// Makes the order total.
    sequence: u64,
    what: T,
}

impl<T> PartialEq for Job<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<T> Eq for Job<T> {}
impl<T> PartialOrd for Job<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Job<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.end
            .total_cmp(&other.end)
            .then(self.sequence.cmp(&other.sequence))
    }
}

/// A pool of equal cores. A job runs on one core at a time; if there are more jobs than cores, all
/// of them get the same share.
pub struct Pool<T> {
    cores: f64,
    /// Threads that always want to run, beside the jobs. Not necessarily a whole number.
    background: f64,
    jobs: BinaryHeap<Reverse<Job<T>>>,
    sequence: u64,
    now: u64,
    /// The service that a job would have had that was there from the beginning.
    service: f64,
    /// Core-nanoseconds that were used.
    busy: f64,
    /// Nanoseconds that jobs and threads waited for a core, the sum over them.
    waited: f64,
}

impl<T> Pool<T> {
    /// A pool without jobs.
    pub fn new(cores: u32) -> Self {
        Self {
            cores: f64::from(cores),
            background: 0.0,
            jobs: BinaryHeap::new(),
            sequence: 0,
            now: 0,
            service: 0.0,
            busy: 0.0,
            waited: 0.0,
        }
    }

    fn wanting(&self) -> f64 {
        self.jobs.len() as f64 + self.background
    }

    /// The share of a core that each job gets.
    fn rate(&self) -> f64 {
        let wanting = self.wanting();
        if wanting <= self.cores {
            1.0
        } else {
            self.cores / wanting
        }
    }

    /// Goes on to `now`, before which no job ends.
    pub fn advance(&mut self, now: u64) {
        let passed = now.saturating_sub(self.now) as f64;
        let wanting = self.wanting();
        self.service += passed * self.rate();
        self.busy += passed * wanting.min(self.cores);
        self.waited += passed * (wanting - self.cores).max(0.0);
        self.now = self.now.max(now);
    }

    /// When the next job ends.
    pub fn next_end(&self) -> Option<u64> {
        let Reverse(job) = self.jobs.peek()?;
        let left = (job.end - self.service).max(0.0);
        Some(self.now + (left / self.rate()).ceil() as u64)
    }

    /// Takes the job that ends now; the caller has advanced to [`Pool::next_end`].
    pub fn take(&mut self) -> Option<T> {
        self.jobs.pop().map(|Reverse(job)| job.what)
    }

    /// Adds a job that takes `work` nanoseconds of a core.
    pub fn add(&mut self, now: u64, work: u64, what: T) {
        self.advance(now);
        self.sequence += 1;
        self.jobs.push(Reverse(Job {
            end: self.service + work as f64,
            sequence: self.sequence,
            what,
        }));
    }

    /// Changes the number of cores.
    pub fn set_cores(&mut self, now: u64, cores: u32) {
        self.advance(now);
        self.cores = f64::from(cores);
    }

    /// Changes the number of threads that always want to run.
    pub fn set_background(&mut self, now: u64, threads: f64) {
        self.advance(now);
        self.background = threads;
    }

    /// Core-nanoseconds that were used, and nanoseconds that were waited, until now.
    pub fn usage(&self) -> (f64, f64) {
        (self.busy, self.waited)
    }
}
