// SPDX-License-Identifier: GPL-2.0

//! How many cores are kept for I/O.
//!
//! A core more is needed when work waits for too long, as in Shenango (NSDI 2019) and Snap (SOSP
//! 2019), and not when a core is busy: a worker that is always busy may serve everybody in time.
//! Utilisation says how many cores are enough when work does not wait.
//!
//! Whether any core is kept at all is a question of cost. A core that is kept costs a core, whatever
//! is done there. Home threads cost the time that they use, with their context switches, and that of
//! the guests' notifications: less than a core where there is little to do, and sometimes less than
//! two where there is work for one and a half. What each of the two ways takes is remembered, by
//! the rate of packets, since a thread that is woken for each packet takes more for it than one
//! that never sleeps. Where nothing is known yet the guess is in favour of what was not tried, so it
//! gets tried, and is taken back soon if the guess was wrong.
//!
//! Changes cost as well, so they need a reason for some intervals in a row, and a core that was given
//! back too soon makes the next time wait longer (see also [`super::regret`]).

use super::observation::{Observation, Place};
use super::regret::Regret;
use serde::{Deserialize, Serialize};

/// The thresholds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Work that waits for longer on average is congestion, in microseconds.
    pub age_us: u64,
    /// The oldest work of an interval may be so many times as old.
    pub age_burst: u64,
    /// Packets of so many bytes and more are bulk: for who sends these, throughput is what counts.
    /// The original's rule for large packets: with them a further core gains little.
    pub bulk_bytes: u64,
    /// Work of virtqueues that move bulk may wait so many times as long.
    pub bulk_patience: u64,
    /// Intervals in a row with a reason before a core is taken.
    pub late_intervals: u32,
    /// Intervals in a row with a reason before a core is given back.
    pub idle_intervals: u32,
    /// The part of the time for which workers may be busy after a core is given back.
    pub utilisation: f64,
    /// The part of the time for which workers would be busy instead of home threads.
    pub start_utilisation: f64,
    /// What has to be gained by keeping cores instead of home threads, for each core; and by the
    /// opposite, in cores.
    pub gain: f64,
    /// What a guest's notification costs it, in nanoseconds.
    pub notification_ns: u64,
    /// What it costs a home thread to be woken by it and to sleep again, in nanoseconds. It is used
    /// as long as nothing better is known.
    pub wake_ns: u64,
    /// What it costs to begin and end a slice, in nanoseconds: what a busy worker saves, as it moves
    /// more packets in each.
    pub slice_ns: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            age_us: 200,
            age_burst: 4,
            bulk_bytes: 16_384,
            bulk_patience: 5,
            late_intervals: 2,
            idle_intervals: 4,
            utilisation: 0.9,
            start_utilisation: 0.8,
            gain: 0.1,
            notification_ns: 1400,
            wake_ns: 2500,
            slice_ns: 400,
        }
    }
}

/// How many cores there are to be, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The number of cores.
    pub cores: u32,
    /// Why.
    pub reason: String,
}

/// What an interval comes to, for the number of cores.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Cores that are kept.
    pub cores: u32,
    /// What serving took, in cores.
    pub load: f64,
    /// What their notifications took of guests, in cores.
    pub notifications: f64,
    /// What home threads took to be woken and to sleep again, as far as is known, in cores.
    pub wakes: f64,
    /// What beginning and ending slices took, as far as is known, in cores.
    pub slices: f64,
    /// Packets that were moved in a second.
    pub rate: f64,
    /// The average age of work in the worst virtqueue, in parts of what is allowed.
    pub late: f64,
    /// That age, in nanoseconds.
    pub age: u64,
}

