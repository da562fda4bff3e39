//! The clean-up log, as those read it who write or read chunks. Nothing here cleans up.
//!
//! A writer reads it after its session exists: what is condemned by then, it does not build upon; what is condemned later
//! finds the session, and waits for it.
//!
//! A record that cannot be read hides nothing from those who only read: the log is read from the checkpoint before. If
//! it is a checkpoint itself, as a later record says, nothing is missed at all, because it only sums up what stands
//! before it; packs that it knew as gone are asked for again. Any other may condemn something, so whoever is about to write
//! or to delete stops ([`GcLog::require_whole`]) until [`crate::repair`] has written a checkpoint behind it.

use std::collections::HashSet;

use futures::{Stream, StreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{MachineNumber, SessionNumber};
use crate::object::{self, ObjectType, PackKey};
use crate::read::ReadError;
use crate::record::Records;
use crate::register::{self, Decision, read_dense};
use crate::store::StoreError;

/// Records of the log that are read at once, where it is known that they are there.
const READ_AT_ONCE: usize = 16;

/// A record of the clean-up log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct GcRecord {
    pub(crate) at: Timestamp,
    /// The number of the newest checkpoint before this record, so that a reader who knows any record finds where to start.
    #[serde(default)]
    pub(crate) checkpoint: Option<u32>,
    #[serde(flatten)]
    pub(crate) what: GcWhat,
}

/// What a record of the clean-up log says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum GcWhat {
    /// These packs may be deleted once no session that might use them is undecided.
    Condemn {
        packs: Vec<PackName>,
        #[serde(default)]
        reason: String,
    },
    /// These packs are damaged: nothing new is to rely on them.
    Quarantine {
        packs: Vec<PackName>,
        /// Of those the ones that lost only some of their chunks: the others can still be read there, and moved.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        partly: Vec<PackName>,
        /// Chunks that points need and no piece of the index lists. There may be no pack to name for them.
        #[serde(default)]
        chunks_lost: u64,
        reason: String,
    },
    Checkpoint(Checkpoint),
    #[serde(other)]
    Unknown,
}

/// Where readers start, so that nothing grows with the vault's age. A list that is not there is damage, not an empty list: it
/// would pardon what is condemned, or drop points.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) machines: Vec<MachineCheckpoint>,
    /// Condemned and not yet gone.
    pub(crate) condemned: Vec<Condemned>,
    pub(crate) quarantined: Vec<PackName>,
    /// Pieces of the index whose every listing is in others that points count, and that the store did not delete.
    #[serde(default)]
    pub(crate) replaced: Vec<PackName>,
}

/// Packs that one record condemned, as far as they are not gone, and who may still rely on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Condemned {
    /// The number of the record that condemned them.
    pub(crate) since: u32,
    pub(crate) packs: Vec<PackName>,
    /// The sessions that were undecided when somebody looked *after* the packs were condemned. Whoever began later has
    /// read the record. None of these packs goes before all of them are decided. A record without it is damaged: left out
    /// it would say that nobody is waited for.
    pub(crate) waits_for: Vec<(MachineNumber, SessionNumber)>,
}

/// What a checkpoint knows of one machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MachineCheckpoint {
    pub(crate) machine: MachineNumber,
    #[serde(default)]
    pub(crate) name: String,
    /// Every session below is committed or aborted.
    pub(crate) decided_below: u32,
    /// The committed ones among those that are not purged.
    pub(crate) live: Vec<SessionNumber>,
}

/// What came of writing to the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    Number(u32),
    /// Somebody else has taken the number: read the log and decide again.
    TooLate,
}

/// A pack's name without `packs/`, as it stands in records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackName(pub(crate) PackKey);

impl Serialize for PackName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PackName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        PackKey::parse(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("no pack's name"))
    }
}

/// The clean-up log as of one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct GcLog {
    /// The first number that is not there.
    end: u32,
    checkpoint_number: Option<u32>,
    checkpoint: Option<Checkpoint>,
    condemned: HashSet<PackKey>,
    /// Condemned since the checkpoint: number and packs of each record. Nobody has written down yet whom they wait for.
    condemned_since: Vec<(u32, Vec<PackName>)>,
    quarantined: HashSet<PackKey>,
    chunks_lost: bool,
    damaged: Vec<DamagedRecord>,
}

/// A number of the log, behind its newest readable checkpoint, that says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DamagedRecord {
    pub(crate) number: u32,
    pub(crate) what: String,
    /// A later record calls it a checkpoint.
    pub(crate) is_checkpoint: bool,
    /// Else the store has lost it, and somebody might write there.
    pub(crate) is_there: bool,
}

