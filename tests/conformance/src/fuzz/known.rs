// SPDX-License-Identifier: GPL-2.0
//! What vhost_iocm does with rings otherwise than stock vhost_net, on purpose. A scene ends with it,
//! as the two devices are not in the same state any more.

/// What a record says where stock vhost tries to transmit a chain for ever, although its socket has
/// room: one whose packet it cannot build. vhost_iocm gives such a chain back as if it were sent, or
/// reports it, and goes on: nobody may keep a worker busy for nothing that others share.
pub const FOR_EVER: &str = "a chain cannot be transmitted";

/// Whether stock vhost passed over a chain that vhost_iocm stays at.
///
/// That is one that can be walked, but is empty or in the wrong direction. Stock vhost reports it and
/// takes it from the available ring all the same, without ever giving it back: it is lost.
/// vhost_iocm stays at it, as both do at every other broken chain.
pub fn is_passed_over(stock: &str, ours: &str) -> bool {
    let parts = |text: &str| text.split("; ").map(str::to_owned).collect::<Vec<_>>();
    let (stock, ours) = (parts(stock), parts(ours));
    stock.len() == ours.len()
        && stock
            .iter()
            .zip(&ours)
            .all(|(stock, ours)| stock == ours || differ_by_a_chain(stock, ours))
}

/// Whether the records of a virtqueue differ in nothing but that stock vhost took one chain more, and
/// reported it.
fn differ_by_a_chain(stock: &str, ours: &str) -> bool {
    let cut = |text: &str| -> Option<(String, u16, String)> {
        let (before, rest) = text.split_once(": base ")?;
        let (base, after) = rest.split_once(',')?;
        Some((before.to_owned(), base.parse().ok()?, after.to_owned()))
    };
    match (cut(stock), cut(ours)) {
        (Some(stock), Some(ours)) => {
            stock.0 == ours.0
                && stock.1 == ours.1.wrapping_add(1)
                && stock.2 == ours.2
                && ours.2.contains("error true")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_chain_more_is_known_only_with_an_error() {
        let line = |base: u16, used: u16, error: bool| {
            format!("step 1; virtqueue 1: base {base}, used {used}, error {error} 0:0; received ")
        };
        assert!(is_passed_over(&line(0, 3, true), &line(65535, 3, true)));
        assert!(!is_passed_over(&line(5, 3, false), &line(4, 3, false)));
        assert!(!is_passed_over(&line(5, 4, true), &line(4, 3, true)));
        assert!(!is_passed_over(&line(6, 3, true), &line(4, 3, true)));
    }
}
