// SPDX-License-Identifier: GPL-2.0
//! Numbered datagrams with a bounded number under way.
//!
//! The client greets the server, then sends datagrams numbered from zero. The server verifies each,
//! counts it in a [`Tally`] and sends it back under the same number; the client does the same with
//! what comes back. No datagram is ever sent again, so that whatever the path loses stays lost and
//! is seen, and the window keeps every queue on the way short of overflowing by itself. In the end the
//! client asks for the server's tally and judges both. Only the greeting is repeated, because the
//! peer may not be listening yet.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use crate::pattern::Pattern;

/// Magic number, checksum, kind and sequence number.
pub const HEADER_LENGTH: usize = 24;

/// The largest payload that fits one IPv4 datagram.
pub const LARGEST: usize = 65507;

const MAGIC: [u8; 4] = *b"iocm";

/// Room for a full window at both ends even when every datagram is accounted as a whole page.
const SOCKET_BUFFER: usize = 8 << 20;

/// How long the client waits for the answer to one greeting.
const GREETING_INTERVAL: Duration = Duration::from_millis(200);

/// What a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client to server: forget what was counted for this address.
    Hello = 1,
    /// Server to client: the answer to it.
    Welcome = 2,
    /// Client to server: numbered.
    Data = 3,
    /// Server to client: the same number, the same payload.
    Echo = 4,
    /// Client to server: nothing follows, report.
    Finish = 5,
    /// Server to client: the server's [`Tally`].
    Report = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Hello,
            Self::Welcome,
            Self::Data,
            Self::Echo,
            Self::Finish,
            Self::Report,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// Writes a datagram's header around the payload that `buffer` holds already.
pub fn seal(buffer: &mut [u8], kind: Kind, sequence: u64) {
    buffer[..4].copy_from_slice(&MAGIC);
    buffer[8] = kind as u8;
    buffer[9..16].fill(0);
    buffer[16..24].copy_from_slice(&sequence.to_le_bytes());
    let checksum = crc32fast::hash(&buffer[8..]);
    buffer[4..8].copy_from_slice(&checksum.to_le_bytes());
}

/// Takes a received datagram apart; `None` when it is damaged.
pub fn open(datagram: &[u8]) -> Option<(Kind, u64, &[u8])> {
    let (header, payload) = datagram.split_at_checked(HEADER_LENGTH)?;
    let (magic, rest) = header.split_first_chunk::<4>()?;
    let (checksum, _) = rest.split_first_chunk::<4>()?;
    let sequence = header.last_chunk::<8>()?;
    if *magic != MAGIC || u32::from_le_bytes(*checksum) != crc32fast::hash(&datagram[8..]) {
        return None;
    }
    Some((
        Kind::from_byte(header[8])?,
        u64::from_le_bytes(*sequence),
        payload,
    ))
}

/// What one receiver saw of one numbered stream.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Datagrams that arrived intact, duplicates not counted.
    pub received: u64,
    /// Numbers that never arrived.
    pub lost: u64,
    /// Arrivals of a number that had arrived before.
    pub duplicated: u64,
    /// Arrivals after a higher number.
    pub reordered: u64,
    /// Datagrams whose checksum was wrong; their numbers count as lost as well.
    pub corrupted: u64,
    /// The number that is due next.
    #[serde(skip)]
    next: u64,
    /// Numbers below `next` that have not arrived.
    #[serde(skip)]
    missing: BTreeSet<u64>,
}

impl Tally {
    /// Counts the intact arrival of `sequence`.
    pub fn arrived(&mut self, sequence: u64) {
        if sequence >= self.next {
            self.missing.extend(self.next..sequence);
            self.next = sequence + 1;
            self.received += 1;
        } else if self.missing.remove(&sequence) {
            self.received += 1;
            self.reordered += 1;
        } else {
            self.duplicated += 1;
        }
    }

    /// Settles what is lost, given that `sent` datagrams were sent.
    pub fn close(&mut self, sent: u64) {
        self.lost = self.missing.len() as u64 + sent.saturating_sub(self.next);
    }

    fn is_clean(&self, sent: u64) -> bool {
        self.received == sent
            && self.lost == 0
            && self.duplicated == 0
            && self.reordered == 0
            && self.corrupted == 0
    }
}

/// One run of the client.
pub struct Plan {
    pub to: SocketAddr,
    pub count: Option<u64>,
    pub size: usize,
    pub window: u64,
    pub patience: Duration,
}

