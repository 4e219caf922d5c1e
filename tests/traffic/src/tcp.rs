// SPDX-License-Identifier: GPL-2.0
//! Checksummed streams over one TCP connection.
//!
//! The client says how much it will send and how much it wants; then both directions run at the same
//! time. Data travels in frames of a sequence number, a length and a checksum. At the end the server
//! says what it verified. Streams without a fixed end are ended by an empty frame, first the client's
//! and then, as an answer, the server's.

use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};

use crate::pattern::Pattern;

/// Sequence number, payload length and checksum.
const HEADER_LENGTH: usize = 16;

/// Payload of a full frame; with its header as much as one segment can hold after segmentation offload.
const FRAME_PAYLOAD: usize = 65536 - HEADER_LENGTH;

const MAGIC: u64 = u64::from_le_bytes(*b"iocm-tcp");

/// In the place of a number of bytes: until the client is told to stop.
pub const ENDLESS: u64 = u64::MAX;

/// What one receiver verified.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Verified {
    /// Bytes of payload that arrived intact and in order.
    bytes: u64,
    /// What went wrong, if anything did.
    error: Option<String>,
}

/// One run of the client.
pub struct Plan {
    pub to: SocketAddr,
    pub send: u64,
    pub receive: u64,
    pub patience: Duration,
}

/// What a run showed.
#[derive(Debug, Serialize)]
pub struct Outcome {
    protocol: &'static str,
    pub passed: bool,
    /// Client to server, as the server saw it.
    there: Verified,
    /// Server to client, as the client saw it.
    back: Verified,
    seconds: f64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "TCP: {} bytes there and {} bytes back verified in {:.1} s",
            self.there.bytes, self.back.bytes, self.seconds
        )?;
        for (direction, verified) in [("there", &self.there), ("back", &self.back)] {
            if let Some(error) = &verified.error {
                write!(f, "; {direction}: {error}")?;
            }
        }
        Ok(())
    }
}

