// SPDX-License-Identifier: GPL-2.0

//! Processes that own devices: which VM it is, its threads, where they may run.

use super::topology::{cpu_list, CpuSet};
use super::Root;
use serde::Serialize;

/// A process that owns devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// The VM's name: of QEMU's `-name`, of libvirt's directory in the cgroup tree, or the name of
    /// the program with its number.
    pub name: String,
    /// Its directory below the root of the cgroup v2 tree, without the first slash; empty if it is
    /// in the root.
    pub cgroup: String,
    /// Its threads, in the order of their numbers.
    pub threads: Vec<Thread>,
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thread {
    /// Its number.
    pub tid: i32,
    /// Its name.
    pub name: String,
    /// Number of the virtual CPU that it is, if it is one.
    pub vcpu: Option<u32>,
    /// Where it may run.
    pub cpus: CpuSet,
}

impl Process {
    /// Reads all of it, or `None` if it is gone.
    pub fn read(root: &Root, pid: i32) -> Option<Self> {
        let comm = root.read(format!("proc/{pid}/comm"))?;
        let cgroup = Self::cgroup(root, pid);
        Some(Self {
            pid,
            name: name(root, pid, &comm, &cgroup),
            threads: Thread::all(root, pid),
            cgroup,
        })
    }

    /// The name alone, or `None` if it is gone.
    pub fn name(root: &Root, pid: i32) -> Option<String> {
        let comm = root.read(format!("proc/{pid}/comm"))?;
        Some(name(root, pid, &comm, &Self::cgroup(root, pid)))
    }

    /// Its directory in the cgroup v2 tree, without the first slash; empty if it is in the root, or gone.
    pub fn cgroup(root: &Root, pid: i32) -> String {
        let text = root.read(format!("proc/{pid}/cgroup")).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap_or_default()
            .to_owned()
    }
}

fn name(root: &Root, pid: i32, comm: &str, cgroup: &str) -> String {
    let name = name_of_command(root, pid)
        .or_else(|| name_of_cgroup(cgroup))
        .unwrap_or_else(|| format!("{comm}-{pid}"));
    super::printable(&name)
}

impl Thread {
    /// The threads of a process; none if it is gone.
    pub fn all(root: &Root, pid: i32) -> Vec<Self> {
        let directory = format!("proc/{pid}/task");
        let names = root.names(&directory).into_iter();
        let mut threads: Vec<Self> = names
            .filter_map(|name| {
                let tid = name.parse().ok()?;
                let status = root.read(format!("{directory}/{name}/status"))?;
                let comm = status.strip_prefix("Name:")?.lines().next()?.trim();
                // Searched as a whole: to look at each of its 60 lines takes several times as long.
                let (_, rest) = status.split_once("\nCpus_allowed_list:")?;
                let cpus = rest.lines().next()?;
                Some(Self {
                    tid,
                    vcpu: vcpu(comm),
                    cpus: cpu_list(cpus)?,
                    name: comm.to_owned(),
                })
            })
            .collect();
        threads.sort_by_key(|thread| thread.tid);
        threads
    }
}

/// QEMU calls the thread of a virtual CPU "CPU n/KVM", or "CPU n/TCG" (`qemu_thread_create` in its
/// accelerators).
fn vcpu(comm: &str) -> Option<u32> {
    let (number, _) = comm.strip_prefix("CPU ")?.split_once('/')?;
    number.parse().ok()
}

/// What QEMU was told with `-name`: `vm1`, or `guest=vm1,debug-threads=on`.
fn name_of_command(root: &Root, pid: i32) -> Option<String> {
    let command = std::fs::read(root.path(format!("proc/{pid}/cmdline"))).ok()?;
    let mut words = command.split(|byte| *byte == 0);
    words.find(|word| *word == b"-name" || *word == b"--name")?;
    let value = String::from_utf8_lossy(words.next()?).into_owned();
    // A comma in a name is doubled there.
    let options = value.replace(",,", "\0");
    let name = options
        .split(',')
        .find_map(|option| option.strip_prefix("guest="))
        .or_else(|| options.split(',').next().filter(|name| !name.contains('=')))?;
    let name = name.replace('\0', ",");
    (!name.is_empty()).then_some(name)
}

/// libvirt and systemd-machined call the VM's directory `machine-qemu\x2d3\x2dvm1.scope`: the
/// number of the VM and its name, with what is no letter escaped (systemd-escape).
fn name_of_cgroup(cgroup: &str) -> Option<String> {
    let scope = cgroup.split('/').find_map(|part| {
        part.strip_prefix("machine-qemu\\x2d")?
            .strip_suffix(".scope")
    })?;
    let (_, name) = scope.split_once("\\x2d")?;
    let mut plain = Vec::new();
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = match rest {
            [b'\\', b'x', high, low, ..] => std::str::from_utf8(&[*high, *low])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
            _ => None,
        };
        match code {
            Some(code) => {
                plain.push(code);
                rest = &rest[4..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    Some(String::from_utf8_lossy(&plain).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_scopes_are_unescaped() {
        assert_eq!(
            name_of_cgroup("machine.slice/machine-qemu\\x2d3\\x2dweb\\x2d1.scope/libvirt"),
            Some("web-1".into())
        );
        assert_eq!(name_of_cgroup("user.slice/session-1.scope"), None);
    }

    #[test]
    fn vcpu_threads_are_known_by_their_names() {
        assert_eq!(vcpu("CPU 12/KVM"), Some(12));
        assert_eq!(vcpu("CPU /KVM"), None);
        assert_eq!(vcpu("vhost-12"), None);
    }
}
