// SPDX-License-Identifier: GPL-2.0

//! How many cores are kept for I/O.
//!
//! A core that is kept costs a core, whatever is done there. Home threads cost the time that they
//! use, with their context switches, and that of the guests' notifications: less than a core where
//! there is little to do, and sometimes more than two where there is work for one. So both are
//! estimated for the load that there is, from what serving takes on this host
//! ([`super::service`], [`super::forecast`]), and the cheaper one is chosen as soon as the other one
//! has cost enough ([`super::regret`]), or at once where the load has come to a new level and stays
//! there ([`super::level`]).
//!
//! How many cores are enough is a question of what a worker would be busy for without vain slices, with
//! room for more if the load rises again and again ([`super::trend`]).
//! Whether they were enough after all is seen by the time that work waits, as in Shenango (NSDI
//! 2019) and Snap (SOSP 2019), and not by utilisation: a worker that is always busy may serve
//! everybody in time. What they were not enough for is remembered ([`super::ceiling`]).
//! Where guests use all of their cores no estimate says what one of them is worth, and it is tried
//! ([`super::trial`]).

use super::ceiling::Ceilings;
use super::forecast::{guests_busy, Assumptions, Demand, Forecast, Peaks};
use super::level::Level;
use super::observation::{Device, Observation, Place};
use super::price::Price;
use super::regret::Regret;
use super::service::Service;
use super::trend::Trend;
use super::trial::{Interval, Outcome, Trial};
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
    /// The part of the time for which a worker may be busy with moving packets.
    pub utilisation: f64,
    /// What cores that are taken have to be cheaper by: this part of a core for each of them that
    /// would be busy all the time. The busier they would be, the sooner a larger load is too much. It
    /// does not matter where the load has come to a new level and stays there ([`super::level`]).
    pub margin: f64,
    /// What is assumed of the host.
    pub assumptions: Assumptions,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            age_us: 200,
            age_burst: 4,
            bulk_bytes: 16_384,
            bulk_patience: 5,
            utilisation: 0.97,
            margin: 0.2,
            assumptions: Assumptions::default(),
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

/// What is remembered from interval to interval.
#[derive(Clone, Debug, Default)]
pub struct Cores {
    settings: Settings,
    service: Service,
    peaks: Peaks,
    trend: Trend,
    level: Level,
    regret: Regret,
    ceilings: Ceilings,
    trial: Trial,
    /// What a home thread takes, in parts of what is estimated.
    home: f64,
    /// How long it takes until a worker serves on a core that was taken, in nanoseconds.
    handover: f64,
    /// Cores when the last decision was made, if it is not seen yet what came of it.
    expected: Option<u32>,
    /// For so many intervals nothing is decided: what waited is being served.
    settling: u32,
    /// What each number of cores would have cost in the last interval.
    prices: Vec<Price>,
}

/// The weight of a new interval in a moving average.
const NEW: f64 = 0.3;
/// Intervals for which what had waited is served after a change.
const SETTLING: u32 = 1;
/// The time to take a core until it is known, in nanoseconds.
const HANDOVER: f64 = 1e6;
/// A smaller estimate for home threads, in cores, is not compared with what they take.
const NOTHING: f64 = 0.01;
/// What it costs that work waits for too long, in cores.
const LATE: f64 = 4.0;
/// A load for each core at which workers may have had no time left.
const SATURATION: f64 = 0.97;
/// The part of the guests' cores that guests may be left to use.
const GUESTS: f64 = 0.97;

