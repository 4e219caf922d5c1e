// SPDX-License-Identifier: GPL-2.0
//! The side that answers.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, Context, Result};

use crate::tcp;
use crate::udp::{self, Kind, Tally};

/// How long a connection may stand still before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Both sockets, bound.
pub struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Server {
    /// Binds the UDP and the TCP port of the same number.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let tcp =
            TcpListener::bind(address).with_context(|| format!("cannot bind TCP {address}"))?;
        let address = tcp.local_addr()?;
        let udp = UdpSocket::bind(address).with_context(|| format!("cannot bind UDP {address}"))?;
        udp::enlarge_buffers(&udp)?;
        Ok(Self { udp, tcp })
    }

    /// Where clients find this server.
    #[cfg(test)]
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.udp.local_addr()?)
    }

    /// Answers until a socket fails.
    pub fn run(self) -> Result<()> {
        let Self { udp, tcp } = self;
        let datagrams = thread::spawn(move || echo(&udp));
        thread::spawn(move || {
            for stream in tcp.incoming() {
                thread::spawn(move || {
                    let result = stream
                        .map_err(anyhow::Error::from)
                        .and_then(|stream| tcp::answer(stream, PATIENCE));
                    if let Err(error) = result {
                        eprintln!("TCP: {error:#}");
                    }
                });
            }
        });
        datagrams
            .join()
            .map_err(|_| anyhow!("the thread that answers datagrams died"))?
    }
}

