// SPDX-License-Identifier: GPL-2.0

//! Copies of the engine with one bug each, for tests that have to find them.
//!
//! A build script includes this file. The bug is planted in the source as it is now, by replacing
//! a text, and the build fails when the text is not there exactly once: whoever changes the line
//! says anew what would be wrong with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// A bug to plant.
pub struct Bug {
    /// What the copy's module is called.
    pub name: &'static str,
    /// Where the text is, below `src/engine`. The directory is copied, as a module that uses the
    /// rest of the engine as it is.
    pub file: &'static str,
    /// A part of the source.
    pub text: &'static str,
    /// What stands there instead.
    pub instead: &'static str,
}

/// Writes the copies, and `planted.rs` to include them with: a module for each bug, in one named
/// like the directory. Its macro `planted_bugs` calls another macro with the names of all that are
/// copies of a directory.
pub fn plant(bugs: &[Bug]) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("a build script"));
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("a build script"));
    let engine = package.join("../../src/engine");
    println!("cargo::rerun-if-changed={}", engine.display());
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../planting.rs");
    let mut directories: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for bug in bugs {
        let (directory, _) = bug.file.split_once('/').expect("a file in a directory");
        let module = copy_with_bug(&engine, directory, &out.join("planted"), bug);
        let modules = directories.entry(directory).or_default();
        modules.push((bug.name, module));
    }
    let mut modules = String::new();
    let mut arms = String::new();
    for (directory, bugs) in directories {
        let declare =
            |(name, path): &(&str, PathBuf)| format!("#[path = {path:?}] pub mod {name};\n");
        let declarations: String = bugs.iter().map(declare).collect();
        let names: Vec<_> = bugs.iter().map(|(name, _)| *name).collect();
        modules += &format!("pub mod {directory} {{\n{declarations}}}\n");
        arms += &format!(
            "({directory}, $call:ident) => {{ $call! {{ {} }} }};\n",
            names.join(" ")
        );
    }
    let text =
        format!("{modules}macro_rules! planted_bugs {{\n{arms}}}\npub(crate) use planted_bugs;\n");
    fs::write(out.join("planted.rs"), text).expect("a writable directory");
}

/// Copies `directory`, with the bug; returns the file that begins the module.
fn copy_with_bug(engine: &Path, directory: &str, copies: &Path, bug: &Bug) -> PathBuf {
    let copy = copies.join(directory).join(bug.name);
    fs::create_dir_all(&copy).expect("a writable directory");
    let mut planted = false;
    for entry in fs::read_dir(engine.join(directory)).expect("a part of the engine") {
        let from = entry.expect("a part of the engine").path();
        let mut text = fs::read_to_string(&from).expect("a source");
        if from == engine.join(bug.file) {
            let count = text.matches(bug.text).count();
            assert_eq!(
                count, 1,
                "bug '{}' cannot be planted: '{}' is {count} times in src/engine/{}",
                bug.name, bug.text, bug.file
            );
            text = text.replace(bug.text, bug.instead);
            planted = true;
        }
        let name = from.file_name().expect("a file");
        fs::write(copy.join(name), text).expect("a writable directory");
    }
    assert!(planted, "there is no src/engine/{}", bug.file);
    copy.join("mod.rs")
}
