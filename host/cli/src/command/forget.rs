//! `coffre forget [MACHINE[@POINT]…]`: which points go is decided in [`choice`], here they go and are told.

mod choice;

use std::collections::BTreeMap;

use anyhow::Context;
use coffre_engine::config::Config;
use coffre_engine::{Clock, SystemClock};
use coffre_vault::{FateError, MachineNumber, SessionNumber};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::points::vault_of;
use crate::args::{ForgetArgs, Global};
use crate::backing::Backing;
use crate::exit::{Complaint, Exit};
use crate::output::{Output, count, table, time};
use crate::report::Report;
use crate::wire::{self, NamedVault};
use crate::{book, screen};
use choice::{Choice, Chosen, How, Row};

#[derive(Serialize)]
struct Document {
    dry_run: bool,
    machines: Vec<Entry>,
}

/// What became of one machine's points.
#[derive(Serialize)]
struct Entry {
    machine: String,
    vault: Option<String>,
    /// Null where points were named, or the machine has none.
    policy: Option<String>,
    /// `done` or `failed`.
    outcome: &'static str,
    exit_code: u8,
    kept: usize,
    /// With a dry run: how many would be.
    forgotten: usize,
    /// At least until then, what was forgotten now can be brought back.
    undelete_until: Option<Timestamp>,
    points: Vec<Row>,
    error: Option<Report>,
}

impl Entry {
    fn of(choice: &Choice) -> Self {
        Self {
            machine: choice.machine.clone(),
            vault: None,
            policy: choice.how.policy(),
            outcome: "done",
            exit_code: Exit::Done.code(),
            kept: 0,
            forgotten: 0,
            undelete_until: None,
            points: Vec::new(),
            error: None,
        }
    }
}

pub async fn run(args: &ForgetArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let choices = choice::choose(&config, args)?;
    // Silence of a cron job means that all is well.
    let unattended = args.all || args.policy.is_some();
    let told = args.dry_run || !unattended || output.terminal || output.verbose > 0;
    let mut vaults = Vaults {
        config: &config,
        open: BTreeMap::new(),
    };
    let mut machines = Vec::new();
    for choice in &choices {
        let mut entry = Entry::of(choice);
        let result = forget(choice, &mut vaults, args, &mut entry).await;
        entry.kept = rows_that(&entry.points, Chosen::Keep);
        entry.forgotten = rows_that(&entry.points, Chosen::Forget);
        if told && (result.is_ok() || entry.forgotten > 0) {
            let text = describe(choice, &entry, args.dry_run);
            if args.dry_run {
                output.result(text)?;
            } else {
                output.line(text.trim_end())?;
            }
        }
        if let Err(error) = result {
            let report = Report::new(&error);
            let about = if choices.len() > 1 {
                format!("{}: ", choice.machine)
            } else {
                String::new()
            };
            screen::above(report.render_for(&about, output.colour()).as_bytes());
            entry.outcome = "failed";
            entry.exit_code = report.exit_code;
            entry.error = Some(report);
        }
        machines.push(entry);
    }
    let exit = overall(&machines);
    output.document(&Document {
        dry_run: args.dry_run,
        machines,
    })?;
    Ok(exit)
}

/// After a good backup: forgets what the machine's policy keeps no longer, if it says so. None: it keeps everything.
pub async fn after_backup(backing: &Backing, machine: &str, vault: &str) -> anyhow::Result<Option<usize>> {
    let config = &backing.config;
    let known = config.machine(machine)?;
    let policy = config.policy_of(known);
    if policy.keep.is_none() {
        return Ok(None);
    }
    let choice = Choice {
        machine: machine.to_owned(),
        how: How::Policy(known.policy.clone(), Box::new(policy)),
    };
    let mut entry = Entry::of(&choice);
    forget_in(&choice, &backing.vault(vault).await?, config, false, &mut entry).await?;
    Ok(Some(rows_that(&entry.points, Chosen::Forget)))
}

/// Vaults are opened once, however many machines lie there.
struct Vaults<'a> {
    config: &'a Config,
    open: BTreeMap<String, NamedVault>,
}

impl Vaults<'_> {
    async fn of(&mut self, machine: &str, named: Option<&str>) -> anyhow::Result<NamedVault> {
        let name = match named {
            Some(vault) => self.config.vault(vault)?.name.clone(),
            None => vault_of(self.config, machine)?,
        };
        if let Some(vault) = self.open.get(&name) {
            return Ok(vault.clone());
        }
        let vault = wire::open_vault(self.config, &name).await?;
        self.open.insert(name, vault.clone());
        Ok(vault)
    }
}

/// Decides upon one machine's points and, unless this is a dry run, forgets those that go. What `entry` says is true also
/// where it ends with an error.
async fn forget(choice: &Choice, vaults: &mut Vaults<'_>, args: &ForgetArgs, entry: &mut Entry) -> anyhow::Result<()> {
    let vault = vaults.of(&choice.machine, args.vault.as_deref()).await?;
    forget_in(choice, &vault, vaults.config, args.dry_run, entry).await
}