impl DamagedRecord {
    pub(crate) fn error(&self) -> ReadError {
        ReadError::Damaged {
            object: object::gclog(self.number),
            what: self.what.clone(),
        }
    }
}

/// Damage that writers are to know of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Broken {
    pub(crate) packs: Vec<PackKey>,
    /// Of those the ones that lost only some of their chunks.
    pub(crate) partly: Vec<PackKey>,
    pub(crate) chunks_lost: u64,
}

impl GcLog {
    /// The records that cannot be read, of those that count.
    pub(crate) fn damaged(&self) -> &[DamagedRecord] {
        &self.damaged
    }

    /// Refuses a log of which something may be missing. For whoever relies on packs or deletes any.
    pub(crate) fn require_whole(&self) -> Result<(), ReadError> {
        let missed = |record: &&DamagedRecord| !(record.is_checkpoint && record.is_there);
        (self.damaged.iter().find(missed)).map_or(Ok(()), |record| Err(record.error()))
    }

    pub(crate) fn quarantined_packs(&self) -> &HashSet<PackKey> {
        &self.quarantined
    }

    /// Whether somebody found that points need chunks which no piece of the index lists.
    pub(crate) fn says_chunks_are_lost(&self) -> bool {
        self.chunks_lost
    }

    /// Whether nothing new may rely on a pack.
    pub(crate) fn forbids(&self, pack: &PackKey) -> bool {
        self.condemned.contains(pack) || self.quarantined.contains(pack)
    }

    pub(crate) fn is_condemned(&self, pack: &PackKey) -> bool {
        self.condemned.contains(pack)
    }

    /// The first number that was not there.
    pub(crate) fn end(&self) -> u32 {
        self.end
    }

    pub(crate) fn checkpoint_number(&self) -> Option<u32> {
        self.checkpoint_number
    }

    pub(crate) fn quarantined(&self) -> impl Iterator<Item = PackKey> + '_ {
        self.quarantined.iter().copied()
    }

    /// Pieces of the index that the checkpoint says are replaced and not gone.
    pub(crate) fn replaced(&self) -> impl Iterator<Item = PackKey> + '_ {
        self.checkpoint
            .iter()
            .flat_map(|checkpoint| &checkpoint.replaced)
            .map(|name| name.0)
    }

    /// Every pack that is condemned and not known to be gone.
    pub(crate) fn condemned(&self) -> impl Iterator<Item = PackKey> + '_ {
        self.condemned.iter().copied()
    }

    /// What the checkpoint says is condemned and whom it waits for.
    pub(crate) fn condemned_with_waits(&self) -> &[Condemned] {
        self.checkpoint
            .as_ref()
            .map_or(&[][..], |checkpoint| &checkpoint.condemned)
    }

    /// What was condemned after the checkpoint: whom it waits for, nobody has written down.
    pub(crate) fn condemned_since(&self) -> &[(u32, Vec<PackName>)] {
        &self.condemned_since
    }

    /// Creates the next record, if the log still ends where it was read. Whoever is late has not seen what stands there by
    /// now: a checkpoint above all must follow upon the very log that it sums up, or it would swallow a record.
    pub(crate) async fn append(&self, records: Records<'_>, what: GcWhat) -> Result<Appended, StoreError> {
        let record = GcRecord {
            at: records.now(),
            checkpoint: self.checkpoint_number,
            what,
        };
        let object = object::gclog(self.end);
        match records.create(ObjectType::GcLog, &object, &record).await {
            Ok(()) => Ok(Appended::Number(self.end)),
            Err(StoreError::Taken { .. }) => Ok(Appended::TooLate),
            Err(error) => Err(error),
        }
    }

    /// What became of a machine's sessions, the purged ones of before the checkpoint left out.
    pub(crate) async fn decisions(
        &self,
        records: Records<'_>,
        machine: MachineNumber,
    ) -> Result<Vec<(SessionNumber, Result<Decision, ReadError>)>, ReadError> {
        register::decisions(records, machine, self.live(machine), self.decided_below(machine)).await
    }

    /// The same, one after the other.
    pub(crate) fn stream_decisions<'a>(
        &'a self,
        records: Records<'a>,
        machine: MachineNumber,
    ) -> impl Stream<Item = Result<(SessionNumber, Result<Decision, ReadError>), ReadError>> + 'a {
        register::stream_decisions(records, machine, self.live(machine), self.decided_below(machine))
    }

    /// The machines that the newest checkpoint knows.
    pub(crate) fn machines(&self) -> &[MachineCheckpoint] {
        self.checkpoint.as_ref().map_or(&[], |checkpoint| &checkpoint.machines)
    }

    /// The points of a machine that were not purged when the newest checkpoint was written, of those below
    /// [`Self::decided_below`].
    pub(crate) fn live(&self, machine: MachineNumber) -> &[SessionNumber] {
        self.machine(machine).map_or(&[], |known| &known.live)
    }

    /// Every session of the machine below this number is decided.
    pub(crate) fn decided_below(&self, machine: MachineNumber) -> u32 {
        self.machine(machine).map_or(0, |known| known.decided_below)
    }

    pub(crate) fn machine(&self, machine: MachineNumber) -> Option<&MachineCheckpoint> {
        self.checkpoint
            .as_ref()?
            .machines
            .iter()
            .find(|known| known.machine == machine)
    }

    fn take_in(&mut self, number: u32, what: GcWhat) {
        self.end = number + 1;
        let keys = |packs: Vec<PackName>| packs.into_iter().map(|name| name.0);
        match what {
            GcWhat::Condemn { packs, .. } => {
                self.condemned_since.push((number, packs.clone()));
                self.condemned.extend(keys(packs));
            }
            GcWhat::Quarantine { packs, chunks_lost, .. } => {
                self.quarantined.extend(keys(packs));
                self.chunks_lost |= chunks_lost > 0;
            }
            GcWhat::Checkpoint(checkpoint) => {
                self.condemned = keys(
                    checkpoint
                        .condemned
                        .iter()
                        .flat_map(|group| group.packs.clone())
                        .collect(),
                )
                .collect();
                self.condemned_since.clear();
                self.quarantined = keys(checkpoint.quarantined.clone()).collect();
                // A clean-up that misses a chunk stops before it writes one.
                self.chunks_lost = false;
                self.checkpoint = Some(checkpoint);
                self.checkpoint_number = Some(number);
                // Whatever they said, whoever wrote this has read it, or repaired the log.
                self.damaged.clear();
            }
            GcWhat::Unknown => {}
        }
    }
}

