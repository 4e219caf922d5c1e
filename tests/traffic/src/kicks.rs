// SPDX-License-Identifier: GPL-2.0
//! How often a network card's driver has notified its device.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::libc;

/// Requests of `<linux/ethtool.h>`, and the set of strings that names the statistics.
const GET_STRINGS: u32 = 0x1b;
const GET_STATISTICS: u32 = 0x1d;
const GET_SET_INFO: u32 = 0x37;
const STATISTICS: u32 = 1;

/// Bytes of a name, filled up with zeros.
const NAME_LENGTH: usize = 32;
/// Bytes before the names, and before the values.
const STRINGS_HEADER: usize = 12;
const VALUES_HEADER: usize = 8;

/// The notifications that the driver of this interface has made, of all its virtqueues.
///
/// virtio_net counts those that the device wanted, as `ethtool -S` shows.
///
/// # Errors
///
/// There is no such interface, or its driver counts no kicks.
pub fn count(interface: &str) -> Result<u64> {
    let card = Card::new(interface)?;
    // Command, reserved, mask of sets, and room for the length of one set.
    let mut info = [0; 20];
    info[8..16].copy_from_slice(&(1u64 << STATISTICS).to_ne_bytes());
    card.ask(GET_SET_INFO, &mut info)?;
    let length = u32::from_ne_bytes(*info.last_chunk().context("no length")?);

    let mut strings = vec![0; STRINGS_HEADER + NAME_LENGTH * length as usize];
    strings[4..8].copy_from_slice(&STATISTICS.to_ne_bytes());
    card.ask(GET_STRINGS, &mut strings)?;
    let mut values = vec![0; VALUES_HEADER + size_of::<u64>() * length as usize];
    card.ask(GET_STATISTICS, &mut values)?;
    sum(&strings[STRINGS_HEADER..], &values[VALUES_HEADER..])
        .with_context(|| format!("{interface} counts no kicks"))
}

/// Adds up the kicks for receiving and for transmitting, of which the driver gives the totals beside those of each
/// queue; `None` if there are none.
fn sum(names: &[u8], values: &[u8]) -> Option<u64> {
    let (names, _) = names.as_chunks::<NAME_LENGTH>();
    let (values, _) = values.as_chunks::<8>();
    names
        .iter()
        .zip(values)
        .filter(|(name, _)| {
            let end = name.iter().position(|byte| *byte == 0);
            let name = &name[..end.unwrap_or(NAME_LENGTH)];
            name == b"rx_kicks" || name == b"tx_kicks"
        })
        .map(|(_, value)| u64::from_ne_bytes(*value))
        .reduce(|sum, value| sum.wrapping_add(value))
}

/// An interface of which something is asked.
struct Card {
    /// Any socket will do.
    socket: UdpSocket,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Card {
    fn new(interface: &str) -> Result<Self> {
        let mut name = [0; libc::IFNAMSIZ];
        ensure!(
            interface.len() < name.len(),
            "{interface} is no interface's name"
        );
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a socket")?;
        Ok(Self { socket, name })
    }

    /// Executes `command` with a buffer that has room for the answer.
    fn ask(&self, command: u32, buffer: &mut [u8]) -> Result<()> {
        buffer[..4].copy_from_slice(&command.to_ne_bytes());
        let mut request = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: buffer.as_mut_ptr().cast(),
            },
        };
        // SAFETY: The request lives across the call. The kernel writes as many names and values as the
        // driver has to the buffer, which has room for them: a driver's number of them changes with its
        // queues only, which nobody changes meanwhile.
        let result = unsafe {
            libc::ioctl(
                self.socket.as_raw_fd(),
                libc::SIOCETHTOOL as _,
                &mut request,
            )
        };
        Errno::result(result).context("the interface's driver does not answer")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for name in names {
            bytes.extend_from_slice(name.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(NAME_LENGTH), 0);
        }
        bytes
    }

    fn values(values: &[u64]) -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_ne_bytes())
            .collect()
    }

    #[test]
    fn the_totals_are_added_and_nothing_else() {
        let names = names(&["rx_packets", "rx_kicks", "tx_kicks", "rx0_kicks"]);
        assert_eq!(sum(&names, &values(&[1000, 20, 3, 500])), Some(23));
    }

    #[test]
    fn a_driver_without_kicks_is_told_from_one_that_made_none() {
        assert_eq!(sum(&names(&["rx_errors"]), &values(&[7])), None);
        assert_eq!(sum(&names(&["rx_kicks"]), &values(&[0])), Some(0));
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        assert!(count("no-such-card").is_err());
        assert!(count("a-name-of-thirty-two-characters.").is_err());
        assert!(count("lo").is_err());
    }
}
