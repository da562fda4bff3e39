//! Pays at a start what processes that are all gone still owe, and shows that writes work again.
//!
//! A ledger says what was owed and what a guard has paid. One whose processes are gone is taken over by its lock: what is
//! still owed is paid, what was paid without anybody having been told is told, and then the ledger goes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::clock::unix_ms;
use crate::debt::{Debt, Outcome, Owner, Payer, Why};
use crate::freeze::open_to_thaw;
use crate::handle::GuardConfig;
use crate::ioctl;
use crate::ledger::{self, Entry, Ledger, LedgerError, Line, Other};
use crate::pay;
use crate::prove::{Proof, prove};
use crate::tree;

/// A write to a file system that is well takes milliseconds, seconds where a disk is busy.
const PROVED_WITHIN: Duration = Duration::from_secs(5);
/// A guard whose host was killed pays within milliseconds: so long we wait for it to finish, rather than say it is at it.
const GUARD_ENDS_WITHIN: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// What became of one debt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    pub owner: Owner,
    pub debt: Debt,
    pub end: SettlementEnd,
    /// Of a thaw: whether the file system takes writes.
    pub proof: Option<Proof>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettlementEnd {
    Paid {
        by: Payer,
        why: Why,
        outcome: Outcome,
        at_unix_ms: u64,
    },
    /// Another kernel runs, and it ended with the one before.
    EndedWithTheKernel,
    /// It stays owed, and why.
    Owed(String),
}

impl Settlement {
    /// Whether nothing is left to do about it.
    pub fn is_well(&self) -> bool {
        let writes = !matches!(self.proof, Some(Proof::Blocked { .. } | Proof::Failed(_)));
        writes && !matches!(self.end, SettlementEnd::Owed(_))
    }
}

/// For people, in a sentence.
impl std::fmt::Display for Settlement {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let debt = &self.debt;
        match &self.end {
            SettlementEnd::Paid { by, why, outcome, .. } => {
                match (debt, outcome) {
                    (Debt::Thaw { mount, .. }, Outcome::Thawed) => write!(out, "{} was thawed", mount.display())?,
                    (Debt::Thaw { mount, .. }, _) => write!(out, "{} was not frozen any more", mount.display())?,
                    (Debt::AgentThaw { socket }, Outcome::Thawed) => {
                        write!(out, "the machine whose agent is at {} was thawed", socket.display())?
                    }
                    (Debt::AgentThaw { socket }, _) => write!(
                        out,
                        "the machine whose agent is at {} was not frozen any more",
                        socket.display()
                    )?,
                    (Debt::EndTree { .. }, Outcome::Ended { processes: 0 }) => {
                        write!(out, "a command had ended with all it had started")?
                    }
                    (Debt::EndTree { .. }, Outcome::Ended { processes: 1 }) => {
                        write!(out, "a process of a command was ended")?
                    }
                    (Debt::EndTree { .. }, Outcome::Ended { processes }) => {
                        write!(out, "{processes} processes of a command were ended")?
                    }
                    (Debt::Command { arguments, .. }, _) => write!(out, "{} was run", arguments.join(" "))?,
                    (debt, _) => write!(out, "what was owed ({debt}) was paid")?,
                }
                let by = match by {
                    Payer::Host => "at once",
                    Payer::Guard => "by the guard",
                    Payer::Later => "at a later start",
                };
                let why = match why {
                    Why::Done => "",
                    Why::Deadline => ", since the deadline had passed",
                    Why::HostGone => ", since its process was gone",
                    Why::GuardGone => ", since the guard was gone",
                    Why::Found => ", since its process and the guard were gone",
                };
                write!(out, " {by}{why}")?;
            }
            SettlementEnd::EndedWithTheKernel => write!(out, "what was owed ({debt}) ended with the kernel")?,
            SettlementEnd::Owed(error) => write!(out, "cannot {debt}: {error}")?,
        }
        match &self.proof {
            Some(Proof::Writes { took }) => write!(out, "; it takes writes ({} ms)", took.as_millis()),
            Some(Proof::ReadOnly) => write!(out, "; it is mounted read-only"),
            Some(Proof::Blocked { after }) => {
                write!(
                    out,
                    "; it takes NO writes: one had not ended after {:.0} s",
                    after.as_secs_f64()
                )
            }
            Some(Proof::Failed(error)) => write!(out, "; whether it takes writes is not known: {error}"),
            None => Ok(()),
        }
    }
}

/// A ledger that was left behind, with all that came of it.
pub struct Left {
    /// Never empty.
    pub settlements: Vec<Settlement>,
    ledger: Ledger,
}

impl Left {
    pub fn path(&self) -> &Path {
        &self.ledger.path
    }

    /// Forgets it: everybody who must know has been told. What is still owed stays, and is tried at the next start.
    pub fn told(self) {
        if !self
            .settlements
            .iter()
            .any(|settled| matches!(settled.end, SettlementEnd::Owed(_)))
        {
            self.ledger.remove();
        }
    }
}

