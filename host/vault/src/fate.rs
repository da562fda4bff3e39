//! What becomes of a point after its commit: forgotten, kept again, pinned, purged. Each is one record at the end of the
//! point's register `fates/<m>/<n>`, created only if that number is free.
//!
//! Whoever wants a change reads the whole register, decides, and takes the next number. Where another was first, the create
//! fails, and everything is read and decided again; so no two of them ever act upon the same state. That is the whole of it:
//! an undelete and a purge that race for one number cannot both have it, and the loser sees what the winner wrote.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{MachineNumber, SessionNumber};
use crate::object::{self, ObjectType};
use crate::point::{Fate, Pin, Point};
use crate::read::ReadError;
use crate::record::Records;
use crate::register::{self, PointRecord, read_dense};
use crate::store::StoreError;

/// How often a change is decided again where others write to the same register. One point's register has hardly ever a
/// second writer; this only ends what would else be an endless quarrel of two programs.
const ATTEMPTS: usize = 64;
/// A reason is a line for people. Every reader of the register carries it.
pub(crate) const REASON_LIMIT_BYTES: usize = 1024;

/// Why a point's fate was not changed.
#[derive(Debug, thiserror::Error)]
pub enum FateError {
    #[error("the vault has no point {0} of this machine")]
    NoPoint(SessionNumber),
    #[error("{0} is no point: its session was aborted")]
    Aborted(SessionNumber),
    #[error("point {0} is purged: its data may be gone")]
    Purged(SessionNumber),
    #[error("point {number} is pinned{}", because(.reason))]
    Pinned {
        number: SessionNumber,
        reason: Option<String>,
    },
    #[error("point {0} is forgotten")]
    Forgotten(SessionNumber),
    #[error("a reason has {bytes} bytes, at most {REASON_LIMIT_BYTES} are taken")]
    ReasonTooLong { bytes: usize },
    #[error("others change what becomes of point {0} all the time")]
    Busy(SessionNumber),
    #[error("read what became of the point")]
    Read(#[from] ReadError),
    /// The change may be there or not; asking for it again finds out.
    #[error("write down what becomes of the point")]
    Write(#[source] StoreError),
}

impl FateError {
    /// Whether the same request may succeed a little later.
    pub fn may_help_to_try_again(&self) -> bool {
        match self {
            Self::Busy(_) => true,
            Self::Read(error) => error.may_help_to_try_again(),
            Self::Write(error) => error.may_help_to_try_again(),
            Self::NoPoint(_)
            | Self::Aborted(_)
            | Self::Purged(_)
            | Self::Pinned { .. }
            | Self::Forgotten(_)
            | Self::ReasonTooLong { .. } => false,
        }
    }
}

fn because(reason: &Option<String>) -> String {
    reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default()
}

/// What a change of fate came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FateChange {
    Now,
    /// It was so already; nothing was written.
    Already,
}

/// A record of a point's register of fates.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FateRecord {
    fate: FateKind,
    /// By the clock of whoever wrote it: for people. What may be deleted when is counted from the store's time.
    at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FateKind {
    Forget,
    Restore,
    Purge,
    Pin,
    Unpin,
    /// Of a newer version. It could be one that takes something away, so nobody goes on from here.
    #[serde(other)]
    Unknown,
}

/// A point's register of fates as of one moment: what is so, and the number that the next record takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FateRegister {
    pub(crate) fate: Fate,
    pub(crate) pin: Option<Pin>,
    end: u32,
}

impl FateRegister {
    /// The record whose age says whether the time to undelete is over: the last one, if the point is forgotten and not
    /// pinned. The last one and not the forget itself, since any record after it is a sign that somebody still cared.
    fn goes_since(&self) -> Option<u32> {
        let goes = self.fate == Fate::Forgotten && self.pin.is_none();
        self.end.checked_sub(1).filter(|_| goes)
    }

