// SPDX-License-Identifier: GPL-2.0

//! The configuration of the daemon.

use crate::failure::{Failure, Result};
use crate::policy::standard;
use crate::policy::Limits;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where the configuration is, below the root, unless somebody says otherwise.
pub const PATH: &str = "etc/iocm.toml";

/// All that can be configured. monitor/iocm.toml says what each key means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Milliseconds between two decisions, 10 to 60,000.
    pub interval_ms: u64,
    /// Whether interrupts of network cards go to the CPUs of workers. They stay where they are
    /// while irqbalance runs.
    pub interrupts: bool,
    /// Where metrics are offered: a loopback address with a port, or `unix:` and the path of a
    /// socket. Empty: nowhere.
    pub metrics: String,
    /// What plans may not go beyond.
    pub limits: Limits,
    /// The policy's thresholds.
    pub policy: standard::Settings,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval_ms: 100,
            interrupts: false,
            metrics: String::new(),
            limits: Limits::default(),
            policy: standard::Settings::default(),
        }
    }
}

/// Where metrics are offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On a loopback address.
    Address(SocketAddr),
    /// On a socket in the file system.
    Socket(PathBuf),
}

impl Config {
    /// Reads a file and checks it.
    ///
    /// # Errors
    ///
    /// [`Failure::Configuration`] with the place and what is wrong there.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|error| Failure::file("read", path, error))?;
        Self::parse(&text).map_err(|what| {
            Failure::Configuration(format!(
                "{} is broken: {what}; `iocm config show` prints all keys",
                path.display()
            ))
        })
    }

    /// Reads a text and checks it.
    ///
    /// # Errors
    ///
    /// What is wrong, on one line.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let message = error.message().replace('\n', " ");
            match line {
                Some(line) => format!("line {line}: {message}"),
                None => message,
            }
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if !(10..=60_000).contains(&self.interval_ms) {
            return Err(format!(
                "interval_ms is {}, and has to be 10 to 60000",
                self.interval_ms
            ));
        }
        let limits = &self.limits;
        if limits.cores_min > limits.cores_max {
            return Err(format!(
                "limits.cores_min is {}, more than limits.cores_max, which is {}",
                limits.cores_min, limits.cores_max
            ));
        }
        self.listen()?;
        Ok(())
    }

    /// Where metrics are offered.
    ///
    /// # Errors
    ///
    /// What is wrong with it. Only this machine may ask: the answer names its VMs.
    pub fn listen(&self) -> std::result::Result<Option<Listen>, String> {
        if self.metrics.is_empty() {
            return Ok(None);
        }
        if let Some(path) = self.metrics.strip_prefix("unix:") {
            return Ok(Some(Listen::Socket(path.into())));
        }
        match self.metrics.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Some(Listen::Address(address))),
            Ok(address) => Err(format!(
                "metrics is {address}, and only loopback addresses such as 127.0.0.1:9469 are served"
            )),
            Err(_) => Err(format!(
                "metrics is {:?}, neither an address such as 127.0.0.1:9469 nor unix:PATH",
                self.metrics
            )),
        }
    }

    /// All keys with their values.
    pub fn show(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }
}
