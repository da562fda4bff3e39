//! How it is shown: a table with the worst first, and the document.

use coffre_engine::live::RunningJob;
use coffre_engine::progress::{DiskView, Phase};
use coffre_engine::status::{Level, MachineStatus, ago, worst};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::output::{count, size, table, time};

#[derive(Serialize)]
pub struct Document<'a> {
    at: Timestamp,
    level: Level,
    safe: usize,
    warning: usize,
    not_safe: usize,
    unknown: usize,
    /// Worst first.
    machines: &'a [MachineStatus],
}

impl<'a> Document<'a> {
    pub fn new(machines: &'a [MachineStatus], at: Timestamp) -> Self {
        Self {
            at,
            level: worst(machines),
            safe: number(machines, Level::Safe),
            warning: number(machines, Level::Warning),
            not_safe: number(machines, Level::NotSafe),
            unknown: number(machines, Level::Unknown),
            machines,
        }
    }
}

fn number(machines: &[MachineStatus], level: Level) -> usize {
    machines.iter().filter(|machine| machine.level == level).count()
}

/// `3 machines: 1 not safe, 2 safe`.
pub fn summary(machines: &[MachineStatus]) -> String {
    let parts: Vec<String> = (Level::ALL.into_iter().rev())
        .map(|level| (level, number(machines, level)))
        .filter(|(_, number)| *number > 0)
        .map(|(level, number)| format!("{number} {}", level.as_str()))
        .collect();
    if parts.is_empty() {
        return "the configuration has no machines".to_owned();
    }
    format!("{}: {}", count(machines.len(), "machine"), parts.join(", "))
}

pub fn text(machines: &[MachineStatus], now: Timestamp) -> String {
    let mut text = summary(machines);
    text.push('\n');
    if machines.is_empty() {
        return text;
    }
    text.push('\n');
    text.push_str(&rows(machines, now));
    let reasons = why(machines);
    if !reasons.is_empty() {
        text.push('\n');
        text.push_str(&reasons);
    }
    text
}

/// One line per machine.
pub fn rows(machines: &[MachineStatus], now: Timestamp) -> String {
    let rows = machines.iter().map(|machine| {
        let good = machine.last_good.as_ref();
        vec![
            machine.machine.clone(),
            machine.level.as_str().to_owned(),
            good.map_or_else(|| "none".to_owned(), |good| format!("@{}", good.point)),
            good.map_or_else(String::new, |good| ago(now.duration_since(good.taken_at))),
            good.map_or_else(String::new, |good| good.consistency.to_string()),
            machine.next_due.map_or_else(|| "-".to_owned(), time),
            machine.running.as_ref().map(running).unwrap_or_default(),
        ]
    });
    let headers = ["MACHINE", "STATE", "LAST GOOD", "AGE", "CONSISTENCY", "NEXT", "NOW"];
    table(&headers, &[], rows.collect())
}

/// What is not just safe, with what to do about it.
fn why(machines: &[MachineStatus]) -> String {
    let mut text = String::new();
    for machine in machines {
        for reason in &machine.reasons {
            text.push_str(&format!(
                "{}: {}: {}\n",
                machine.machine,
                reason.level.as_str(),
                reason.text
            ));
            if let Some(hint) = &reason.hint {
                text.push_str(&format!("  hint: {hint}\n"));
            }
        }
    }
    text
}

/// `transferring 42 %, 1.2 GiB of 3 GiB`.
pub fn running(job: &RunningJob) -> String {
    let progress = &job.progress;
    let mut text = match progress.phase {
        Phase::End => "ending".to_owned(),
        phase => phase.to_string(),
    };
    if let Some(step) = &progress.step {
        text.push_str(&format!(" ({step})"));
    }
    let sum = |of: fn(&DiskView) -> u64| progress.disks.iter().map(of).sum::<u64>();
    let (done, all) = (sum(|disk| disk.read_bytes), sum(|disk| disk.to_read_bytes));
    if progress.phase == Phase::Transfer && all > 0 {
        let percent = done.min(all) * 100 / all;
        text.push_str(&format!(" {percent} %, {} of {}", size(done.min(all)), size(all)));
    }
    text
}

/// For how long a job has been running.
pub fn since(job: &RunningJob, now: Timestamp) -> SignedDuration {
    now.duration_since(job.since).max(SignedDuration::ZERO)
}
