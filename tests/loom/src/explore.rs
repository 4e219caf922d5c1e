// SPDX-License-Identifier: GPL-2.0

//! Running loom, on the engine as it is and on the copies with a bug.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// Runs `run` in all interleavings in which threads are interrupted at most `preemptions` times, or
/// as often as the environment allows (`LOOM_MAX_PREEMPTIONS`). Returns how many there are.
pub(crate) fn explore(preemptions: usize, run: impl Fn() + Send + Sync + 'static) -> usize {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = runs.clone();
    let mut loom = loom::model::Builder::new();
    loom.preemption_bound.get_or_insert(preemptions);
    loom.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        run();
    });
    runs.load(Ordering::Relaxed)
}

/// Why `exploration` failed, or `None` if it did not.
pub(crate) fn failure<R>(exploration: impl FnOnce() -> R) -> Option<String> {
    let error = catch_unwind(AssertUnwindSafe(exploration)).err()?;
    let text = match error.downcast::<String>() {
        Ok(text) => *text,
        Err(error) => (*error.downcast::<&str>().expect("a message")).to_owned(),
    };
    Some(text)
}