impl Cores {
    /// Nothing known yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            home: 1.0,
            handover: HANDOVER,
            ..Self::default()
        }
    }

    /// What each number of cores would have cost in the last interval, from 0 on; nothing if there
    /// was nothing to decide.
    pub fn prices(&self) -> &[Price] {
        &self.prices
    }

    /// How many cores there are to be; `None`: as many as there are.
    pub fn decide(&mut self, observation: &Observation) -> Option<Verdict> {
        self.prices.clear();
        let cores = observation.io_cores();
        let limits = &observation.limits;
        let most = limits.cores_max.min(
            (observation.guest_cores().count() as u32 + cores)
                .saturating_sub(limits.guest_cores_min),
        );
        let least = limits.cores_min.min(most);
        if !(least..=most).contains(&cores) {
            return Some(Verdict {
                cores: cores.clamp(least, most),
                reason: format!("{cores} cores are outside of the limits"),
            });
        }
        let interval = observation.interval.max(1) as f64;
        if let Some(before) = self.expected.take() {
            // The interval is a mixture of what was before and what is now.
            if cores > before {
                let ages = observation.io_workers().map(|worker| worker.total);
                let youngest = ages.min().unwrap_or(0) as f64;
                self.handover = (interval - youngest).max(0.0);
            }
            self.settling = SETTLING;
            self.watch(observation, false);
            return None;
        }
        let (forecast, served, age) = self.watch(observation, true);
        if self.settling > 0 {
            self.settling -= 1;
            return None;
        }
        let is_late = cores > 0 && age.late > 1.0;
        self.ceilings.step();
        if is_late {
            self.ceilings.learn(cores, forecast.busiest(cores));
        }
        let mut prices: Vec<Price> = (0..=most)
            .map(|number| self.price(number, &forecast, observation))
            .collect();
        let is_saturated = served > SATURATION * f64::from(cores);
        let now = cores as usize;
        if cores > 0 {
            let late = if is_late { LATE } else { 0.0 };
            prices[now] = Price::Cores(f64::from(cores) + age.notifications + late);
            if is_late {
                // How much there is to do is not seen where no time is left. Home threads have all
                // the cores of the host, so they serve what is there, and it is seen how much that
                // is. If they cannot, cores are taken in steps that grow with their number.
                let enough = match (is_saturated, prices[0].value().is_finite()) {
                    (true, true) => prices.len(),
                    (true, false) => now + now.div_ceil(2),
                    (false, _) => now + 1,
                };
                for (number, price) in prices.iter_mut().enumerate().skip(1) {
                    if number != now && number < enough {
                        *price = Price::Later;
                    }
                }
            }
        } else {
            prices[0] = Price::Cores(served + age.notifications);
        }
        for price in prices.iter_mut().take(least as usize) {
            *price = Price::TooFew;
        }
        // A core that is taken from guests that are busy is worth nothing to those that do not wait for
        // packets, and with workers that serve in time nobody does.
        let is_unknown = matches!(prices.get(now + 1), Some(Price::GuestsBusy { .. }))
            && forecast.is_fast
            && (cores == 0 || is_late);
        let outcome = self.trial.step(Interval {
            cores,
            guests: observation.guest_cores().count() as u32,
            packets: forecast.packets,
            is_unknown,
        });
        if let Outcome::NoFewer(least) = outcome {
            for price in prices.iter_mut().take(least as usize) {
                *price = Price::MovedLess;
            }
        }
        let costs: Vec<f64> = prices.iter().map(|price| price.value()).collect();
        self.prices = prices;
        match outcome {
            Outcome::Stay => return None,
            Outcome::Change(cores_wanted, reason) => {
                self.expected = Some(cores);
                return Some(Verdict {
                    cores: cores_wanted,
                    reason,
                });
            }
            Outcome::Nothing | Outcome::NoFewer(_) => (),
        }
        let margins: Vec<f64> = (0..=most)
            .map(|number| self.margin(number, cores, &forecast))
            .collect();
        let change = self.handover / interval;
        let is_lasting = !is_late && self.level.tell();
        let next = self
            .regret
            .decide(now, &costs, &margins, change, is_lasting) as u32;
        if next == cores {
            return None;
        }
        self.expected = Some(cores);
        let reason = if is_late {
            format!(
                "work waits for {} us, and workers are busy for {served:.2} cores of {cores}",
                age.age / 1000
            )
        } else {
            format!(
                "{} cost {:.2} cores, and {} would cost {:.2}",
                named(cores),
                costs[now],
                named(next),
                costs[next as usize]
            )
        };
        Some(Verdict {
            cores: next,
            reason,
        })
    }

    /// What so many cores would cost.
    fn price(&self, number: u32, forecast: &Forecast, observation: &Observation) -> Price {
        if number == 0 {
            if forecast.home_busiest > SATURATION {
                return Price::HomeBusy(forecast.home_busiest);
            }
            return Price::Cores(forecast.home);
        }
        let busiest = forecast.busiest(number);
        let now = observation.io_cores();
        let growth = if number > now { forecast.growth } else { 1.0 };
        let allowed = self.settings.utilisation.min(self.ceilings.of(number));
        if busiest * growth > allowed {
            return Price::WorkerBusy(busiest * growth);
        }
        if number > now {
            // Guests get what home threads used, and lose the cores.
            let rest = if now == 0 { forecast.home } else { 0.0 };
            let left = observation.guest_cores().count() as f64 - f64::from(number - now);
            let wanted = guests_busy(observation) - rest;
            if wanted > GUESTS * left {
                return Price::GuestsBusy { wanted, left };
            }
        }
        Price::Cores(f64::from(number) + forecast.notifications)
    }

    /// What so many cores have to be cheaper by than what there is now, to be worth a change.
    fn margin(&self, number: u32, now: u32, forecast: &Forecast) -> f64 {
        if number > now {
            f64::from(number) * self.settings.margin * forecast.busiest(number)
        } else {
            0.0
        }
    }

    /// What an interval comes to, what served in it, in cores, and how long work waited. It is learned
    /// from with `learn`, which takes an interval without a change.
    fn watch(&mut self, observation: &Observation, learn: bool) -> (Forecast, f64, Age) {
        let assumptions = &self.settings.assumptions;
        let mut forecast = Forecast::default();
        let mut age = Age::default();
        let mut served = 0.0;
        let mut loads = Vec::with_capacity(observation.devices.len());
        let interval = observation.interval.max(1) as f64;
        let is_home = observation.io_cores() == 0;
        for device in &observation.devices {
            // Most devices do nothing most of the time.
            if device.is_idle() {
                loads.push((device.id, 0.0));
                continue;
            }
            let demand = Demand::of(device, observation.interval, assumptions);
            forecast.packets += demand.counts[0] * interval;
            forecast.is_fast |= demand.is_fast;
            served += demand.served;
            let notification = assumptions.notification_ns as f64;
            age.notifications += demand.notifications * notification;
            if learn && demand.counts[0] > 0.0 {
                let counts = demand.counts.map(|count| count * interval);
                self.service.learn(&counts, demand.served * interval);
            }
            let (load, notifications) = demand.at_home(&self.service, assumptions);
            forecast.home += load + notifications;
            forecast.home_busiest = forecast.home_busiest.max(load);
            forecast.notifications += demand.slow * notification;
            let allowed = self.settings.age_us as f64 * 1000.0;
            loads.push((device.id, demand.at_worker(&self.service, allowed)));
            age.look(device, &self.settings);
        }
        if learn && is_home && forecast.home > NOTHING {
            let factor = (served + age.notifications) / forecast.home;
            self.home += NEW * (factor.clamp(0.5, 2.0) - self.home);
        }
        forecast.home *= self.home;
        let load = loads.iter().map(|(_, load)| load).sum();
        forecast.growth = self.trend.follow(load);
        self.level.follow(load);
        forecast.loads = self.peaks.follow(&loads, NEW);
        (forecast, served, age)
    }
}

fn named(cores: u32) -> String {
    match cores {
        0 => "home threads and notifications".to_owned(),
        1 => "a core".to_owned(),
        _ => format!("{cores} cores"),
    }
}

/// How long work waits on workers, and what notifications took of guests.
#[derive(Clone, Copy, Debug, Default)]
struct Age {
    /// The average age of work in the worst virtqueue, in parts of what is allowed.
    late: f64,
    /// That age, in nanoseconds.
    age: u64,
    /// In cores.
    notifications: f64,
}

impl Age {
    fn look(&mut self, device: &Device, settings: &Settings) {
        for virtqueue in device.virtqueues() {
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
                if age as f64 / allowed > self.late {
                    self.late = age as f64 / allowed;
                    self.age = age;
                }
            }
        }
    }
}
