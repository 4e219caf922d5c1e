// SPDX-License-Identifier: GPL-2.0

//! The text formats of the control interface: parsing and printing.
//!
//! The monitor reads with the same file what the kernel module writes with it. Formats are those
//! of the original IOcm: lists are separated by tabs and end in a newline, an empty list is an
//! empty file, `status` files have lines of `name:value`.
//!
//! The binary snapshot has a file of its own: [`super::snapshot`].

use crate::engine::sched::placement::Rule;
use crate::engine::sched::polling::Mode;
use crate::engine::sched::standby::State;
use core::fmt;

/// The number of a worker, printed as `w.N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerId(pub u32);

/// The number of a device, printed as `d.N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId(pub u32);

/// A virtqueue of a device, printed as `vq.D.Q`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VirtqueueId {
    /// The device.
    pub device: DeviceId,
    /// The virtqueue's index in its device: 0 receives (host to guest), 1 transmits.
    pub index: u32,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w.{}", self.0)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d.{}", self.0)
    }
}

impl fmt::Display for VirtqueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vq.{}.{}", self.device.0, self.index)
    }
}

/// What a reader of the control interface wrote cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Takes off the one newline with which `echo` ends its line.
fn line(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\n").unwrap_or(text)
}

/// Reads a decimal number without sign, leading zeros or anything around it, so that each value
/// has one spelling.
fn number(digits: &[u8]) -> Result<u32, Malformed> {
    match digits {
        [b'0'] => Ok(0),
        [b'1'..=b'9', ..] => digits.iter().try_fold(0u32, |value, digit| {
            if !digit.is_ascii_digit() {
                return Err(Malformed);
            }
            value
                .checked_mul(10)
                .and_then(|value| value.checked_add(u32::from(digit - b'0')))
                .ok_or(Malformed)
        }),
        _ => Err(Malformed),
    }
}

/// Reads `w.N` with nothing around it.
fn worker(name: &[u8]) -> Result<WorkerId, Malformed> {
    let digits = name.strip_prefix(b"w.").ok_or(Malformed)?;
    number(digits).map(WorkerId)
}

/// Reads `w.N`.
pub fn parse_worker(text: &[u8]) -> Result<WorkerId, Malformed> {
    worker(line(text))
}

/// Reads a signed decimal number, as a CPU or a nice value is given.
///
/// A number that 32 bits cannot hold is returned as the nearest one that they can, since it is
/// well-formed and merely out of range.
pub fn parse_signed(text: &[u8]) -> Result<i32, Malformed> {
    let text = line(text);
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    Ok(digits.iter().fold(0i32, |value, digit| {
        let digit = i32::from(digit - b'0');
        let digit = if negative { -digit } else { digit };
        value.saturating_mul(10).saturating_add(digit)
    }))
}

/// Reads digits. A number that 32 bits cannot hold is returned as the largest that they can, since
/// it is well-formed and merely out of range.
fn saturating(digits: &[u8]) -> Result<u32, Malformed> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    Ok(digits.iter().fold(0u32, |value, digit| {
        value
            .saturating_mul(10)
            .saturating_add(u32::from(digit - b'0'))
    }))
}

/// Reads a list of CPUs, and hands each of its items to `take` as the first and the last number of a
/// range: numbers and ranges of them, such as `0,2` or `2-3`, separated by commas.
///
/// Items come in the order of the text, may overlap, and are not expanded: who takes them compares
/// the ends with what exists first. Numbers are read as by [`parse_number`].
///
/// # Errors
///
/// [`Malformed`] for what is no such list or has a range that ends before it begins, and whatever
/// `take` fails with. Items before it were handed over then.
pub fn parse_cpu_list<E: From<Malformed>>(
    text: &[u8],
    mut take: impl FnMut(u32, u32) -> Result<(), E>,
) -> Result<(), E> {
    for item in line(text).split(|byte| *byte == b',') {
        let mut ends = item.splitn(2, |byte| *byte == b'-');
        let first = saturating(ends.next().unwrap_or_default())?;
        let last = ends.next().map_or(Ok(first), saturating)?;
        if last < first {
            return Err(Malformed.into());
        }
        take(first, last)?;
    }
    Ok(())
}

