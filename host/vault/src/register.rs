//! The dense registers: numbers 0, 1, 2 …, each created once and never deleted. A register is complete when no number is
//! missing and the next one answers 404 to a GET; no listing is needed to know it.

use std::collections::HashSet;
use std::future::Future;

use futures::future::try_join_all;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::gclog::MachineCheckpoint;
use crate::ids::{MachineNumber, SessionNumber};
use crate::object::{self, ObjectType};
use crate::point::Point;
use crate::read::ReadError;
use crate::record::Records;
use crate::store::{Store, StoreError};

/// Requests at once while a register is read: the first window is small, since most reads of a register that is followed
/// from a known place find nothing new.
const WINDOWS: [u32; 3] = [1, 4, 16];
/// Live points of a checkpoint that are read at once.
const LIVE_AT_ONCE: usize = 16;
/// The first machine's number; 0 is maintenance and has no record.
pub(crate) const FIRST_MACHINE: u32 = 1;

/// Reads numbers from `first` on until one is missing.
pub(crate) async fn read_dense<T, F>(first: u32, read: impl Fn(u32) -> F) -> Result<Vec<(u32, T)>, ReadError>
where
    F: Future<Output = Result<Option<T>, ReadError>>,
{
    let mut all = Vec::new();
    let mut next = first;
    for window in WINDOWS.into_iter().chain(std::iter::repeat(WINDOWS[WINDOWS.len() - 1])) {
        let numbers = next..next.saturating_add(window);
        for (number, found) in numbers.clone().zip(try_join_all(numbers.clone().map(&read)).await?) {
            match found {
                Some(value) => all.push((number, value)),
                None => return Ok(all),
            }
        }
        next = numbers.end;
    }
    Ok(all)
}

