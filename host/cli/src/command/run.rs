//! `coffre run`: the service that backs up what is due.
//!
//! One loop asks the scheduler (`coffre_engine::scheduler`, which decides everything) what is to be done, writes down what it
//! decided, and does it: starts jobs, lets transfers go, tells what became of due times. Jobs are tasks of their own, which
//! say when they have their snapshot and when they have ended. Nothing else is held here, so a kill costs nothing but the
//! jobs that ran, and those are paid for at the next start.

mod file;
mod gate;
mod jobs;
mod signals;
mod systemd;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use coffre_engine::book::Book;
use coffre_engine::config::Config;
use coffre_engine::progress::Cancel;
use coffre_engine::scheduler::{self, Account, Action, Ended, Fate, Happened, Outcome, Places, Scheduler};
use coffre_engine::state::State;
use coffre_engine::{Chain, Clock, SystemClock};
use coffre_guard::Guard;
use jiff::Timestamp;
use tokio::sync::{Semaphore, broadcast, mpsc};

use crate::args::Global;
use crate::backing::Backing;
use crate::exit::{Complaint, Exit};
use crate::log::{complain, say};
use crate::output::{count, time};
use crate::progress::Style;
use crate::report::Report;
use crate::tell::Telling;
use crate::{book, left_behind, wire};
use file::ConfigFile;
pub use gate::WindowGate;
use gate::Windows;
use jobs::{EndedJob, Job};
use signals::{Signals, Wish};

/// The clock is asked again at least so often, since it can be set and machines sleep.
const SLEEP_AT_MOST: Duration = Duration::from_secs(30);
/// How often the configuration file is looked at.
const LOOK_AT_FILE: Duration = Duration::from_secs(2);
/// Who listens and falls behind by this much misses the oldest.
const EVENTS_KEPT: usize = 1024;

pub async fn run(global: &Global) -> anyhow::Result<Exit> {
    let mut signals = Signals::listen()?;
    let mut service = Service::start(global).await?;
    systemd::ready();
    service.serve(global, &mut signals).await?;
    Ok(Exit::Done)
}

/// What jobs say to the loop.
enum Message {
    SnapshotTaken(String),
    Ended(Box<EndedJob>),
}

/// A job that runs.
struct Running {
    cancel: Cancel,
    /// A permit lets its transfer go.
    go: Arc<Semaphore>,
}

struct Service {
    backing: Arc<Backing>,
    scheduler: Scheduler,
    book: Book,
    clock: SystemClock,
    /// By machine, as running jobs see them too.
    windows: Windows,
    running: BTreeMap<String, Running>,
    outbox: mpsc::Sender<Message>,
    inbox: mpsc::Receiver<Message>,
    events: broadcast::Sender<Happened>,
    /// Those who do not look.
    telling: Telling,
    file: ConfigFile,
    stopping: bool,
    _lock: coffre_engine::state::SchedulerLock,
}

impl Service {
    async fn start(global: &Global) -> anyhow::Result<Self> {
        let file = ConfigFile::find(global)?;
        let config = Arc::new(wire::config(global)?);
        let clock = SystemClock;
        let now = clock.now();
        let state = State::new(&config.coffre.state);
        let lock = state.lock_scheduler(&format!("coffre run since {}", time(now)))?;
        let guard = wire::guard(&config);
        left_behind::settle_and_say(&config, &guard);
        let book = Book::open(&state)?;
        let pacer = Backing::pacer(&config);
        let backing = Arc::new(Backing::new(config.clone(), guard, pacer, Style::Nothing)?);
        let scheduler = scheduler_of(&backing, &book, places(&config), now).await?;
        let (outbox, inbox) = mpsc::channel(64);
        let windows = Windows::of(&config);
        Ok(Self {
            backing,
            scheduler,
            book,
            clock,
            windows,
            running: BTreeMap::new(),
            outbox,
            inbox,
            events: broadcast::channel(EVENTS_KEPT).0,
            telling: Telling::start(config)?,
            file,
            stopping: false,
            _lock: lock,
        })
    }

    async fn serve(&mut self, global: &Global, signals: &mut Signals) -> anyhow::Result<()> {
        let mut look_at_file = tokio::time::interval(LOOK_AT_FILE);
        say(&format!(
            "{} with a schedule",
            count(scheduler::plans(&self.backing.config).len(), "machine")
        ));
        loop {
            if self.stopping {
                if self.running.is_empty() {
                    return Ok(());
                }
            } else {
                self.do_what_is_due();
            }
            systemd::alive();
            let sleep = self.sleep();
            tokio::select! {
                message = self.inbox.recv() => {
                    if let Some(message) = message {
                        self.hear(message).await;
                    }
                }
                () = tokio::time::sleep(sleep) => {}
                wish = signals.next() => match wish {
                    Wish::Reload => self.reload(global),
                    Wish::Stop => self.stop(),
                },
                _ = look_at_file.tick() => {
                    if !self.stopping && self.file.has_changed() {
                        self.reload(global);
                    }
                }
            }
        }
    }