/// What was found.
#[derive(Default)]
pub struct Found {
    pub left: Vec<Left>,
    /// What processes owe that still run, so that nobody else need care.
    pub running: Vec<(Owner, Debt)>,
    /// Ledgers that cannot be read.
    pub unreadable: Vec<LedgerError>,
}

/// Pays what is owed in the run folder and in the state folder by processes that are gone: all thaws first.
pub fn settle(config: &GuardConfig) -> Found {
    let mut found = Found::default();
    let mut taken = Vec::new();
    for (folder, durable) in [(&config.run, false), (&config.state, true)] {
        let paths = ledger::list(folder).unwrap_or_else(|error| {
            found.unreadable.push(error);
            Vec::new()
        });
        for path in paths {
            match take_over(&path, durable) {
                Ok(Some(Other::Left { ledger, read })) => taken.push((ledger, read)),
                Ok(Some(Other::Alive(read))) => {
                    let owed = read.entries.into_values().filter(|entry| entry.paid.is_none());
                    found.running.extend(owed.map(|entry| (entry.owner, entry.debt)));
                }
                Ok(None) => {}
                Err(error) => found.unreadable.push(error),
            }
        }
    }
    let boot = ledger::boot();
    let mut ends: Vec<Vec<Settlement>> = taken.iter().map(|_| Vec::new()).collect();
    for thaws in [true, false] {
        for ((ledger, read), ends) in taken.iter().zip(&mut ends) {
            for (id, entry) in read.entries.iter().rev() {
                if matches!(entry.debt, Debt::Thaw { .. } | Debt::AgentThaw { .. }) == thaws {
                    ends.extend(one(config, ledger, *id, entry, read.boot == boot));
                }
            }
        }
    }
    for ((ledger, _), settlements) in taken.into_iter().zip(ends) {
        if settlements.is_empty() {
            ledger.remove();
        } else {
            found.left.push(Left { settlements, ledger });
        }
    }
    found
}

/// Waits a moment for a guard that is about to finish.
fn take_over(path: &Path, durable: bool) -> Result<Option<Other>, LedgerError> {
    let give_up = Instant::now() + GUARD_ENDS_WITHIN;
    loop {
        let other = ledger::take_over(path, durable)?;
        let ending = match &other {
            Some(Other::Alive(read)) => tree::started_ticks(read.process) != Some(read.started_ticks),
            _ => false,
        };
        if !ending || Instant::now() >= give_up {
            return Ok(other);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Pays one debt if it is owed. None: there is nothing to tell.
fn one(config: &GuardConfig, ledger: &Ledger, id: u32, entry: &Entry, same_kernel: bool) -> Option<Settlement> {
    let end = match &entry.paid {
        Some((_, Why::Done, ..)) => return None,
        Some((by, why, outcome, at_unix_ms)) => SettlementEnd::Paid {
            by: *by,
            why: *why,
            outcome: outcome.clone(),
            at_unix_ms: *at_unix_ms,
        },
        None if entry.debt.ends_with_the_kernel() && !same_kernel => SettlementEnd::EndedWithTheKernel,
        None => {
            let (end, line) = match pay_one(&entry.debt) {
                Ok(outcome) => {
                    let line = Line::paid(id, Payer::Later, Why::Found, outcome.clone());
                    let end = SettlementEnd::Paid {
                        by: Payer::Later,
                        why: Why::Found,
                        outcome,
                        at_unix_ms: unix_ms(),
                    };
                    (end, line)
                }
                Err(error) => {
                    let line = Line::Failed {
                        id,
                        by: Payer::Later,
                        error: error.clone(),
                        at_unix_ms: unix_ms(),
                    };
                    (SettlementEnd::Owed(error), line)
                }
            };
            // It is paid, or will be tried again; either way the next start finds the truth.
            let _ = ledger.append(&line);
            end
        }
    };
    let proof = match (&entry.debt, &end) {
        (Debt::Thaw { mount, .. }, SettlementEnd::Paid { .. } | SettlementEnd::Owed(_)) if mount.exists() => {
            Some(prove(&config.program, mount, PROVED_WITHIN))
        }
        _ => None,
    };
    Some(Settlement {
        owner: entry.owner.clone(),
        debt: entry.debt.clone(),
        end,
        proof,
    })
}

fn pay_one(debt: &Debt) -> Result<Outcome, String> {
    let Debt::Thaw { mount, device } = debt else {
        return pay::pay(debt);
    };
    let file = open_to_thaw(mount, *device).map_err(|error| error.to_string())?;
    let Some(file) = file else {
        return Err("it is mounted nowhere any more; mount it again, then run this again".to_owned());
    };
    match ioctl::thaw(&file) {
        Ok(()) => Ok(Outcome::Thawed),
        Err(Errno::INVAL) => Ok(Outcome::NotFrozen),
        Err(error) => Err(error.to_string()),
    }
}

/// Where the guard's program lies for the program that runs: beside it.
pub fn program_beside() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name("coffre-guard")
}
