// SPDX-License-Identifier: GPL-2.0

//! What cannot be done is said in one sentence with the way out, and has an exit status of its own.

mod tree;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use tree::{failure, host, Tree};

/// A host whose worker, device and virtqueue have directories.
fn with_objects() -> Tree {
    let tree = host();
    for file in [
        "worker/w.5/nice",
        "worker/w.5/locked",
        "worker/create",
        "worker/remove",
        "dev/d.6/worker",
        "vq/vq.6.1/poll",
    ] {
        tree.write(&format!("sys/class/vhost/{file}"), "0\n");
    }
    tree
}

/// Runs the program on a tree, and checks its exit status, and that its only line has these words.
fn expect(tree: &Tree, arguments: &[&str], status: i32, words: &[&str]) {
    check(&mut tree.iocm(arguments), status, words);
}

fn check(command: &mut Command, status: i32, words: &[&str]) {
    let output = command.output().expect("run iocm");
    let (code, line) = failure(&output);
    assert_eq!(code, Some(status), "{command:?}: {line}");
    for word in words {
        assert!(line.contains(word), "{command:?}: no {word:?} in {line}");
    }
}

#[test]
fn without_the_module_everything_says_how_to_load_it() {
    let commands: [&[&str]; 9] = [
        &["status"],
        &["top"],
        &["worker", "list"],
        &["worker", "create", "3"],
        &["worker", "remove", "w.0"],
        &["move", "d.0", "w.0"],
        &["set", "w.0", "nice", "1"],
        &["monitor"],
        &["monitor", "--dry-run"],
    ];
    for arguments in commands {
        expect(
            &Tree::new(),
            arguments,
            3,
            &["vhost_iocm is not loaded", "insmod vhost_iocm.ko"],
        );
    }
}

#[test]
fn the_doctor_counts_what_is_to_be_mended() {
    let output = Tree::new().iocm(&["doctor"]).output().expect("run iocm");
    assert_eq!(failure(&output).0, Some(7));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("BAD   vhost_iocm is not loaded"), "{text}");
}

#[test]
fn what_does_not_exist_is_named() {
    let tree = with_objects();
    let cases: [(&[&str], &str); 6] = [
        (&["worker", "remove", "w.9"], "no worker w.9"),
        (&["worker", "remove", "w.5", "--to", "w.9"], "no worker w.9"),
        (&["move", "d.9", "w.5"], "no device d.9"),
        (&["move", "vq.6.1", "w.9"], "no worker w.9"),
        (&["set", "vq.9.0", "poll", "1"], "no virtqueue vq.9.0"),
        (&["set", "d.9"], "no device d.9"),
    ];
    for (arguments, words) in cases {
        expect(&tree, arguments, 5, &[words, "`iocm status` lists"]);
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_what_there_is() {
    let tree = with_objects();
    expect(&tree, &["set", "w.5", "colour", "3"], 2, &["it has cpus"]);
    expect(&tree, &["move", "w.5", "w.5"], 2, &["devices d.N"]);
    // clap says the usage as well.
    for arguments in [
        &["move", "disk0", "w.5"] as &[&str],
        &["worker", "pin", "d.6", "3"],
        &["status", "--watch", "0"],
        &["frobnicate"],
    ] {
        let output = tree.iocm(arguments).output().expect("run iocm");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.starts_with("error: "), "{text}");
    }
}

#[test]
fn a_broken_configuration_is_named_with_its_line() {
    let tree = with_objects();
    tree.write("etc/iocm.toml", "interval_ms = 100\nintervall = 3\n");
    let file = tree.path("etc/iocm.toml");
    let file = file.to_str().expect("a name");
    let words = [file, "line 2", "`iocm config show`"];
    expect(&tree, &["config", "check", file], 6, &words);
    expect(&tree, &["monitor", "--config", file], 6, &words);
    expect(&tree, &["monitor"], 6, &words);
    expect(
        &tree,
        &["config", "check", "/nowhere.toml"],
        1,
        &["cannot read /nowhere.toml"],
    );
}

#[test]
fn a_broken_journal_is_named() {
    let tree = with_objects();
    tree.write("run/iocm/journal.json", "{");
    expect(
        &tree,
        &["monitor", "--restore"],
        6,
        &["journal.json is broken", "`iocm doctor`"],
    );
}

/// The same command without any right but to read and write what its user may. Root has none of
/// its rights over files either.
fn without_rights(command: &Command) -> Command {
    if !nix::unistd::geteuid().is_root() {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        return same;
    }
    let mut bare = Command::new("setpriv");
    bare.args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(command.get_program())
        .args(command.get_args());
    bare
}

#[test]
fn missing_rights_are_named() {
    let tree = with_objects();
    let mode = |path: &str, mode: u32| {
        fs::set_permissions(tree.path(path), Permissions::from_mode(mode)).expect("permissions");
    };
    let denied = |arguments: &[&str], path: &str| {
        let mut command = without_rights(&tree.iocm(arguments));
        check(
            &mut command,
            4,
            &[path, "run the command as root, for instance with sudo"],
        );
    };
    for file in ["worker/w.5/nice", "worker/create", "dev/d.6/worker"] {
        mode(&format!("sys/class/vhost/{file}"), 0o444);
    }
    denied(&["set", "w.5", "nice", "1"], "w.5/nice");
    denied(&["worker", "create", "3"], "worker/create");
    denied(&["move", "d.6", "w.5"], "d.6/worker");
    tree.write("run/x", "");
    mode("run", 0o555);
    denied(&["monitor"], "run/iocm");
    mode("run", 0o755);
    mode("sys/class/vhost/snapshot", 0);
    denied(&["status"], "snapshot");
    denied(&["top"], "snapshot");
}

#[test]
fn all_exit_statuses_are_documented() {
    let document = include_str!("../../docs/monitor.md");
    let help = iocm::failure::EXIT_STATUSES;
    for status in 0..=8 {
        assert!(document.contains(&format!("\n| {status} | ")), "{status}");
        assert!(help.contains(&format!("\n  {status}  ")), "{status}");
    }
}