    fn sleep(&self) -> Duration {
        let now = self.clock.now();
        let wake = self.scheduler.next_wake(now).filter(|_| !self.stopping);
        let wake = wake.and_then(|wake| Duration::try_from(wake.duration_since(now)).ok());
        // Timers are a little early or late; a moment later is not due twice.
        let wake = wake.map(|wake| wake + Duration::from_millis(1));
        wake.unwrap_or(SLEEP_AT_MOST)
            .min(SLEEP_AT_MOST)
            .min(systemd::patience())
    }

    /// What was decided is written down before it is done.
    fn do_what_is_due(&mut self) {
        let actions = self.scheduler.tick(self.clock.now());
        self.write_turns();
        for action in actions {
            match action {
                Action::Start { machine, due, attempt } => self.begin(machine, due, attempt),
                Action::Transfer { machine } => {
                    if let Some(running) = self.running.get(&machine) {
                        running.go.add_permits(1);
                    }
                    self.tell(Happened::TransferStarted { machine });
                }
                Action::Tell(account) => self.account(account),
            }
        }
    }

    fn write_turns(&mut self) {
        for (machine, turn) in self.scheduler.take_changed() {
            if let Err(error) = self.book.write_turn(&machine, &turn) {
                // What is due again after a restart is then done again.
                say(&format!("{machine}: its turn is not in the book: {}", Chain(&error)));
            }
        }
    }

    fn begin(&mut self, machine: String, due: Timestamp, attempt: u32) {
        let running = Running {
            cancel: Cancel::new(),
            go: Arc::new(Semaphore::new(0)),
        };
        let tries = if attempt > 1 {
            format!(", attempt {attempt}")
        } else {
            String::new()
        };
        say(&format!("{machine}: backup of {} begins{tries}", time(due)));
        let job = Job {
            machine: machine.clone(),
            backing: self.backing.clone(),
            cancel: running.cancel.clone(),
            go: running.go.clone(),
            windows: self.windows.clone(),
            outbox: self.outbox.clone(),
        };
        job.spawn();
        self.tell(Happened::JobStarted {
            machine: machine.clone(),
            due,
            attempt,
        });
        self.running.insert(machine, running);
    }

    async fn hear(&mut self, message: Message) {
        match message {
            Message::SnapshotTaken(machine) => {
                self.scheduler.snapshot_taken(&machine);
                self.tell(Happened::SnapshotTaken { machine });
            }
            Message::Ended(ended) => self.ended(*ended),
        }
        if self.running.is_empty() {
            self.backing.close_vaults().await;
        }
    }

    fn ended(&mut self, ended: EndedJob) {
        let Some(running) = self.running.remove(&ended.machine) else {
            return;
        };
        let machine = ended.machine.clone();
        let stopped = running.cancel.is_stopped();
        let report = ended.result.as_ref().err().map(Report::new);
        let outcome = match (&ended.result, &report) {
            (Ok(point), _) => point.outcome(),
            (Err(_), _) if stopped => Outcome::Stopped,
            (Err(_), Some(report)) if report.exit == Exit::Cancelled => Outcome::Cancelled,
            (Err(_), _) => Outcome::Failed,
        };
        let how = match outcome {
            Outcome::Done | Outcome::Downgraded => Ended::Done,
            Outcome::Stopped => Ended::Stopped,
            Outcome::Cancelled => Ended::Cancelled,
            Outcome::Failed => Ended::Failed {
                error: ended
                    .result
                    .as_ref()
                    .err()
                    .map(|error| format!("{error:#}"))
                    .unwrap_or_default(),
                // What the configuration gets wrong stays wrong until it is changed.
                again: report
                    .as_ref()
                    .is_none_or(|report| !matches!(report.exit, Exit::Config | Exit::Usage)),
            },
        };
        match &ended.result {
            Ok(point) => say(&format!("{machine}: {}", point.line(ended.elapsed))),
            Err(_) if outcome == Outcome::Stopped => say(&format!("{machine}: stopped, it goes on at the next start")),
            Err(_) if outcome == Outcome::Cancelled => say(&format!("{machine}: cancelled, no point was written")),
            Err(_) => {
                if let Some(report) = &report {
                    complain(&format!("{machine}: "), report);
                }
            }
        }
        let account = self.scheduler.ended(&machine, how, self.clock.now());
        self.write_turns();
        self.tell(Happened::JobEnded {
            machine: machine.clone(),
            job: ended.job.clone(),
            outcome,
            error: ended.result.as_ref().err().map(|error| format!("{error:#}")),
            hint: report.and_then(|report| report.hints.first().cloned()),
            elapsed: ended.elapsed,
        });
        match ended.forgotten {
            Some(Ok(points)) if points > 0 => {
                say(&format!(
                    "{machine}: {} forgotten by its policy",
                    count(points, "point")
                ));
                self.tell(Happened::Forgotten { machine, points });
            }
            Some(Err(error)) => {
                let about = format!("{machine}: what its policy keeps no longer: ");
                complain(&about, &Report::new(&error));
            }
            _ => {}
        }
        if let Some(account) = account {
            self.account(account);
        }
    }