    fn take_in(&mut self, number: u32, record: FateRecord) {
        self.end = number + 1;
        let FateRecord { fate, at, reason } = record;
        match fate {
            // Nothing brings back what may be deleted by now.
            _ if self.fate == Fate::Purged => {}
            FateKind::Forget => self.fate = Fate::Forgotten,
            FateKind::Restore => self.fate = Fate::Kept,
            FateKind::Purge => {
                self.fate = Fate::Purged;
                self.pin = None;
            }
            FateKind::Pin => self.pin = Some(Pin { at, reason }),
            FateKind::Unpin => self.pin = None,
            FateKind::Unknown => {}
        }
    }
}

/// Reads what became of a point. A record that is damaged or of a kind that is not known is an error: whoever would delete
/// must stop there, and whoever would write does not know upon what.
pub(crate) async fn read(
    records: Records<'_>,
    machine: MachineNumber,
    number: SessionNumber,
) -> Result<FateRegister, ReadError> {
    let get = |k| {
        let object = object::fate(machine, number, k);
        async move {
            match records.get(ObjectType::Fate, &object).await? {
                Some(FateRecord {
                    fate: FateKind::Unknown,
                    ..
                }) => Err(ReadError::Newer { object }),
                found => Ok(found),
            }
        }
    };
    let mut register = FateRegister::default();
    for (k, record) in read_dense(0, get).await? {
        register.take_in(k, record);
    }
    Ok(register)
}

/// Since when a point is on its way out, by the store's time: nothing where it is not, or not now.
///
/// The store's time, because a host whose clock is ten years ahead would else leave nobody a day to undelete.
pub(crate) async fn forgotten_since(
    records: Records<'_>,
    machine: MachineNumber,
    number: SessionNumber,
    register: &FateRegister,
) -> Result<Option<Timestamp>, StoreError> {
    let Some(k) = register.goes_since() else {
        return Ok(None);
    };
    let looked = records.store.look(&object::fate(machine, number, k)).await?;
    Ok(looked.map(|looked| looked.modified))
}

