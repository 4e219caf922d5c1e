// SPDX-License-Identifier: GPL-2.0
//! What a case did on one node and what it saw, line by line.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::device::{describe, Answer, Device};

/// How long a node may take to do what the other one did.
const PATIENCE: Duration = Duration::from_secs(3);

/// Rounds in which stock vhost must be still, and the most that are waited for that.
const STILL: usize = 2;
const ROUNDS: usize = 200;

/// A record of one run.
pub struct Transcript<'a> {
    /// The lines so far.
    pub lines: Vec<String>,
    /// The lines that are expected, where it is known what happens.
    expected: Option<&'a [String]>,
    /// Whether a line and what was seen instead differ on purpose.
    is_known: fn(&str, &str) -> bool,
    /// How long it is waited for what cannot be seen, like a packet that is dropped.
    linger: Duration,
    /// Whether the comparison ends with the last line.
    pub stopped: bool,
}

impl<'a> Transcript<'a> {
    /// A record of stock vhost, from which nothing is expected.
    pub fn of_stock() -> Self {
        Self {
            lines: Vec::new(),
            expected: None,
            is_known: |_, _| false,
            linger: Duration::ZERO,
            stopped: false,
        }
    }

    /// A record of a node that is expected to do this.
    pub fn of_ours(expected: &'a [String], linger: Duration) -> Self {
        Self {
            lines: Vec::new(),
            expected: Some(expected),
            is_known: |_, _| false,
            linger,
            stopped: false,
        }
    }

    /// The same, where a line may differ in this way, and the comparison ends with it.
    pub fn but_for(mut self, is_known: fn(&str, &str) -> bool) -> Self {
        self.is_known = is_known;
        self
    }

    /// Whether this is the record that another one is compared with.
    pub fn is_of_stock(&self) -> bool {
        self.expected.is_none()
    }

    /// Whether it is known that this line comes next.
    pub fn expects(&self, line: &str) -> bool {
        let next = self.expected.and_then(|lines| lines.get(self.lines.len()));
        next.is_some_and(|next| next == line)
    }

    /// Ends the comparison before the last line, if that is known to be different. Returns whether it is.
    pub fn stops_short(&mut self) -> bool {
        let at = self.lines.len().saturating_sub(1);
        let expected = self.expected.and_then(|lines| lines.get(at));
        let (Some(expected), Some(seen)) = (expected, self.lines.last()) else {
            return false;
        };
        self.stopped = expected != seen && (self.is_known)(expected, seen);
        if self.stopped {
            self.lines.pop();
        }
        self.stopped
    }

    /// Notes a fact.
    pub fn note(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// Notes the answer to a call.
    pub fn answer(&mut self, call: &str, answer: &Answer) {
        self.note(format!("{call}: {}", describe(answer)));
    }

    /// Notes what can be seen when the device has done all that it was told.
    ///
    /// Stock vhost does what was queued before a flush in it, so it is flushed until nothing changes.
    /// From the other node the same is expected, within [`PATIENCE`].
    pub fn settle(
        &mut self,
        device: &Device,
        mut look: impl FnMut() -> Result<String>,
    ) -> Result<()> {
        let seen = match self.expected {
            None => {
                let mut seen = String::new();
                let mut still = 0;
                for _ in 0..ROUNDS {
                    device.flush()?;
                    let now = look()?;
                    still = if now == seen { still + 1 } else { 0 };
                    seen = now;
                    if still >= STILL {
                        break;
                    }
                }
                seen
            }
            Some(expected) => {
                // What comes after a difference is another story, which nobody needs to wait for.
                let parted = difference(
                    &expected[..self.lines.len().min(expected.len())],
                    &self.lines,
                );
                let patience = if parted.is_some() {
                    Duration::ZERO
                } else {
                    PATIENCE
                };
                let expected = expected.get(self.lines.len());
                let end = Instant::now() + patience;
                std::thread::sleep(self.linger);
                loop {
                    let seen = look()?;
                    let is_expected =
                        expected.is_some_and(|line| *line == seen || (self.is_known)(line, &seen));
                    if is_expected || Instant::now() > end {
                        break seen;
                    }
                    std::thread::yield_now();
                }
            }
        };
        self.note(seen);
        Ok(())
    }
}

/// Where two records part, in words; nothing when they are the same.
pub fn difference(expected: &[String], seen: &[String]) -> Option<String> {
    let longer = expected.len().max(seen.len());
    let at = (0..longer).find(|at| expected.get(*at) != seen.get(*at))?;
    let line = |lines: &[String]| lines.get(at).map_or("nothing".to_owned(), String::clone);
    Some(format!(
        "line {}\nexpected: {}\nseen:     {}",
        at + 1,
        line(expected),
        line(seen)
    ))
}