impl Summary {
    /// Sums up an interval.
    pub fn of(observation: &Observation, settings: &Settings) -> Self {
        let interval = observation.interval.max(1) as f64;
        let mut summary = Self {
            cores: observation.io_cores(),
            ..Self::default()
        };
        let mut served = 0u64;
        let mut notifications = 0u64;
        let mut wakes = 0u64;
        let mut slices = 0u64;
        let mut packets = 0u64;
        for virtqueue in observation
            .devices
            .iter()
            .flat_map(|device| &device.virtqueues)
        {
            served = served.saturating_add(virtqueue.served);
            slices = slices.saturating_add(virtqueue.slices);
            if virtqueue.id.index != RECEIVE {
                notifications = notifications.saturating_add(virtqueue.notifications);
            }
            wakes = wakes.saturating_add(virtqueue.notifications);
            packets = packets.saturating_add(virtqueue.packets);
            if virtqueue.place == Place::Home {
                continue;
            }
            let is_bulk = virtqueue.bytes / virtqueue.packets.max(1) >= settings.bulk_bytes;
            let patience = if is_bulk { settings.bulk_patience } else { 1 };
            let allowed = settings.age_us.saturating_mul(1000 * patience).max(1) as f64;
            let burst = allowed * settings.age_burst.max(1) as f64;
            for (age, allowed) in [
                (virtqueue.pending_average, allowed),
                (virtqueue.pending_max, burst),
            ] {
                if age as f64 / allowed > summary.late {
                    summary.late = age as f64 / allowed;
                    summary.age = age;
                }
            }
        }
        summary.load = served as f64 / interval;
        summary.notifications = notifications as f64 * settings.notification_ns as f64 / interval;
        summary.wakes = wakes as f64 * settings.wake_ns as f64 / interval;
        summary.slices = slices as f64 * settings.slice_ns as f64 / interval;
        summary.rate = packets as f64 * 1e9 / interval;
        summary
    }
}

/// What a packet took, by the number of packets in a second: the n-th entry is for rates from 2^n.
#[derive(Clone, Debug)]
struct Experience([Option<f64>; 40]);

impl Default for Experience {
    fn default() -> Self {
        Self([None; 40])
    }
}

impl Experience {
    fn bucket(rate: f64) -> usize {
        (rate.max(1.0).log2() as usize).min(39)
    }

    /// Notes that at this rate packets took so many cores.
    fn note(&mut self, rate: f64, cores: f64) {
        if rate < 1.0 {
            return;
        }
        let packet = cores / rate;
        let entry = &mut self.0[Self::bucket(rate)];
        *entry = Some(entry.map_or(packet, |known| known + NEW * (packet - known)));
    }

    /// How many cores packets would take at this rate, if it is known for this one or a higher one,
    /// at which a packet takes less.
    fn guess(&self, rate: f64) -> Option<f64> {
        self.0[Self::bucket(rate)..]
            .iter()
            .flatten()
            .next()
            .map(|packet| packet * rate)
    }
}

/// What is remembered from interval to interval.
#[derive(Clone, Debug, Default)]
pub struct Cores {
    settings: Settings,
    regret: Regret,
    /// Intervals in a row with a reason for more cores.
    late: u32,
    /// Intervals in a row with a reason for fewer.
    idle: u32,
    /// The load and its rate: moving averages that believe at once what rises.
    load: f64,
    rate: f64,
    /// What packets took at home.
    at_home: Experience,
    /// For so many intervals nothing is decided: what waited is being served.
    settling: u32,
    /// How many intervals in a row with a reason it takes to give a core back.
    wait: u32,
    /// Intervals since one was given back.
    since_release: u32,
}

/// The weight of a new interval in a moving average.
const NEW: f64 = 0.3;
/// Intervals for which what had waited is served after a change.
const SETTLING: u32 = 1;
/// A core that is needed again within this many times the wait was given back too soon.
const TOO_SOON: u32 = 3;
/// The longest wait before a core is given back, in intervals.
const WAIT_MAX: u32 = 200;
/// The virtqueue for which the backend notifies and not the guest.
const RECEIVE: u32 = 0;
/// The part of what slices take that a busy worker saves.
const SAVED: f64 = 0.75;
/// A load for each core at which workers may have had no time left.
const SATURATION: f64 = 0.97;
/// What home threads take where nothing is known, in parts of what workers do. It is a guess in
/// favour of home threads.
const HOME_GUESS: f64 = 1.2;

