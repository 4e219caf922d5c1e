// SPDX-License-Identifier: GPL-2.0

//! Names of processes and interfaces, as the module tells them.

use serde::{Serialize, Serializer};
use std::fmt;
use vhost_iocm_engine::engine::snapshot::NAME_SIZE;

/// The bytes of a name, which end with the first zero. Whoever chose it may have chosen any bytes,
/// so it is text only where it is shown. Names are copied in each interval, and hardly ever shown.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Name([u8; NAME_SIZE]);

impl Name {
    /// From the words that the module has of it.
    pub fn from_words(words: [u64; NAME_SIZE / size_of::<u64>()]) -> Self {
        let mut name = Self::default();
        for (bytes, word) in name.0.chunks_exact_mut(size_of::<u64>()).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        name
    }
}

impl From<&str> for Name {
    /// The first bytes of a text.
    fn from(text: &str) -> Self {
        let mut name = Self::default();
        for (byte, from) in name.0.iter_mut().zip(text.bytes()) {
            *byte = from;
        }
        name
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = self.0.iter().position(|byte| *byte == 0);
        let bytes = &self.0[..length.unwrap_or(NAME_SIZE)];
        f.pad(&super::printable(&String::from_utf8_lossy(bytes)))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_without_what_a_terminal_would_obey() {
        assert_eq!(Name::from("vnet0").to_string(), "vnet0");
        assert_eq!(Name::from("a\x1b[2Jb\0c").to_string(), "a?[2Jb");
        let word = u64::from_ne_bytes(*b"\xff\xffworker");
        let name = Name::from_words([word, word]);
        assert_eq!(name.to_string(), "\u{fffd}\u{fffd}worker".repeat(2));
    }

    #[test]
    fn a_name_is_text_in_json() {
        let json = serde_json::to_string(&Name::from("qemu")).expect("JSON");
        assert_eq!(json, "\"qemu\"");
    }
}
