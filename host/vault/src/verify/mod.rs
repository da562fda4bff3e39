//! Proving that points can be restored: everything that a point needs is in the vault, and with `read_data` it is what it was.
//!
//! The maps of all points are walked once; a part that points share is walked for the first of them. That gives the packs that
//! are needed, which are looked at or read one by one, since reading them in order costs the fewest requests. Only where one
//! of them is damaged are the maps walked again, to say which points, disks and bytes it touches.

mod again;
mod damage;
mod gaps;
mod packs;
mod walk;

use std::collections::BTreeSet;
use std::ops::Range;

use crate::fate;
use crate::gclog;
use crate::ids::{MachineNumber, SessionNumber};
use crate::index;
use crate::object;
use crate::point::{Fate, Point};
use crate::read::ReadError;
use crate::register::Decision;
use crate::vault::Vault;
use damage::Findings;
use packs::BadPacks;
use walk::Walk;

/// What to verify.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifyPlan {
    /// One machine, or all.
    pub machine: Option<MachineNumber>,
    /// Read and open everything, not only look whether it is there at its size.
    pub read_data: bool,
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
    pub packs: u64,
    pub chunks: u64,
    pub read_bytes: u64,
    pub damage: Vec<Damage>,
}

impl VerifyReport {
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
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
    let mut findings = Findings::default();
    let mut state = VerifyProgress::default();
    for unreadable in index::sync(&vault.inner).await? {
        findings.add_unread(unreadable)?;
    }
    gaps::check_gaps(vault, &gclog::read(vault.inner.records()).await?, &mut findings).await?;
    let machines = vault.machines().await?;
    let mut points = Vec::new();
    for (machine, name) in machines {
        if plan.machine.is_none_or(|wanted| wanted == machine) {
            points.extend(read_points(vault, machine, &name, &mut findings).await?);
        }
    }
    check_index(vault, &points, &mut findings).await?;
    if plan.read_data {
        again::read_again(vault, &points, &mut findings).await?;
    }
    index::load_counted(&vault.inner).await?;

    state.points_total = points.len() as u64;
    state.damage_found = findings.count();
    progress(state);
    let before = findings.clone();
    let none = BadPacks::default();
    let mut first = Walk::new(vault, &none);
    for point in &points {
        first.point(point, &mut findings).await?;
        state.points_done += 1;
        state.damage_found = findings.count();
        progress(state);
    }
    let chunks = first.chunks();
    let needed: BTreeSet<_> = first.needed_packs().collect();
    let mut report = VerifyReport {
        points: points.len() as u64,
        packs: needed.len() as u64,
        chunks,
        ..VerifyReport::default()
    };

    state.packs_total = needed.len() as u64;
    progress(state);
    let bad = packs::check(vault, needed, plan.read_data, &mut state, progress).await?;
    if !bad.is_empty() {
        // Says everything that the first walk has found once more, and what the bad packs touch.
        findings = before;
        let mut second = Walk::new(vault, &bad);
        for point in &points {
            second.point(point, &mut findings).await?;
        }
        bad.describe(&mut findings);
    }
    report.read_bytes = state.read_bytes;
    report.damage = findings.into_damage();
    state.damage_found = report.damage.len() as u64;
    progress(state);
    Ok(report)
}

/// The points of a machine that are not purged. A point that cannot be read is a finding, and the others go on.
async fn read_points(
    vault: &Vault,
    machine: MachineNumber,
    name: &str,
    findings: &mut Findings,
) -> Result<Vec<Point>, ReadError> {
    let records = vault.inner.records();
    let log = gclog::read(records).await?;
    let mut points = Vec::new();
    for (number, decision) in log.decisions(records, machine).await? {
        match decision {
            Ok(Decision::Committed(mut point)) => {
                match fate::read(records, machine, number).await {
                    Ok(register) => point.fate = register.fate,
                    Err(error) => {
                        findings.add_unread(error)?;
                        point.fate = Fate::Unknown;
                    }
                }
                if point.fate != Fate::Purged {
                    points.push(*point);
                }
            }
            Ok(Decision::Undecided(_) | Decision::Aborted) => {}
            Err(error) => {
                let touched = Touched {
                    machine: name.to_owned(),
                    point: number,
                    disk: None,
                    ranges: Vec::new(),
                };
                findings.add_error(error, Some(touched));
            }
        }
    }
    Ok(points)
}

/// Whether the pieces of the index that the points count are there.
async fn check_index(vault: &Vault, points: &[Point], findings: &mut Findings) -> Result<(), ReadError> {
    for point in points {
        for number in 0..point.written.index_pieces {
            let piece = object::PackKey {
                machine: point.machine_number,
                session: point.number,
                number,
            };
            if !vault.inner.index.knows_piece(&piece) && vault.inner.store.size(&piece.index_object()).await?.is_none()
            {
                findings.add(&piece.index_object(), "it is not there", None);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
