// SPDX-License-Identifier: GPL-2.0

//! The committed corpus: nothing in it fails, and it is worth its place, since it reaches whatever
//! the engine can do and finds bugs that are planted in copies of the engine.

use std::path::Path;
use std::{env, fs, panic};

use vhost_iocm_engine::{atomics, engine};
use vhost_iocm_fuzz::{device_ring, run, DeviceRing, Outcomes, CORPUS, ERRORS, EVENTS};

#[allow(
    warnings,
    clippy::all,
    reason = "what is wrong with the copies is the point of them"
)]
mod planted {
    include!(concat!(env!("OUT_DIR"), "/planted.rs"));
}

/// The inputs in a directory with their names, in the same order everywhere, small ones first.
fn inputs(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let files = fs::read_dir(directory).expect("a corpus");
    let mut inputs: Vec<_> = files
        .map(|file| {
            let file = file.expect("a corpus");
            let name = file.file_name().into_string().expect("a plain name");
            (name, fs::read(file.path()).expect("an input"))
        })
        .collect();
    inputs.sort_by(|one, other| (one.1.len(), one).cmp(&(other.1.len(), other)));
    inputs
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    inputs(Path::new(CORPUS))
}

#[test]
fn every_input_ends_well_and_together_they_reach_everything() {
    let mut seen = Outcomes::default();
    for (name, input) in corpus() {
        println!("{name}");
        let Outcomes { errors, events } = run::<engine::ring::Ring>(&input);
        seen.errors.extend(errors);
        seen.events.extend(events);
    }
    for error in ERRORS {
        assert!(seen.errors.contains(&error), "{error:?} is not reached");
    }
    for event in EVENTS {
        assert!(seen.events.contains(&event), "{event:?} is not reached");
    }
}

fn fails<R: DeviceRing + Default + 'static>(input: &[u8]) -> bool {
    panic::catch_unwind(|| run::<R>(input)).is_err()
}

fn is_found<R: DeviceRing + Default + 'static>() -> bool {
    corpus().iter().any(|(_, input)| fails::<R>(input))
}

macro_rules! planted_bugs_are_found {
    ($($bug:ident)*) => {
        $(
            device_ring!(crate::planted::ring::$bug);
        )*
        /// One test for each planted bug.
        mod finds {
            $(
                #[test]
                fn $bug() {
                    assert!(super::is_found::<super::planted::ring::$bug::Ring>());
                }
            )*
        }
        /// Whether an input finds a bug, for each of them.
        const FINDS: &[fn(&[u8]) -> bool] = &[$(fails::<planted::ring::$bug::Ring>),*];
    };
}

planted::planted_bugs!(ring, planted_bugs_are_found);

/// Adds inputs that were collected, until the corpus reaches and finds everything.
#[test]
#[ignore = "changes the corpus; tests/fuzz/run --distil does this"]
fn complete_the_corpus() {
    let collected = env::var_os("FUZZ_COLLECTED").expect("a directory");
    let mut seen = Outcomes::default();
    let mut left = FINDS.to_vec();
    let mut is_new = |input: &[u8]| {
        let Outcomes { errors, events } = run::<engine::ring::Ring>(input);
        let before = (seen.errors.len(), seen.events.len(), left.len());
        for error in errors {
            if !seen.errors.contains(&error) {
                seen.errors.push(error);
            }
        }
        for event in events {
            if !seen.events.contains(&event) {
                seen.events.push(event);
            }
        }
        left.retain(|finds| !finds(input));
        before != (seen.errors.len(), seen.events.len(), left.len())
    };
    for (_, input) in corpus() {
        is_new(&input);
    }
    for (name, input) in inputs(Path::new(&collected)) {
        if is_new(&input) {
            fs::write(Path::new(CORPUS).join(name), input).expect("a writable corpus");
        }
    }
}