async fn get(records: Records<'_>, number: u32) -> Result<Option<GcRecord>, ReadError> {
    let object = object::gclog(number);
    match records.get::<GcRecord>(ObjectType::GcLog, &object).await? {
        Some(GcRecord {
            what: GcWhat::Unknown, ..
        }) => Err(ReadError::Newer { object }),
        found => Ok(found),
    }
}

/// A record, or what is wrong with it.
async fn get_or_damage(records: Records<'_>, number: u32) -> Result<Option<Result<GcRecord, String>>, ReadError> {
    match get(records, number).await {
        Ok(found) => Ok(found.map(Ok)),
        Err(ReadError::Damaged { what, .. }) => Ok(Some(Err(what))),
        Err(error) => Err(error),
    }
}

/// Reads the log from its newest checkpoint to its end, and refuses one that may miss something.
pub(crate) async fn read(records: Records<'_>) -> Result<GcLog, ReadError> {
    let log = read_from(records, 0).await?;
    log.require_whole()?;
    Ok(log)
}

/// Reads the log as far as it can be read, where all numbers below `known` were there once: then finding the end takes the
/// same few requests however long the log is. The last record says where the newest checkpoint is.
pub(crate) async fn read_from(records: Records<'_>, known: u32) -> Result<GcLog, ReadError> {
    let mut end = register::end(records.store, known, object::gclog).await?;
    let mut log = GcLog::default();
    let mut named = None;
    // What cannot be read says nothing of where to start; the record before it does.
    while let Some(number) = end.checked_sub(1) {
        end = match get_or_damage(records, number).await? {
            Some(Ok(GcRecord {
                what: what @ GcWhat::Checkpoint(_),
                ..
            })) => {
                log.take_in(number, what);
                break;
            }
            Some(Ok(_)) if named == Some(number) => {
                return Err(ReadError::Damaged {
                    object: object::gclog(number),
                    what: "a later record names it as a checkpoint".to_owned(),
                });
            }
            Some(Ok(record)) => {
                named = record.checkpoint.filter(|checkpoint| *checkpoint < number);
                named.map_or(0, |checkpoint| checkpoint + 1)
            }
            Some(Err(_)) | None => number,
        };
    }
    log.follow(records).await?;
    Ok(log)
}

