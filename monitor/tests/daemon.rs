// SPDX-License-Identifier: GPL-2.0

//! The daemon: what systemd hears of it, reading its configuration again, and one at a time.

mod tree;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tree::{failure, host, Tree};
use vhost_iocm_engine::engine::snapshot::PAGE_HEAD;

/// The longest that anything may take: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A monitor on a tree, ended when it goes out of scope.
struct Monitor {
    tree: Tree,
    child: Child,
    socket: UnixDatagram,
}

impl Monitor {
    /// One that is told to do nothing, with this configuration.
    fn start(config: &str) -> Self {
        Self::start_with_log(config, "info")
    }

    /// As before, saying what has this level.
    fn start_with_log(config: &str, level: &str) -> Self {
        let tree = host();
        tree.write("etc/iocm.toml", config);
        Self::start_on(tree, level, &["monitor", "--dry-run"])
    }

    /// One on this host.
    fn start_on(tree: Tree, level: &str, arguments: &[&str]) -> Self {
        let address = tree.path("notify");
        let socket = UnixDatagram::bind(&address).expect("bind");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let file = |name| File::create(tree.path(name)).expect("a file");
        let child = tree
            .iocm(arguments)
            .env("NOTIFY_SOCKET", &address)
            .env("RUST_LOG", level)
            .stdin(Stdio::null())
            .stdout(file("output"))
            .stderr(file("log"))
            .spawn()
            .expect("run iocm");
        Self {
            tree,
            child,
            socket,
        }
    }

    /// What systemd is told next.
    fn told(&self) -> String {
        let mut bytes = [0; 256];
        let length = self.socket.recv(&mut bytes).expect("a notification");
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    }

