// SPDX-License-Identifier: GPL-2.0
//! The module's control interface in sysfs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;

use crate::cpu;

/// The tree of control files.
#[derive(Clone, Debug)]
pub struct Control {
    root: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/sys/class/vhost"),
        }
    }
}

impl Control {
    /// Path of a file or directory of the tree.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Whether the file or directory exists.
    pub fn exists(&self, relative: &str) -> bool {
        self.path(relative).exists()
    }

    /// Everything that a file says.
    pub fn read(&self, relative: &str) -> Result<String> {
        let path = self.path(relative);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// The one line that a file says, without its newline.
    pub fn read_line(&self, relative: &str) -> Result<String> {
        let text = self.read(relative)?;
        let line = text.strip_suffix('\n').filter(|line| !line.contains('\n'));
        line.map(str::to_owned)
            .with_context(|| format!("{relative} says {text:?}, not one line"))
    }

    /// The elements of a list.
    pub fn read_list(&self, relative: &str) -> Result<Vec<String>> {
        let text = self.read(relative)?;
        parse_list(&text).with_context(|| format!("{relative} says {text:?}, not a list"))
    }

    /// The values of a file of `name:value` lines.
    pub fn read_status(&self, relative: &str) -> Result<BTreeMap<String, String>> {
        let text = self.read(relative)?;
        parse_status(&text)
            .with_context(|| format!("{relative} says {text:?}, not name:value lines"))
    }

    /// A number from a file of `name:value` lines.
    pub fn read_counter(&self, relative: &str, name: &str) -> Result<u64> {
        let status = self.read_status(relative)?;
        let value = status
            .get(name)
            .with_context(|| format!("{relative} has no {name}"))?;
        value
            .parse()
            .with_context(|| format!("{name} of {relative} is {value:?}"))
    }

    /// Writes exactly these bytes in one write.
    pub fn write(&self, relative: &str, text: &str) -> Result<(), Errno> {
        let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(self.path(relative))
            .map_err(errno)?;
        match file.write(text.as_bytes()) {
            Ok(written) if written == text.len() => Ok(()),
            // An attribute takes a value or refuses it; there is no half.
            Ok(_) => Err(Errno::EIO),
            Err(error) => Err(errno(error)),
        }
    }

    /// Writes, and describes what was refused.
    pub fn set(&self, relative: &str, text: &str) -> Result<()> {
        self.write(relative, text)
            .with_context(|| format!("write {text:?} to {relative}"))
    }

    fn names(&self, directory: &str, prefix: &str) -> Result<BTreeSet<String>> {
        let path = self.path(directory);
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(prefix) {
                names.insert(name);
            }
        }
        Ok(names)
    }

    /// All workers.
    pub fn workers(&self) -> Result<BTreeSet<String>> {
        self.names("worker", "w.")
    }

    /// All devices.
    pub fn devices(&self) -> Result<BTreeSet<String>> {
        self.names("dev", "d.")
    }

    /// All virtqueues.
    pub fn virtqueues(&self) -> Result<BTreeSet<String>> {
        self.names("vq", "vq.")
    }

    /// The device that appears while the closure runs, which must make exactly one.
    pub fn device_made_by<T>(&self, make: impl FnOnce() -> Result<T>) -> Result<(T, String)> {
        let before = self.devices()?;
        let made = make()?;
        let new: Vec<_> = self.devices()?.difference(&before).cloned().collect();
        match &new[..] {
            [device] => Ok((made, device.clone())),
            _ => anyhow::bail!("one device was made, {new:?} appeared"),
        }
    }

    /// The device whose backend is this interface.
    pub fn device_of(&self, interface: &str) -> Result<String> {
        for device in self.devices()? {
            // A device of another test may go away between the list and the look.
            let Ok(status) = self.read_status(&format!("dev/{device}/status")) else {
                continue;
            };
            if status
                .get("backend")
                .is_some_and(|backend| backend == interface)
            {
                return Ok(device);
            }
        }
        anyhow::bail!("no device has the backend {interface}")
    }

    /// Creates a worker, for a CPU or for any (-1), and returns its name.
    pub fn create_worker(&self, cpu: i32) -> Result<String> {
        self.create_worker_on(&cpu.to_string())
    }

    /// Creates a worker for the CPUs of a list, and returns its name.
    pub fn create_worker_on(&self, cpus: &str) -> Result<String> {
        // What others created before must not be taken for it.
        self.read_list("worker/create")?;
        self.set("worker/create", cpus)?;
        let created = self.read_list("worker/create")?;
        ensure!(
            created.len() == 1,
            "created one worker, worker/create says {created:?}"
        );
        Ok(created[0].clone())
    }

    /// Creates a parked worker for any CPU, and returns its name.
    pub fn create_parked(&self) -> Result<String> {
        self.create_worker_on("-1 parked")
    }

    /// Locks and removes a worker that has no devices.
    pub fn remove_worker(&self, worker: &str) -> Result<()> {
        self.set(&format!("worker/{worker}/locked"), "1")?;
        self.set("worker/remove", worker)
    }

