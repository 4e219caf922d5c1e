// SPDX-License-Identifier: GPL-2.0

//! Trees of files that look like a host.

// Each test program uses some of it.
#![allow(dead_code)]

use iocm::host::Root;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;
use vhost_iocm_engine::engine::snapshot::{COUNTERS, MAGIC, PAGE_HEAD, VERSION};

/// Words of a page.
const PAGE: usize = 512;

/// A root directory of its own.
pub struct Tree(TempDir);

impl Tree {
    /// An empty one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// Writes a file, and makes the directories above it.
    pub fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(path, text).expect("a file");
    }

    /// Changes bytes of a file where they are, as the module does with what is mapped.
    pub fn overwrite(&self, path: &str, offset: usize, bytes: &[u8]) {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).open(self.path(path)).expect("a file");
        file.write_all_at(bytes, offset as u64).expect("bytes");
    }

    /// The files below it.
    pub fn root(&self) -> Root {
        Root::new(self.0.path())
    }

    /// A file of it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// The program, which takes this for the host.
    pub fn iocm(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_iocm"));
        command.arg("--root").arg(self.0.path()).args(arguments);
        command
    }
}

/// The page of a kind, with one record.
fn page(kind: u64, record: usize, words: &[(usize, u64)]) -> Vec<u64> {
    let mut page = vec![0; PAGE];
    page[..3].copy_from_slice(&[kind, record as u64 * 8, 3]);
    // The second record: the first one is not used any more.
    let start = PAGE_HEAD + record;
    for (word, value) in [(1, 4), (2, 1)].iter().chain(words) {
        page[start + word] = *value;
    }
    page
}

/// The binary snapshot of the host.
pub fn snapshot() -> Vec<u8> {
    let mut words = vec![0; PAGE];
    words[..7].copy_from_slice(&[MAGIC, VERSION, PAGE as u64 * 8, 4, 8, 1, 5]);
    let name = |text: &[u8; 8]| u64::from_ne_bytes(*text);
    words.extend(page(
        1,
        64,
        &[(3, 5), (4, 77), (5, 2), (6, 1), (26, 1000), (41, 9)],
    ));
    words.extend(page(
        2,
        24,
        &[
            (3, 6),
            (4, 4242),
            (5, name(b"qemu-sys")),
            (7, name(b"vnet0\0\0\0")),
            (11, 1),
            (17, 150),
        ],
    ));
    words.extend(page(
        3,
        72,
        &[
            (3, 6),
            (4, 1),
            (5, 5),
            (6, 2),
            (COUNTERS + 1, 12),
            (18, 3400),
        ],
    ));
    words
        .iter()
        .flat_map(|word: &u64| word.to_ne_bytes())
        .collect()
}

/// A host with a worker on CPU 2, and a VM that may run there too.
pub fn host() -> Tree {
    let tree = Tree::new();
    tree.write("sys/class/vhost/snapshot", snapshot());
    tree.write("sys/class/vhost/worker/w.5/cpu", "2\n");
    tree.write("sys/class/vhost/worker/w.5/displaced", "0\n");
    tree.write("sys/devices/system/cpu/online", "0-3\n");
    tree.write("sys/devices/system/cpu/isolated", "3\n");
    for cpu in 0..4 {
        let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        tree.write(&path, format!("{}-{}\n", cpu / 2 * 2, cpu / 2 * 2 + 1));
    }
    tree.write("sys/devices/system/node/node0/cpulist", "0-1\n");
    tree.write("sys/devices/system/node/node1/cpulist", "2-3\n");
    tree.write("proc/misc", "120 vhost-net\n");
    tree.write("proc/modules", "tun 1 0 - Live 0x0\n");
    tree.write("proc/4242/comm", "qemu-system-x86\n");
    tree.write(
        "proc/4242/cmdline",
        b"qemu\0-name\0guest=web,,1,debug-threads=on\0",
    );
    tree.write("proc/4242/cgroup", "0::/machine.slice/web.scope/libvirt\n");
    for (tid, comm) in [(4242, "qemu-system-x86"), (4243, "CPU 0/KVM")] {
        tree.write(
            &format!("proc/4242/task/{tid}/status"),
            format!("Name:\t{comm}\nCpus_allowed_list:\t0-2\n"),
        );
    }
    tree
}

/// What a program said that should have failed: its exit status, and its only line.
pub fn failure(output: &Output) -> (Option<i32>, String) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.lines().count(), 1, "not one line: {text}");
    (output.status.code(), text)
}
