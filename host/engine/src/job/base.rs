//! What the new point is compared with: per disk the newest point in this vault that has it.

use std::collections::BTreeMap;

use coffre_vault::{Fate, Point, PointDisk, SessionNumber};

use super::error::JobError;
use super::run::Run;
use super::snapshot::Known;
use crate::machine::DiskId;
use crate::provider;

/// The earlier points that matter.
pub(super) struct Base {
    /// The machine's newest point here, for saying what is different about its disks.
    pub newest: Option<Point>,
    disks: BTreeMap<DiskId, DiskBase>,
}

pub(super) struct DiskBase {
    pub point: SessionNumber,
    pub disk: PointDisk,
    /// The token to ask the provider with, or why it is not asked.
    pub token: Result<String, String>,
}

impl Base {
    pub fn disk(&self, id: &DiskId) -> Option<&DiskBase> {
        self.disks.get(id)
    }

    /// The points that a session builds upon.
    pub fn points(&self) -> Vec<SessionNumber> {
        let mut points: Vec<SessionNumber> = self.disks.values().map(|base| base.point).collect();
        points.sort();
        points.dedup();
        points
    }

    /// The tokens that the provider is told of.
    pub fn tokens(&self) -> Vec<provider::Base> {
        let usable = self
            .disks
            .iter()
            .filter_map(|(id, base)| Some((id, base.token.as_ref().ok()?)));
        usable
            .map(|(disk, token)| provider::Base {
                disk: disk.clone(),
                token: token.clone(),
            })
            .collect()
    }
}

/// A base is valid while its point is not purged; its token, if the same provider made it and is believed.
pub(super) async fn find(run: &mut Run<'_>, known: &Known) -> Result<Base, JobError> {
    let vault = &run.deps.vault;
    let mut points = Vec::new();
    if let Some(machine) = vault.machine(&run.machine.name).await.map_err(JobError::Read)? {
        points = vault.points(machine).await.map_err(JobError::Read)?;
        run.told.points(run.deps.clock.now(), &points);
    }
    points.retain(|point| matches!(point.fate, Fate::Kept | Fate::Forgotten));
    let trusted = if known.tracks_changes {
        run.memory.trust(&run.provider.name, run.config.tracking)
    } else {
        Err(format!("{} does not track changes", run.provider.name))
    };
    let mut disks = BTreeMap::new();
    for id in known.ids() {
        let with_disk = points.iter().rev().find_map(|point| {
            let disk = point.disks.iter().find(|disk| disk.id == id.0)?;
            Some((point, disk))
        });
        let Some((point, disk)) = with_disk else { continue };
        let made_by = point
            .provider
            .as_ref()
            .map_or("another provider", |provider| provider.name.as_str());
        let token = match (&trusted, &disk.token) {
            (Err(why), _) => Err(why.clone()),
            (Ok(()), _) if made_by != run.provider.name => {
                Err(format!("point {} was taken by {made_by}", point.number))
            }
            (Ok(()), None) => Err(format!("point {} has no change token", point.number)),
            (Ok(()), Some(token)) => Ok(token.clone()),
        };
        let base = DiskBase {
            point: point.number,
            disk: disk.clone(),
            token,
        };
        disks.insert(id, base);
    }
    Ok(Base {
        newest: points.pop(),
        disks,
    })
}
