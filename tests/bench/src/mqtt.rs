// SPDX-License-Identifier: GPL-2.0
//! Load for MQTT brokers: many connections, each with one small message under way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use clap::Args;
use rumqttc::{AsyncClient, Event, EventLoop, Incoming, MqttOptions, QoS};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes of a message.
const SIZE: usize = 64;
/// Connections with each broker.
const CONNECTIONS: usize = 20;
/// Until messages are counted, once all connections are there.
const SETTLE: Duration = Duration::from_secs(1);
/// After so long connections that are not there have failed, and a message is lost.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to do.
#[derive(Args)]
pub struct Load {
    /// Seconds for which messages are counted.
    #[arg(long)]
    window: u64,
    /// The brokers.
    #[arg(required = true)]
    brokers: Vec<SocketAddr>,
}

/// What all connections do at a time.
#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Settle,
    Count,
    End,
}

/// Each connection publishes a message under a topic of its own, which it has subscribed to, and the next one
/// when that has come back. They are numbered, so one that is lost, doubled or another one ends it all. Returns
/// how many have come back in a second.
///
/// # Errors
///
/// A connection that fails, or a message that is not the one that was sent.
pub fn run(load: &Load) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(drive(load))
}

async fn drive(load: &Load) -> Result<f64> {
    let (tell, phase) = watch::channel(Phase::Settle);
    let mut opened = JoinSet::new();
    for (number, broker) in load.brokers.iter().enumerate() {
        for connection in 0..CONNECTIONS {
            let name = format!("c{number}.{connection}");
            opened.spawn(Connection::open(name, *broker));
        }
    }
    let mut counts = JoinSet::new();
    for connection in opened.join_all().await {
        counts.spawn(connection?.exchange(phase.clone()));
    }
    tokio::time::sleep(SETTLE).await;
    tell.send_replace(Phase::Count);
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(load.window)).await;
    tell.send_replace(Phase::End);
    let time = start.elapsed();
    let mut messages = 0;
    while let Some(count) = counts.join_next().await {
        messages += count??;
    }
    ensure!(messages > 0, "no message has come back");
    Ok(messages as f64 / time.as_secs_f64())
}

struct Connection {
    client: AsyncClient,
    events: EventLoop,
    topic: String,
}

impl Connection {
    /// Connects and subscribes.
    async fn open(name: String, broker: SocketAddr) -> Result<Self> {
        let mut options = MqttOptions::new(&name, broker.ip().to_string(), broker.port());
        // Nobody is cut off because his broker had no processor for a while.
        options.set_keep_alive(PATIENCE);
        let (client, mut events) = AsyncClient::new(options, 4);
        let mut network = events.network_options();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(PATIENCE.as_secs());
        events.set_network_options(network);
        let topic = format!("load/{name}");
        client.subscribe(&topic, QoS::AtMostOnce).await?;
        let subscribed = async {
            while !matches!(events.poll().await?, Event::Incoming(Incoming::SubAck(_))) {}
            Ok::<_, anyhow::Error>(())
        };
        tokio::time::timeout(PATIENCE, subscribed)
            .await
            .with_context(|| format!("{broker} does not answer"))?
            .with_context(|| format!("cannot subscribe at {broker}"))?;
        Ok(Self {
            client,
            events,
            topic,
        })
    }

    /// Exchanges messages until the end; returns how many came back while they were counted.
    async fn exchange(mut self, phase: watch::Receiver<Phase>) -> Result<u64> {
        let mut sent = 0u64;
        let mut count = 0;
        self.publish(sent).await?;
        loop {
            let event = tokio::time::timeout(PATIENCE, self.events.poll())
                .await
                .with_context(|| format!("{}: message {sent} is lost", self.topic))??;
            let Event::Incoming(Incoming::Publish(message)) = event else {
                continue;
            };
            if *message.payload != payload(sent) {
                bail!("{}: another message came than {sent}", self.topic);
            }
            match *phase.borrow() {
                Phase::Settle => {}
                Phase::Count => count += 1,
                Phase::End => return Ok(count),
            }
            sent += 1;
            self.publish(sent).await?;
        }
    }

    async fn publish(&mut self, number: u64) -> Result<()> {
        let payload = payload(number);
        let published = self
            .client
            .publish(&self.topic, QoS::AtMostOnce, false, payload);
        Ok(published.await?)
    }
}

/// The message with this number.
fn payload(number: u64) -> [u8; SIZE] {
    let mut payload = [0; SIZE];
    for (index, byte) in payload.iter_mut().enumerate() {
        *byte = (number >> (8 * (index % 8))) as u8;
    }
    payload
}
