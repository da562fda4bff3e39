//! Whether every machine is safe: judged from the book and from what runs now, without asking a vault.
//!
//! | level | what it means |
//! |---|---|
//! | `safe` | there is a good point, and it is as new as the schedule wants |
//! | `warning` | there is one, and something wants looking at: a run failed or was missed, the point is worth less than wanted |
//! | `unknown` | the book does not know the machine's points, and no backup of it was tried here |
//! | `not-safe` | there is no good point, or two due times have passed since the newest one |
//!
//! A good point is one that was not forgotten and is worth at least what the machine's policy accepts.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::book::{Book, BookError, LastJob, Newest, Shelf, Turn, TurnState};
use crate::config::{Config, MachineConfig, PolicyConfig};
use crate::journal::JobOutcome;
use crate::live::RunningJob;
use crate::machine::Consistency;

/// A machine whose policy has no schedule is backed up by somebody else's: a day, and a day for whoever looks to it.
const UNSCHEDULED_WARNING: SignedDuration = SignedDuration::from_hours(48);
/// A week without a backup is nobody's schedule.
const UNSCHEDULED_NOT_SAFE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// So long after a due time the run may be on its way, before a missing point is worth a word. Most backups take less, and one
/// that runs is seen to run.
const GRACE: SignedDuration = SignedDuration::from_hours(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    Safe,
    Warning,
    Unknown,
    NotSafe,
}

impl Level {
    pub const ALL: [Self; 4] = [Self::Safe, Self::Warning, Self::Unknown, Self::NotSafe];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::NotSafe => "not safe",
        }
    }
}

/// Why a machine is not just safe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    pub level: Level,
    /// For programs.
    pub code: &'static str,
    pub text: String,
    pub hint: Option<String>,
}

/// A point that keeps a machine safe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GoodPoint {
    pub point: u32,
    pub taken_at: Timestamp,
    pub age_ms: u64,
    pub consistency: Consistency,
    pub size_bytes: u64,
}

/// One machine, as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct MachineStatus {
    pub machine: String,
    pub vault: String,
    pub policy: Option<String>,
    pub level: Level,
    /// Worst first; none where all is well.
    pub reasons: Vec<Reason>,
    /// The newest good point.
    pub last_good: Option<GoodPoint>,
    pub consistency_wanted: Consistency,
    pub next_due: Option<Timestamp>,
    pub turn: Option<Turn>,
    pub running: Option<RunningJob>,
    pub last_job: Option<LastJob>,
    /// Points known of it, forgotten ones among them until they are purged, and what they added to the vault.
    pub points: u64,
    pub stored_bytes: u64,
    /// When its points were last read in the vault.
    pub points_read_at: Option<Timestamp>,
}

/// The due times around an instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The newest that has come, and the one before it.
    pub last: Option<Timestamp>,
    pub before_last: Option<Timestamp>,
    pub next: Option<Timestamp>,
}

/// What is known of all machines at one instant.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub newest: Vec<Newest>,
    pub shelves: BTreeMap<(String, String), Shelf>,
    pub scans: BTreeMap<(String, String), Timestamp>,
    pub turns: BTreeMap<String, Turn>,
    pub last_jobs: BTreeMap<String, LastJob>,
    pub running: Vec<RunningJob>,
}

impl Known {
    pub fn read(book: &Book, running: Vec<RunningJob>) -> Result<Self, BookError> {
        Ok(Self {
            newest: book.newest()?,
            shelves: book.shelves()?,
            scans: book.scans()?,
            turns: book.turns()?,
            last_jobs: book.last_jobs()?,
            running,
        })
    }
}

/// Every machine of the configuration, worst first, then by name.
/// `due` is asked for the due times around `now`.
pub fn judge(config: &Config, known: &Known, due: impl Fn(&PolicyConfig) -> Due, now: Timestamp) -> Vec<MachineStatus> {
    let mut newest: BTreeMap<(&str, &str), Vec<&Newest>> = BTreeMap::new();
    for point in &known.newest {
        newest.entry((&point.vault, &point.machine)).or_default().push(point);
    }
    let running: BTreeMap<&str, &RunningJob> = known.running.iter().map(|job| (job.machine.as_str(), job)).collect();
    let mut machines: Vec<MachineStatus> = (config.machines.values())
        .map(|machine| {
            let points = newest.get(&(machine.vault.as_str(), machine.name.as_str()));
            let running = running.get(machine.name.as_str()).map(|job| (*job).clone());
            let points = points.map_or(&[][..], Vec::as_slice);
            let due = due(&config.policy_of(machine));
            one(config, machine, points, known, running, due, now)
        })
        .collect();
    machines.sort_by(|one, other| (other.level, &one.machine).cmp(&(one.level, &other.machine)));
    machines
}

/// What is worst of all machines; safe where there are none.
pub fn worst(machines: &[MachineStatus]) -> Level {
    machines
        .iter()
        .map(|machine| machine.level)
        .max()
        .unwrap_or(Level::Safe)
}

