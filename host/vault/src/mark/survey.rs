//! What all machines have, read in the one order that is safe beside those who write and forget meanwhile.
//!
//! 1. The points that are there now, and *their fates*.
//! 2. *Then* the sessions that are undecided.
//! 3. *Then* the points again.
//!
//! Fates first: a session that pins a purged point as its base looks at the fate after it exists. Were sessions read before
//! fates, one could begin in between, see its base not purged, and not be seen itself; the purge would then be read, and the
//! base's chunks with nothing to hold them. Sessions before points: a session that is decided between the two is seen as
//! undecided, or its point is. The other way round it would be seen as neither, and its chunks would go.
//!
//! A point that was not there in step 1 has no fate that was read in time, and is kept. A point that the checkpoint counts and
//! that has left the vault is not among the points; whoever deletes compares first.
//!
//! What is damaged is told apart by what it means, so that one flipped bit need not stop every clean-up for ever:
//! - A point's record, and the point is *not purged*: nobody knows what it needs, so whoever deletes stops until it is. It
//!   can be forgotten and purged like any other.
//! - A point's record, and the point *is purged*: it is no root, and nothing of it need be known. The same for the clean-ups'
//!   own points, which need nothing: their pieces come to be counted by another one.
//! - A fate: the point stays a root, and as it may have been purged, what is gone of it is no damage.
//! - The record of an undecided session: nobody knows what it builds upon, so whoever deletes stops until it is fenced.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use crate::fate;
use crate::gclog::GcLog;
use crate::ids::{ChunkId, MachineNumber, SessionNumber};
use crate::object::PackKey;
use crate::point::{Fate, MapRoot, Point, Written};
use crate::read::ReadError;
use crate::record::Records;
use crate::register::{self, Decision, Session};
use crate::vault::Inner;

/// Requests at once.
const READ_AT_ONCE: usize = 16;

/// What a point needs of the vault: the maps of its disks and its attachments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) machine: MachineNumber,
    pub(crate) point: SessionNumber,
    pub(crate) maps: Vec<MapRoot>,
    pub(crate) attachments: Vec<ChunkId>,
    /// Here only because an undecided session names it as a base, or because what became of it cannot be read. It may have
    /// been purged; so what is gone of it is no damage.
    pub(crate) purged: bool,
}

/// A committed point, as far as clean-up must know it.
#[derive(Clone, Debug)]
pub(crate) struct SurveyedPoint {
    pub(crate) number: SessionNumber,
    pub(crate) written: Written,
    pub(crate) fate: Fate,
    /// Damaged pieces of the index whose packs this session has listed anew.
    pub(crate) supersedes: Vec<PackKey>,
    root: Root,
}

impl SurveyedPoint {
    fn new(point: &Point, fate: Fate) -> Self {
        Self {
            number: point.number,
            written: point.written,
            fate,
            supersedes: (point.supersedes.iter())
                .filter_map(|object| PackKey::parse(object.strip_prefix("index/")?))
                .collect(),
            root: Root {
                machine: point.machine_number,
                point: point.number,
                maps: point.disks.iter().filter_map(|disk| disk.root).collect(),
                attachments: point
                    .attachments
                    .iter()
                    .flat_map(|attachment| &attachment.chunks)
                    .copied()
                    .collect(),
                purged: false,
            },
        }
    }

    fn root(&self) -> Root {
        Root {
            purged: matches!(self.fate, Fate::Purged | Fate::Unknown),
            ..self.root.clone()
        }
    }
}

/// Something stands where a session's point would be, and cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct UnreadablePoint {
    pub(crate) number: SessionNumber,
    pub(crate) fate: Fate,
    pub(crate) what: String,
}

/// A session without a point, and its record cannot be read: nobody knows what it builds upon.
#[derive(Clone, Debug)]
pub(crate) struct UnreadableSession {
    pub(crate) number: SessionNumber,
    pub(crate) what: String,
}

/// One machine of the vault.
#[derive(Clone, Debug)]
pub(crate) struct MachineSurvey {
    pub(crate) machine: MachineNumber,
    pub(crate) name: String,
    /// Every session below is decided, and its point, if it has one that is not purged, is among `points`.
    pub(crate) decided_below: u32,
    /// One more than the last session's number, when points were read.
    pub(crate) end: u32,
    /// Ascending; those that were purged before the newest checkpoint are not among them.
    pub(crate) points: Vec<SurveyedPoint>,
    /// As of step 2, and those that began since: some of them may have a point by now, which is among `points`.
    pub(crate) undecided: Vec<(SessionNumber, Session)>,
    /// Decided, and nobody knows how.
    pub(crate) unreadable: Vec<UnreadablePoint>,
    pub(crate) unreadable_undecided: Vec<UnreadableSession>,
}