    /// Goes back to a single worker, unlocked, which takes over all devices.
    pub fn restore(&self) -> Result<String> {
        let mut workers: Vec<_> = self.workers()?.into_iter().collect();
        workers.sort_by_key(|worker| worker.trim_start_matches("w.").parse::<u32>().ok());
        let kept = workers.first().context("there is no worker")?.clone();
        self.set(&format!("worker/{kept}/locked"), "0")?;
        self.set(&format!("worker/{kept}/state"), "active")?;
        self.set("worker/default", &kept)?;
        self.set("worker/placement", "default")?;
        for worker in &workers[1..] {
            self.set(&format!("worker/{worker}/locked"), "1")?;
            for device in self.read_list(&format!("worker/{worker}/dev_list"))? {
                self.move_device(&device, &kept)?;
            }
            self.set("worker/remove", worker)?;
        }
        Ok(kept)
    }

    /// A fresh worker on the last CPU, which gets the devices from now on, as an operator sets up a side
    /// core.
    pub fn side_core(&self) -> Result<String> {
        self.restore()?;
        let last = cpu::count()? - 1;
        let worker = self.create_worker(i32::try_from(last)?)?;
        self.set("worker/default", &worker)?;
        Ok(worker)
    }

    /// Moves a device to a worker.
    pub fn move_device(&self, device: &str, worker: &str) -> Result<()> {
        self.set(&format!("dev/{device}/worker"), worker)
    }

    /// Moves a virtqueue to a worker.
    pub fn move_virtqueue(&self, virtqueue: &str, worker: &str) -> Result<()> {
        self.set(&format!("vq/{virtqueue}/worker"), worker)
    }

    /// Sets whether a virtqueue is polled: `0`, `1` or `auto`.
    pub fn set_poll(&self, virtqueue: &str, mode: &str) -> Result<()> {
        self.set(&format!("vq/{virtqueue}/poll"), mode)
    }

    /// Sets whether all virtqueues of a device are polled.
    pub fn set_poll_of_device(&self, device: &str, mode: &str) -> Result<()> {
        let virtqueues = self.read_list(&format!("dev/{device}/vq_list"))?;
        virtqueues
            .iter()
            .try_for_each(|virtqueue| self.set_poll(virtqueue, mode))
    }

    /// Every file of the tree that can be read without a side effect, with what it says, except for
    /// what changes by itself.
    pub fn snapshot(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut files = BTreeMap::new();
        let mut directories = vec![self.root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in
                fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?
            {
                let entry = entry?;
                let path = entry.path();
                if entry.file_type()?.is_dir() {
                    directories.push(path);
                } else if is_stable(&path) {
                    if let Ok(text) = fs::read_to_string(&path) {
                        files.insert(path, text);
                    }
                }
            }
        }
        Ok(files)
    }
}

/// The virtqueue of a device with this index.
pub fn virtqueue(device: &str, index: u32) -> String {
    format!("vq.{}.{index}", device.trim_start_matches("d."))
}

/// Whether what the file says changes only by what is written to the tree. Reading `create` forgets,
/// and files that cannot be written are counters unless they are named here.
fn is_stable(path: &Path) -> bool {
    const STATES: &[&str] = &[
        "can_poll",
        "cpu",
        "dev",
        "dev_list",
        "displaced",
        "node",
        "nr_iocores",
        "owner",
        "pid",
        "placed",
        "vq_list",
        "wanted_cpus",
    ];
    let name = path.file_name().unwrap_or_default();
    let writable = fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o200 != 0);
    let is = |other: &str| name == other;
    !is("create") && !is("uevent") && (writable || STATES.iter().any(|state| is(state)))
}

fn parse_list(text: &str) -> Option<Vec<String>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    let line = text.strip_suffix('\n')?;
    let elements: Vec<_> = line.split('\t').map(str::to_owned).collect();
    let sound =
        |element: &String| !element.is_empty() && !element.contains(|c: char| c.is_whitespace());
    elements.iter().all(sound).then_some(elements)
}

fn parse_status(text: &str) -> Option<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    for line in text.strip_suffix('\n')?.split('\n') {
        let (name, value) = line.split_once(':')?;
        if name.is_empty() || values.insert(name.to_owned(), value.to_owned()).is_some() {
            return None;
        }
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(parse_list("").unwrap(), Vec::<String>::new());
        assert_eq!(parse_list("w.0\n").unwrap(), ["w.0"]);
        assert_eq!(parse_list("w.0\tw.12\n").unwrap(), ["w.0", "w.12"]);
        for malformed in ["\n", "w.0", "w.0\t\n", "w.0 w.1\n", "w.0\nw.1\n"] {
            assert_eq!(parse_list(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn statuses() {
        let status = parse_status("cpu:-1\ndev_list:d.1\td.2\nbackend:\n").unwrap();
        assert_eq!(status["cpu"], "-1");
        assert_eq!(status["dev_list"], "d.1\td.2");
        assert_eq!(status["backend"], "");
        for malformed in ["", "cpu:1", "cpu\n", ":1\n", "a:1\na:2\n"] {
            assert_eq!(parse_status(malformed), None, "{malformed:?}");
        }
    }
}
