//! What is to be done when: due times, the queue for places, another try, catching up, the queue of transfers.
//!
//! It reads no clock, starts nothing and writes nothing: whoever drives it says what time it is and what became of jobs, does
//! the [`Action`]s that it is told, and writes the [`Turn`]s that changed before it starts anything. So a year of it can
//! be tried in seconds, and a service that is killed goes on from what was written.
//!
//! - A machine has one job at a time. So many jobs take their snapshot at once, and so many transfer at once: a job that has its
//!   snapshot gives its first place back and waits for a transfer place in the order of its snapshot, within its policy's
//!   windows.
//! - Due times that passed while nothing could run (the service was off, an earlier job of the machine ran) are caught up by
//!   one job, for the newest of them; the others are told as missed. Nothing piles up.
//! - A job that failed is tried again with growing delays until its window is over or the machine is due again.
//! - Every due time is told exactly once: done, failed, cancelled or missed.

mod account;
mod happened;
mod places;
mod retry;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::book::{Turn, TurnState};
use crate::config::{Config, MachineConfig};
use crate::schedule::{Schedule, Window};

pub use account::{Account, Fate};
pub use happened::{Happened, Outcome};
pub use places::Places;

/// A due time further ahead than this was written when the clock was wrong. An hour is more than clocks are corrected by.
const AHEAD_AT_MOST: SignedDuration = SignedDuration::from_hours(1);

/// What the configuration says of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub machine: String,
    pub schedule: Schedule,
    /// Jobs begin at most this much after their due time, each machine always by the same part of it.
    pub jitter: Duration,
    /// A job that failed is tried again no later than this after its due time.
    pub retry_within: Duration,
    /// When transfers may go; none: always.
    pub windows: Vec<Window>,
}

/// The plans of all machines whose policy has a schedule.
pub fn plans(config: &Config) -> Vec<Plan> {
    let plan = |machine: &MachineConfig| {
        let policy = config.policy_of(machine);
        Some(Plan {
            machine: machine.name.clone(),
            schedule: policy.schedule?,
            jitter: policy.jitter,
            retry_within: policy.retry_within,
            windows: policy.transfer,
        })
    };
    config.machines.values().filter_map(plan).collect()
}

/// What the driver is to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin a job. Its turn is written first.
    Start {
        machine: String,
        due: Timestamp,
        /// Counted from 1.
        attempt: u32,
    },
    /// The job that waits with its snapshot may transfer.
    Transfer { machine: String },
    /// Say what became of due times.
    Tell(Account),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Done,
    /// `again`: another try may help.
    Failed {
        error: String,
        again: bool,
    },
    /// Somebody wanted this very job to end.
    Cancelled,
    /// The service is stopping: the job goes on when it runs again.
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// From its start to its snapshot.
    Snapshot,
    /// With its snapshot, waiting for a transfer place.
    Queued,
    Transfer,
}

#[derive(Debug)]
struct Entry {
    /// None: the configuration has the machine no more, and its job ends by itself.
    plan: Option<Plan>,
    turn: Turn,
    stage: Stage,
    /// Due times up to here are no matter of this schedule.
    from: Timestamp,
    /// When its last job ended, as far as this process knows.
    ran_until: Option<Timestamp>,
    /// The first due time that is not looked at yet; none: never.
    next_due: Option<Timestamp>,
}

/// The machines of this host, and what is due of them.
#[derive(Debug)]
pub struct Scheduler {
    machines: BTreeMap<String, Entry>,
    places: Places,
    /// In the order of their snapshots.
    queue: VecDeque<String>,
    /// Machines whose turn is to be written.
    changed: BTreeSet<String>,
}