    /// Waits until systemd is told this, and nothing else but that the monitor is alive.
    fn expect_told(&self, wanted: &str) {
        loop {
            match self.told() {
                told if told == wanted => return,
                told => assert_eq!(told, "WATCHDOG=1", "instead of {wanted}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("a signal");
    }

    /// Lets it read another configuration.
    fn reload(&self, config: &str) {
        self.tree.write("etc/iocm.toml", config);
        self.signal(Signal::SIGHUP);
        self.expect_told("RELOADING=1");
        self.expect_told("READY=1");
    }

    /// What it has said of its configuration, since it began to watch.
    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.tree.path("log")).expect("the log");
        log.lines().skip(1).map(str::to_owned).collect()
    }

    /// Waits until it has said that it would do this.
    fn expect_wish(&self, words: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let output = fs::read_to_string(self.tree.path("output")).expect("the output");
            if output.contains(words) {
                return;
            }
            assert!(Instant::now() < end, "no {words:?} in {output}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a line of its log has these words, and returns it.
    fn expect_line(&self, words: &str) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if let Some(line) = log.iter().find(|line| line.contains(words)) {
                return line.clone();
            }
            assert!(Instant::now() < end, "no {words:?} in {log:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn systemd_hears_that_the_monitor_is_ready_alive_and_ending() {
    // The watchdog has no patience for so long an interval.
    let mut monitor = Monitor::start("interval_ms = 60000\n");
    assert_eq!(monitor.told(), "READY=1");
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(monitor.told(), "WATCHDOG=1");
    }
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "the watchdog of the unit wants a sign within 30 s"
    );
    monitor.signal(Signal::SIGTERM);
    monitor.expect_told("STOPPING=1");
    let status = monitor.child.wait().expect("wait");
    assert!(status.success(), "{status}");
}

#[test]
fn a_new_configuration_counts_and_a_broken_one_does_not() {
    let monitor = Monitor::start("interval_ms = 20\n[limits]\ncores_min = 1\n");
    monitor.expect_told("READY=1");

    monitor.reload("interval_ms = 20\n[limits]\ncores_min = -1\n");
    let log = monitor.log();
    assert_eq!(log.len(), 1, "{log:?}");
    for words in ["the configuration stays as it was", "iocm.toml", "line 3"] {
        assert!(log[0].contains(words), "no {words:?} in {log:?}");
    }
    fs::remove_file(monitor.tree.path("etc/iocm.toml")).expect("remove");
    monitor.signal(Signal::SIGHUP);
    monitor.expect_told("RELOADING=1");
    monitor.expect_told("READY=1");
    // Without a file the defaults count.
    assert!(monitor.log()[1].contains("was read again"));

    monitor.reload("interval_ms = 20\n[limits]\ncores_min = 2\n");
    monitor.expect_wish("would keep CPU");
    monitor.reload("interval_ms = 20\n[limits]\ncores_min = 2\n");
    assert!(monitor.log()[3].contains("is the same"));
}

/// The metrics that are offered at a socket.
fn ask(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).expect("connect");
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn metrics_move_with_the_configuration_unless_they_cannot() {
    let monitor = Monitor::start("");
    monitor.expect_told("READY=1");
    let socket = monitor.tree.path("metrics.sock");
    monitor.reload(&format!("metrics = \"unix:{}\"\n", socket.display()));
    let end = Instant::now() + PATIENCE;
    // There is nothing to tell before the first interval is over.
    while !ask(&socket).contains("iocm_worker_cpu{worker=\"w.5\"} 2") {
        assert!(Instant::now() < end, "{}", ask(&socket));
        std::thread::sleep(Duration::from_millis(10));
    }

    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    monitor.reload(&format!("interval_ms = 77\nmetrics = \"{address}\"\n"));
    let log = monitor.log();
    let line = log.last().expect("a line");
    assert!(line.contains("stays as it was") && line.contains(&address.port().to_string()));
    let answer = ask(&socket);
    assert!(answer.contains("iocm_decisions_total"), "{answer}");
}

#[test]
fn a_vm_that_comes_is_kept_off_a_core_in_a_moment() {
    let tree = host();
    for (file, value) in [("pending_ns_now", "0"), ("locked", "0")] {
        let path = format!("sys/class/vhost/worker/w.5/{file}");
        tree.write(&path, format!("{value}\n"));
    }
    tree.write("sys/class/vhost/worker/default", "w.5\n");
    tree.write(
        "etc/iocm.toml",
        "interval_ms = 10\n[limits]\ncores_min = 1\ncores_max = 1\n",
    );
    tree.write(
        "run/iocm/journal.json",
        r#"{"cores": {"2": {"phase": "taken", "worker": 5, "pid": 77, "was_parked": false, "others": []}}, "places": []}"#,
    );
    let cpus = |scope: &str| format!("sys/fs/cgroup/machine.slice/{scope}.scope/cpuset.cpus");
    for scope in ["web", "new"] {
        tree.write(&cpus(scope), "\n");
        tree.write(&format!("{}.effective", cpus(scope)), "0-3\n");
    }
    tree.write("proc/5000/comm", "qemu-system-x86\n");
    tree.write("proc/5000/cgroup", "0::/machine.slice/new.scope\n");
    let started = Instant::now();
    let monitor = Monitor::start_on(tree, "info", &["monitor"]);
    let tree = &monitor.tree;
    let wait = |scope: &str| loop {
        let text = fs::read_to_string(tree.path(&cpus(scope))).expect("CPUs");
        if text == "0-1,3\n" {
            return;
        }
        // After ten seconds everybody is looked for.
        let log = monitor.log();
        assert!(
            started.elapsed().as_secs() < 9,
            "{scope}: {text:?}, {log:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    };
    wait("web");
    // It begins with looking for everybody.
    monitor.expect_told("READY=1");
    assert_eq!(monitor.told(), "WATCHDOG=1");
    // The device gets another owner, which the sequence of its record says, too.
    let record = 2 * 512 + PAGE_HEAD + 24;
    for (word, value) in [(4, 5000u64), (0, 2)] {
        let place = (record + word) * 8;
        tree.overwrite("sys/class/vhost/snapshot", place, &value.to_ne_bytes());
    }
    wait("new");
}

#[test]
fn a_second_monitor_is_refused() {
    let tree = host();
    let lock = tree.path("run/iocm/lock");
    tree.write("run/iocm/lock", "");
    let held = File::open(&lock).expect("the lock");
    held.lock().expect("lock");
    let output = tree.iocm(&["monitor"]).output().expect("run iocm");
    let (status, line) = failure(&output);
    assert_eq!(status, Some(8), "{line}");
    assert!(line.contains("stop it first"), "{line}");
}

/// The unit for systemd, with the program that was built here.
fn unit() -> (Tree, PathBuf) {
    let tree = Tree::new();
    let text = include_str!("../iocm.service");
    let installed = "/usr/local/sbin/iocm";
    assert!(text.contains(installed));
    tree.write(
        "iocm.service",
        text.replace(installed, env!("CARGO_BIN_EXE_iocm")),
    );
    let path = tree.path("iocm.service");
    (tree, path)
}

/// What systemd-analyze says; `None` where there is none.
fn analyze(arguments: &[&str], unit: &Path) -> Option<(bool, String)> {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .output()
        .ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some((
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let (_tree, unit) = unit();
    let Some((is_right, text)) = analyze(&["verify", "--man=no"], &unit) else {
        println!("there is no systemd-analyze here");
        return;
    };
    assert!(is_right && text.is_empty(), "{text}");
}

#[test]
fn the_unit_is_exposed_to_little() {
    let (_tree, unit) = unit();
    // Of ten: what remains is to be root, to write below /sys and /proc, and a port for metrics.
    let arguments = ["security", "--offline=true", "--threshold=24"];
    let Some((is_below, text)) = analyze(&arguments, &unit) else {
        println!("there is no systemd-analyze here");
        return;
    };
    assert!(is_below, "{text}");
}

/// An operator who asks for it hears why there are not more cores; nobody else does.
#[test]
fn what_cores_cost_is_said_to_who_asks() {
    let monitor = Monitor::start_with_log("interval_ms = 10\n", "debug");
    let line = monitor.expect_line("what cores cost");
    assert!(line.contains("DEBUG"), "{line}");
    // The host has a core that is kept, and nothing to do.
    assert!(line.contains("0: 0.00; 1: 1.00; 2: 2.00"), "{line}");
    let monitor = Monitor::start("interval_ms = 10\n");
    monitor.expect_told("READY=1");
    for _ in 0..3 {
        monitor.expect_told("WATCHDOG=1");
    }
    assert_eq!(monitor.log(), Vec::<String>::new());
}