/// Tells a point its fate. For those who read only: where the register cannot be read, the fate is [`Fate::Unknown`] and the
/// point can still be restored.
pub(crate) async fn tell(records: Records<'_>, point: &mut Point) -> Result<(), ReadError> {
    match read(records, point.machine_number, point.number).await {
        Ok(register) => {
            point.forgotten_since = forgotten_since(records, point.machine_number, point.number, &register).await?;
            point.fate = register.fate;
            point.pin = register.pin;
        }
        Err(error) if error.is_damage() || matches!(error, ReadError::Newer { .. }) => {
            tracing::warn!(machine = %point.machine, point = %point.number, %error, "what became of a point cannot be read");
            point.fate = Fate::Unknown;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// A change that somebody wants.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish<'a> {
    Forget(Option<&'a str>),
    Undelete,
    Pin(Option<&'a str>),
    Unpin,
}

impl<'a> Wish<'a> {
    fn reason(self) -> Option<&'a str> {
        match self {
            Self::Forget(reason) | Self::Pin(reason) => reason,
            Self::Undelete | Self::Unpin => None,
        }
    }

    /// The record that makes it so; nothing where it is so already.
    fn decide(self, number: SessionNumber, now: &FateRegister) -> Result<Option<FateKind>, FateError> {
        if now.fate == Fate::Purged {
            return match self {
                // Purged is as forgotten as it gets.
                Self::Forget(_) => Ok(None),
                Self::Undelete | Self::Pin(_) | Self::Unpin => Err(FateError::Purged(number)),
            };
        }
        let forgotten = now.fate == Fate::Forgotten;
        Ok(match self {
            Self::Forget(_) if forgotten => None,
            Self::Forget(_) => match &now.pin {
                Some(pin) => {
                    return Err(FateError::Pinned {
                        number,
                        reason: pin.reason.clone(),
                    });
                }
                None => Some(FateKind::Forget),
            },
            Self::Undelete => forgotten.then_some(FateKind::Restore),
            // A pin that somebody relies on must not look as if it had brought the point back.
            Self::Pin(_) if forgotten => return Err(FateError::Forgotten(number)),
            Self::Pin(reason) => match &now.pin {
                Some(pin) if reason.is_none() || reason == pin.reason.as_deref() => None,
                _ => Some(FateKind::Pin),
            },
            Self::Unpin => now.pin.is_some().then_some(FateKind::Unpin),
        })
    }
}

/// Makes a change, or finds that it is so already.
pub(crate) async fn change(
    records: Records<'_>,
    machine: MachineNumber,
    number: SessionNumber,
    wish: Wish<'_>,
) -> Result<FateChange, FateError> {
    if let Some(bytes) = wish.reason().map(str::len).filter(|bytes| *bytes > REASON_LIMIT_BYTES) {
        return Err(FateError::ReasonTooLong { bytes });
    }
    match register::point_record(records, machine, number).await {
        Ok(Some(PointRecord::Commit { .. })) => {}
        Ok(Some(PointRecord::Abort { .. })) => return Err(FateError::Aborted(number)),
        Ok(None) => return Err(FateError::NoPoint(number)),
        // A point whose record is damaged restores nothing any more. If it could not be forgotten, it would stand in the way
        // of every clean-up for ever.
        Err(error) if error.is_damage() => {}
        Err(error) => return Err(error.into()),
    }
    for _ in 0..ATTEMPTS {
        let now = read(records, machine, number).await?;
        refuse_gap(records, machine, number, now.end).await?;
        let Some(fate) = wish.decide(number, &now)? else {
            return Ok(FateChange::Already);
        };
        let record = FateRecord {
            fate,
            at: records.now(),
            reason: wish.reason().map(str::to_owned),
        };
        match create(records, machine, number, now.end, &record).await {
            Ok(()) => return Ok(FateChange::Now),
            Err(StoreError::Taken { .. }) => {}
            Err(error) => return Err(FateError::Write(error)),
        }
    }
    Err(FateError::Busy(number))
}

/// What a purge came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purge {
    /// The point is purged, by this call or by another cleaner's.
    Purged,
    /// It is not on its way out, or not any more: the point stays a root.
    Stays,
}

/// Purges a point for good, if nothing was written since the cleaner looked at it.
///
/// `seen` is what the age of the forget was judged by, and the purge takes exactly the number after it. It is not tried at
/// the next number: there the point would have been given back, or forgotten anew, with all the time to undelete before it.
pub(crate) async fn purge(
    records: Records<'_>,
    machine: MachineNumber,
    number: SessionNumber,
    seen: &FateRegister,
) -> Result<Purge, FateError> {
    if seen.fate == Fate::Purged {
        return Ok(Purge::Purged);
    }
    if seen.goes_since().is_none() {
        return Ok(Purge::Stays);
    }
    refuse_gap(records, machine, number, seen.end).await?;
    let record = FateRecord {
        fate: FateKind::Purge,
        at: records.now(),
        reason: None,
    };
    match create(records, machine, number, seen.end, &record).await {
        Ok(()) => Ok(Purge::Purged),
        Err(StoreError::Taken { .. }) => match read(records, machine, number).await?.fate {
            Fate::Purged => Ok(Purge::Purged),
            Fate::Kept | Fate::Forgotten | Fate::Unknown => Ok(Purge::Stays),
        },
        Err(error) => Err(FateError::Write(error)),
    }
}

/// A store that has lost a record hides the ones after it: what was given back looks forgotten. Nobody decides upon that,
/// and nobody fills the gap. The listing is a hint, so it is asked again for the very number.
async fn refuse_gap(
    records: Records<'_>,
    machine: MachineNumber,
    number: SessionNumber,
    end: u32,
) -> Result<(), ReadError> {
    let object = object::fate(machine, number, end);
    let register = object.trim_end_matches(|letter| letter != '/').trim_end_matches('/');
    let listed = records.store.list(register).await?;
    let later = listed.iter().any(|found| found.object > object);
    if later && records.store.size(&object).await?.is_none() {
        let what = "it is not there, although later numbers are".to_owned();
        return Err(ReadError::Damaged { object, what });
    }
    Ok(())
}

async fn create(
    records: Records<'_>,
    machine: MachineNumber,
    number: SessionNumber,
    k: u32,
    record: &FateRecord,
) -> Result<(), StoreError> {
    let object = object::fate(machine, number, k);
    records.create(ObjectType::Fate, &object, record).await
}

#[cfg(test)]
mod tests;