impl Scheduler {
    /// Goes on from the turns that were written. A turn that was running belongs to a job that died with its process: it is
    /// tried again. `seen` are the times of the newest points of machines that have no turn, if they have any: what was
    /// due since then is caught up. Machines with neither wait for their next due time.
    pub fn new(
        plans: Vec<Plan>,
        places: Places,
        turns: &BTreeMap<String, Turn>,
        seen: &BTreeMap<String, Timestamp>,
        now: Timestamp,
    ) -> Self {
        let mut scheduler = Self {
            machines: BTreeMap::new(),
            places,
            queue: VecDeque::new(),
            changed: BTreeSet::new(),
        };
        for plan in plans {
            let name = plan.machine.clone();
            let entry = match turns.get(&name) {
                Some(turn) => Entry::resumed(plan, turn.clone(), now),
                None => Entry::new(plan, seen.get(&name).copied().unwrap_or(now).min(now)),
            };
            scheduler.changed.insert(name.clone());
            scheduler.machines.insert(name, entry);
        }
        scheduler
    }

    /// Takes a new configuration over, and says what is due no more. Jobs that run go on; what was due by a schedule that is
    /// gone and had not begun is missed.
    pub fn reload(&mut self, plans: Vec<Plan>, places: Places, now: Timestamp) -> Vec<Account> {
        self.places.limits(places);
        let mut accounts = Vec::new();
        let mut gone: BTreeSet<String> = self.machines.keys().cloned().collect();
        for plan in plans {
            gone.remove(&plan.machine);
            let name = plan.machine.clone();
            match self.machines.get_mut(&name) {
                Some(entry) => {
                    if let Some(account) = entry.replan(plan, now) {
                        accounts.push(account);
                        self.changed.insert(name);
                    }
                }
                None => {
                    self.changed.insert(name.clone());
                    self.machines.insert(name, Entry::new(plan, now));
                }
            }
        }
        for name in gone {
            if let Some(entry) = self.machines.get_mut(&name) {
                entry.plan = None;
            }
            self.forget_if_gone(&name);
        }
        accounts
    }

    /// Everything that is to be done now, in this order.
    pub fn tick(&mut self, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        for (name, entry) in &mut self.machines {
            if entry.look(name, now, &mut actions) {
                self.changed.insert(name.clone());
            }
        }
        self.start(now, &mut actions);
        self.transfer(now, &mut actions);
        actions
    }

    /// Places go to those that wait longest.
    fn start(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let mut ready: Vec<(Timestamp, &String)> = Vec::new();
        for (name, entry) in &self.machines {
            let at = entry.turn.try_at.filter(|at| *at <= now && entry.is_waiting());
            ready.extend(at.map(|at| (at, name)));
        }
        ready.sort();
        let ready: Vec<String> = ready.into_iter().map(|(_, name)| name.clone()).collect();
        for machine in ready {
            if !self.places.take_snapshot() {
                return;
            }
            if let Some(entry) = self.machines.get_mut(&machine) {
                entry.stage = Stage::Snapshot;
                entry.turn.state = TurnState::Running;
                entry.turn.attempts += 1;
                entry.turn.try_at = None;
                actions.push(Action::Start {
                    due: entry.turn.due,
                    attempt: entry.turn.attempts,
                    machine: machine.clone(),
                });
                self.changed.insert(machine);
            }
        }
    }

    fn transfer(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let machines = &mut self.machines;
        let places = &mut self.places;
        self.queue.retain(|machine| {
            let Some(entry) = machines.get_mut(machine).filter(|entry| entry.is_open(now)) else {
                return true;
            };
            if !places.take_transfer() {
                return true;
            }
            entry.stage = Stage::Transfer;
            actions.push(Action::Transfer {
                machine: machine.clone(),
            });
            false
        });
    }

    /// A job has its snapshot, or needs none to transfer: it waits for [`Action::Transfer`] from now on.
    pub fn snapshot_taken(&mut self, machine: &str) {
        if let Some(entry) = self.machines.get_mut(machine)
            && entry.stage == Stage::Snapshot
        {
            entry.stage = Stage::Queued;
            self.places.leave_snapshot();
            self.queue.push_back(machine.to_owned());
        }
    }