/// The first number that is not there, found with few requests because there are no gaps.
pub(crate) async fn end(store: &Store, first: u32, name: impl Fn(u32) -> String) -> Result<u32, StoreError> {
    let there = async |number: u32| store.size(&name(number)).await.map(|size| size.is_some());
    let mut step = 1;
    let mut low = first; // Everything below is there.
    loop {
        let probe = first.saturating_add(step - 1);
        if !there(probe).await? {
            let mut high = probe; // Is not there.
            while low < high {
                let middle = low + (high - low) / 2;
                if there(middle).await? {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            return Ok(low);
        }
        low = probe + 1;
        step *= 2;
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MachineRecord {
    name: String,
    created_at: Timestamp,
}

/// All machines. The same name twice, by two writers at once: the lowest number is the machine.
#[cfg(test)]
pub(crate) async fn machines(records: Records<'_>) -> Result<Vec<(MachineNumber, String)>, ReadError> {
    machines_after(records, &[]).await
}

/// The same, where a checkpoint names the first of them.
pub(crate) async fn machines_after(
    records: Records<'_>,
    known: &[MachineCheckpoint],
) -> Result<Vec<(MachineNumber, String)>, ReadError> {
    let mut names = HashSet::new();
    let mut machines = every_machine(records, known).await?;
    machines.retain(|(number, name)| *number != MachineNumber::MAINTENANCE && names.insert(name.clone()));
    Ok(machines)
}

/// Every number that sessions can stand under, ascending: maintenance, and machines also where their name is taken. Records
/// are read only of those that the checkpoint does not name. A record that is damaged hides nothing: see [`name_otherwise`].
pub(crate) async fn every_machine(
    records: Records<'_>,
    known: &[MachineCheckpoint],
) -> Result<Vec<(MachineNumber, String)>, ReadError> {
    let name_of = |number: u32| async move {
        let machine = MachineNumber(number);
        match settled_name(known, machine) {
            Some(name) => Ok(Some(name.to_owned())),
            None => match machine_record(records, machine).await {
                Ok(name) => Ok(name),
                Err(error) if error.is_damage() => {
                    tracing::warn!(%machine, %error, "a machine's record is damaged");
                    name_otherwise(records, machine).await.map(Some)
                }
                Err(error) => Err(error),
            },
        }
    };
    let mut machines = vec![(MachineNumber::MAINTENANCE, String::new())];
    let found = read_dense(FIRST_MACHINE, name_of).await?;
    machines.extend(found.into_iter().map(|(number, name)| (MachineNumber(number), name)));
    Ok(machines)
}

/// The same, also beyond a number that the store has lost, up to and with `last`. For those who look for damage.
pub(crate) async fn every_machine_to(
    records: Records<'_>,
    known: &[MachineCheckpoint],
    last: u32,
) -> Result<Vec<(MachineNumber, String)>, ReadError> {
    let mut machines = every_machine(records, known).await?;
    let end = machines.last().map_or(FIRST_MACHINE, |(number, _)| number.0 + 1);
    for number in end..=last {
        let machine = MachineNumber(number);
        let name = match settled_name(known, machine) {
            Some(name) => name.to_owned(),
            None => match machine_record(records, machine).await {
                Ok(Some(name)) => name,
                Ok(None) => name_otherwise(records, machine).await?,
                Err(error) if error.is_damage() => name_otherwise(records, machine).await?,
                Err(error) => return Err(error),
            },
        };
        machines.push((machine, name));
    }
    Ok(machines)
}

/// The name that a checkpoint has written down. It stands whatever becomes of the machine's record.
fn settled_name(known: &[MachineCheckpoint], machine: MachineNumber) -> Option<&str> {
    known
        .iter()
        .find(|known| known.machine == machine && !known.name.is_empty())
        .map(|known| known.name.as_str())
}

/// The name in a machine's own record.
pub(crate) async fn machine_record(records: Records<'_>, machine: MachineNumber) -> Result<Option<String>, ReadError> {
    let object = object::machine(machine);
    let record = records.get::<MachineRecord>(ObjectType::Machine, &object).await?;
    Ok(record.map(|record| record.name))
}

/// The name of a machine whose record is damaged or lost: every point says whose it is. Where there is no point, there is
/// nothing to restore either, and the machine is called by its number.
pub(crate) async fn name_otherwise(records: Records<'_>, machine: MachineNumber) -> Result<String, ReadError> {
    for number in 0.. {
        match decision_or_damage(records, machine, SessionNumber(number)).await? {
            Some(Ok(Decision::Committed(point))) if !point.machine.is_empty() => return Ok(point.machine),
            Some(_) => {}
            None => break,
        }
    }
    Ok(unnamed(machine))
}

pub(crate) fn unnamed(machine: MachineNumber) -> String {
    format!("unnamed-{}", machine.key())
}

/// The number of the machine, made if there is none.
pub(crate) async fn machine_or_create(
    records: Records<'_>,
    known: &[MachineCheckpoint],
    name: &str,
) -> Result<MachineNumber, ReadError> {
    loop {
        let all = every_machine(records, known).await?;
        if let Some((number, _)) = all.iter().find(|(_, found)| found == name) {
            return Ok(*number);
        }
        // It may be the one that is looked for. Under another number there would be two of one name as soon as its record
        // reads again, and the points of the later one would be hidden. What a checkpoint calls it stands for good.
        let nameless =
            (all.iter()).find(|(number, name)| *name == unnamed(*number) && settled_name(known, *number).is_none());
        if let Some((number, _)) = nameless {
            return Err(match machine_record(records, *number).await {
                Err(error) => error,
                // It reads again.
                Ok(_) => continue,
            });
        }
        let next = all.last().map_or(FIRST_MACHINE, |(number, _)| number.0 + 1);
        let record = MachineRecord {
            name: name.to_owned(),
            created_at: records.now(),
        };
        match records
            .create(ObjectType::Machine, &object::machine(MachineNumber(next)), &record)
            .await
        {
            // Read again in either case: somebody may have been first, under this number or with this name.
            Ok(()) | Err(StoreError::Taken { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A session as it was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub bases: Vec<SessionNumber>,
    pub deadline: Timestamp,
    pub begun_at: Timestamp,
    pub host: String,
    #[serde(default)]
    pub resumes: Option<SessionNumber>,
}

/// What stands in the points register.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "kebab-case")]
pub(crate) enum PointRecord {
    Commit {
        point: Box<Point>,
    },
    Abort {
        reason: String,
        host: String,
        at: Timestamp,
    },
}

/// What became of a session.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    Undecided(Session),
    Aborted,
    Committed(Box<Point>),
}

pub(crate) async fn point_record(
    records: Records<'_>,
    machine: MachineNumber,
    number: SessionNumber,
) -> Result<Option<PointRecord>, ReadError> {
    let object = object::point(machine, number);
    let mut found = records.get(ObjectType::Point, &object).await?;
    if let Some(PointRecord::Commit { point }) = &mut found
        && (point.machine_number, point.number) != (machine, number)
    {
        return Err(ReadError::Damaged {
            object,
            what: "it is the point of another session".to_owned(),
        });
    }
    Ok(found)
}

/// What became of a session, or nothing where there is none.
pub(crate) async fn decision(
    records: Records<'_>,
    machine: MachineNumber,
    number: SessionNumber,
) -> Result<Option<Decision>, ReadError> {
    Ok(match point_record(records, machine, number).await? {
        Some(PointRecord::Commit { point }) => Some(Decision::Committed(point)),
        Some(PointRecord::Abort { .. }) => Some(Decision::Aborted),
        None => {
            let object = object::session(machine, number);
            records
                .get(ObjectType::Session, &object)
                .await?
                .map(Decision::Undecided)
        }
    })
}

/// What became of the sessions that `live` names and of every session from `first` on. What is damaged stands among the
/// others, so that one bad record does not hide them.
pub(crate) async fn decisions(
    records: Records<'_>,
    machine: MachineNumber,
    live: &[SessionNumber],
    first: u32,
) -> Result<Vec<(SessionNumber, Result<Decision, ReadError>)>, ReadError> {
    let known = stream::iter(live.iter().copied()).map(|number| async move {
        let decision = decision_or_damage(records, machine, number).await?;
        Ok::<_, ReadError>(decision.map(|decision| (number, decision)))
    });
    let known: Vec<_> = known.buffered(LIVE_AT_ONCE).try_collect().await?;
    let mut all: Vec<_> = known.into_iter().flatten().collect();
    all.extend(decisions_from(records, machine, first).await?);
    Ok(all)
}

/// The same, one after the other: for those who look at each once, and would hold a vault's points in memory otherwise.
pub(crate) fn stream_decisions<'a>(
    records: Records<'a>,
    machine: MachineNumber,
    live: &'a [SessionNumber],
    first: u32,
) -> impl Stream<Item = Result<(SessionNumber, Result<Decision, ReadError>), ReadError>> + 'a {
    let read = move |number: SessionNumber| async move {
        let decision = decision_or_damage(records, machine, number).await?;
        Ok::<_, ReadError>(decision.map(|decision| (number, decision)))
    };
    let known = stream::iter(live.iter().copied()).map(read).buffered(LIVE_AT_ONCE);
    let since = stream::iter((first..).map(SessionNumber))
        .map(read)
        .buffered(LIVE_AT_ONCE);
    // The first number that is not there ends the register.
    let since = since.try_take_while(|found| futures::future::ready(Ok(found.is_some())));
    known
        .chain(since)
        .try_filter_map(|found| futures::future::ready(Ok(found)))
}

/// The same of every session from `first` on.
pub(crate) async fn decisions_from(
    records: Records<'_>,
    machine: MachineNumber,
    first: u32,
) -> Result<Vec<(SessionNumber, Result<Decision, ReadError>)>, ReadError> {
    let read = |number| decision_or_damage(records, machine, SessionNumber(number));
    let dense = read_dense(first, read).await?;
    Ok(dense
        .into_iter()
        .map(|(number, decision)| (SessionNumber(number), decision))
        .collect())
}

/// What became of a session, or what of it is damaged: see [`is_decided`].
pub(crate) async fn decision_or_damage(
    records: Records<'_>,
    machine: MachineNumber,
    number: SessionNumber,
) -> Result<Option<Result<Decision, ReadError>>, ReadError> {
    match decision(records, machine, number).await {
        Ok(decision) => Ok(decision.map(Ok)),
        Err(error) if error.is_damage() => Ok(Some(Err(error))),
        Err(error) => Err(error),
    }
}

/// Whether a session is decided of which something is damaged: then it is its point that is there and cannot be read. Else
/// there is no point, and its own record is damaged.
pub(crate) fn is_decided(damage: &ReadError, machine: MachineNumber, number: SessionNumber) -> bool {
    matches!(damage, ReadError::Damaged { object, .. } if *object == object::point(machine, number))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use object_store::memory::InMemory;

    use super::*;
    use crate::clock::SystemClock;
    use crate::ids::VaultId;
    use crate::key::KeyRing;

    fn store() -> Store {
        Store::over(Arc::new(InMemory::new()), "v")
    }

    #[tokio::test]
    async fn the_end_of_a_register_is_found_whatever_its_length() {
        let store = store();
        let name = |number: u32| format!("sessions/{number:08x}");
        for length in 0..40 {
            assert_eq!(end(&store, 3, name).await.unwrap(), 3 + length);
            store.create(&name(3 + length), Bytes::from_static(b"x")).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_dense_register_reads_up_to_its_first_gap() {
        let read = |number: u32| async move { Ok((number != 30).then_some(number * 2)) };
        let all = read_dense(5, read).await.unwrap();
        assert_eq!(all.len(), 25);
        assert_eq!(all[24], (29, 58));
    }

    #[tokio::test]
    async fn a_machine_that_two_writers_make_at_once_is_one() {
        let store = store();
        let vault = VaultId([1; 16]);
        let ring = KeyRing::unencrypted(vault);
        let records = Records {
            store: &store,
            vault,
            ring: &ring,
            clock: &SystemClock,
        };
        let made = futures::future::join_all((0..8).map(|_| machine_or_create(records, &[], "web01"))).await;
        for number in made {
            assert_eq!(number.unwrap(), MachineNumber(1));
        }
        assert_eq!(
            machine_or_create(records, &[], "db01").await.unwrap(),
            MachineNumber(2).max(MachineNumber(2))
        );
        assert_eq!(machines(records).await.unwrap().len(), 2);
    }
}
