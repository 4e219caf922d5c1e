// SPDX-License-Identifier: GPL-2.0

//! `iocm monitor`: looks, decides and acts, once for each interval.

pub mod config;
pub mod metrics;
pub mod observe;
pub mod prices;
pub mod signals;
pub mod told;

use crate::act::ground::{Host, Whom};
use crate::act::Arms;
use crate::arguments::Monitor;
use crate::failure::{Failure, Result};
use crate::host::mapping;
use crate::host::Root;
use crate::policy::standard::Standard;
use crate::policy::Policy;
use config::Config;
use metrics::{Shared, State};
use observe::Observer;
use prices::Prices;
use sd_notify::NotifyState;
use signals::{Order, Signals};
use std::time::{Duration, Instant};
use told::Told;
use tracing::level_filters::LevelFilter;

/// How often it is made sure that guests are off the CPUs that are kept: those that came since, and
/// all of them.
const TEND: Duration = Duration::from_millis(500);
const TEND_ALL: Duration = Duration::from_secs(10);
/// For how long nothing is done after a plan failed: the first time, and at most. It doubles.
const REST: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(60);

/// Runs until it is told to end.
///
/// # Errors
///
/// A broken configuration, no module, no permission, another monitor.
pub fn run(root: &Root, options: &Monitor) -> Result<()> {
    let config = configuration(root, options)?;
    let level = std::env::var("RUST_LOG").ok();
    let level = level.and_then(|level| level.parse().ok());
    let logs = tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(LevelFilter::INFO))
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false);
    // A second one in the same process, which only tests have, goes on with the first one's.
    let _ = if std::env::var_os("JOURNAL_STREAM").is_some() {
        // systemd's journal knows the time.
        logs.without_time().try_init()
    } else {
        logs.try_init()
    };
    if options.restore {
        return Arms::recover(Host::open(root)?, config.interrupts)?.restore();
    }
    mapping::end_when_unloaded()?;
    let arms = match options.dry_run {
        true => None,
        false => Some(Arms::recover(Host::open(root)?, config.interrupts)?),
    };
    let signals = Signals::hold()?;
    let mut daemon = Daemon {
        observer: Observer::new(root)?,
        policy: Standard::new(config.policy.clone()),
        arms,
        shared: Shared::default(),
        offer: None,
        told: Told::default(),
        tended: Vec::new(),
        prices: Prices::default(),
        rest: REST,
        resting_until: None,
        config,
    };
    daemon.offer = daemon.offer(&daemon.config)?;
    let _ = sd_notify::notify(false, &[NotifyState::Ready]);
    tracing::info!(
        interval_ms = daemon.config.interval_ms,
        dry_run = options.dry_run,
        "the monitor watches"
    );
    let mut next = Instant::now() + daemon.interval();
    let mut tend = Instant::now();
    let mut tend_all = tend;
    loop {
        // systemd hears of the monitor more often than it decides, if intervals are long. If they are
        // short, to wake up for that alone is a waste.
        let due = if daemon.interval() < TEND {
            next
        } else {
            next.min(tend)
        };
        let wait = due.saturating_duration_since(Instant::now());
        match signals.wait(wait)? {
            Some(Order::Reload) => {
                daemon.reload(root, options);
                next = next.min(Instant::now() + daemon.interval());
            }
            Some(Order::End) => break,
            None => {}
        }
        if Instant::now() >= next {
            daemon.step()?;
            // Intervals that were slept through are not made up for.
            next += daemon.interval();
            let now = Instant::now();
            if next <= now {
                next = now + daemon.interval();
            }
        }
        let now = Instant::now();
        if now >= tend {
            tend = now + TEND;
            let whom = if now >= tend_all {
                tend_all = now + TEND_ALL;
                Whom::All
            } else {
                Whom::New
            };
            daemon.tend(whom);
            let _ = sd_notify::notify(false, &[NotifyState::Watchdog]);
        }
    }
    let _ = sd_notify::notify(false, &[NotifyState::Stopping]);
    tracing::info!("the monitor ends; what it has set stays, `iocm monitor --restore` undoes it");
    Ok(())
}

/// The configuration that counts.
fn configuration(root: &Root, options: &Monitor) -> Result<Config> {
    let usual = root.path(config::PATH);
    match &options.config {
        Some(path) => Config::read(path),
        None if usual.exists() => Config::read(&usual),
        None => Ok(Config::default()),
    }
}

