// SPDX-License-Identifier: GPL-2.0

//! What a number of cores would cost, and why it is out of the question if it is.

use std::fmt;

/// What a number of cores costs with the load that there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Price {
    /// So many cores.
    Cores(f64),
    /// Nothing counts: home threads are too busy, the busiest one for this part of the time.
    HomeBusy(f64),
    /// A worker would be too busy: for this part of the time, or of more than there is.
    WorkerBusy(f64),
    /// Guests would want so many of the cores that they would be left.
    GuestsBusy {
        /// Cores that they want.
        wanted: f64,
        /// Cores that they would have.
        left: f64,
    },
    /// Fewer cores than the limits allow.
    TooFew,
    /// Work waits with the number that there is, and others are not known to help more.
    Later,
    /// Fewer moved less when it was tried.
    MovedLess,
}

impl Price {
    /// What it comes to, in cores: infinitely much if it is out of the question.
    pub fn value(self) -> f64 {
        match self {
            Self::Cores(cost) => cost,
            _ => f64::INFINITY,
        }
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cores(cost) => write!(f, "{cost:.2}"),
            Self::HomeBusy(load) => write!(f, "no, a home thread would be busy for {load:.2}"),
            Self::WorkerBusy(load) => write!(f, "no, a worker would be busy for {load:.2}"),
            Self::GuestsBusy { wanted, left } => {
                write!(f, "no, guests want {wanted:.2} of the {left:.0} left")
            }
            Self::TooFew => write!(f, "no, fewer than the limits allow"),
            Self::Later => write!(f, "no, only if others do not help"),
            Self::MovedLess => write!(f, "no, it moved less when it was tried"),
        }
    }
}
