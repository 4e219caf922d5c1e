// SPDX-License-Identifier: GPL-2.0
//! The bytes of scripts: those of the fuzzer's corpus, and what can be made of them.

use std::fs;

use anyhow::{ensure, Context, Result};
use vhost_iocm_fuzz::CORPUS;
use vhost_iocm_selftests::random::Random;

/// The longest script, in bytes; that of the fuzzer.
const LENGTH_MAX: usize = 512;

/// Scripts by number, the same ones in every run with the same seed and corpus.
pub struct Inputs {
    seed: u64,
    corpus: Vec<Vec<u8>>,
}

impl Inputs {
    /// Reads the corpus.
    pub fn new(seed: u64) -> Result<Self> {
        let files = fs::read_dir(CORPUS).with_context(|| format!("list {CORPUS}"))?;
        let mut paths: Vec<_> = files
            .map(|file| file.map(|file| file.path()))
            .collect::<Result<_, _>>()?;
        paths.sort();
        let read = |path| fs::read(path).with_context(|| format!("read {CORPUS}"));
        let corpus: Vec<_> = paths.into_iter().map(read).collect::<Result<_>>()?;
        ensure!(!corpus.is_empty(), "{CORPUS} is empty");
        Ok(Self { seed, corpus })
    }

    /// A script: of the corpus as long as there are some, then a mutation of one of them, or one of any
    /// bytes.
    pub fn get(&self, number: u64) -> Vec<u8> {
        if let Some(input) = self.corpus.get(number as usize) {
            return input.clone();
        }
        let mut random = Random::new(self.seed.wrapping_mul(1 << 32).wrapping_add(number));
        let mut input = random.choose(&self.corpus).clone();
        if random.below(8) == 0 {
            input = vec![0; 1 + random.below(LENGTH_MAX)];
            input.fill_with(|| random.below(256) as u8);
        }
        for _ in 0..1 + random.below(4) {
            self.mutate(&mut input, &mut random);
        }
        input.truncate(LENGTH_MAX);
        input
    }

    fn mutate(&self, input: &mut Vec<u8>, random: &mut Random) {
        let at = random.below(input.len() + 1);
        match random.below(4) {
            0 => input.insert(at, random.below(256) as u8),
            1 if at < input.len() => drop(input.remove(at)),
            2 if at < input.len() => input[at] = random.below(256) as u8,
            // Goes on as another one does.
            _ => {
                let other = random.choose(&self.corpus);
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
}