fn one(
    config: &Config,
    machine: &MachineConfig,
    points: &[&Newest],
    known: &Known,
    running: Option<RunningJob>,
    due: Due,
    now: Timestamp,
) -> MachineStatus {
    let policy = config.policy_of(machine);
    let place = (machine.vault.clone(), machine.name.clone());
    let shelf = known.shelves.get(&place).cloned().unwrap_or_default();
    let good = points.iter().filter(|point| point.reached >= policy.accept);
    let last_good = good.max_by_key(|point| point.taken_at).map(|point| GoodPoint {
        point: point.number,
        taken_at: point.taken_at,
        age_ms: u64::try_from(now.duration_since(point.taken_at).as_millis()).unwrap_or(0),
        consistency: point.reached,
        size_bytes: point.size_bytes,
    });
    let mut status = MachineStatus {
        machine: machine.name.clone(),
        vault: machine.vault.clone(),
        policy: machine.policy.clone(),
        level: Level::Safe,
        reasons: Vec::new(),
        last_good,
        consistency_wanted: config.wanted(machine),
        next_due: due.next,
        turn: known.turns.get(&machine.name).cloned(),
        running,
        last_job: known.last_jobs.get(&machine.name).cloned(),
        points: shelf.points,
        stored_bytes: shelf.stored_bytes,
        points_read_at: known.scans.get(&place).copied(),
    };
    let mut reasons = Vec::new();
    reasons.extend(status.of_age(&due, now));
    reasons.extend(status.of_worth());
    reasons.extend(status.of_last_job());
    reasons.extend(status.of_turn());
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.level));
    status.level = reasons.first().map_or(Level::Safe, |reason| reason.level);
    status.reasons = reasons;
    status
}

impl MachineStatus {
    fn of_age(&self, due: &Due, now: Timestamp) -> Option<Reason> {
        let reason = |level, code, text, hint: &str| {
            let hint = (!hint.is_empty()).then(|| hint.to_owned());
            Some(Reason {
                level,
                code,
                text,
                hint,
            })
        };
        let Some(good) = &self.last_good else {
            return if self.points_read_at.is_none() && self.last_job.is_none() {
                let text = "its points were never read here".to_owned();
                let hint = "`coffre status --refresh` reads them in the vault";
                reason(Level::Unknown, "not-known", text, hint)
            } else if self.points > 0 {
                let text = "none of its points is as consistent as its policy accepts".to_owned();
                reason(
                    Level::NotSafe,
                    "no-good-point",
                    text,
                    "see `coffre points` for what there is",
                )
            } else {
                let text = "it has no recovery point".to_owned();
                reason(Level::NotSafe, "no-point", text, "")
            };
        };
        let old = || {
            format!(
                "the newest good point is {} old",
                ago(now.duration_since(good.taken_at))
            )
        };
        let Some(last) = due.last else {
            let age = now.duration_since(good.taken_at);
            // Of a schedule that has not begun, nothing is late.
            return match age {
                _ if due.next.is_some() => None,
                age if age > UNSCHEDULED_NOT_SAFE => reason(Level::NotSafe, "old", old(), ""),
                age if age > UNSCHEDULED_WARNING => reason(Level::Warning, "old", old(), ""),
                _ => None,
            };
        };
        let on_its_way = self.running.is_some()
            || now.duration_since(last) < GRACE
            || (self.turn.as_ref()).is_some_and(|turn| matches!(turn.state, TurnState::Waiting | TurnState::Running));
        if good.taken_at >= last {
            None
        } else if due.before_last.is_some_and(|before| good.taken_at < before) {
            reason(
                Level::NotSafe,
                "late",
                format!("{}, and two due times have passed", old()),
                "",
            )
        } else if on_its_way {
            None
        } else {
            let text = format!(
                "nothing has come of the run that was due {} ago",
                ago(now.duration_since(last))
            );
            reason(
                Level::Warning,
                "late",
                text,
                "is `coffre run` running? `systemctl status coffre` says",
            )
        }
    }

    fn of_worth(&self) -> Option<Reason> {
        let good = self.last_good.as_ref()?;
        (good.consistency < self.consistency_wanted).then(|| Reason {
            level: Level::Warning,
            code: "downgraded",
            text: format!(
                "the newest good point is {}-consistent, and {} is wanted",
                good.consistency, self.consistency_wanted
            ),
            hint: Some(format!("`coffre points {} -v` says why", self.machine)),
        })
    }

    /// A failure that no success has followed.
    fn of_last_job(&self) -> Option<Reason> {
        let job = self.last_job.as_ref()?;
        let code = match job.outcome? {
            JobOutcome::Failed => "failed",
            JobOutcome::Died => "died",
            JobOutcome::Done | JobOutcome::Downgraded | JobOutcome::Cancelled | JobOutcome::Rehearsed => return None,
        };
        Some(Reason {
            level: Level::Warning,
            code,
            text: format!(
                "the last backup {code}: {}",
                job.error.as_deref().unwrap_or("nobody knows why")
            ),
            hint: job
                .hint
                .clone()
                .or_else(|| Some(format!("`coffre jobs show {}` says more", job.id))),
        })
    }

    fn of_turn(&self) -> Option<Reason> {
        let turn = self.turn.as_ref()?;
        let (code, text) = match turn.state {
            TurnState::Missed => ("missed", "the last due run was missed"),
            TurnState::Failed => ("gave-up", "no attempt is left for the last due run"),
            TurnState::Waiting | TurnState::Running | TurnState::Done => return None,
        };
        // A point made since, by hand, makes up for it.
        if self.last_good.as_ref().is_some_and(|good| good.taken_at >= turn.due) {
            return None;
        }
        Some(Reason {
            level: Level::Warning,
            code,
            text: text.to_owned(),
            hint: Some(format!("`coffre backup {}` makes up for it", self.machine)),
        })
    }
}

/// `3 days`, `5 h`, `12 min`: as exact as anybody wants to know.
pub fn ago(age: SignedDuration) -> String {
    let minutes = age.as_mins().max(0);
    match minutes {
        0..120 => format!("{minutes} min"),
        120..2880 => format!("{} h", minutes / 60),
        _ => format!("{} days", minutes / 1440),
    }
}

#[cfg(test)]
mod tests;
