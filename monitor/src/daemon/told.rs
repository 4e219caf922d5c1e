// SPDX-License-Identifier: GPL-2.0

//! Says once what would be done.
//!
//! Where nothing is done the policy wants the same again. It does so in each interval, or every few of
//! them, as it waits after a change for what comes of it, and until the next one pays.

use crate::policy::{Action, Plan};

/// What was said and not withdrawn.
#[derive(Debug, Default)]
pub struct Told(Vec<Action>);

impl Told {
    /// Whether a plan has to be said: something in it was not in the last one that was said.
    /// `is_content` says that the policy wants the number of cores that there is. If it wants nothing
    /// else either, what was said before is withdrawn, and said again when it is wanted again.
    pub fn is_new(&mut self, plan: &Plan, is_content: bool) -> bool {
        let mut actions = plan.steps.iter().map(|step| &step.action);
        if plan.is_empty() && is_content {
            self.0.clear();
        }
        let is_new = actions.any(|action| !self.0.contains(action));
        if is_new {
            self.0 = plan.steps.iter().map(|step| step.action.clone()).collect();
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(cpus: &[u32]) -> Plan {
        let mut plan = Plan::default();
        for (index, cpu) in cpus.iter().enumerate() {
            plan.push(Action::AddCore { cpu: *cpu }, format!("reason {index}"));
        }
        plan
    }

    #[test]
    fn change_is_said_once() {
        let mut told = Told::default();
        assert!(!told.is_new(&keep(&[]), true));
        assert!(told.is_new(&keep(&[3]), false));
        for _ in 0..10 {
            assert!(!told.is_new(&keep(&[]), false), "it waits");
            assert!(!told.is_new(&keep(&[3]), false), "the same");
        }
    }

    #[test]
    fn another_change_is_said() {
        let mut told = Told::default();
        assert!(told.is_new(&keep(&[3]), false));
        assert!(told.is_new(&keep(&[3, 4]), false));
        assert!(!told.is_new(&keep(&[3, 4]), false));
        assert!(!told.is_new(&keep(&[4]), false), "it is a part of that");
        assert!(told.is_new(&keep(&[5]), false));
    }

    #[test]
    fn change_that_was_withdrawn_is_said_again() {
        let mut told = Told::default();
        assert!(told.is_new(&keep(&[3]), false));
        assert!(!told.is_new(&keep(&[]), true));
        assert!(told.is_new(&keep(&[3]), false));
    }
}