/// Verifies and returns datagrams, with a tally for each client.
fn echo(socket: &UdpSocket) -> Result<()> {
    let mut tallies: HashMap<SocketAddr, Tally> = HashMap::new();
    let mut buffer = vec![0; udp::LARGEST];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer) {
            Ok(arrival) => arrival,
            // A client that went away makes the next call fail; the others must not suffer from it.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Interrupted | ErrorKind::ConnectionRefused
                ) =>
            {
                continue
            }
            Err(error) => return Err(error).context("cannot receive"),
        };
        let datagram = &mut buffer[..length];
        let Some((kind, sequence, _)) = udp::open(datagram) else {
            if let Some(tally) = tallies.get_mut(&client) {
                tally.corrupted += 1;
            }
            continue;
        };
        // A failure to answer is a loss on the way back, which the client sees and reports.
        let answered = match kind {
            Kind::Hello => {
                tallies.insert(client, Tally::default());
                udp::seal(datagram, Kind::Welcome, sequence);
                socket.send_to(datagram, client)
            }
            Kind::Data => {
                let Some(tally) = tallies.get_mut(&client) else {
                    continue;
                };
                tally.arrived(sequence);
                udp::seal(datagram, Kind::Echo, sequence);
                socket.send_to(datagram, client)
            }
            Kind::Finish => {
                let Some(mut tally) = tallies.remove(&client) else {
                    continue;
                };
                tally.close(sequence);
                let mut report = vec![0; udp::HEADER_LENGTH];
                report.extend_from_slice(&serde_json::to_vec(&tally)?);
                udp::seal(&mut report, Kind::Report, sequence);
                socket.send_to(&report, client)
            }
            Kind::Welcome | Kind::Echo | Kind::Report => continue,
        };
        if let Err(error) = answered {
            eprintln!("UDP: cannot answer {client}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::Arc;

    fn server() -> SocketAddr {
        let server = Server::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = server.address().unwrap();
        thread::spawn(|| server.run());
        address
    }

    /// Stands between client and server and does `harm` to the datagrams on their way to the server:
    /// it is given each with its number of arrival and returns what to pass on.
    fn relay(
        server: SocketAddr,
        mut harm: impl FnMut(u64, Vec<u8>) -> Vec<Vec<u8>> + Send + 'static,
    ) -> SocketAddr {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let back = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        back.connect(server).unwrap();
        let address = front.local_addr().unwrap();
        thread::spawn(move || {
            let mut answering = None;
            let mut buffer = vec![0; udp::LARGEST];
            for arrival in 0.. {
                let (length, client) = front.recv_from(&mut buffer).unwrap();
                answering.get_or_insert_with(|| {
                    let (front, back) = (Arc::clone(&front), Arc::clone(&back));
                    thread::spawn(move || {
                        let mut buffer = vec![0; udp::LARGEST];
                        loop {
                            let length = back.recv(&mut buffer).unwrap();
                            front.send_to(&buffer[..length], client).unwrap();
                        }
                    })
                });
                for datagram in harm(arrival, buffer[..length].to_vec()) {
                    back.send(&datagram).unwrap();
                }
            }
        });
        address
    }

    fn run(to: SocketAddr) -> udp::Outcome {
        udp::run(
            &udp::Plan {
                to,
                count: Some(200),
                size: 300,
                window: 16,
                patience: Duration::from_millis(500),
            },
            &AtomicBool::new(false),
        )
        .unwrap()
    }

    #[test]
    fn a_clean_path_passes() {
        let outcome = run(server());
        assert!(outcome.passed, "{outcome}");
        assert_eq!(outcome.sent, 200);
    }

    #[test]
    fn a_run_without_end_ends_when_told() {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let plan = udp::Plan {
            to: relay(server(), move |arrival, datagram| {
                told.store(arrival == 100, Ordering::Relaxed);
                vec![datagram]
            }),
            count: None,
            size: 100,
            window: 1,
            patience: Duration::from_secs(5),
        };
        let outcome = udp::run(&plan, &stop).unwrap();
        assert!(outcome.passed, "{outcome}");
        assert_eq!(outcome.sent, 100);
    }

    #[test]
    fn a_loss_fails() {
        let outcome = run(relay(server(), |arrival, datagram| {
            if arrival == 100 {
                vec![]
            } else {
                vec![datagram]
            }
        }));
        assert!(!outcome.passed);
        assert_eq!((outcome.there.lost, outcome.back.lost), (1, 1), "{outcome}");
    }

    #[test]
    fn a_duplicate_fails() {
        let outcome = run(relay(server(), |arrival, datagram| {
            if arrival == 100 {
                vec![datagram.clone(), datagram]
            } else {
                vec![datagram]
            }
        }));
        assert!(!outcome.passed);
        assert_eq!(outcome.there.duplicated, 1, "{outcome}");
        assert_eq!(outcome.back.duplicated, 1, "{outcome}");
    }

    #[test]
    fn a_change_of_order_fails() {
        let mut held = None;
        let outcome = run(relay(server(), move |arrival, datagram| match arrival {
            100 => {
                held = Some(datagram);
                vec![]
            }
            101 => std::iter::once(datagram).chain(held.take()).collect(),
            _ => vec![datagram],
        }));
        assert!(!outcome.passed);
        assert_eq!(outcome.there.reordered, 1, "{outcome}");
    }

    #[test]
    fn damage_fails() {
        let outcome = run(relay(server(), |arrival, mut datagram| {
            if arrival == 100 {
                datagram[200] ^= 4;
            }
            vec![datagram]
        }));
        assert!(!outcome.passed);
        assert_eq!(outcome.there.corrupted, 1, "{outcome}");
    }

    #[test]
    fn streams_are_verified_both_ways() {
        let plan = tcp::Plan {
            to: server(),
            send: 1_000_000,
            receive: 2_000_000,
            patience: Duration::from_secs(10),
        };
        let outcome = tcp::run(&plan, &Arc::default()).unwrap();
        assert!(outcome.passed, "{outcome}");
    }

    #[test]
    fn streams_without_an_end_are_verified_until_they_are_stopped() {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            told.store(true, Ordering::Relaxed);
        });
        let plan = tcp::Plan {
            to: server(),
            send: tcp::ENDLESS,
            receive: tcp::ENDLESS,
            patience: Duration::from_secs(60),
        };
        let outcome = tcp::run(&plan, &stop).unwrap();
        assert!(outcome.passed, "{outcome}");
    }
}
