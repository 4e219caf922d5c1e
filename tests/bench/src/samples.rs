// SPDX-License-Identifier: GPL-2.0
//! Measurements that another program made: lines of a metric, a subject and a number, in the order in which they
//! were made.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;

use anyhow::{ensure, Context, Result};
use vhost_iocm_selftests::statistics::median;

use crate::pairs::{self, Subject};
use crate::record::{Record, Tier};

/// What the names of the subjects begin with that are compared with the others.
const OURS: &str = "ours";

/// Compares ours with the others, for each metric and measurement by measurement. If ours or the others are several
/// subjects, the one whose median is the greatest is compared. The rest is on record as well, and so is a metric of
/// which ours have no part.
pub fn compare(tier: Tier, input: impl BufRead) -> Result<Vec<Record>> {
    let mut metrics: BTreeMap<String, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for line in input.lines() {
        let line = line?;
        let (metric, subject, value) =
            parse(&line).with_context(|| format!("{line:?} is no measurement"))?;
        metrics
            .entry(metric.to_owned())
            .or_default()
            .entry(subject.to_owned())
            .or_default()
            .push(value);
    }
    let mut records = Vec::new();
    for (metric, subjects) in metrics {
        let lengths: BTreeSet<usize> = subjects.values().map(Vec::len).collect();
        ensure!(
            lengths.len() == 1 && lengths.iter().all(|length| *length >= 3),
            "{metric}: its subjects have been measured {lengths:?} times"
        );
        let (ours, others): (Vec<_>, Vec<_>) = subjects
            .iter()
            .map(|(name, values)| (name.as_str(), values.as_slice()))
            .partition(|(name, _)| name.starts_with(OURS));
        let reference =
            best(&others).with_context(|| format!("{metric}: nothing to compare with"))?;
        let Some(own) = best(&ours) else {
            records.extend(
                others
                    .iter()
                    .map(|subject| pairs::alone(tier, &metric, *subject)),
            );
            continue;
        };
        for subject in [ours, others].concat() {
            if subject != own && subject != reference {
                records.push(pairs::alone(tier, &metric, subject));
            }
        }
        let [stock, ours, ratio] = pairs::compare(tier, &metric, reference, own);
        records.extend([stock, ours]);
        // What was too little to be measured can be on record, but nothing can be divided by it.
        if reference.1.iter().all(|value| *value > 0.0) {
            records.push(ratio);
        }
    }
    Ok(records)
}

/// The subject whose median is the greatest, without its first measurement.
fn best<'a>(subjects: &[Subject<'a>]) -> Option<Subject<'a>> {
    let typical = |values: &[f64]| median(&values[1..]);
    subjects
        .iter()
        .copied()
        .max_by(|one, other| typical(one.1).total_cmp(&typical(other.1)))
}

/// The parts of a line, of which the last one is a number that is not below zero.
fn parse(line: &str) -> Option<(&str, &str, f64)> {
    let mut words = line.split_whitespace();
    let parts = (words.next()?, words.next()?, words.next()?.parse().ok()?);
    (words.next().is_none() && parts.2 >= 0.0 && f64::is_finite(parts.2)).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(lines: &str) -> Result<BTreeMap<String, f64>> {
        let records = compare(Tier::T4, lines.as_bytes())?;
        Ok(records
            .into_iter()
            .map(|record| (record.metric, record.median))
            .collect())
    }

    #[test]
    fn ours_is_compared_with_the_best_of_the_others_and_the_first_does_not_count() {
        let lines = "rate one 900\nrate two 2\nrate ours 900\n\
            rate ours 4\nrate two 8\nrate one 5\nrate one 5\nrate two 8\nrate ours 6\n";
        let records = records(lines).expect("complete measurements");
        assert_eq!(records["rate_one"], 5.0);
        assert_eq!(records["rate_two"], 8.0);
        // The median of two is the greater one.
        assert_eq!(records["rate_ours"], 6.0);
        assert_eq!(records["rate"], 0.75);
    }

    #[test]
    fn the_best_of_ours_is_compared() {
        let lines = "rate ours 9\nrate ours_core 1\nrate stock 9\n\
            rate stock 4\nrate ours_core 8\nrate ours 2\nrate ours 2\nrate ours_core 8\nrate stock 4\n";
        let records = records(lines).expect("complete measurements");
        assert_eq!(records["rate_ours"], 2.0);
        assert_eq!(records["rate_ours_core"], 8.0);
        assert_eq!(records["rate_stock"], 4.0);
        assert_eq!(records["rate"], 2.0);
    }

    #[test]
    fn what_says_nothing_is_refused() {
        let enough = "rate stock 1\nrate ours 1\nrate ours 1\nrate stock 1\nrate stock 1\n";
        assert!(records(&format!("{enough}rate ours 1\n")).is_ok());
        assert!(records(enough).is_err(), "one is missing");
        for line in [
            "rate ours",
            "rate ours -1",
            "rate ours NaN",
            "rate ours inf",
            "rate ours 1 1",
            "not ok",
            "other ours 1",
            "other stock 1",
        ] {
            assert!(records(&format!("{enough}{line}\n")).is_err(), "{line}");
        }
    }

    #[test]
    fn what_ours_has_no_part_in_is_on_record() {
        let records = records("share stock 1\nshare stock 3\nshare stock 3\n")
            .expect("complete measurements");
        assert_eq!(
            records.into_iter().collect::<Vec<_>>(),
            [("share_stock".to_owned(), 3.0)]
        );
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        let lines =
            "rate stock 1\nrate ours 1\nrate ours 1\nrate stock 0\nrate stock 1\nrate ours 1\n";
        let records = records(lines).expect("complete measurements");
        assert_eq!(records["rate_ours"], 1.0);
        assert_eq!(records["rate_stock"], 1.0);
        assert!(!records.contains_key("rate"));
    }
}
