// SPDX-License-Identifier: GPL-2.0
//! Numbered Ethernet frames that carry their own checksum.

use anyhow::{ensure, Context, Result};

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// The EtherType of the frames: IEEE 802's first one for local experiments, so that no protocol of the
/// host answers them and a packet socket bound to it sees nothing else.
pub const ETHERTYPE: u16 = 0x88b5;
/// The shortest frame: Ethernet's own minimum, without its check sequence.
pub const MINIMUM: usize = 60;
/// Bytes of the longest one without its check sequence, on an Ethernet with an MTU of 1500.
pub const MAXIMUM: usize = 1514;

/// The EtherType of frames that nobody listens to: the second one for local experiments.
pub const UNHEARD_ETHERTYPE: u16 = 0x88b6;

const MAGIC: u32 = 0x696f_636d;
/// Offsets behind the Ethernet header.
const STREAM: usize = ETHERNET_HEADER + 4;
const SEQUENCE: usize = STREAM + 4;
const LENGTH: usize = SEQUENCE + 8;
const CHECKSUM: usize = LENGTH + 4;
const FILLER: usize = CHECKSUM + 4;

const _: () = assert!(FILLER <= MINIMUM);

/// What a frame says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Which stream of frames it belongs to.
    pub stream: u32,
    /// Its place in the stream.
    pub sequence: u64,
    /// Its length.
    pub length: usize,
}

/// Builds a frame of this length, at least [`MINIMUM`].
pub fn encode(stream: u32, sequence: u64, length: usize) -> Vec<u8> {
    assert!(length >= MINIMUM, "frame of {length} bytes");
    let mut frame = vec![0; length];
    // Locally administered addresses that are nobody's: the frames go to whoever listens.
    frame[..6].copy_from_slice(&[0x02, 0, 0, 0, 0, 2]);
    frame[6..12].copy_from_slice(&[0x02, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    frame[ETHERNET_HEADER..STREAM].copy_from_slice(&MAGIC.to_be_bytes());
    frame[STREAM..SEQUENCE].copy_from_slice(&stream.to_be_bytes());
    frame[SEQUENCE..LENGTH].copy_from_slice(&sequence.to_be_bytes());
    frame[LENGTH..CHECKSUM].copy_from_slice(&(length as u32).to_be_bytes());
    // Every frame has a filler of its own, so that a mix of two frames does not pass for one.
    for (offset, byte) in frame[FILLER..].iter_mut().enumerate() {
        *byte = (offset as u8).wrapping_add((sequence as u8).wrapping_mul(31));
    }
    let checksum = checksum(&frame);
    frame[CHECKSUM..FILLER].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// Builds a frame of this length that the host drops as soon as it has it.
pub fn unheard(length: usize) -> Vec<u8> {
    let mut frame = encode(0, 0, length);
    frame[12..14].copy_from_slice(&UNHEARD_ETHERTYPE.to_be_bytes());
    frame
}

/// Checks a frame and reads its number.
pub fn decode(frame: &[u8]) -> Result<Numbered> {
    ensure!(
        frame.len() >= MINIMUM,
        "frame of {} bytes is too short",
        frame.len()
    );
    let word = |at: usize| -> Result<u32> {
        let bytes = frame.get(at..at + 4).context("short frame")?;
        Ok(u32::from_be_bytes(bytes.try_into()?))
    };
    ensure!(word(ETHERNET_HEADER)? == MAGIC, "frame is not one of ours");
    let numbered = Numbered {
        stream: word(STREAM)?,
        sequence: u64::from(word(SEQUENCE)?) << 32 | u64::from(word(SEQUENCE + 4)?),
        length: word(LENGTH)? as usize,
    };
    ensure!(
        numbered.length == frame.len(),
        "{numbered:?} arrived with {} bytes",
        frame.len()
    );
    let computed = checksum(frame);
    let carried = word(CHECKSUM)?;
    ensure!(
        computed == carried,
        "{numbered:?} is damaged: its checksum is {computed:#x}, it says {carried:#x}"
    );
    Ok(numbered)
}

fn checksum(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..CHECKSUM]);
    hasher.update(&frame[FILLER..]);
    hasher.finalize()
}

/// Keeps account of the sequence numbers of one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The number that comes next when nothing goes wrong.
    next: u64,
    /// Frames that arrived, each counted once.
    pub received: u64,
    /// Numbers that were passed over and have not arrived.
    missing: std::collections::BTreeSet<u64>,
    /// Frames that arrived a second time.
    pub duplicated: u64,
    /// Frames that arrived after a later one.
    pub reordered: u64,
}

impl Account {
    /// Notes the arrival of this number.
    pub fn note(&mut self, sequence: u64) {
        if sequence >= self.next {
            self.missing.extend(self.next..sequence);
            self.next = sequence + 1;
            self.received += 1;
        } else if self.missing.remove(&sequence) {
            self.reordered += 1;
            self.received += 1;
        } else {
            self.duplicated += 1;
        }
    }

    /// Of this many frames sent, how many have not arrived.
    pub fn lost(&self, sent: u64) -> u64 {
        sent.saturating_sub(self.received)
    }

    /// Fails unless exactly the frames sent arrived, in order.
    pub fn expect_all(&self, sent: u64) -> Result<()> {
        ensure!(
            self.received == sent && self.duplicated == 0 && self.reordered == 0,
            "of {sent} frames, {} lost, {} duplicated, {} reordered (first missing: {:?})",
            self.lost(sent),
            self.duplicated,
            self.reordered,
            self.missing.first()
        );
        Ok(())
    }

    /// Fails unless what arrived did so once and in order, whatever was lost.
    pub fn expect_order(&self) -> Result<()> {
        ensure!(
            self.duplicated == 0 && self.reordered == 0,
            "{} frames duplicated, {} reordered",
            self.duplicated,
            self.reordered
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_reverses_encode() {
        for length in [MINIMUM, 61, 1514, 9014, 65000] {
            let frame = encode(7, 1 << 40, length);
            assert_eq!(frame.len(), length);
            let numbered = Numbered {
                stream: 7,
                sequence: 1 << 40,
                length,
            };
            assert_eq!(decode(&frame).unwrap(), numbered);
        }
    }

    #[test]
    fn every_damaged_byte_shows() {
        let frame = encode(1, 2, MINIMUM);
        for position in 0..frame.len() {
            let mut damaged = frame.clone();
            damaged[position] ^= 1;
            assert!(decode(&damaged).is_err(), "byte {position}");
        }
        assert!(decode(&frame[..MINIMUM - 1]).is_err());
    }

    #[test]
    fn account_tells_losses_duplicates_and_reordering_apart() {
        let mut account = Account::default();
        for sequence in [0, 1, 2] {
            account.note(sequence);
        }
        account.expect_all(3).unwrap();

        account.note(5);
        assert_eq!(account.lost(6), 2);
        account.expect_order().unwrap();
        account.note(3);
        assert_eq!((account.reordered, account.lost(6)), (1, 1));
        assert!(account.expect_order().is_err());
        account.note(3);
        assert_eq!(account.duplicated, 1);
        assert!(account.expect_all(6).is_err());
    }

    #[test]
    fn frames_missing_at_the_end_are_lost() {
        let mut account = Account::default();
        account.note(0);
        assert!(account.expect_all(2).is_err());
    }
}
