// SPDX-License-Identifier: GPL-2.0
//! Payload bytes that differ from packet to packet.

/// A prime, so that the payloads of neighbouring packets start at unrelated places of the block.
const STRIDE: u64 = 4099;

/// A block of pseudo-random bytes from which every packet takes a window.
///
/// Generating fresh bytes for each packet would cost more than the network does when the machine
/// is emulated; windows of one block are free and still tell any two neighbouring packets apart.
pub struct Pattern {
    bytes: Vec<u8>,
    longest: usize,
}

impl Pattern {
    /// Prepares windows of at most `longest` bytes.
    pub fn new(longest: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let bytes = std::iter::repeat_with(|| {
            // Marsaglia's xorshift64: full period, three instructions, no dependency.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        })
        .take(longest + 65536)
        .collect();
        Self { bytes, longest }
    }

    /// The `length` bytes that belong to packet `sequence`.
    ///
    /// # Panics
    ///
    /// When `length` exceeds what [`Pattern::new`] was told.
    pub fn window(&self, sequence: u64, length: usize) -> &[u8] {
        assert!(length <= self.longest);
        let start = (sequence.wrapping_mul(STRIDE) & 0xffff) as usize;
        &self.bytes[start..start + length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_differ() {
        let pattern = Pattern::new(1000);
        for sequence in 0..1000 {
            assert_ne!(
                pattern.window(sequence, 1000),
                pattern.window(sequence + 1, 1000)
            );
        }
    }
}
