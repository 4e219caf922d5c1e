// SPDX-License-Identifier: GPL-2.0

//! Reports.

use super::cli::Report;
use anyhow::Result;

/// The report.
///
/// # Errors
///
/// A plot cannot be drawn.
pub fn html(_all: &Report) -> Result<String> {
    Ok(String::new())
}
