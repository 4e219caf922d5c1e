// SPDX-License-Identifier: GPL-2.0

//! Whose turn it is: a worker serves a virtqueue with work and looks at one that it polls, by turns,
//! unless one of them is stuck.

/// Where a virtqueue waits for its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Among those that have work.
    Work,
    /// Among those that are polled.
    Polled,
}

/// What was found stuck and goes first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    first: Option<Place>,
    /// The place that was passed over last and has not had its turn since.
    owed: Option<Place>,
}

impl Turn {
    /// Nobody goes first.
    pub const fn new() -> Self {
        Self {
            first: None,
            owed: None,
        }
    }

    /// Notes that the next virtqueue of `place` goes first.
    pub fn set_first(&mut self, place: Place) {
        self.first = Some(place);
    }

    /// Whether `place`, the turn of which it is, is passed over since the other one goes first.
    ///
    /// No place is passed over twice in a row: those who are stuck all the time do not keep the
    /// others from being served.
    #[must_use]
    pub fn passes_over(&mut self, place: Place) -> bool {
        let is_owed = self.owed == Some(place);
        let passes = !is_owed && self.first.is_some_and(|first| first != place);
        if passes {
            self.owed = Some(place);
        } else {
            self.first = None;
            if is_owed {
                self.owed = None;
            }
        }
        passes
    }
}