impl MachineSurvey {
    /// Whether the session was decided before the points were read, so that what it committed is among them.
    pub(crate) fn has_decided(&self, session: SessionNumber) -> bool {
        session.0 < self.end
            && !self.undecided.iter().any(|(number, _)| *number == session)
            && !self.unreadable_undecided.iter().any(|known| known.number == session)
    }

    /// Whether the store still has something in the place of this point.
    pub(crate) fn has_point(&self, number: SessionNumber) -> bool {
        self.points.iter().any(|point| point.number == number)
            || self.unreadable.iter().any(|point| point.number == number)
    }
}

/// All machines, maintenance first.
#[derive(Clone, Debug)]
pub(crate) struct Survey {
    pub(crate) machines: Vec<MachineSurvey>,
    /// Points that are not among their machine's, and whose maps stay because an undecided session builds upon them.
    pinned: Vec<Root>,
}

impl Survey {
    pub(crate) fn machine(&self, machine: MachineNumber) -> Option<&MachineSurvey> {
        self.machines.iter().find(|known| known.machine == machine)
    }

    /// Whether a session was decided before the points were read. What is not known is not.
    pub(crate) fn has_decided(&self, machine: MachineNumber, session: SessionNumber) -> bool {
        self.machine(machine).is_some_and(|known| known.has_decided(session))
    }

    /// What must stay: points that are not purged, and the bases of undecided sessions, purged or not.
    pub(crate) fn roots(&self) -> Vec<Root> {
        let mut roots = self.pinned.clone();
        for machine in &self.machines {
            let bases: BTreeSet<SessionNumber> = machine
                .undecided
                .iter()
                .flat_map(|(_, session)| &session.bases)
                .copied()
                .collect();
            let stays = |point: &&SurveyedPoint| point.fate != Fate::Purged || bases.contains(&point.number);
            roots.extend(machine.points.iter().filter(stays).map(SurveyedPoint::root));
        }
        roots
    }
}

/// What is known of one machine between the steps.
struct Reading {
    machine: MachineNumber,
    name: String,
    points: BTreeMap<SessionNumber, SurveyedPoint>,
    unreadable: BTreeMap<SessionNumber, UnreadablePoint>,
    undecided: BTreeMap<SessionNumber, Session>,
    unreadable_undecided: BTreeMap<SessionNumber, UnreadableSession>,
    /// The number from which the next step reads on.
    next: u32,
}

pub(crate) async fn survey(vault: &Arc<Inner>, log: &GcLog) -> Result<Survey, ReadError> {
    let records = vault.records();
    let mut machines: Vec<Reading> = Vec::new();
    for (machine, name) in register::every_machine(records, log.machines()).await? {
        machines.push(tentative(records, log, machine, name).await?);
    }
    for machine in &mut machines {
        machine.read_fates(records).await?;
    }
    // A machine that was made since has only sessions that began since: seen or not, they rely on nothing condemned before.
    for machine in &mut machines {
        machine.read_undecided(records).await?;
    }
    let mut survey = Survey {
        machines: Vec::new(),
        pinned: Vec::new(),
    };
    for mut machine in machines {
        let decided_below = machine.read_points(records).await?;
        survey.pinned.extend(machine.other_bases(records).await?);
        survey.machines.push(MachineSurvey {
            machine: machine.machine,
            name: machine.name,
            decided_below,
            end: machine.next,
            points: machine.points.into_values().collect(),
            undecided: machine.undecided.into_iter().collect(),
            unreadable: machine.unreadable.into_values().collect(),
            unreadable_undecided: machine.unreadable_undecided.into_values().collect(),
        });
    }
    Ok(survey)
}

/// Step 1, without the fates.
async fn tentative(
    records: Records<'_>,
    log: &GcLog,
    machine: MachineNumber,
    name: String,
) -> Result<Reading, ReadError> {
    let mut reading = Reading {
        machine,
        name,
        points: BTreeMap::new(),
        unreadable: BTreeMap::new(),
        undecided: BTreeMap::new(),
        unreadable_undecided: BTreeMap::new(),
        next: log.decided_below(machine),
    };
    let live = log.live(machine);
    let found = at_once(live, |number| register::decision_or_damage(records, machine, number));
    for (number, decision) in live.iter().zip(found.await?) {
        if let Some(decision) = decision {
            reading.take_in(*number, decision);
        }
    }
    let mut all_decided = true;
    for (number, decision) in register::decisions_from(records, machine, reading.next).await? {
        // Step 2 begins with the first that is undecided, and only then are they looked at.
        all_decided &= reading.take_in(number, decision);
        if all_decided {
            reading.next = number.0 + 1;
        }
    }
    reading.undecided.clear();
    reading.unreadable_undecided.clear();
    Ok(reading)
}

