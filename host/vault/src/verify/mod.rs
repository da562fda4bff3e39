//! Proving that points can be restored: everything that a point needs is in the vault, and with `read` it is what it was.
//!
//! What counts is the vault alone, so the index is fetched anew into a copy of its own: what only this host's cache knows
//! would be lost with this host. The maps of all points are walked once; a part that points share is walked for the first of
//! them. That gives the packs that are needed, which are looked at or read one by one, since reading them in order costs the
//! fewest requests. Only where one of them is damaged are the maps walked again, to say which points, disks and bytes it
//! touches. What is damaged is quarantined, so that nothing new relies on it and the next backup stores it again.
//!
//! In memory are a bit for each chunk, the names of the points, those of the packs that are needed, as ranges, and at most
//! [`damage::MISSING_LIMIT`] missing chunks.

mod damage;
mod gaps;
mod objects;
mod packs;
mod sample;
#[cfg(test)]
pub(crate) mod tests;
mod walk;
mod walked;

use std::collections::BTreeSet;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use futures::TryStreamExt;

use crate::fate;
use crate::gclog::{self, Broken, GcLog};
use crate::ids::{MachineNumber, SessionNumber};
use crate::index::{self, PackSet};
use crate::object::{self, PackKey};
use crate::point::{Fate, Point};
use crate::read::ReadError;
use crate::register::{self, Decision, PointRecord};
use crate::vault::Vault;
use damage::Findings;
use gaps::Shown;
pub(crate) use objects::superseded;
use packs::BadPacks;
use sample::Sample;
pub use sample::{Percentage, PercentageError};
use walk::Walk;

/// How much of the data is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadData {
    /// Packs are looked at: whether they are there at their size.
    #[default]
    No,
    /// Of the packs that are needed, so many; each run takes the next ones.
    Part(Percentage),
    /// Everything is read and opened.
    All,
}

/// What to verify.
#[derive(Clone, Debug, Default)]
pub struct VerifyPlan {
    /// One machine, or all.
    pub machine: Option<MachineNumber>,
    pub read: ReadData,
    /// Record what is damaged, so that nothing new relies on it; and put right what a local vault's parity mends.
    pub quarantine: bool,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    pub points_done: u64,
    pub points_total: u64,
    pub packs_done: u64,
    pub packs_total: u64,
    pub read_bytes: u64,
    pub damage_found: u64,
}

/// What a verification has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    pub points: u64,
    /// Needed by these points.
    pub packs: u64,
    /// Of those, read and opened.
    pub packs_read: u64,
    pub chunks: u64,
    pub read_bytes: u64,
    pub damage: Vec<Damage>,
    /// What was damaged and is whole again by its parity.
    pub mended: Vec<Mended>,
    /// Packs that were quarantined by this run.
    pub quarantined: Vec<String>,
    /// Why the damage could not be recorded, if it was to be.
    pub not_quarantined: Option<String>,
}

impl VerifyReport {
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

/// A pack that was damaged, and that its parity has put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// The object's name in the vault.
    pub object: String,
    /// Of 4 KiB, as many as were damaged.
    pub blocks: u64,
}

/// One thing that is wrong, and what it touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The object's name in the vault.
    pub object: String,
    pub what: String,
    pub touches: Vec<Touched>,
}

/// A part of a recovery point that cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    pub machine: String,
    pub point: SessionNumber,
    /// None: the point as a whole, or an attachment.
    pub disk: Option<String>,
    pub ranges: Vec<Range<u64>>,
}

pub(crate) async fn verify(
    vault: &Vault,
    plan: VerifyPlan,
    progress: &(dyn Fn(VerifyProgress) + Sync),
) -> Result<VerifyReport, ReadError> {
    let fresh = vault.with_fresh_index().await?;
    let mut run = Run {
        vault: &fresh.vault,
        plan,
        findings: Findings::default(),
        state: VerifyProgress::default(),
        progress,
    };
    let sample = match run.plan.read {
        ReadData::Part(percentage) => Some(Sample::next(vault, run.plan.machine, percentage).await),
        ReadData::No | ReadData::All => None,
    };
    let (mut report, broken) = run.all(sample.as_ref()).await?;
    if run.plan.quarantine {
        quarantine(vault, &broken, &mut report).await;
    }
    if let Some(sample) = sample {
        sample.done(vault).await;
    }
    Ok(report)
}

