//! What a job writes into its point.

use coffre_vault::{Compared, PointAttachment, PointDisk, PointDraft, PointProvider};

use super::run::Run;
use super::snapshot::Taken;
use crate::transfer::DiskResult;

/// Everything that the job knows, for whoever restores in ten years.
pub(super) fn draft(
    run: &Run<'_>,
    taken: &Taken,
    results: &[DiskResult],
    attachments: Vec<PointAttachment>,
) -> PointDraft {
    let disks = taken.disks.iter().zip(results);
    PointDraft {
        taken_at: Some(taken.at),
        host: run.deps.host.clone(),
        coffre: env!("CARGO_PKG_VERSION").to_owned(),
        consistency: taken.consistency.clone(),
        held_ms: taken.held_ms,
        hold_overhead_ms: taken.hold_overhead_ms,
        frozen_ms: taken.frozen_ms,
        policy: run.config.policy.clone(),
        job: Some(run.id.clone()),
        provider: Some(PointProvider {
            name: run.provider.name.clone(),
            version: run.provider.version.clone(),
            digest: run.provider.digest.clone(),
            pinned: run.provider.pinned,
        }),
        disks: disks
            .map(|(disk, result)| PointDisk {
                id: result.id.0.clone(),
                label: disk.info.label.clone().unwrap_or_default(),
                size_bytes: result.size_bytes,
                root: result.root,
                token: disk.token.clone(),
                compared: Compared {
                    how: result.how,
                    why: result.why.clone(),
                },
                base: result.base,
                read_bytes: result.read_bytes,
                changed_bytes: result.changed_bytes,
                sampled_bytes: result.sampled_bytes,
                stored_bytes: result.stored_bytes,
                tracking_lied: result.tracking_lied_at.is_some(),
                changed_regions: result.changed_regions.clone(),
            })
            .collect(),
        hooks: taken.hooks.clone(),
        notes: run.notes.clone(),
        attachments,
        supersedes: Vec::new(),
    }
}
