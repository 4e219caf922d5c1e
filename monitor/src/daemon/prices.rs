// SPDX-License-Identifier: GPL-2.0

//! Tells an operator who asks for it why there are not more cores, or fewer.

use crate::policy::price::Price;
use std::mem::{discriminant, Discriminant};
use std::time::{Duration, Instant};

/// The shortest time between two answers: a load between two of them would fill the log.
const APART: Duration = Duration::from_secs(1);

/// What was told last.
#[derive(Default)]
pub struct Prices {
    /// Which number was the cheapest, and what was known of each.
    answer: (Option<usize>, Vec<Discriminant<Price>>),
    at: Option<Instant>,
}

impl Prices {
    /// What each number of cores costs, from 0 on, if that has to be told: another number is the
    /// cheapest than the last time, or there is another reason why one is out of the question.
    pub fn tell(&mut self, prices: &[Price], now: Instant) -> Option<String> {
        let is_soon = |at| now.saturating_duration_since(at) < APART;
        if prices.is_empty() || self.at.is_some_and(is_soon) {
            return None;
        }
        let numbered = prices.iter().enumerate();
        let cheapest = numbered
            .clone()
            .min_by(|(_, one), (_, other)| one.value().total_cmp(&other.value()))
            .map(|(cores, _)| cores);
        let answer = (cheapest, prices.iter().map(discriminant).collect());
        if answer == self.answer {
            return None;
        }
        self.answer = answer;
        self.at = Some(now);
        let each: Vec<String> = numbered
            .map(|(cores, price)| format!("{cores}: {price}"))
            .collect();
        Some(each.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_answer_is_told_once_and_not_too_soon() {
        let mut prices = Prices::default();
        let begin = Instant::now();
        let cheap = [Price::Cores(0.42), Price::Cores(1.1)];
        let busy = [Price::Cores(0.9), Price::WorkerBusy(0.98)];
        assert_eq!(prices.tell(&[], begin), None);
        let told = prices.tell(&cheap, begin).expect("the first answer");
        assert_eq!(told, "0: 0.42; 1: 1.10");
        assert_eq!(prices.tell(&busy, begin + APART / 2), None);
        let dearer = [Price::Cores(0.5), Price::Cores(1.2)];
        assert_eq!(prices.tell(&dearer, begin + APART), None, "the same answer");
        let told = prices.tell(&busy, begin + APART).expect("another one");
        assert_eq!(told, "0: 0.90; 1: no, a worker would be busy for 0.98");
        let taken = [Price::Cores(1.5), Price::Cores(1.2)];
        assert!(prices.tell(&taken, begin + 2 * APART).is_some());
        let same = [Price::Cores(1.4), Price::Cores(1.3)];
        assert_eq!(prices.tell(&same, begin + 3 * APART), None);
        let other = [Price::Cores(1.2), Price::Cores(1.3)];
        assert!(prices.tell(&other, begin + 3 * APART).is_some());
    }
}