impl Cores {
    /// Nothing known yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            wait: settings.idle_intervals,
            settings,
            since_release: u32::MAX,
            ..Self::default()
        }
    }

    /// How many cores there are to be; `None`: as many as there are.
    pub fn decide(&mut self, observation: &Observation) -> Option<Verdict> {
        let summary = Summary::of(observation, &self.settings);
        let limits = &observation.limits;
        let most = limits.cores_max.min(
            (observation.guest_cores().count() as u32 + summary.cores)
                .saturating_sub(limits.guest_cores_min),
        );
        let least = limits.cores_min.min(most);
        if !(least..=most).contains(&summary.cores) {
            return Some(Verdict {
                cores: summary.cores.clamp(least, most),
                reason: format!("{} cores are outside of the limits", summary.cores),
            });
        }
        self.since_release = self.since_release.saturating_add(1);
        self.regret.pass();
        let follow = |average: f64, new: f64| (average + NEW * (new - average)).max(new);
        self.load = follow(self.load, summary.load);
        self.rate = follow(self.rate, summary.rate);
        if self.settling > 0 {
            self.settling -= 1;
            return None;
        }
        let verdict = if summary.cores == 0 {
            self.decide_home(&summary)
        } else {
            self.decide_kept(&summary)
        };
        let verdict = verdict.map(|verdict| Verdict {
            cores: verdict.cores.clamp(least, most),
            ..verdict
        });
        let verdict = verdict.filter(|verdict| verdict.cores != summary.cores)?;
        self.late = 0;
        self.idle = 0;
        self.settling = SETTLING;
        if verdict.cores < summary.cores {
            self.since_release = 0;
        } else if self.since_release < self.wait.saturating_mul(TOO_SOON) {
            self.wait = self.wait.saturating_mul(2).min(WAIT_MAX);
        } else {
            self.wait = self.settings.idle_intervals.max(self.wait / 2);
        }
        Some(verdict)
    }

    /// The cores that are enough if they are all used, and there is a load, in cores, of `rate` packets in a second.
    fn enough(&self, load: f64, rate: f64) -> u32 {
        let least = (load.ceil() as u32).max(1);
        // It takes no more than twice as many: what failed was nearly enough, or something else.
        (least..least * 2)
            .find(|cores| self.regret.allows(*cores, rate))
            .unwrap_or(least * 2)
    }

    fn decide_home(&mut self, summary: &Summary) -> Option<Verdict> {
        let cost = summary.load + summary.notifications;
        self.at_home.note(summary.rate, cost);
        let load = (summary.load - summary.wakes - summary.slices).max(0.0);
        let enough = self.enough(load / self.settings.start_utilisation, summary.rate);
        // Each core that is taken has to be handed over twice, and is kept for a while in vain.
        if cost < f64::from(enough) * (1.0 + self.settings.gain) {
            self.late = 0;
            return None;
        }
        self.late += 1;
        (self.late >= self.settings.late_intervals).then(|| Verdict {
            cores: enough,
            reason: format!(
                "home threads and notifications take {cost:.2} cores, and workers would be busy for {load:.2}"
            ),
        })
    }

    fn decide_kept(&mut self, summary: &Summary) -> Option<Verdict> {
        let cores = summary.cores;
        if summary.late <= 1.0 {
            self.late = 0;
            return self.decide_fewer(summary);
        }
        self.idle = 0;
        self.late += 1;
        if self.late < self.settings.late_intervals {
            return None;
        }
        self.regret.fail(cores, summary.rate);
        // Where no time is left the load is not known: then it is searched for in steps that grow
        // with the number of cores.
        let is_saturated = summary.load > SATURATION * f64::from(cores);
        let more = if is_saturated { cores.div_ceil(2) } else { 1 };
        let home = self.home(summary);
        if home + self.settings.gain < f64::from(cores + more) + summary.notifications {
            // Home threads have all the cores of the host, so they serve what is there, and it is
            // seen how much that is.
            return Some(Verdict {
                cores: 0,
                reason: format!(
                    "work waits for {} us, and home threads would take {home:.2} cores",
                    summary.age / 1000
                ),
            });
        }
        Some(Verdict {
            cores: cores + more,
            reason: format!(
                "work waits for {} us, and workers are busy for {:.2} cores of {cores}",
                summary.age / 1000,
                summary.load
            ),
        })
    }

    /// What home threads would take, in cores.
    fn home(&self, summary: &Summary) -> f64 {
        self.at_home
            .guess(self.rate)
            .unwrap_or(self.load * HOME_GUESS + summary.notifications)
    }

    /// Whether cores can be given back.
    fn decide_fewer(&mut self, summary: &Summary) -> Option<Verdict> {
        let cores = summary.cores;
        let home = self.home(summary);
        // A worker that is busier moves more packets in each slice.
        let least = (self.load - summary.slices * SAVED).max(0.0);
        let mut enough = self
            .enough(least / self.settings.utilisation, self.rate)
            .min(cores);
        let mut wait = self.wait;
        if f64::from(enough) * self.settings.utilisation < self.load {
            // Whether it is enough takes a try.
            wait = wait.saturating_mul(2);
        }
        if home + self.settings.gain < f64::from(enough) + summary.notifications {
            enough = 0;
            wait = self.wait;
        }
        if enough == cores {
            self.idle = 0;
            return None;
        }
        self.idle += 1;
        (self.idle >= wait).then(|| Verdict {
            cores: enough,
            reason: if enough == 0 {
                format!("home threads would take {home:.2} cores")
            } else {
                format!("workers are busy for {:.2} cores of {cores}", self.load)
            },
        })
    }
}