    /// A job has ended. Says what became of its due time, if that is known now.
    pub fn ended(&mut self, machine: &str, how: Ended, now: Timestamp) -> Option<Account> {
        let entry = self.machines.get_mut(machine)?;
        match entry.stage {
            Stage::Idle => return None,
            Stage::Snapshot => self.places.leave_snapshot(),
            Stage::Queued => self.queue.retain(|queued| queued != machine),
            Stage::Transfer => self.places.leave_transfer(),
        }
        entry.stage = Stage::Idle;
        entry.ran_until = Some(now);
        let account = entry.ended(machine, how, now);
        self.changed.insert(machine.to_owned());
        self.forget_if_gone(machine);
        account
    }

    /// When [`Self::tick`] has something to do next, if no job ends before. None: nothing will ever be due.
    pub fn next_wake(&self, now: Timestamp) -> Option<Timestamp> {
        let of_machines = self.machines.values().filter_map(|entry| {
            let waits = entry.turn.try_at.filter(|at| entry.is_waiting() && *at > now);
            let due = entry
                .next_due
                .filter(|_| entry.plan.is_some() && entry.stage == Stage::Idle);
            waits.into_iter().chain(due).min()
        });
        // A window opens at a full minute.
        let window =
            (!self.queue.is_empty()).then(|| now + SignedDuration::from_secs(60 - now.as_second().rem_euclid(60)));
        of_machines.chain(window).min()
    }

    /// The turns that changed since this was last asked.
    pub fn take_changed(&mut self) -> Vec<(String, Turn)> {
        let changed = std::mem::take(&mut self.changed);
        let turn = |name: String| self.machines.get(&name).map(|entry| (name, entry.turn.clone()));
        changed.into_iter().filter_map(turn).collect()
    }

    /// The machine's turn; none if the scheduler does not know it.
    pub fn turn(&self, machine: &str) -> Option<&Turn> {
        self.machines.get(machine).map(|entry| &entry.turn)
    }

    /// Machines whose job runs, with or without its snapshot.
    pub fn running(&self) -> impl Iterator<Item = &str> {
        let running = self.machines.iter().filter(|(_, entry)| entry.stage != Stage::Idle);
        running.map(|(name, _)| name.as_str())
    }

    fn forget_if_gone(&mut self, machine: &str) {
        let gone = |entry: &Entry| entry.plan.is_none() && entry.stage == Stage::Idle;
        if self.machines.get(machine).is_some_and(gone) {
            self.machines.remove(machine);
            self.changed.remove(machine);
        }
    }
}

impl Entry {
    fn new(plan: Plan, from: Timestamp) -> Self {
        let turn = Turn {
            due: plan.schedule.last_until(from).unwrap_or(from),
            attempts: 0,
            try_at: None,
            state: TurnState::Done,
            error: None,
        };
        Self {
            next_due: plan.schedule.next_after(from),
            plan: Some(plan),
            turn,
            stage: Stage::Idle,
            from,
            ran_until: None,
        }
    }

    fn resumed(plan: Plan, mut turn: Turn, now: Timestamp) -> Self {
        if turn.state == TurnState::Running {
            // At once; but a job that takes the service down with it must not do so again and again.
            turn.state = TurnState::Waiting;
            turn.try_at = match turn.attempts {
                0 | 1 => Some(now),
                attempts => now.checked_add(retry::delay(attempts - 1)).ok(),
            };
        }
        Self {
            next_due: plan.schedule.next_after(turn.due),
            from: turn.due,
            plan: Some(plan),
            turn,
            stage: Stage::Idle,
            ran_until: None,
        }
    }

