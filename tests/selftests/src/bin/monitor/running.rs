// SPDX-License-Identifier: GPL-2.0
//! A monitor that runs, and what it has done to the host.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::{bail, ensure, Context, Result};
use nix::sched::{sched_getaffinity, CpuSet};
use nix::unistd::Pid;
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::wait;

/// Where the files of a case are.
pub fn directory() -> Result<PathBuf> {
    let directory = PathBuf::from("/tmp/monitor");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// The program, with no more of root's rights than its unit for systemd leaves it.
pub fn program() -> Result<Command> {
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-all,+sys_nice", "--inh-caps=-all"])
        .arg("--no-new-privs")
        .arg(std::env::current_exe()?.with_file_name("iocm"));
    Ok(command)
}

/// What the monitor has noted of what it changes.
pub fn journal() -> String {
    fs::read_to_string("/run/iocm/journal.json").unwrap_or_default()
}

/// A monitor, ended when it goes out of scope.
pub struct Monitor {
    child: Child,
    /// Where it says what it does.
    pub log: PathBuf,
}

impl Monitor {
    /// Starts one whose configuration says this.
    pub fn start(config: &str) -> Result<Self> {
        let directory = directory()?;
        let file = directory.join("iocm.toml");
        fs::write(&file, config)?;
        let log = directory.join("log");
        let child = program()?
            .args(["monitor", "--config"])
            .arg(&file)
            .stderr(File::create(&log)?)
            .spawn()
            .context("start the monitor")?;
        Ok(Self { child, log })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for something, with the log in the message if it does not come.
    pub fn until(&mut self, what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
        let result = wait::until(what, condition);
        if let Some(status) = self.child.try_wait()? {
            bail!("the monitor ended with {status}: {}", self.log());
        }
        result.with_context(|| self.log())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the threads of a process may run, as its first one.
pub fn affinity(pid: u32) -> Result<CpuSet> {
    sched_getaffinity(Pid::from_raw(pid as i32)).context("affinity")
}

/// The CPUs that have a worker of their own.
pub fn io_cores(control: &Control) -> Result<Vec<usize>> {
    let mut cpus = Vec::new();
    for worker in control.workers()? {
        // It may be removed in between.
        let Ok(cpu) = control.read_line(&format!("worker/{worker}/cpu")) else {
            continue;
        };
        cpus.extend(cpu.parse::<usize>());
    }
    Ok(cpus)
}

/// The worker that serves a device, or none if it is at home.
pub fn server_of(control: &Control, device: &str) -> Result<Option<String>> {
    if control.read_line(&format!("dev/{device}/home"))? == "1" {
        return Ok(None);
    }
    Ok(Some(control.read_line(&format!("dev/{device}/worker"))?))
}

/// Undoes what monitors have left, and checks that nothing is.
pub fn restored(control: &Control) -> Result<()> {
    let status = program()?.args(["monitor", "--restore"]).status()?;
    ensure!(status.success(), "restoring ended with {status}");
    let cores = io_cores(control)?;
    ensure!(cores.is_empty(), "there are still workers on {cores:?}");
    let workers = control.workers()?;
    ensure!(workers.len() == 1, "there are still {workers:?}");
    for worker in workers {
        let locked = control.read_line(&format!("worker/{worker}/locked"))?;
        ensure!(locked == "0", "{worker} is locked");
    }
    control.restore().map(drop)
}