/// For who has met damage while reading points. Looks at all of their maps, so that what is wrong is known at once and not one
/// node after the other.
pub(crate) async fn quarantine_unreadable(
    vault: &Vault,
    machine: MachineNumber,
    points: &[SessionNumber],
    damage: &ReadError,
) -> Result<usize, ReadError> {
    let log = gclog::read_from(vault.inner.records(), 0).await?;
    let none = BadPacks::default();
    let mut walk = Walk::new(vault, &none, log.quarantined_packs()).await?;
    let mut chunks_lost = 0;
    let mut all_are_to_stay = true;
    for number in points {
        let mut findings = Findings::default();
        if let Some(PointRecord::Commit { point }) =
            register::point_record(vault.inner.records(), machine, *number).await?
        {
            walk.point(&point, &mut findings).await?;
        }
        if is_purged(vault, machine, *number).await? {
            all_are_to_stay = false;
        } else {
            chunks_lost += findings.chunks_lost();
        }
    }
    // Whoever met it may have been reading the purged one.
    chunks_lost += u64::from(all_are_to_stay && matches!(damage, ReadError::ChunkMissing(_)));
    let (_, mut doubtful) = walk.into_packs();
    let named = match damage {
        ReadError::ChunkDamaged { pack, .. } | ReadError::PackMissing(pack) => PackKey::parse(pack),
        ReadError::Damaged { object, .. } => object.strip_prefix("packs/").and_then(PackKey::parse),
        _ => None,
    };
    doubtful.extend(named);
    // Readers no longer look there, but a writer would rely on them.
    doubtful.extend(vault.inner.reading.gone());
    let bad = packs::read(
        vault,
        doubtful.into_iter(),
        true,
        &mut VerifyProgress::default(),
        &|_| {},
    )
    .await?;
    let mut broken = bad.broken();
    broken.chunks_lost = chunks_lost;
    let lost = usize::from(broken.chunks_lost > 0 && !log.says_chunks_are_lost());
    let packs = gclog::record_damage(vault.inner.records(), &broken, "met by a backup").await?;
    Ok(packs.len() + lost)
}

/// Asked after a point's chunks were looked for. What a purged point needs is swept away under the eyes of a session that builds
/// upon it and has been fenced without knowing: it is not lost.
async fn is_purged(vault: &Vault, machine: MachineNumber, number: SessionNumber) -> Result<bool, ReadError> {
    match fate::read(vault.inner.records(), machine, number).await {
        Ok(register) => Ok(register.fate == Fate::Purged),
        // Then it stays, as clean-ups have it.
        Err(error) if error.is_damage() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The points of a machine that need something which is recorded as damaged and has no other copy.
pub(crate) async fn damaged_points(
    vault: &Vault,
    machine: MachineNumber,
) -> Result<BTreeSet<SessionNumber>, ReadError> {
    let records = vault.inner.records();
    let log = gclog::read_from(records, 0).await?;
    if log.quarantined_packs().is_empty() && !log.says_chunks_are_lost() {
        return Ok(BTreeSet::new());
    }
    vault.inner.reading.doubt(log.quarantined());
    index::sync(&vault.inner).await?;
    index::load_counted(&vault.inner).await?;
    // What lies in these is read to know whether it is whole.
    let quarantined = BadPacks::doubted(log.quarantined());
    let mut walk = Walk::new(vault, &quarantined, log.quarantined_packs()).await?;
    let mut findings = Findings::default();
    let mut decisions = pin!(log.stream_decisions(records, machine));
    while let Some((_, decision)) = decisions.try_next().await? {
        if let Ok(Decision::Committed(point)) = decision {
            let fate = fate::read(records, machine, point.number).await;
            if !fate.is_ok_and(|register| register.fate == Fate::Purged) {
                walk.point(&point, &mut findings).await?;
            }
        }
    }
    let touches = findings.into_damage().into_iter().flat_map(|damage| damage.touches);
    Ok(touches.map(|touched| touched.point).collect())
}

/// Findings count also where they cannot be recorded, as with credentials that only read.
async fn quarantine(vault: &Vault, broken: &Broken, report: &mut VerifyReport) {
    match gclog::record_damage(vault.inner.records(), broken, "found by verify").await {
        Ok(packs) => report.quarantined = packs.iter().map(PackKey::object).collect(),
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            report.not_quarantined = Some(text);
        }
    }
}

/// A point by its name; its record is read when it is its turn.
struct PointName {
    machine: MachineNumber,
    name: Arc<str>,
    number: SessionNumber,
}

impl PointName {
    fn touched(&self) -> Touched {
        Touched {
            machine: self.name.to_string(),
            point: self.number,
            disk: None,
            ranges: Vec::new(),
        }
    }
}

struct Run<'a> {
    vault: &'a Vault,
    plan: VerifyPlan,
    findings: Findings,
    state: VerifyProgress,
    progress: &'a (dyn Fn(VerifyProgress) + Sync),
}

