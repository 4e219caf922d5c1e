// SPDX-License-Identifier: GPL-2.0
//! Parameters of the loaded module.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;

/// A parameter that a test changed. It goes back to what it was when this is dropped.
pub struct Parameter {
    name: &'static str,
    before: String,
}

fn path(name: &str) -> PathBuf {
    Path::new("/sys/module/vhost_iocm/parameters").join(name)
}

/// What a parameter is.
pub fn read(name: &str) -> Result<String> {
    let path = path(name);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

/// A parameter that is a number of microseconds.
pub fn read_time(name: &str) -> Result<Duration> {
    let text = read(name)?;
    let number = text
        .parse()
        .with_context(|| format!("parameter {name} is {text:?}"))?;
    Ok(Duration::from_micros(number))
}

/// Writes a parameter and says how that was refused.
pub fn write(name: &str, text: &str) -> Result<(), Errno> {
    fs::write(path(name), text).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

impl Parameter {
    /// Changes a parameter.
    pub fn set(name: &'static str, text: &str) -> Result<Self> {
        let before = read(name)?;
        write(name, text).with_context(|| format!("write {text:?} to parameter {name}"))?;
        Ok(Self { name, before })
    }

    /// Changes a parameter that is a number of microseconds.
    pub fn set_time(name: &'static str, time: Duration) -> Result<Self> {
        Self::set(name, &time.as_micros().to_string())
    }
}

impl Drop for Parameter {
    fn drop(&mut self) {
        if let Err(error) = write(self.name, &self.before) {
            crate::ktap::diagnostic(format!("cannot restore parameter {}: {error}", self.name));
        }
    }
}