impl GcLog {
    /// Takes in what was written since. That the end is reached, a missing number says; the listing only finds a log that
    /// has lost a record.
    pub(crate) async fn follow(&mut self, records: Records<'_>) -> Result<(), ReadError> {
        loop {
            for (number, record) in read_dense(self.end, |number| get_or_damage(records, number)).await? {
                match record {
                    Ok(record) => self.take_in_record(number, record),
                    Err(what) => self.take_in_damage(number, what, true),
                }
            }
            let missing = object::gclog(self.end);
            let before = object::gclog(self.end.saturating_sub(1));
            let listed = records.store.list_after("gclog", &before).await?;
            let Some(later) = listed.iter().find(|listed| listed.object >= missing) else {
                return Ok(());
            };
            // Somebody may have written it a moment ago.
            if records.store.size(&missing).await?.is_none() {
                let what = format!("it is not there, although `{}` is", later.object);
                self.take_in_damage(self.end, what, false);
            }
        }
    }

    fn take_in_record(&mut self, number: u32, record: GcRecord) {
        for damaged in &mut self.damaged {
            damaged.is_checkpoint |= record.checkpoint == Some(damaged.number);
        }
        self.take_in(number, record.what);
    }

    fn take_in_damage(&mut self, number: u32, what: String, is_there: bool) {
        self.end = number + 1;
        self.damaged.push(DamagedRecord {
            number,
            what,
            is_checkpoint: false,
            is_there,
        });
    }
}

/// The packs that were condemned by the records from `from` up to but not including `until`, which are all there.
pub(crate) async fn condemned_between(records: Records<'_>, from: u32, until: u32) -> Result<Vec<PackKey>, ReadError> {
    let mut condemned = Vec::new();
    let mut read = stream::iter(from..until)
        .map(|number| async move { (number, get(records, number).await) })
        .buffered(READ_AT_ONCE);
    while let Some((number, record)) = read.next().await {
        match record?.map(|record| record.what) {
            Some(GcWhat::Condemn { packs, .. }) => condemned.extend(packs.into_iter().map(|name| name.0)),
            Some(_) => {}
            None => {
                return Err(ReadError::Damaged {
                    object: object::gclog(number),
                    what: "it has left the vault".to_owned(),
                });
            }
        }
    }
    Ok(condemned)
}

/// Puts a record that says nothing at a number that the store has lost.
pub(crate) async fn fill(records: Records<'_>, number: u32) -> Result<(), StoreError> {
    let record = GcRecord {
        at: records.now(),
        checkpoint: None,
        what: GcWhat::Quarantine {
            packs: Vec::new(),
            partly: Vec::new(),
            chunks_lost: 0,
            reason: "in the place of a record that was lost".to_owned(),
        },
    };
    records.create(ObjectType::GcLog, &object::gclog(number), &record).await
}

/// Says to all writers that nothing new is to rely on these packs. What is quarantined already is left out.
pub(crate) async fn quarantine(records: Records<'_>, packs: &[PackKey], reason: &str) -> Result<(), ReadError> {
    let broken = Broken {
        packs: packs.to_vec(),
        ..Broken::default()
    };
    record_damage(records, &broken, reason).await.map(|_| ())
}

/// As [`quarantine`], with what else is known of the damage. Gives the packs that nobody had quarantined before.
pub(crate) async fn record_damage(
    records: Records<'_>,
    broken: &Broken,
    reason: &str,
) -> Result<Vec<PackKey>, ReadError> {
    loop {
        // Also at the end of a log that is damaged: what is said there takes nothing away.
        let log = read_from(records, 0).await?;
        // A condemned one too: its reader and its mover must know.
        let new: Vec<PackKey> = (broken.packs.iter())
            .filter(|pack| !log.quarantined.contains(pack))
            .copied()
            .collect();
        let lost_is_news = broken.chunks_lost > 0 && !log.chunks_lost;
        if new.is_empty() && !lost_is_news {
            return Ok(new);
        }
        let partly = broken.partly.iter().filter(|pack| new.contains(pack));
        let what = GcWhat::Quarantine {
            partly: partly.copied().map(PackName).collect(),
            packs: new.iter().copied().map(PackName).collect(),
            chunks_lost: broken.chunks_lost,
            reason: reason.to_owned(),
        };
        match log.append(records, what).await? {
            Appended::Number(_) => return Ok(new),
            // What somebody else has written here is read first.
            Appended::TooLate => {}
        }
    }
}

#[cfg(test)]
mod tests;
