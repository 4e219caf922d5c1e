// SPDX-License-Identifier: GPL-2.0

//! When to poll a virtqueue, and when to stop.
//!
//! Polling saves a guest exit, a wake-up and an interrupt of the worker for each piece of work, and
//! costs the worker's time while there is none. It pays where the time between two pieces of work is
//! short. A virtqueue is therefore polled when work comes often, and *parked*, which means that
//! it is left to its guest to notify, when none came for a while. How long that while is adapts: if
//! work came soon after a virtqueue was parked, parking was wrong, and the next time it is given
//! twice as long; if it stayed away, half as long will do. That, and the distance between the
//! threshold to start and the time to stop, keep a virtqueue from changing to and fro.
//!
//! Time is measured and not the number of empty looks, as a look takes longer the more virtqueues a
//! worker polls, and what counts is how long the core was kept from other use.

/// Whether a virtqueue is polled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Never: its guest notifies.
    Never,
    /// From the first work on, until it is parked.
    Always,
    /// When work comes often, or the owner has asked for it.
    #[default]
    Auto,
}

/// The thresholds, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Tunables {
    /// Polling starts when the mean time between two pieces of work is shorter.
    pub start: u64,
    /// A virtqueue without work for this long is parked in every mode.
    pub idle: u64,
}

/// The shortest patience, as a fraction of the longest.
const PATIENCE_MIN_SHARE: u64 = 16;
/// Weight of a new gap in the moving average: one in 2^3.
const AVERAGE_SHIFT: u32 = 3;

/// The unit of a busy-loop timeout is 2^10 nanoseconds, as in stock vhost, where it is compared with
/// a clock that was shifted by this (`busy_clock()` in drivers/vhost/net.c).
const TIMEOUT_SHIFT: u32 = 10;

/// What is remembered of a virtqueue to decide. All times are nanoseconds of one clock.
#[derive(Clone, Copy, Debug)]
pub struct Polling {
    /// Whether the virtqueue is polled now.
    active: bool,
    /// When work was found last.
    last_work: u64,
    /// Moving average of the time between two pieces of work.
    gap: u64,
    /// When the virtqueue was parked last; 0 once that was judged.
    parked: u64,
    /// How long a virtqueue in mode auto is polled without work.
    patience: u64,
    /// For how long the owner wants it polled without work, in units of 1.024 microseconds; 0 if
    /// it has not asked for that.
    timeout: u32,
}

impl Polling {
    /// Nothing known yet.
    pub const fn new() -> Self {
        Self {
            active: false,
            last_work: 0,
            gap: u64::MAX,
            parked: 0,
            patience: 0,
            timeout: 0,
        }
    }

    /// Sets for how long the owner wants the virtqueue polled after its last work, in units of 1.024
    /// microseconds, or 0. In mode auto it is then polled from the first work on, and for that long
    /// at least, as far as [`Tunables::idle`] allows; the other modes have been set by who
    /// administers the host, and nothing changes in them.
    pub fn set_timeout(&mut self, timeout: u32) {
        self.timeout = timeout;
    }

    /// What [`Polling::set_timeout`] has set.
    pub fn timeout(&self) -> u32 {
        self.timeout
    }

    /// Whether the virtqueue is polled now.
    pub fn is_active(&self) -> bool {
        self.active
    }

    /// Notes that there was work at `now`.
    pub fn work(&mut self, now: u64, tunables: &Tunables) {
        let gap = now.saturating_sub(self.last_work);
        self.last_work = now;
        self.gap = if self.gap == u64::MAX {
            gap
        } else {
            self.gap - (self.gap >> AVERAGE_SHIFT) + (gap >> AVERAGE_SHIFT)
        };
        let shortest = tunables.idle / PATIENCE_MIN_SHARE;
        if self.parked != 0 {
            let missed = now.saturating_sub(self.parked) < self.patience;
            self.patience = if missed {
                self.patience.saturating_mul(2)
            } else {
                self.patience / 2
            };
            self.parked = 0;
        }
        self.patience = self.patience.clamp(shortest, tunables.idle.max(shortest));
    }

    /// Decides, after work was found, whether the virtqueue is polled from now on.
    pub fn start(&mut self, mode: Mode, tunables: &Tunables) -> bool {
        self.active = match mode {
            Mode::Never => false,
            Mode::Always => true,
            Mode::Auto => self.active || self.timeout != 0 || self.gap < tunables.start,
        };
        self.active
    }

    /// Decides, after a look that found nothing, whether the virtqueue goes on being polled.
    pub fn keep(&mut self, mode: Mode, now: u64, tunables: &Tunables) -> bool {
        let limit = match mode {
            Mode::Never => 0,
            Mode::Always => tunables.idle,
            Mode::Auto => {
                let timeout = u64::from(self.timeout) << TIMEOUT_SHIFT;
                self.patience.max(timeout).min(tunables.idle)
            }
        };
        now.saturating_sub(self.last_work) < limit
    }

    /// Ends polling at `now`; returns whether the virtqueue was polled.
    pub fn park(&mut self, now: u64) -> bool {
        if self.active {
            self.active = false;
            self.parked = now;
            return true;
        }
        false
    }
}

impl Default for Polling {
    fn default() -> Self {
        Self::new()
    }
}