/// Runs `plan`; when `stop` becomes true endless streams are brought to their end.
pub fn run(plan: &Plan, stop: &Arc<AtomicBool>) -> Result<Outcome> {
    ensure!(
        plan.send > 0 || plan.receive > 0,
        "nothing to send or receive"
    );
    let mut stream = connect(plan)?;
    set_patience(&stream, plan.patience)?;
    let started = Instant::now();
    for value in [MAGIC, plan.send, plan.receive] {
        stream
            .write_all(&value.to_le_bytes())
            .context("cannot send the request")?;
    }
    let (sent, back) = exchange(&stream, plan.send, plan.receive, stop)?;

    let length = read_u64(&mut stream).context("the peer's report did not arrive")?;
    ensure!(length < 65536, "the peer's report is too long");
    let mut report = Vec::new();
    stream
        .take(length)
        .read_to_end(&mut report)
        .context("the peer's report did not arrive")?;
    let there: Verified =
        serde_json::from_slice(&report).context("the peer's report makes no sense")?;

    // An endless stream without an error was received up to the frame that ends it.
    let complete = |verified: &Verified, due| {
        verified.error.is_none() && (due == ENDLESS || verified.bytes == due)
    };
    Ok(Outcome {
        protocol: "tcp",
        passed: complete(&there, sent) && complete(&back, plan.receive),
        there,
        back,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Answers one connection.
pub fn answer(mut stream: TcpStream, patience: Duration) -> Result<()> {
    set_patience(&stream, patience)?;
    ensure!(
        read_u64(&mut stream)? == MAGIC,
        "not a client of this program"
    );
    let receive = read_u64(&mut stream)?;
    let send = read_u64(&mut stream)?;
    let (_, verified) = exchange(&stream, send, receive, &Arc::default())?;
    let report = serde_json::to_vec(&verified)?;
    stream.write_all(&(report.len() as u64).to_le_bytes())?;
    stream.write_all(&report)?;
    Ok(())
}

/// Repeats the attempt while the peer is not listening yet.
fn connect(plan: &Plan) -> Result<TcpStream> {
    let deadline = Instant::now() + plan.patience;
    loop {
        match TcpStream::connect_timeout(&plan.to, plan.patience) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("cannot connect to {}", plan.to))
            }
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

fn set_patience(stream: &TcpStream, patience: Duration) -> Result<()> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(())
}

/// Sends and receives at the same time, and returns how many bytes were sent and what was received; a
/// damaged stream is a result, a broken connection an error. An endless stream is sent until `stop`
/// is true, which the end of what is received brings about as well.
fn exchange(
    stream: &TcpStream,
    send: u64,
    receive: u64,
    stop: &Arc<AtomicBool>,
) -> Result<(u64, Verified)> {
    let mut sending = stream.try_clone().context("cannot share the connection")?;
    let mut receiving = stream.try_clone().context("cannot share the connection")?;
    let told = Arc::clone(stop);
    let sender = thread::spawn(move || send_frames(&mut sending, send, &told));
    let verified = receive_frames(&mut receiving, receive);
    if receive == ENDLESS {
        stop.store(true, Ordering::Relaxed);
    }
    let sent = sender
        .join()
        .map_err(|_| anyhow!("the sending thread died"))??;
    Ok((sent, verified))
}

fn checksum(sequence: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sequence.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// Returns how many bytes of payload were sent.
fn send_frames(stream: &mut impl Write, total: u64, stop: &AtomicBool) -> Result<u64> {
    let pattern = Pattern::new(FRAME_PAYLOAD);
    let mut frame = Vec::with_capacity(HEADER_LENGTH + FRAME_PAYLOAD);
    let mut left = total;
    for sequence in 0_u64.. {
        if left == 0 {
            break;
        }
        let ending = total == ENDLESS && stop.load(Ordering::Relaxed);
        let length = if ending {
            0
        } else {
            usize::try_from(left).map_or(FRAME_PAYLOAD, |left| left.min(FRAME_PAYLOAD))
        };
        let payload = pattern.window(sequence, length);
        frame.clear();
        frame.extend_from_slice(&sequence.to_le_bytes());
        frame.extend_from_slice(&(length as u32).to_le_bytes());
        frame.extend_from_slice(&checksum(sequence, payload).to_le_bytes());
        frame.extend_from_slice(payload);
        stream.write_all(&frame).context("cannot send")?;
        left -= length as u64;
        if ending {
            break;
        }
    }
    Ok(total - left)
}

fn receive_frames(stream: &mut impl Read, total: u64) -> Verified {
    let mut verified = Verified::default();
    let mut payload = vec![0; FRAME_PAYLOAD];
    let mut sequence = 0;
    while verified.bytes < total {
        match receive_frame(stream, sequence, &mut payload) {
            Ok(0) => {
                if total != ENDLESS {
                    verified.error = Some("it ended early".to_owned());
                }
                break;
            }
            Ok(length) => verified.bytes += length as u64,
            Err(error) => {
                // The boundaries of further frames are unknown, so nothing more can be verified.
                verified.error = Some(format!("frame {sequence}: {error:#}"));
                break;
            }
        }
        sequence += 1;
    }
    verified
}

fn receive_frame(stream: &mut impl Read, sequence: u64, payload: &mut [u8]) -> Result<usize> {
    let mut header = [0; HEADER_LENGTH];
    stream.read_exact(&mut header)?;
    let [s0, s1, s2, s3, s4, s5, s6, s7, l0, l1, l2, l3, c0, c1, c2, c3] = header;
    let number = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if number != sequence || length > payload.len() {
        bail!("out of sequence: number {number}, length {length}");
    }
    let payload = &mut payload[..length];
    stream.read_exact(payload)?;
    if checksum(sequence, payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
        bail!("wrong checksum");
    }
    Ok(length)
}

fn read_u64(stream: &mut impl Read) -> Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream_of(total: u64) -> Vec<u8> {
        let mut stream = Vec::new();
        send_frames(&mut stream, total, &AtomicBool::new(false)).unwrap();
        stream
    }

    #[test]
    fn an_intact_stream_is_verified() {
        for total in [0, 1, FRAME_PAYLOAD as u64, FRAME_PAYLOAD as u64 * 3 + 17] {
            let verified = receive_frames(&mut stream_of(total).as_slice(), total);
            assert_eq!(verified.bytes, total);
            assert!(verified.error.is_none());
        }
    }

    #[test]
    fn damage_is_noticed_wherever_it_is() {
        let total = FRAME_PAYLOAD as u64 * 2;
        let stream = stream_of(total);
        for position in [0, 9, 13, 20, 70_000, stream.len() - 1] {
            let mut damaged = stream.clone();
            damaged[position] ^= 1;
            let verified = receive_frames(&mut damaged.as_slice(), total);
            assert!(verified.error.is_some(), "byte {position}");
        }
    }

    #[test]
    fn an_empty_frame_ends_endless_streams_only() {
        let mut stream = Vec::new();
        let sent = send_frames(&mut stream, ENDLESS, &AtomicBool::new(true)).unwrap();
        assert_eq!((sent, stream.len()), (0, HEADER_LENGTH));
        assert!(receive_frames(&mut stream.as_slice(), ENDLESS)
            .error
            .is_none());
        assert!(receive_frames(&mut stream.as_slice(), 1).error.is_some());
        assert!(receive_frames(&mut [].as_slice(), ENDLESS).error.is_some());
    }

    #[test]
    fn a_frame_left_out_is_noticed() {
        let total = FRAME_PAYLOAD as u64 * 3;
        let mut stream = stream_of(total);
        stream.drain(65536..2 * 65536);
        assert!(receive_frames(&mut stream.as_slice(), total)
            .error
            .is_some());
    }
}