/// What a run showed.
#[derive(Debug, Serialize)]
pub struct Outcome {
    protocol: &'static str,
    pub passed: bool,
    /// Datagrams sent, and hence due in each direction.
    pub sent: u64,
    size: usize,
    /// Client to server, as the server saw it.
    pub there: Tally,
    /// Server to client, as the client saw it.
    pub back: Tally,
    seconds: f64,
    /// The longest time during which nothing came back.
    longest_pause_milliseconds: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "UDP: {} datagrams of {} bytes each way in {:.1} s, longest pause {} ms",
            self.sent, self.size, self.seconds, self.longest_pause_milliseconds
        )?;
        if self.passed {
            return write!(f, "; none lost, duplicated, reordered or corrupted");
        }
        for (direction, tally) in [("there", &self.there), ("back", &self.back)] {
            write!(
                f,
                "; {direction}: {} lost, {} duplicated, {} reordered, {} corrupted",
                tally.lost, tally.duplicated, tally.reordered, tally.corrupted
            )?;
        }
        Ok(())
    }
}

/// Makes room in a socket for a whole window.
///
/// Only root may exceed the system's limit; the tests run as anybody and are content with it.
pub fn enlarge_buffers(socket: &UdpSocket) -> Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &SOCKET_BUFFER))
        .context("cannot enlarge the receive buffer")?;
    setsockopt(socket, sockopt::SndBuf, &SOCKET_BUFFER)
        .context("cannot enlarge the send buffer")?;
    Ok(())
}

/// True for what a receive call with a timeout returns when nothing came in time.
fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// The client's side of one run.
struct Client<'a> {
    plan: &'a Plan,
    socket: UdpSocket,
    pattern: Pattern,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    sent: u64,
    back: Tally,
    last_arrival: Instant,
    longest_pause: Duration,
}

/// Runs `plan`; when `stop` becomes true no more is sent and the run is brought to its end.
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Outcome> {
    ensure!(
        (HEADER_LENGTH..=LARGEST).contains(&plan.size),
        "the size must be between {HEADER_LENGTH} and {LARGEST}"
    );
    ensure!(plan.window > 0, "the window must not be empty");

    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a UDP socket")?;
    enlarge_buffers(&socket)?;
    socket
        .connect(plan.to)
        .with_context(|| format!("cannot connect to {}", plan.to))?;
    greet(&socket, plan)?;

    let started = Instant::now();
    let mut client = Client {
        plan,
        socket,
        pattern: Pattern::new(plan.size),
        outgoing: vec![0; plan.size],
        incoming: vec![0; LARGEST],
        sent: 0,
        back: Tally::default(),
        last_arrival: started,
        longest_pause: Duration::ZERO,
    };
    client.exchange(stop)?;
    let seconds = started.elapsed().as_secs_f64();
    let there = client.fetch_report()?;

    let Client {
        sent,
        mut back,
        longest_pause,
        ..
    } = client;
    back.close(sent);
    Ok(Outcome {
        protocol: "udp",
        passed: sent > 0 && there.is_clean(sent) && back.is_clean(sent),
        sent,
        size: plan.size,
        there,
        back,
        seconds,
        longest_pause_milliseconds: u64::try_from(longest_pause.as_millis()).unwrap_or(u64::MAX),
    })
}

/// Repeats the greeting until the server answers.
fn greet(socket: &UdpSocket, plan: &Plan) -> Result<()> {
    let mut hello = [0; HEADER_LENGTH];
    seal(&mut hello, Kind::Hello, 0);
    let mut answer = [0; HEADER_LENGTH];
    socket
        .set_read_timeout(Some(GREETING_INTERVAL))
        .context("cannot set a timeout")?;
    let deadline = Instant::now() + plan.patience;
    while Instant::now() < deadline {
        // A refused or unreachable peer is one that is not there yet.
        if socket.send(&hello).is_err() {
            std::thread::sleep(GREETING_INTERVAL);
            continue;
        }
        match socket.recv(&mut answer) {
            Ok(length) => {
                if let Some((Kind::Welcome, ..)) = open(&answer[..length]) {
                    socket
                        .set_read_timeout(Some(plan.patience))
                        .context("cannot set a timeout")?;
                    return Ok(());
                }
            }
            Err(error) if timed_out(&error) => {}
            Err(_) => std::thread::sleep(GREETING_INTERVAL),
        }
    }
    bail!("{} does not answer", plan.to)
}

