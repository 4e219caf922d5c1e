// SPDX-License-Identifier: GPL-2.0
//! What vhost_iocm does with rings otherwise than stock vhost_net, on purpose. A scene ends with it,
//! as the two devices are not in the same state any more.

use crate::device::TRANSMIT;

/// What a record says where stock vhost tries to transmit a chain for ever, although its socket has
/// room: one whose packet it cannot build. vhost_iocm gives such a chain back as if it were sent, or
/// reports it, and goes on: nobody may keep a worker busy for nothing that others share.
pub const FOR_EVER: &str = "a chain cannot be transmitted";

/// Whether stock vhost passed over chains that vhost_iocm stays at.
///
/// The first of them is one that can be walked, but is empty or in the wrong direction. Stock vhost
/// reports it and takes it from the available ring all the same, without ever giving it back: it is
/// lost. vhost_iocm stays at it, as both do at every other broken chain. Stock vhost goes on to the
/// chain behind it when it looks again, which is once for each packet that arrives or only once for
/// them all, as it happens: how many chains it takes and what it does with them is not compared, nor are
/// the packets that it transmits from them.
pub fn is_passed_over(stock: &str, ours: &str) -> bool {
    let parts = |text: &str| text.split("; ").map(str::to_owned).collect::<Vec<_>>();
    let (stock, ours) = (parts(stock), parts(ours));
    // Chains that only stock vhost transmitted, once that is known: virtqueues come first in a record.
    let mut transmitted = 0;
    stock.len() == ours.len()
        && stock.iter().zip(&ours).all(|(stock, ours)| {
            if stock == ours {
                return true;
            }
            let Some(count) = chains_ahead(stock, ours) else {
                return has_more_packets(stock, ours, transmitted);
            };
            if stock.starts_with(&format!("virtqueue {TRANSMIT}:")) {
                transmitted = count;
            }
            true
        })
}

/// What a record tells of a virtqueue.
struct Record<'a> {
    /// What the step and the virtqueue are.
    name: &'a str,
    base: u16,
    used: u16,
    is_broken: bool,
    /// The used elements of the step.
    elements: Vec<&'a str>,
}

impl<'a> Record<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (name, rest) = text.split_once(": base ")?;
        let (base, rest) = rest.split_once(", used ")?;
        let (used, rest) = rest.split_once(',')?;
        let (_, rest) = rest.split_once("error ")?;
        let mut words = rest.split_whitespace();
        Some(Self {
            name,
            base: base.parse().ok()?,
            used: used.parse().ok()?,
            is_broken: words.next()? == "true",
            elements: words.collect(),
        })
    }
}

/// How many chains stock vhost gave back more, if the records of a virtqueue differ in nothing but that it
/// went on from where vhost_iocm reported a broken chain.
fn chains_ahead(stock: &str, ours: &str) -> Option<usize> {
    let (stock, ours) = (Record::parse(stock)?, Record::parse(ours)?);
    let (taken, given_back) = (
        stock.base.wrapping_sub(ours.base),
        stock.used.wrapping_sub(ours.used),
    );
    let is_ahead = stock.name == ours.name
        && stock.is_broken
        && ours.is_broken
        && given_back < taken
        && taken < 1 << 15
        && stock.elements.starts_with(&ours.elements)
        && stock.elements.len() - ours.elements.len() == usize::from(given_back);
    is_ahead.then_some(given_back.into())
}

/// Whether the host received the same from both, and then at most so many packets more from stock vhost.
fn has_more_packets(stock: &str, ours: &str, most: usize) -> bool {
    let packets = |text: &str| -> Option<Vec<String>> {
        let list = text.strip_prefix("received ")?;
        Some(list.split_whitespace().map(str::to_owned).collect())
    };
    let (Some(stock), Some(ours)) = (packets(stock), packets(ours)) else {
        return false;
    };
    stock.starts_with(&ours) && stock.len() - ours.len() <= most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(base: u16, used: u16, error: bool, elements: &str) -> String {
        format!(
            "step 1; virtqueue 1: base {base}, used {used}, flags 0, available event 0, call true, \
             error {error} {elements}; received "
        )
    }

    #[test]
    fn a_lost_chain_is_known_only_with_an_error() {
        assert!(is_passed_over(
            &line(0, 3, true, "0:0"),
            &line(65535, 3, true, "0:0")
        ));
        assert!(is_passed_over(
            &line(6, 4, true, "0:0 1:7"),
            &line(4, 4, true, "0:0 1:7")
        ));
        assert!(!is_passed_over(
            &line(5, 3, false, "0:0"),
            &line(4, 3, false, "0:0")
        ));
        assert!(!is_passed_over(
            &line(4, 3, true, "0:0"),
            &line(5, 3, true, "0:0")
        ));
    }

    #[test]
    fn what_stock_does_behind_a_lost_chain_is_not_compared_but_all_before() {
        let ours = line(4, 3, true, "0:0");
        assert!(is_passed_over(&line(6, 4, true, "0:0 5:9"), &ours));
        assert!(!is_passed_over(&line(5, 4, true, "0:0 5:9"), &ours));
        assert!(!is_passed_over(&line(6, 4, true, "0:1 5:9"), &ours));
        assert!(!is_passed_over(&line(6, 4, true, "0:0"), &ours));
    }

    #[test]
    fn packets_of_chains_behind_a_lost_one_are_not_compared_but_all_before() {
        let stock = line(7, 5, true, "0:0 5:0 6:0");
        let ours = line(4, 3, true, "0:0");
        let is_known = |more: &str, packets: &str| {
            is_passed_over(&format!("{stock}{more}"), &format!("{ours}{packets}"))
        };
        assert!(is_known("60:aa 61:bb", ""));
        assert!(is_known("60:aa 61:bb", "60:aa"));
        assert!(!is_known("60:aa 61:bb", "61:bb"));
        assert!(!is_known("60:aa 61:bb 62:cc", ""));
        assert!(!is_known("", "60:aa"));
    }

    #[test]
    fn packets_are_compared_where_nothing_was_lost() {
        let line = line(4, 4, false, "0:0");
        assert!(!is_passed_over(&format!("{line}60:aa"), &line));
    }
}
