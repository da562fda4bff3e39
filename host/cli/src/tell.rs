//! Telling those who do not look: each channel of the configuration hears what is new to it.
//!
//! What a channel was told is written down once it was delivered; so after a failure, a restart or a long night without a
//! network it hears all that still holds, once.

mod message;
mod send;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use coffre_engine::book::Book;
use coffre_engine::config::{Config, NotifyConfig, NotifyWay};
use coffre_engine::news::news;
use coffre_engine::state::State;
use coffre_engine::status::MachineStatus;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::command::status::Look;
use crate::metrics;

pub use message::Message;

/// How often it is looked whether there are news: soon enough for a person, and seldom enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Pings are as exact as this.
const TICK: Duration = Duration::from_secs(1);
/// An address that was taken may be free again.
const LISTEN_AGAIN: Duration = Duration::from_secs(10);
/// A channel that fails is left alone for so long at first, doubled up to the limit: a mail server that is down needs no
/// thousand connections.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(10 * 60);

/// Tells channels, and remembers which of them are out of order.
pub struct Teller {
    sender: send::Sender,
    host: String,
    paused: BTreeMap<String, Pause>,
    pinged: BTreeMap<String, Instant>,
}

struct Pause {
    until: Instant,
    next: Duration,
}

/// What became of telling one channel: how many news, or why none.
pub type Outcome = (String, anyhow::Result<usize>);

impl Teller {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            sender: send::Sender::new()?,
            host: crate::wire::host(),
            paused: BTreeMap::new(),
            pinged: BTreeMap::new(),
        })
    }

    /// Tells every channel what is new to it, pings and channels that are paused left out.
    pub async fn tell(&mut self, config: &Config, book: &Book, machines: &[MachineStatus]) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for channel in config.notify.values() {
            let is_ping = matches!(channel.way, NotifyWay::Ping { .. });
            if is_ping
                || self
                    .paused
                    .get(&channel.name)
                    .is_some_and(|pause| pause.until > Instant::now())
            {
                continue;
            }
            let outcome = self.tell_one(channel, book, machines).await;
            match &outcome {
                Ok(_) => drop(self.paused.remove(&channel.name)),
                Err(_) => self.pause(&channel.name),
            }
            outcomes.push((channel.name.clone(), outcome));
        }
        outcomes
    }

    async fn tell_one(&self, channel: &NotifyConfig, book: &Book, machines: &[MachineStatus]) -> anyhow::Result<usize> {
        let told = book.told(&channel.name)?;
        let (found, now_told) = news(machines, &told, &channel.on);
        let number = found.len();
        if number > 0 {
            let message = Message::of(&self.host, found);
            self.sender.send(channel, &message).await?;
        }
        if now_told != told {
            book.write_told(&channel.name, &now_told)?;
        }
        Ok(number)
    }

    fn pause(&mut self, channel: &str) {
        let next = self.paused.get(channel).map_or(FIRST_PAUSE, |pause| pause.next);
        let pause = Pause {
            until: Instant::now() + next,
            next: (next * 2).min(LONGEST_PAUSE),
        };
        self.paused.insert(channel.to_owned(), pause);
    }

    /// Sends a message that says that it is a test.
    pub async fn test(&self, channel: &NotifyConfig) -> anyhow::Result<()> {
        self.sender.send(channel, &Message::test(&self.host)).await
    }

    /// Pings whoever waits for it, when it is time.
    async fn ping(&mut self, config: &Config) {
        for channel in config.notify.values() {
            let NotifyWay::Ping { every, .. } = channel.way else {
                continue;
            };
            if self
                .pinged
                .get(&channel.name)
                .is_some_and(|last| last.elapsed() < every)
            {
                continue;
            }
            self.pinged.insert(channel.name.clone(), Instant::now());
            if let Err(error) = self.sender.send(channel, &Message::test(&self.host)).await {
                tracing::warn!("channel `{}` was not pinged: {error:#}", channel.name);
            }
        }
    }
}

/// Whom the service tells while it runs: channels, and those who fetch metrics. It ends by being dropped.
pub struct Telling {
    config: watch::Sender<Arc<Config>>,
    tasks: [JoinHandle<()>; 2],
}

impl Telling {
    pub fn start(config: Arc<Config>) -> anyhow::Result<Self> {
        let (config, configs) = watch::channel(config);
        let tasks = [
            tokio::spawn(tell_on(Teller::new()?, configs.clone())),
            tokio::spawn(serve_on(configs)),
        ];
        Ok(Self { config, tasks })
    }

    /// The service has read another configuration.
    pub fn reload(&self, config: Arc<Config>) {
        self.config.send_replace(config);
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Serves metrics where the configuration says, also when it says another address later. That an address is taken is no reason
/// to back nothing up.
async fn serve_on(mut configs: watch::Receiver<Arc<Config>>) {
    loop {
        let listen = |config: &Config| config.metrics.as_ref().map(|metrics| metrics.listen);
        let address = listen(&configs.borrow_and_update());
        let current = configs.clone();
        let moved = async { configs.wait_for(|config| listen(config) != address).await.map(drop) };
        let Some(address) = address else {
            if moved.await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            moved = moved => {
                if moved.is_err() {
                    return;
                }
            }
            served = metrics::serve(address, move || current.borrow().clone()) => {
                if let Err(error) = served {
                    tracing::error!("{error:#}");
                }
                tokio::time::sleep(LISTEN_AGAIN).await;
            }
        }
    }
}

/// Tells channels for as long as it is let.
async fn tell_on(mut teller: Teller, configs: watch::Receiver<Arc<Config>>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut looked: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let config = configs.borrow().clone();
        teller.ping(&config).await;
        if config.notify.is_empty() || looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            continue;
        }
        looked = Some(Instant::now());
        match look(config.clone()).await {
            Ok((book, machines)) => say(&teller.tell(&config, &book, &machines).await),
            Err(error) => tracing::warn!("nobody is told, since nothing is known: {error:#}"),
        }
    }
}

fn say(outcomes: &[Outcome]) {
    for (channel, outcome) in outcomes {
        match outcome {
            Ok(0) => {}
            Ok(number) => tracing::info!(channel, number, "told what is new"),
            Err(error) => tracing::warn!(channel, "could not be told, and will be later: {error:#}"),
        }
    }
}

/// The state of all machines, off the runtime's own threads: a thousand of them take tens of milliseconds.
pub async fn look(config: Arc<Config>) -> anyhow::Result<(Book, Vec<MachineStatus>)> {
    let look = move || {
        let state = State::new(&config.coffre.state);
        let book = Book::open(&state)?;
        let look = Look {
            config: (*config).clone(),
            state,
            book: book.clone(),
            machines: Vec::new(),
        };
        Ok((book, look.now(Timestamp::now())?))
    };
    tokio::task::spawn_blocking(look).await.context("looking broke off")?
}

#[cfg(test)]
mod tests;