    fn account(&self, account: Account) {
        let machine = &account.machine;
        let missed = match account.fate {
            Fate::Missed => Some("nothing ran then, or there was no place"),
            Fate::Overtaken => Some("the machine's backup before it still ran"),
            Fate::Done | Fate::Failed(_) | Fate::Cancelled => None,
        };
        if let Some(why) = missed {
            let times = match account.count {
                1 => format!("the backup of {}", time(account.first)),
                backups => format!(
                    "{backups} backups from {} to {}",
                    time(account.first),
                    time(account.last)
                ),
            };
            say(&format!("{machine}: missed {times}: {why}"));
        }
        self.tell(Happened::Told(account));
    }

    /// Jobs that run keep what they began with; caps and windows hold for them too.
    fn reload(&mut self, global: &Global) {
        systemd::reloading();
        match self.take_over(global) {
            Ok(()) => {
                say("the configuration was read again");
                self.tell(Happened::Reloaded);
            }
            Err(error) => {
                let report = Report::new(&error);
                let about = "the old configuration stays: ";
                complain(about, &report);
                self.tell(Happened::Refused {
                    why: format!("{error:#}"),
                });
            }
        }
        systemd::ready();
    }

    fn take_over(&mut self, global: &Global) -> anyhow::Result<()> {
        let config = Arc::new(wire::config(global)?);
        let old = &self.backing.config.coffre;
        if config.coffre.state != old.state || config.coffre.run != old.run {
            let hint = "restart the service";
            let text = "the folders `state` and `run` cannot change while it runs";
            return Err(Complaint::config(text, hint).into());
        }
        let guard: Guard = self.backing.guard.clone();
        let pacer = self.backing.pacer.clone();
        let backing = Backing::new(config.clone(), guard, pacer, Style::Nothing)?;
        // Nothing fails from here on.
        self.backing = Arc::new(backing);
        self.backing.pacer.reload(config.transfer.clone());
        self.windows.reload(&config);
        self.telling.reload(config.clone());
        let accounts = self
            .scheduler
            .reload(scheduler::plans(&config), places(&config), self.clock.now());
        self.write_turns();
        for account in accounts {
            self.account(account);
        }
        Ok(())
    }

    fn stop(&mut self) {
        if self.stopping {
            say("still stopping: hooks and snapshots are being let go");
            return;
        }
        self.stopping = true;
        systemd::stopping();
        if !self.running.is_empty() {
            say("stopping: what has been sent is kept for the next start");
        }
        for running in self.running.values() {
            running.cancel.stop();
        }
    }

    /// Nobody needs to listen.
    fn tell(&self, happened: Happened) {
        let _ = self.events.send(happened);
    }
}

/// The scheduler as the book knows its turns. What the book has lost is made up for by the points: those in it, else those in
/// the vault.
pub async fn scheduler_of(backing: &Backing, book: &Book, places: Places, now: Timestamp) -> anyhow::Result<Scheduler> {
    let turns = book.turns()?;
    let plans = scheduler::plans(&backing.config);
    let without = plans.iter().map(|plan| plan.machine.clone());
    let without: Vec<String> = without.filter(|machine| !turns.contains_key(machine)).collect();
    let mut seen = newest(book)?;
    let unknown: Vec<&str> = without
        .iter()
        .map(String::as_str)
        .filter(|name| !seen.contains_key(*name))
        .collect();
    if !unknown.is_empty() {
        look_into_vaults(backing, book, &unknown).await;
        seen = newest(book)?;
    }
    Ok(Scheduler::new(plans, places, &turns, &seen, now))
}

fn newest(book: &Book) -> anyhow::Result<BTreeMap<String, Timestamp>> {
    let mut newest: BTreeMap<String, Timestamp> = BTreeMap::new();
    for point in book.newest()? {
        let known = newest.entry(point.machine).or_insert(point.taken_at);
        *known = point.taken_at.max(*known);
    }
    Ok(newest)
}

/// Where it cannot be looked, machines wait for their next due time, as new ones do.
async fn look_into_vaults(backing: &Backing, book: &Book, machines: &[&str]) {
    let mut by_vault: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in machines {
        if let Ok(machine) = backing.config.machine(name) {
            by_vault.entry(&machine.vault).or_default().push(name);
        }
    }
    for (vault, machines) in by_vault {
        let looked = async {
            let vault = backing.vault(vault).await?;
            book::read_points(book, &vault, &machines).await
        };
        if let Err(error) = looked
            .await
            .with_context(|| format!("look for points in vault `{vault}`"))
        {
            complain("", &Report::new(&error));
        }
    }
}

/// As many on their way to the snapshot as transfer.
fn places(config: &Config) -> Places {
    let jobs = config.coffre.jobs.get();
    Places::new(jobs, jobs)
}