impl Reading {
    /// Puts a session where it belongs, and says whether it is decided.
    fn take_in(&mut self, number: SessionNumber, decision: Result<Decision, ReadError>) -> bool {
        match decision {
            Ok(Decision::Committed(point)) => {
                // What is known of it since step 1, its fate above all, stands.
                let known = || SurveyedPoint::new(&point, Fate::Kept);
                self.points.entry(number).or_insert_with(known);
                true
            }
            Ok(Decision::Aborted) => true,
            Ok(Decision::Undecided(session)) => {
                self.undecided.insert(number, session);
                false
            }
            Err(damage) if register::is_decided(&damage, self.machine, number) => {
                // One that read a moment ago is known, which is as good.
                if !self.points.contains_key(&number) {
                    self.unreadable.entry(number).or_insert_with(|| UnreadablePoint {
                        number,
                        fate: Fate::Kept,
                        what: damage.to_string(),
                    });
                }
                true
            }
            Err(damage) => {
                let what = damage.to_string();
                self.unreadable_undecided
                    .insert(number, UnreadableSession { number, what });
                false
            }
        }
    }

    async fn read_fates(&mut self, records: Records<'_>) -> Result<(), ReadError> {
        let numbers: Vec<SessionNumber> = self.points.keys().chain(self.unreadable.keys()).copied().collect();
        let fates = at_once(&numbers, |number| fate_or_unknown(records, self.machine, number)).await?;
        let fates: BTreeMap<SessionNumber, Fate> = numbers.into_iter().zip(fates).collect();
        for (number, point) in &mut self.points {
            point.fate = fates[number];
        }
        for (number, point) in &mut self.unreadable {
            point.fate = fates[number];
        }
        Ok(())
    }

    /// Step 2.
    async fn read_undecided(&mut self, records: Records<'_>) -> Result<(), ReadError> {
        for (number, decision) in register::decisions_from(records, self.machine, self.next).await? {
            self.take_in(number, decision);
            self.next = number.0 + 1;
        }
        Ok(())
    }

    /// Step 3. Gives the number below which all is decided.
    async fn read_points(&mut self, records: Records<'_>) -> Result<u32, ReadError> {
        let undecided = self.undecided.keys().chain(self.unreadable_undecided.keys());
        let undecided: Vec<SessionNumber> = undecided.copied().collect();
        let now = at_once(&undecided, |number| {
            register::decision_or_damage(records, self.machine, number)
        });
        for (number, decision) in undecided.iter().zip(now.await?) {
            if let Some(decision) = decision {
                self.take_in(*number, decision);
            }
        }
        self.read_undecided(records).await?;
        let first = self.undecided.keys().chain(self.unreadable_undecided.keys()).min();
        Ok(first.map_or(self.next, |number| number.0))
    }

    /// The roots of bases that are not among the points.
    async fn other_bases(&self, records: Records<'_>) -> Result<Vec<Root>, ReadError> {
        let bases: BTreeSet<SessionNumber> = self
            .undecided
            .values()
            .flat_map(|session| &session.bases)
            .filter(|base| !self.points.contains_key(base))
            .copied()
            .collect();
        let bases: Vec<SessionNumber> = bases.into_iter().collect();
        let found = at_once(&bases, |number| {
            register::decision_or_damage(records, self.machine, number)
        });
        // Not among the points: purged before the newest checkpoint. One that was never committed is refused by the session
        // that names it. Of one that cannot be read nobody knows what it needed; whoever deletes fences the session first.
        let roots = found.await?.into_iter().filter_map(|decision| match decision {
            Some(Ok(Decision::Committed(point))) => Some(SurveyedPoint::new(&point, Fate::Purged).root()),
            _ => None,
        });
        Ok(roots.collect())
    }
}

async fn fate_or_unknown(
    records: Records<'_>,
    machine: MachineNumber,
    number: SessionNumber,
) -> Result<Fate, ReadError> {
    match fate::read(records, machine, number).await {
        Ok(register) => Ok(register.fate),
        Err(error) if error.is_damage() => {
            tracing::warn!(%machine, %number, %error, "what became of a point cannot be read; all of it stays");
            Ok(Fate::Unknown)
        }
        Err(error) => Err(error),
    }
}

/// The answers in the order of the questions, several asked at once.
async fn at_once<T, F>(numbers: &[SessionNumber], ask: impl Fn(SessionNumber) -> F) -> Result<Vec<T>, ReadError>
where
    F: Future<Output = Result<T, ReadError>>,
{
    stream::iter(numbers.iter().copied().map(ask))
        .buffered(READ_AT_ONCE)
        .try_collect()
        .await
}
