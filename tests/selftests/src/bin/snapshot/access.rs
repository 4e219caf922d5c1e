// SPDX-License-Identifier: GPL-2.0
//! Who may read the snapshot and how, and that nobody may write it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::sys::mman::{mmap, mprotect, munmap, MapFlags, ProtFlags};
use nix::sys::wait::{waitpid, WaitStatus};
use nix::unistd::{fork, ForkResult};
use vhost_iocm_selftests::control::Control;
use vhost_iocm_selftests::ktap::Suite;
use vhost_iocm_selftests::nic::{Nic, NicOptions};
use vhost_iocm_selftests::options::Options;
use vhost_iocm_selftests::snapshot::{Snapshot, PAGE_SIZE, PATH};
use vhost_iocm_selftests::traffic::{Direction, Traffic};

/// Runs `body` in a child process, which must come to an end by itself.
fn in_child(body: impl FnOnce() -> i32) -> Result<WaitStatus> {
    // SAFETY: The child makes system calls and touches memory, and ends.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = body();
            // SAFETY: Ends the child at once.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => Ok(waitpid(child, None)?),
    }
}

fn try_map(
    file: &File,
    pages: usize,
    offset: i64,
    prot: ProtFlags,
    flags: MapFlags,
) -> Result<(), Errno> {
    let length = NonZeroUsize::new(pages * PAGE_SIZE).ok_or(Errno::EINVAL)?;
    // SAFETY: A new mapping is made, which goes again below.
    let start = unsafe { mmap(None, length, prot, flags, file, offset) }?;
    // SAFETY: It was made just now.
    unsafe { munmap(start, length.get()) }
}

fn refuse_writers() -> Result<()> {
    let mode = fs::metadata(PATH)?.permissions().mode() & 0o7777;
    ensure!(mode == 0o444, "its mode is {mode:o}");
    let opened = OpenOptions::new().read(true).write(true).open(PATH);
    ensure!(opened.is_err(), "it can be opened for writing");
    let file = File::open(PATH)?;
    let write = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    for (prot, flags, expected) in [
        (write, MapFlags::MAP_SHARED, Errno::EACCES),
        (write, MapFlags::MAP_PRIVATE, Errno::EPERM),
        (ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, Errno::EINVAL),
    ] {
        let answer = try_map(&file, 1, 0, prot, flags);
        ensure!(answer == Err(expected), "{prot:?}, {flags:?}: {answer:?}");
    }
    let snapshot = Snapshot::map(1)?;
    // SAFETY: The mapping exists; nothing is written even if this succeeds.
    let answer = unsafe { mprotect(snapshot.start().cast(), PAGE_SIZE, write) };
    ensure!(answer == Err(Errno::EACCES), "mprotect says {answer:?}");
    Ok(())
}

fn bound_mappings() -> Result<()> {
    let snapshot = Snapshot::open()?;
    let most = snapshot.header(4) as usize;
    let pages = snapshot.pages();
    ensure!(pages <= most && most <= 1 << 16, "{pages} of {most} pages");
    let file = File::open(PATH)?;
    let (read, shared) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
    let page = PAGE_SIZE as i64;
    let map = |pages, offset| try_map(&file, pages, offset * page, read, shared);
    ensure!(map(most, 0) == Ok(()), "all pages cannot be mapped");
    ensure!(map(1, most as i64 - 1) == Ok(()), "nor the last one");
    for (pages, offset) in [
        (most + 1, 0),
        (1, most as i64),
        (2, most as i64 - 1),
        (1, 1 << 40),
    ] {
        let answer = map(pages, offset);
        ensure!(
            answer == Err(Errno::EINVAL),
            "{pages} at {offset}: {answer:?}"
        );
    }
    // What is not there yet is no memory, and what is there can be seen by who mapped too much.
    let whole = Snapshot::map(most)?;
    whole.read()?;
    let status = in_child(|| (whole.page(most - 1)[0].load() & 1) as i32)?;
    ensure!(
        matches!(
            status,
            WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGBUS, _)
        ),
        "touching a page that is not there: {status:?}"
    );
    Ok(())
}

fn read_unprivileged() -> Result<()> {
    let status = in_child(|| {
        // SAFETY: The calls change who the child is.
        let nobody = unsafe { libc::setgid(65534) == 0 && libc::setuid(65534) == 0 };
        if !nobody {
            return 1;
        }
        let mapped = Snapshot::open().and_then(|snapshot| snapshot.read());
        match (mapped, fs::read(PATH)) {
            (Ok(records), Ok(bytes)) if !records.is_empty() && !bytes.is_empty() => 0,
            _ => 2,
        }
    })?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    Ok(())
}

fn find_no_address(options: &Options) -> Result<()> {
    let mut nic = Nic::new(&options.node, NicOptions::default())?;
    Traffic::new(&mut nic, Direction::Both)?.run(50)?;
    let snapshot = Snapshot::open()?;
    for page in 0..snapshot.pages() {
        for (index, word) in snapshot.page(page).iter().enumerate() {
            let value = word.load();
            // The upper half of the address space begins here, also with five levels; small negative
            // numbers, such as -1, lie above all that the kernel maps.
            let suspicious = (0xff00_0000_0000_0000..0xffff_ffff_ffff_f000).contains(&value);
            let window = page > 0 && value as i64 > -10_000_000 && (value as i64) < 0;
            ensure!(
                !suspicious || window,
                "word {index} of page {page} is {value:#x}"
            );
        }
    }
    Ok(())
}

fn read_like_a_file() -> Result<()> {
    let snapshot = Snapshot::open()?;
    let mut file = File::open(PATH)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() == snapshot.pages() * PAGE_SIZE,
        "{} bytes of {} pages",
        bytes.len(),
        snapshot.pages()
    );
    // Heads do not change, so they are the same in both views, wherever the reading begins.
    for page in 1..snapshot.pages() {
        for word in 0..8 {
            let at = page * PAGE_SIZE + 8 * word;
            let mapped = snapshot.page(page)[word].load().to_ne_bytes();
            ensure!(bytes[at..at + 8] == mapped, "word {word} of page {page}");
            for start in [at, at + 3] {
                let mut part = [0; 5];
                file.seek(SeekFrom::Start(start as u64))?;
                file.read_exact(&mut part)?;
                ensure!(part[..] == bytes[start..start + 5], "{start}");
            }
        }
    }
    for beyond in [bytes.len() as u64, 1 << 40] {
        file.seek(SeekFrom::Start(beyond)).context("seek")?;
        let read = file.read(&mut [0; 8])?;
        ensure!(read == 0, "{read} bytes at {beyond}");
    }
    Ok(())
}

/// Adds the cases.
pub fn add<'a>(suite: &mut Suite<'a>, _control: &'a Control, options: &'a Options) {
    suite.case(
        "nobody can write the snapshot or map it to write",
        refuse_writers,
    );
    suite.case(
        "mappings are bounded, and end where the pages do",
        bound_mappings,
    );
    suite.case("everybody may map and read the snapshot", read_unprivileged);
    suite.case("no word looks like an address of the kernel", move || {
        find_no_address(options)
    });
    suite.case(
        "any part of the snapshot can be read as a file",
        read_like_a_file,
    );
}
