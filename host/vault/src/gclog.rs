//! The clean-up log, as those read it who write or read chunks. Nothing here cleans up.
//!
//! A writer reads it after its session exists: what is condemned by then, it does not build upon; what is condemned later
//! finds the session, and waits for it.

use std::collections::HashSet;

use futures::{StreamExt, stream};
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

/// Reads the log from its newest checkpoint to its end.
pub(crate) async fn read(records: Records<'_>) -> Result<GcLog, ReadError> {
    read_from(records, 0).await
}

/// The same, where all numbers below `known` were there once: then finding the end takes the same few requests however long
/// the log is. The last record says where the newest checkpoint is.
pub(crate) async fn read_from(records: Records<'_>, known: u32) -> Result<GcLog, ReadError> {
    let end = register::end(records.store, known, object::gclog).await?;
    let mut log = GcLog::default();
    if let Some(last) = end.checked_sub(1) {
        let lost = |number| ReadError::Damaged {
            object: object::gclog(number),
            what: "it was there, and has left the vault".to_owned(),
        };
        let record = get(records, last).await?.ok_or_else(|| lost(last))?;
        let (first, record) = match (&record.what, record.checkpoint) {
            (GcWhat::Checkpoint(_), _) => (last, record),
            (_, Some(first)) => (first, get(records, first).await?.ok_or_else(|| lost(first))?),
            (_, None) => return GcLog::followed(log, records).await,
        };
        if !matches!(record.what, GcWhat::Checkpoint(_)) {
            return Err(ReadError::Damaged {
                object: object::gclog(first),
                what: "a later record names it as a checkpoint".to_owned(),
            });
        }
        log.take_in(first, record.what);
    }
    GcLog::followed(log, records).await
}

impl GcLog {
    async fn followed(mut log: Self, records: Records<'_>) -> Result<Self, ReadError> {
        log.follow(records).await?;
        Ok(log)
    }

    /// Takes in what was written since. That the end is reached, a missing number says; the listing only finds a log that
    /// has lost a record, after which nobody can know what is condemned.
    pub(crate) async fn follow(&mut self, records: Records<'_>) -> Result<(), ReadError> {
        loop {
            for (number, record) in read_dense(self.end, |number| get(records, number)).await? {
                self.take_in(number, record.what);
            }
            let missing = object::gclog(self.end);
            let before = object::gclog(self.end.saturating_sub(1));
            let listed = records.store.list_after("gclog", &before).await?;
            let Some(later) = listed.iter().find(|listed| listed.object >= missing) else {
                return Ok(());
            };
            // Somebody may have written it a moment ago.
            if get(records, self.end).await?.is_none() {
                return Err(ReadError::Damaged {
                    object: missing,
                    what: format!("it is not there, although `{}` is", later.object),
                });
            }
        }
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
        let log = read(records).await?;
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
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::clock::SystemClock;
    use crate::ids::VaultId;
    use crate::key::KeyRing;
    use crate::store::Store;

    fn pack(number: u32) -> PackKey {
        PackKey {
            machine: MachineNumber(1),
            session: SessionNumber(0),
            number,
        }
    }

    #[tokio::test]
    async fn the_log_is_read_from_its_newest_checkpoint() {
        let store = Store::over(Arc::new(InMemory::new()), "");
        let vault = VaultId([1; 16]);
        let ring = KeyRing::unencrypted(vault);
        let records = Records {
            store: &store,
            vault,
            ring: &ring,
            clock: &SystemClock,
        };
        assert!(!read(records).await.unwrap().forbids(&pack(0)));
        let checkpoint = Checkpoint {
            machines: vec![MachineCheckpoint {
                machine: MachineNumber(1),
                name: "web01".to_owned(),
                decided_below: 5,
                live: vec![SessionNumber(3)],
            }],
            condemned: vec![Condemned {
                since: 0,
                packs: vec![PackName(pack(1))],
                waits_for: Vec::new(),
            }],
            quarantined: Vec::new(),
            replaced: Vec::new(),
        };
        let steps = [
            (
                None,
                GcWhat::Condemn {
                    packs: vec![PackName(pack(0)), PackName(pack(1))],
                    reason: String::new(),
                },
            ),
            (
                None,
                GcWhat::Quarantine {
                    packs: vec![PackName(pack(2))],
                    partly: Vec::new(),
                    chunks_lost: 0,
                    reason: "bits".to_owned(),
                },
            ),
            (None, GcWhat::Checkpoint(checkpoint)),
            (
                Some(2),
                GcWhat::Condemn {
                    packs: vec![PackName(pack(4))],
                    reason: String::new(),
                },
            ),
        ];
        let wanted = [
            [true, true, false, false],
            [true, true, true, false],
            [false, true, false, false],
            [false, true, false, true],
        ];
        for (number, ((checkpoint, what), wanted)) in (0..).zip(steps.into_iter().zip(wanted)) {
            let record = GcRecord {
                at: Timestamp::UNIX_EPOCH,
                checkpoint,
                what,
            };
            records
                .create(ObjectType::GcLog, &object::gclog(number), &record)
                .await
                .unwrap();
            let log = read(records).await.unwrap();
            assert_eq!([0, 1, 2, 4].map(|number| log.forbids(&pack(number))), wanted);
        }
        let log = read(records).await.unwrap();
        assert_eq!(log.machine(MachineNumber(1)).unwrap().decided_below, 5);
    }

    #[tokio::test]
    async fn a_kind_that_is_not_known_stops_a_writer() {
        let store = Store::over(Arc::new(InMemory::new()), "");
        let vault = VaultId([1; 16]);
        let ring = KeyRing::unencrypted(vault);
        let records = Records {
            store: &store,
            vault,
            ring: &ring,
            clock: &SystemClock,
        };
        let record = serde_json::json!({ "at": "2026-01-01T00:00:00Z", "kind": "bless" });
        records
            .create(ObjectType::GcLog, &object::gclog(0), &record)
            .await
            .unwrap();
        assert!(matches!(read(records).await, Err(ReadError::Newer { .. })));
    }

    #[tokio::test]
    async fn writers_that_quarantine_at_once_lose_nothing() {
        let store = Store::over(Arc::new(InMemory::new()), "");
        let vault = VaultId([1; 16]);
        let ring = KeyRing::unencrypted(vault);
        let records = Records {
            store: &store,
            vault,
            ring: &ring,
            clock: &SystemClock,
        };
        let packs: Vec<[PackKey; 2]> = (0..6).map(|number| [pack(number), pack(7)]).collect();
        futures::future::try_join_all(packs.iter().map(|packs| quarantine(records, packs, "test")))
            .await
            .unwrap();
        let log = read(records).await.unwrap();
        assert_eq!(log.end, 6);
        assert!((0..6).chain([7]).all(|number| log.forbids(&pack(number))));
    }
}