impl Run<'_> {
    async fn all(&mut self, sample: Option<&Sample>) -> Result<(VerifyReport, Broken), ReadError> {
        let vault = self.vault;
        let records = vault.inner.records();
        let log = gclog::read_from(records, 0).await?;
        for damaged in log.damaged() {
            let object = object::gclog(damaged.number);
            let means = match damaged.is_checkpoint && damaged.is_there {
                true => "a checkpoint: what it says stands before it, so nothing is missed",
                false => "backups and clean-ups stop, since it may have said which packs go or are damaged",
            };
            self.findings.add(&object, &format!("{} ({means})", damaged.what), None);
        }
        vault.inner.reading.doubt(log.quarantined());
        let unreadable = index::sync(&vault.inner).await?;
        index::load_counted(&vault.inner).await?;
        let shown = gaps::find_gaps(vault, &log).await?;
        let machines = register::every_machine_to(records, log.machines(), shown.last_machine).await?;
        objects::check_machines(vault, &machines, &mut self.findings).await?;
        shown.tell_lost(&log, &machines, &mut self.findings);
        objects::check_pieces(vault, &log, unreadable, &mut self.findings).await?;
        let points = self.points(&log, &machines, &shown).await?;
        if self.plan.read == ReadData::All {
            objects::check_format(vault, &mut self.findings).await?;
            objects::check_records(vault, &mut self.findings).await?;
        }
        self.state.points_total = points.len() as u64;
        self.tell();

        let before = self.findings.clone();
        let none = BadPacks::default();
        let mut first = Walk::new(vault, &none, log.quarantined_packs()).await?;
        let missing_pieces = self.walk(&mut first, &points).await?;
        if self.findings.chunks_lost() > 0 {
            // Without a lost chunk, a piece that is gone was merged into others by a clean-up.
            missing_pieces
                .iter()
                .for_each(|object| self.findings.add(object, "it is not there", None));
        }
        let mut report = VerifyReport {
            points: points.len() as u64,
            chunks: first.chunks(),
            ..VerifyReport::default()
        };
        let (needed, mut doubtful) = first.into_packs();
        // Nodes that could be read by their packs' parity alone are no finding; their packs are to be put right.
        doubtful.extend(vault.inner.reading.mended());
        report.packs = needed.len();
        let read: PackSet = (needed.iter())
            .filter(|pack| match self.plan.read {
                ReadData::All => true,
                ReadData::Part(_) => doubtful.contains(pack) || sample.is_some_and(|sample| sample.takes(pack)),
                // What is known or found to be damaged is read, whatever was asked: its size says nothing.
                ReadData::No => doubtful.contains(pack),
            })
            .collect();
        report.packs_read = read.len();
        let looked = needed.iter().filter(|pack| !read.contains(pack));
        self.state.packs_total = report.packs;
        self.tell();

        let mut bad = packs::look(vault, looked, &mut self.state, self.progress).await?;
        bad.extend(packs::read(vault, read.iter(), self.plan.quarantine, &mut self.state, self.progress).await?);
        if !bad.is_empty() {
            // Says everything that the first walk has found once more, and what the bad packs touch.
            self.findings = before;
            let mut second = Walk::new(vault, &bad, log.quarantined_packs()).await?;
            let missing_pieces = self.walk(&mut second, &points).await?;
            if self.findings.chunks_lost() > 0 {
                missing_pieces
                    .iter()
                    .for_each(|object| self.findings.add(object, "it is not there", None));
            }
            bad.describe(&mut self.findings);
        }
        let mended = bad.mended().iter().map(|(key, blocks)| Mended {
            object: key.object(),
            blocks: *blocks,
        });
        report.mended = mended.collect();
        let mut broken = bad.broken();
        broken.chunks_lost = self.findings.chunks_lost();
        report.read_bytes = self.state.read_bytes;
        report.damage = std::mem::take(&mut self.findings).into_damage();
        self.state.damage_found = report.damage.len() as u64;
        (self.progress)(self.state);
        Ok((report, broken))
    }

    fn tell(&mut self) {
        self.state.damage_found = self.findings.count();
        (self.progress)(self.state);
    }

    /// The points that are not purged. One that cannot be read is a finding, and the others go on. Records are looked at one
    /// after the other; what is kept of them is a name.
    async fn points(
        &mut self,
        log: &GcLog,
        machines: &[(MachineNumber, String)],
        shown: &Shown,
    ) -> Result<Vec<PointName>, ReadError> {
        let records = self.vault.inner.records();
        let mut points = Vec::new();
        for (machine, name) in machines {
            let is_wanted = self.plan.machine.is_none_or(|wanted| wanted == *machine);
            if *machine == MachineNumber::MAINTENANCE || !is_wanted {
                continue;
            }
            let name: Arc<str> = name.as_str().into();
            let named = |number| PointName {
                machine: *machine,
                name: Arc::clone(&name),
                number,
            };
            let mut end = log.decided_below(*machine);
            let mut decisions = pin!(log.stream_decisions(records, *machine));
            while let Some((number, decision)) = decisions.try_next().await? {
                end = end.max(number.0 + 1);
                points.extend(self.counts(named(number), decision).await?);
            }
            // Behind a number that is lost.
            for number in shown.points_from(*machine, end) {
                if let Some(decision) = register::decision_or_damage(records, *machine, number).await? {
                    points.extend(self.counts(named(number), decision).await?);
                }
            }
        }
        Ok(points)
    }

    /// The point, if it is one that must restore.
    async fn counts(
        &mut self,
        point: PointName,
        decision: Result<Decision, ReadError>,
    ) -> Result<Option<PointName>, ReadError> {
        let damage = match decision {
            Ok(Decision::Committed(_)) => None,
            Ok(Decision::Undecided(_) | Decision::Aborted) => return Ok(None),
            Err(damage) if register::is_decided(&damage, point.machine, point.number) => Some(damage),
            Err(damage) => {
                self.findings.add_error(damage, None);
                return Ok(None);
            }
        };
        let fate = match fate::read(self.vault.inner.records(), point.machine, point.number).await {
            Ok(register) => register.fate,
            Err(ReadError::Damaged { object, what }) => {
                let means = format!(
                    "what became of {}@{} cannot be known; it restores and stays",
                    point.name, point.number
                );
                self.findings.add(&object, &format!("{what} ({means})"), None);
                Fate::Unknown
            }
            Err(error) => {
                self.findings.add_unread(error)?;
                Fate::Unknown
            }
        };
        match (fate, damage) {
            (Fate::Purged, _) => Ok(None),
            (_, Some(damage)) => {
                self.findings.add_error(damage, Some(point.touched()));
                Ok(None)
            }
            (_, None) => Ok(Some(point)),
        }
    }

    /// Walks all points; gives the pieces of the index that they count and that are not there.
    async fn walk(&mut self, walk: &mut Walk<'_>, points: &[PointName]) -> Result<Vec<String>, ReadError> {
        let mut missing = Vec::new();
        self.state.points_done = 0;
        for name in points {
            if let Some(point) = self.record(name).await? {
                missing.extend(objects::missing_pieces(self.vault, &point).await?);
                walk.point(&point, &mut self.findings).await?;
            }
            self.state.points_done += 1;
            self.tell();
        }
        Ok(missing)
    }

    async fn record(&mut self, name: &PointName) -> Result<Option<Point>, ReadError> {
        match register::point_record(self.vault.inner.records(), name.machine, name.number).await {
            Ok(Some(PointRecord::Commit { point })) => Ok(Some(*point)),
            Ok(Some(PointRecord::Abort { .. }) | None) => {
                let object = object::point(name.machine, name.number);
                self.findings
                    .add(&object, "it is not there any more", Some(name.touched()));
                Ok(None)
            }
            Err(error) if error.is_damage() => {
                self.findings.add_error(error, Some(name.touched()));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
