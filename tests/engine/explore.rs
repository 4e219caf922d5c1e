// SPDX-License-Identifier: GPL-2.0

//! Exhaustive exploration of a run that depends on choices, by running it again for each of them.

/// The choices of one run. Those of an earlier run are repeated up to the last one that still has
/// an alternative.
#[derive(Default)]
pub struct Choices {
    made: Vec<(u8, u8)>,
    at: usize,
}

impl Choices {
    /// Chooses a number below `count`.
    pub fn choose(&mut self, count: u8) -> u8 {
        if count == 1 {
            return 0;
        }
        if self.at == self.made.len() {
            self.made.push((0, count));
        }
        let (choice, of) = self.made[self.at];
        assert_eq!(of, count, "the run does not depend on its choices alone");
        self.at += 1;
        choice
    }

    /// Chooses yes or no.
    pub fn flip(&mut self) -> bool {
        self.choose(2) == 1
    }

    /// Goes on to the next run; returns false when there is none.
    fn advance(&mut self) -> bool {
        self.made.truncate(self.at);
        self.at = 0;
        while let Some((choice, count)) = self.made.pop() {
            if choice + 1 < count {
                self.made.push((choice + 1, count));
                return true;
            }
        }
        false
    }
}

/// Runs `run` for all combinations of choices; returns how many there are.
pub fn all_runs(mut run: impl FnMut(Choices) -> Choices) -> usize {
    let mut choices = Choices::default();
    let mut runs = 0;
    loop {
        choices = run(choices);
        runs += 1;
        if !choices.advance() {
            return runs;
        }
    }
}

#[test]
fn every_combination_of_choices_is_run_once() {
    let mut seen = Vec::new();
    let runs = all_runs(|mut choices| {
        let first = choices.choose(3);
        let second = if first == 1 { choices.choose(2) } else { 9 };
        seen.push((first, second));
        choices
    });
    assert_eq!(runs, 4);
    assert_eq!(seen, [(0, 9), (1, 0), (1, 1), (2, 9)]);
}