struct Daemon {
    config: Config,
    observer: Observer,
    policy: Standard,
    /// None if nothing is to be done but said.
    arms: Option<Arms<Host>>,
    shared: Shared,
    offer: Option<metrics::Offer>,
    /// What was said that would be done.
    told: Told,
    /// The owners of devices when guests were seen to last.
    tended: Vec<i32>,
    /// What was said about numbers of cores.
    prices: Prices,
    rest: Duration,
    resting_until: Option<Instant>,
}

impl Daemon {
    /// The time between two decisions.
    fn interval(&self) -> Duration {
        Duration::from_millis(self.config.interval_ms)
    }

    /// Offers metrics where the configuration says.
    fn offer(&self, config: &Config) -> Result<Option<metrics::Offer>> {
        let listen = config.listen().map_err(Failure::Configuration)?;
        listen
            .map(|listen| metrics::serve(&listen, Shared::clone(&self.shared)))
            .transpose()
    }

    /// Reads the configuration again. A broken one changes nothing.
    fn reload(&mut self, root: &Root, options: &Monitor) {
        let _ = sd_notify::notify(false, &[NotifyState::Reloading]);
        match configuration(root, options).and_then(|config| self.adopt(config)) {
            Ok(true) => tracing::info!("the configuration was read again"),
            Ok(false) => tracing::info!("the configuration is the same"),
            Err(failure) => tracing::error!(%failure, "the configuration stays as it was"),
        }
        let _ = sd_notify::notify(false, &[NotifyState::Ready]);
    }

    /// Takes a new configuration, and says whether it is another one. Nothing has changed if it
    /// cannot be taken.
    fn adopt(&mut self, config: Config) -> Result<bool> {
        if config == self.config {
            return Ok(false);
        }
        if config.metrics != self.config.metrics {
            self.offer = self.offer(&config)?;
        }
        if config.policy != self.config.policy {
            self.policy = Standard::new(config.policy.clone());
        }
        if let Some(arms) = &mut self.arms {
            arms.set_interrupts(config.interrupts);
        }
        self.config = config;
        Ok(true)
    }

    /// One interval.
    fn step(&mut self) -> Result<()> {
        let taken: Vec<u32> = self.arms.iter().flat_map(Arms::taken).collect();
        let observation = self.observer.observe(&self.config.limits, &taken)?;
        let plan = self.policy.decide(observation);
        let cores = observation.io_cores();
        if tracing::enabled!(tracing::Level::DEBUG) {
            if let Some(prices) = self.prices.tell(self.policy.prices(), Instant::now()) {
                tracing::debug!("what cores cost, in cores, by their number: {prices}");
            }
        }
        let is_offered = self.offer.is_some();
        self.tell(|state, observer| {
            if is_offered {
                state.update(observer.snapshot(), observer.names());
            }
            state.cores = taken.len();
            state.decisions += 1;
        });
        let Some(arms) = &mut self.arms else {
            let is_content = self.policy.is_content(cores);
            if self.told.is_new(&plan, is_content) {
                for step in &plan.steps {
                    println!("would {}, for {}", step.action, step.reason);
                }
            }
            return Ok(());
        };
        if plan.is_empty() {
            return Ok(());
        }
        if self
            .resting_until
            .is_some_and(|until| Instant::now() < until)
        {
            return Ok(());
        }
        match arms.execute(&plan) {
            Ok(outcome) => {
                self.rest = REST;
                self.resting_until = None;
                self.tell(|state, _| state.steps += outcome.done as u64);
                Ok(())
            }
            // There is nothing left to decide about.
            Err(failure @ (Failure::NoModule(_) | Failure::ModuleGone)) => Err(failure),
            Err(failure) => {
                tracing::error!(%failure, rest = ?self.rest, "a plan failed");
                self.resting_until = Some(Instant::now() + self.rest);
                self.rest = (self.rest * 2).min(REST_MAX);
                self.tell(|state, _| state.failures += 1);
                Ok(())
            }
        }
    }

    fn tell(&self, change: impl FnOnce(&mut State, &Observer)) {
        metrics::with(&self.shared, |state| change(state, &self.observer));
    }

    /// Sees to the guests.
    fn tend(&mut self, whom: Whom) {
        // The last look is recent where intervals are short, and says whether somebody came.
        let owners = self.observer.snapshot().owners();
        if whom == Whom::New && self.interval() < TEND && owners == self.tended {
            return;
        }
        self.tended = owners;
        if let Some(arms) = &mut self.arms {
            if let Err(failure) = arms.tend(whom) {
                tracing::warn!(%failure, "guests may run on CPUs that are kept for I/O");
            }
        }
    }
}
