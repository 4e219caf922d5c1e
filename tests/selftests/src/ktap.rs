// SPDX-License-Identifier: GPL-2.0
//! Test cases and their report in version 1 of the Kernel Test Anything Protocol.

use std::any::Any;
use std::io::Write;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::ExitCode;

use anyhow::{anyhow, Result};

/// The exit status by which kselftest knows a program that skipped everything.
const EXIT_SKIP: u8 = 4;

/// How a case ended when it did not fail.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The claim holds.
    Pass,
    /// The claim could not be tried, for this reason.
    Skip(String),
}

/// Ends a case with a skip.
pub fn skip(reason: impl Into<String>) -> Result<Outcome> {
    Ok(Outcome::Skip(reason.into()))
}

/// What the body of a case may return: nothing when it can only pass, or an [`Outcome`].
pub trait IntoOutcome {
    /// Turns the value into an outcome.
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Outcome::Pass
    }
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

struct Case<'a> {
    claim: String,
    body: Box<dyn FnOnce() -> Result<Outcome> + 'a>,
}

/// A sequence of cases, each with one claim, run in the order in which they were added.
#[derive(Default)]
pub struct Suite<'a> {
    cases: Vec<Case<'a>>,
}

impl<'a> Suite<'a> {
    /// An empty suite.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a case. The claim says what holds when the body returns without an error.
    pub fn case<T: IntoOutcome>(
        &mut self,
        claim: impl Into<String>,
        body: impl FnOnce() -> Result<T> + 'a,
    ) {
        self.cases.push(Case {
            claim: claim.into(),
            body: Box::new(move || body().map(IntoOutcome::into_outcome)),
        });
    }

    /// Adds a case that compares times or shares of time. It says something only on a machine that
    /// does nothing else, so it is skipped unless VHOST_IOCM_MEASURE is set.
    pub fn measurement<T: IntoOutcome>(
        &mut self,
        claim: impl Into<String>,
        body: impl FnOnce() -> Result<T> + 'a,
    ) {
        self.case(claim, move || {
            if std::env::var_os("VHOST_IOCM_MEASURE").is_none() {
                return skip("measures, see make measure");
            }
            body().map(IntoOutcome::into_outcome)
        });
    }

    /// Runs the cases whose claim contains one of the filters, all of them without a filter, and
    /// reports to standard output.
    pub fn run(self, filters: &[String]) -> ExitCode {
        self.report(filters, &mut std::io::stdout())
    }

    fn report(self, filters: &[String], output: &mut dyn Write) -> ExitCode {
        let cases: Vec<_> = self
            .cases
            .into_iter()
            .filter(|case| filters.is_empty() || filters.iter().any(|f| case.claim.contains(f)))
            .collect();
        let mut report = Report::new(output);
        report.line(format_args!("KTAP version 1"));
        report.line(format_args!("1..{}", cases.len()));
        for case in cases {
            // A panic is a failure of this case alone: the others still say what they found.
            let result = catch_unwind(AssertUnwindSafe(case.body))
                .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_message(&*panic))));
            report.case(&case.claim, result);
        }
        report.exit_code()
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

struct Report<'a> {
    output: &'a mut dyn Write,
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl<'a> Report<'a> {
    fn new(output: &'a mut dyn Write) -> Self {
        Self {
            output,
            passed: 0,
            failed: 0,
            skipped: 0,
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Nobody is left to tell when standard output is gone; the exit status still speaks.
        let _ = writeln!(self.output, "{line}").and_then(|()| self.output.flush());
    }

    fn case(&mut self, claim: &str, result: Result<Outcome>) {
        let number = self.passed + self.failed + self.skipped + 1;
        match result {
            Ok(Outcome::Pass) => {
                self.passed += 1;
                self.line(format_args!("ok {number} {claim}"));
            }
            Ok(Outcome::Skip(reason)) => {
                self.skipped += 1;
                self.line(format_args!("ok {number} {claim} # SKIP {reason}"));
            }
            Err(error) => {
                self.failed += 1;
                for line in format!("{error:#}").lines() {
                    self.line(format_args!("# {line}"));
                }
                self.line(format_args!("not ok {number} {claim}"));
            }
        }
    }

    fn exit_code(&self) -> ExitCode {
        if self.failed > 0 {
            ExitCode::FAILURE
        } else if self.passed == 0 {
            ExitCode::from(EXIT_SKIP)
        } else {
            ExitCode::SUCCESS
        }
    }
}

/// Prints a diagnostic line, which a reader of the report sees and a parser of it skips.
pub fn diagnostic(text: impl AsRef<str>) {
    for line in text.as_ref().lines() {
        println!("# {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    fn run(suite: Suite<'_>, filters: &[&str]) -> (String, ExitCode) {
        let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
        let mut output = Vec::new();
        let code = suite.report(&filters, &mut output);
        (String::from_utf8(output).unwrap(), code)
    }

    #[test]
    fn report_names_every_result() {
        let mut suite = Suite::new();
        suite.case("holds", || Ok(()));
        suite.case("does not", || -> Result<()> { bail!("first\nsecond") });
        suite.case("cannot say", || skip("no such thing"));
        let (text, code) = run(suite, &[]);
        assert_eq!(
            text,
            "KTAP version 1\n1..3\nok 1 holds\n# first\n# second\nnot ok 2 does not\n\
             ok 3 cannot say # SKIP no such thing\n"
        );
        assert_eq!(code, ExitCode::FAILURE);
    }

    #[test]
    fn panic_fails_its_case_only() {
        let mut suite = Suite::new();
        suite.case("panics", || -> Result<()> { panic!("on {}", "purpose") });
        suite.case("goes on", || Ok(()));
        let (text, code) = run(suite, &[]);
        assert!(
            text.contains("# panicked: on purpose\nnot ok 1 panics\nok 2 goes on\n"),
            "{text}"
        );
        assert_eq!(code, ExitCode::FAILURE);
    }

    #[test]
    fn all_skipped_is_a_skip() {
        let mut suite = Suite::new();
        suite.case("one", || skip("never"));
        assert_eq!(run(suite, &[]).1, ExitCode::from(EXIT_SKIP));
    }

    #[test]
    fn filter_selects_by_claim() {
        let mut suite = Suite::new();
        suite.case("first thing", || Ok(()));
        suite.case("second thing", || Ok(()));
        assert_eq!(
            run(suite, &["second"]).0,
            "KTAP version 1\n1..1\nok 1 second thing\n"
        );
    }
}