/// Reads a decimal number without sign. One that 32 bits cannot hold is returned as the largest that
/// they can, since it is well-formed and merely out of range.
pub fn parse_number(text: &[u8]) -> Result<u32, Malformed> {
    saturating(line(text))
}

/// Reads `w.N` alone, or `w.N w.M`: a worker to be removed, and the one that gets what it serves.
pub fn parse_removal(text: &[u8]) -> Result<(WorkerId, Option<WorkerId>), Malformed> {
    let text = line(text);
    match text.iter().position(|byte| *byte == b' ') {
        None => Ok((worker(text)?, None)),
        Some(space) => {
            let (removed, heir) = (&text[..space], &text[space + 1..]);
            Ok((worker(removed)?, Some(worker(heir)?)))
        }
    }
}

/// Reads when a virtqueue is polled.
pub fn parse_mode(text: &[u8]) -> Result<Mode, Malformed> {
    match line(text) {
        b"0" => Ok(Mode::Never),
        b"1" => Ok(Mode::Always),
        b"auto" => Ok(Mode::Auto),
        _ => Err(Malformed),
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "0",
            Self::Always => "1",
            Self::Auto => "auto",
        })
    }
}

/// Reads how the worker of a new device is chosen: `default`, `least_loaded`, or `least_loaded G`
/// with the number of a group.
pub fn parse_rule(text: &[u8]) -> Result<Rule, Malformed> {
    match line(text) {
        b"default" => Ok(Rule::Default),
        b"least_loaded" => Ok(Rule::LeastLoaded),
        rule => {
            let group = rule.strip_prefix(b"least_loaded ").ok_or(Malformed)?;
            number(group).map(Rule::LeastLoadedOf)
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::LeastLoaded => f.write_str("least_loaded"),
            Self::LeastLoadedOf(group) => write!(f, "least_loaded {group}"),
        }
    }
}

/// Reads the number of a group.
pub fn parse_group(text: &[u8]) -> Result<u32, Malformed> {
    number(line(text))
}

/// Splits what describes a new worker into its CPUs, which the caller reads, and whether it is
/// parked: `CPUS` or `CPUS parked`.
pub fn split_creation(text: &[u8]) -> (&[u8], bool) {
    match line(text).strip_suffix(b" parked") {
        Some(cpus) => (cpus, true),
        None => (text, false),
    }
}

/// Reads whether a worker is parked: `active` or `parked`.
pub fn parse_parked(text: &[u8]) -> Result<bool, Malformed> {
    match line(text) {
        b"active" => Ok(false),
        b"parked" => Ok(true),
        _ => Err(Malformed),
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Parked => "parked",
            Self::Woken { .. } => "woken",
        })
    }
}

/// Reads `0` or `1`.
pub fn parse_flag(text: &[u8]) -> Result<bool, Malformed> {
    match line(text) {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(Malformed),
    }
}

/// Room for the separator and one item of a list: the longest is `vq.D.Q`.
const ITEM_MAX: usize = 32;

/// One item of a list, to be printed whole or not at all.
struct Item {
    bytes: [u8; ITEM_MAX],
    len: usize,
}

impl fmt::Write for Item {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        self.bytes
            .get_mut(self.len..end)
            .ok_or(fmt::Error)?
            .copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Prints a list: items separated by tabs, a newline at the end, nothing at all for no items.
///
/// A list that `out` has no room for is cut after an item: sysfs gives a file one page.
///
/// # Errors
///
/// When an item is longer than any name of the interface.
pub fn write_list<T: fmt::Display>(
    out: &mut dyn fmt::Write,
    items: impl IntoIterator<Item = T>,
) -> fmt::Result {
    let mut separator = "";
    for item in items {
        let mut whole = Item {
            bytes: [0; ITEM_MAX],
            len: 0,
        };
        fmt::Write::write_fmt(&mut whole, format_args!("{separator}{item}"))?;
        let text = core::str::from_utf8(&whole.bytes[..whole.len]).map_err(|_| fmt::Error)?;
        if out.write_str(text).is_err() {
            break;
        }
        separator = "\t";
    }
    if !separator.is_empty() {
        // A page that the last item filled has no room for the newline, which it then lacks.
        let _ = out.write_str("\n");
    }
    Ok(())
}