async fn forget_in(
    choice: &Choice,
    vault: &NamedVault,
    config: &Config,
    dry_run: bool,
    entry: &mut Entry,
) -> anyhow::Result<()> {
    entry.vault = Some(vault.name.clone());
    let doing = || format!("cannot forget points of {}", choice.machine);
    let Some(machine) = vault.vault.machine(&choice.machine).await.with_context(doing)? else {
        if let How::Policy(..) = choice.how {
            // It was not backed up yet.
            return Ok(());
        }
        let hint = format!(
            "`coffre points --vault {}` lists the machines and points it has",
            vault.name
        );
        let text = format!("vault `{}` has no machine `{}`", vault.name, choice.machine);
        return Err(Complaint::usage(text, hint).into());
    };
    let points = vault.vault.points(machine).await.with_context(doing)?;
    let now = SystemClock.now();
    // What is damaged is nobody's newest good one.
    let damaged = vault.vault.damaged_points(machine).await.with_context(doing)?;
    let mut rows = choice.rows(&points, &damaged, now)?;
    for number in choice.missing(&points) {
        rows.push(unreadable(vault, machine, choice, number).await?);
    }
    if dry_run {
        entry.points = rows;
        return Ok(());
    }
    let result = forget_rows(choice, vault, machine, rows, config, now, entry).await;
    // Also after a failure: some of them may have gone.
    if entry.undelete_until.is_some()
        && let Ok(points) = vault.vault.points(machine).await
    {
        book::points(config, &vault.name, &choice.machine, &points);
    }
    result
}

/// Forgets what is to be forgotten.
async fn forget_rows(
    choice: &Choice,
    vault: &NamedVault,
    machine: MachineNumber,
    rows: Vec<Row>,
    config: &Config,
    now: Timestamp,
    entry: &mut Entry,
) -> anyhow::Result<()> {
    let allowed = config.vault(&vault.name)?.undelete_for;
    let allowed = SignedDuration::try_from(allowed).unwrap_or(SignedDuration::MAX);
    for mut row in rows {
        if row.decision == Chosen::Forget {
            let reason = choice.recorded(&row);
            let number = SessionNumber(row.point);
            match vault.vault.forget(machine, number, Some(&reason)).await {
                Ok(_) => entry.undelete_until = Some(now.checked_add(allowed).unwrap_or(Timestamp::MAX)),
                // Pinned since the points were read: that is as good as before.
                Err(FateError::Pinned { reason, .. }) if matches!(choice.how, How::Policy(..)) => row.pinned(reason),
                Err(error) => {
                    let doing = format!("cannot forget {}@{}", choice.machine, row.point);
                    return Err(anyhow::Error::new(error).context(doing));
                }
            }
        }
        entry.points.push(row);
    }
    Ok(())
}

/// A point that was named and is not among those that can be read. If only its record is damaged, it can go.
async fn unreadable(
    vault: &NamedVault,
    machine: MachineNumber,
    choice: &Choice,
    number: SessionNumber,
) -> anyhow::Result<Row> {
    match vault.vault.point(machine, number).await {
        Err(error) if error.is_damage() => Ok(Row::unreadable(number)),
        Err(error) => Err(error.into()),
        Ok(_) => {
            let text = format!(
                "{} has no recovery point {number} in vault `{}`",
                choice.machine, vault.name
            );
            Err(Complaint::usage(text, format!("`coffre points {}` lists its points", choice.machine)).into())
        }
    }
}

fn rows_that(rows: &[Row], decision: Chosen) -> usize {
    rows.iter().filter(|row| row.decision == decision).count()
}

/// The table, and what it comes to.
fn describe(choice: &Choice, entry: &Entry, dry_run: bool) -> String {
    let mut text = format!("{}{}\n", choice.machine, choice.how);
    let rows = entry.points.iter().map(|row| {
        let reasons: Vec<&str> = row.reasons.iter().map(|reason| reason.text.as_str()).collect();
        vec![
            row.point.to_string(),
            row.taken_at.map(time).unwrap_or_default(),
            row.consistency.clone(),
            row.decision.to_string(),
            reasons.join(", "),
        ]
    });
    if entry.points.is_empty() {
        text.push_str("there are no recovery points\n");
        return text;
    }
    let headers = ["POINT", "TAKEN", "CONSISTENCY", "DECISION", "WHY"];
    text.push_str(&table(&headers, &[0], rows.collect()));
    text.push_str(&summary(choice, entry, dry_run));
    text.push('\n');
    text
}

fn summary(choice: &Choice, entry: &Entry, dry_run: bool) -> String {
    let points = count(entry.forgotten, "point");
    let gone = match (dry_run, entry.undelete_until) {
        (true, _) => format!("{points} would be forgotten"),
        (false, Some(until)) => format!("{points} forgotten, undelete works until {} at least", time(until)),
        (false, None) => "nothing to forget".to_owned(),
    };
    match &choice.how {
        How::Points { .. } => gone,
        How::Policy(..) | How::Retire { .. } => format!("{gone}; {} kept", entry.kept),
    }
}

/// One machine's own code; of several: failed, or some failed.
fn overall(machines: &[Entry]) -> Exit {
    let failed = machines.iter().filter(|entry| entry.error.is_some()).count();
    match machines {
        _ if failed == 0 => Exit::Done,
        [only] => only.error.as_ref().map_or(Exit::Failed, |error| error.exit),
        _ if failed == machines.len() => Exit::Failed,
        _ => Exit::SomeFailed,
    }
}

#[cfg(test)]
mod tests;