impl Client<'_> {
    /// Sends and receives until everything is back or hope is gone.
    fn exchange(&mut self, stop: &AtomicBool) -> Result<()> {
        loop {
            let stopped = stop.load(Ordering::Relaxed);
            let more = !stopped && self.plan.count.is_none_or(|count| self.sent < count);
            if !more && self.back.next == self.sent {
                return Ok(());
            }
            // Numbers that were skipped do not occupy the window for ever.
            if more && self.sent - self.back.next < self.plan.window {
                self.send_next()?;
                continue;
            }
            match self.receive()? {
                Arrival::Nothing => return Ok(()),
                Arrival::Interrupted | Arrival::Other => {}
                Arrival::Report(_) => bail!("the peer reported before it was asked"),
            }
        }
    }

    fn send_next(&mut self) -> Result<()> {
        let payload = self
            .pattern
            .window(self.sent, self.plan.size - HEADER_LENGTH);
        self.outgoing[HEADER_LENGTH..].copy_from_slice(payload);
        seal(&mut self.outgoing, Kind::Data, self.sent);
        let length = self.socket.send(&self.outgoing).context("cannot send")?;
        ensure!(length == self.plan.size, "only {length} bytes were sent");
        self.sent += 1;
        Ok(())
    }

    /// Takes one datagram from the socket and counts it.
    fn receive(&mut self) -> Result<Arrival> {
        let length = match self.socket.recv(&mut self.incoming) {
            Ok(length) => length,
            Err(error) if timed_out(&error) => return Ok(Arrival::Nothing),
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                return Ok(Arrival::Interrupted)
            }
            Err(error) => return Err(error).context("cannot receive"),
        };
        let now = Instant::now();
        self.longest_pause = self.longest_pause.max(now - self.last_arrival);
        self.last_arrival = now;
        Ok(match open(&self.incoming[..length]) {
            Some((Kind::Echo, sequence, payload))
                if payload
                    == self
                        .pattern
                        .window(sequence, self.plan.size - HEADER_LENGTH) =>
            {
                self.back.arrived(sequence);
                Arrival::Other
            }
            Some((Kind::Report, _, payload)) => Arrival::Report(
                serde_json::from_slice(payload).context("the peer's report makes no sense")?,
            ),
            // A late answer to a repeated greeting.
            Some((Kind::Welcome, ..)) => Arrival::Other,
            _ => {
                self.back.corrupted += 1;
                Arrival::Other
            }
        })
    }

    /// Asks the server what it saw. Echoes that still arrive are counted.
    fn fetch_report(&mut self) -> Result<Tally> {
        let mut finish = [0; HEADER_LENGTH];
        seal(&mut finish, Kind::Finish, self.sent);
        self.socket.send(&finish).context("cannot send")?;
        loop {
            match self.receive()? {
                Arrival::Report(tally) => return Ok(tally),
                Arrival::Nothing => bail!("the peer's report did not arrive"),
                Arrival::Interrupted | Arrival::Other => {}
            }
        }
    }
}

/// What came out of one attempt to receive.
enum Arrival {
    /// Nothing came for as long as the plan has patience.
    Nothing,
    /// A signal came instead.
    Interrupted,
    /// The peer's tally.
    Report(Tally),
    /// Something that has been counted.
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_of(arrivals: &[u64], sent: u64) -> Tally {
        let mut tally = Tally::default();
        for sequence in arrivals {
            tally.arrived(*sequence);
        }
        tally.close(sent);
        tally
    }

    #[test]
    fn a_complete_stream_is_clean() {
        assert!(tally_of(&[0, 1, 2, 3], 4).is_clean(4));
    }

    #[test]
    fn losses_are_counted_in_the_middle_and_at_the_end() {
        let tally = tally_of(&[0, 3], 6);
        assert_eq!((tally.received, tally.lost), (2, 4));
        assert!(!tally.is_clean(6));
    }

    #[test]
    fn a_duplicate_is_counted() {
        let tally = tally_of(&[0, 1, 1, 2], 3);
        assert_eq!((tally.received, tally.duplicated), (3, 1));
        assert!(!tally.is_clean(3));
    }

    #[test]
    fn a_late_arrival_is_reordered_and_not_lost() {
        let tally = tally_of(&[0, 2, 1, 3], 4);
        assert_eq!((tally.received, tally.reordered, tally.lost), (4, 1, 0));
        assert!(!tally.is_clean(4));
    }

    #[test]
    fn damage_is_noticed_in_every_byte() {
        let mut datagram = vec![0x55; 100];
        seal(&mut datagram, Kind::Data, 77);
        assert!(matches!(open(&datagram), Some((Kind::Data, 77, _))));
        for position in 0..datagram.len() {
            let mut damaged = datagram.clone();
            damaged[position] ^= 0x10;
            assert!(open(&damaged).is_none(), "byte {position}");
        }
        assert!(open(&datagram[..99]).is_none());
        assert!(open(&datagram[..10]).is_none());
    }
}