    fn replan(&mut self, plan: Plan, now: Timestamp) -> Option<Account> {
        let same = self.plan.as_ref().is_some_and(|known| known.schedule == plan.schedule);
        let next = plan.schedule.next_after(now);
        let machine = plan.machine.clone();
        self.plan = Some(plan);
        if same {
            return None;
        }
        self.from = now;
        self.next_due = next;
        if !self.is_waiting() {
            return None;
        }
        let account = self.overtaken(&machine);
        self.turn.state = match self.turn.attempts {
            0 => TurnState::Missed,
            _ => TurnState::Failed,
        };
        self.turn.try_at = None;
        account
    }

    fn is_waiting(&self) -> bool {
        self.plan.is_some() && self.stage == Stage::Idle && self.turn.state == TurnState::Waiting
    }

    /// Whether its transfer may go by its policy's windows.
    fn is_open(&self, now: Timestamp) -> bool {
        let windows = self.plan.as_ref().map_or(&[][..], |plan| &plan.windows);
        windows.is_empty() || windows.iter().any(|window| window.contains(now))
    }

    /// Takes up what is due. Whether the turn changed.
    fn look(&mut self, machine: &str, now: Timestamp, actions: &mut Vec<Action>) -> bool {
        let Some(plan) = self.plan.as_ref().filter(|_| self.stage == Stage::Idle) else {
            return false;
        };
        if self.turn.due.duration_since(now) > AHEAD_AT_MOST {
            // Nothing would be due until the clock is there again.
            let plan = plan.clone();
            *self = Self::new(plan, now);
            return true;
        }
        if self.next_due.is_none_or(|next| next > now) {
            return false;
        }
        let Some(newest) = plan.schedule.last_until(now) else {
            return false;
        };
        let known = self.turn.due.max(self.from);
        self.next_due = plan.schedule.next_after(newest.max(known));
        if newest <= known {
            return false;
        }
        if let Some(account) = self.overtaken(machine) {
            actions.push(Action::Tell(account));
        }
        let missed = account::missed(machine, plan, known, newest, self.ran_until);
        actions.extend(missed.map(Action::Tell));
        let delay = retry::jitter(machine, plan.jitter);
        self.turn = Turn {
            due: newest,
            attempts: 0,
            try_at: newest.checked_add(delay).ok(),
            state: TurnState::Waiting,
            error: None,
        };
        true
    }

    /// What becomes of a turn that waits when the machine is due again.
    fn overtaken(&self, machine: &str) -> Option<Account> {
        let fate = match (self.turn.state, self.turn.attempts) {
            (TurnState::Waiting, 0) => Fate::Missed,
            (TurnState::Waiting, _) => Fate::Failed(self.turn.error.clone().unwrap_or_default()),
            _ => return None,
        };
        Some(Account::one(machine, self.turn.due, self.turn.attempts, fate))
    }

    fn ended(&mut self, machine: &str, how: Ended, now: Timestamp) -> Option<Account> {
        let (due, attempts) = (self.turn.due, self.turn.attempts);
        self.turn.try_at = None;
        let fate = match how {
            Ended::Done => {
                self.turn.state = TurnState::Done;
                self.turn.error = None;
                Fate::Done
            }
            Ended::Stopped => {
                self.turn.attempts = attempts.saturating_sub(1);
                self.turn.state = TurnState::Waiting;
                self.turn.try_at = Some(now);
                return None;
            }
            Ended::Cancelled => {
                self.turn.state = TurnState::Failed;
                self.turn.error = Some("cancelled".to_owned());
                Fate::Cancelled
            }
            Ended::Failed { error, again } => {
                self.turn.error = Some(error.clone());
                let retry = self.plan.as_ref().filter(|_| again);
                if let Some(at) = retry.and_then(|plan| retry::next(plan, due, attempts, now)) {
                    self.turn.state = TurnState::Waiting;
                    self.turn.try_at = Some(at);
                    return None;
                }
                self.turn.state = TurnState::Failed;
                Fate::Failed(error)
            }
        };
        Some(Account::one(machine, due, attempts, fate))
    }
}
