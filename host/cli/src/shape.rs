//! The shapes of recovery points in JSON: what docs/cli.md promises, apart from how the vault stores them.

use coffre_engine::config::VaultConfig;
use coffre_vault::{Fate, HookOutcome, Note, Pin, Point, PointDisk, StepOutcome};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct PointShape {
    pub vault: String,
    pub machine: String,
    pub point: u32,
    /// The snapshot's instant.
    pub taken_at: Option<Timestamp>,
    pub committed_at: Timestamp,
    pub fate: Fate,
    /// If it is forgotten: until when undelete works at least.
    pub undelete_until: Option<Timestamp>,
    pub pinned: Option<PinShape>,
    pub consistency: String,
    pub consistency_wanted: String,
    pub consistency_reason: String,
    pub held_ms: Option<u64>,
    pub hold_overhead_ms: Option<u64>,
    pub frozen_ms: Option<u64>,
    pub size_bytes: u64,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub stored_bytes: u64,
    pub disks: Vec<DiskShape>,
    pub hooks: Vec<HookShape>,
    pub notes: Vec<NoteShape>,
    pub attachments: Vec<AttachmentShape>,
    pub provider: Option<ProviderShape>,
    pub policy: Option<String>,
    pub job: Option<String>,
    pub host: String,
    pub coffre: String,
}

#[derive(Debug, Serialize)]
pub struct PinShape {
    pub at: Timestamp,
    pub reason: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct DiskShape {
    pub id: String,
    pub label: String,
    pub size_bytes: u64,
    pub compared: String,
    pub compared_why: String,
    pub base_point: Option<u32>,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub sampled_bytes: u64,
    pub stored_bytes: u64,
    pub tracking_lied: bool,
}

#[derive(Debug, Serialize)]
pub struct HookShape {
    pub name: String,
    pub kind: String,
    pub application_consistent: bool,
    pub pre: Option<StepShape>,
    pub post: Option<StepShape>,
}

#[derive(Debug, Serialize)]
pub struct StepShape {
    pub ok: bool,
    pub attempts: u32,
    pub duration_ms: u64,
    pub error: Option<String>,
    /// Of the error: as `StepOutcome` has it.
    pub code: Option<String>,
    pub output: String,
}

#[derive(Debug, Serialize)]
pub struct NoteShape {
    pub level: String,
    pub code: String,
    pub disk: Option<String>,
    pub text: String,
}

#[derive(Debug, Serialize)]
pub struct AttachmentShape {
    pub name: String,
    pub media_type: String,
    pub size_bytes: u64,
}

#[derive(Debug, Serialize)]
pub struct ProviderShape {
    pub name: String,
    pub version: String,
    pub digest: String,
    pub pinned: bool,
}

impl PointShape {
    pub fn new(vault: &str, point: &Point) -> Self {
        let sum = |of: fn(&PointDisk) -> u64| point.disks.iter().map(of).sum();
        Self {
            vault: vault.to_owned(),
            machine: point.machine.clone(),
            point: point.number.0,
            taken_at: point.taken_at,
            committed_at: point.committed_at,
            fate: point.fate,
            undelete_until: None,
            pinned: point.pin.as_ref().map(PinShape::new),
            consistency: point.consistency.reached.to_string(),
            consistency_wanted: point.consistency.wanted.to_string(),
            consistency_reason: point.consistency.reason.clone(),
            held_ms: point.held_ms,
            hold_overhead_ms: point.hold_overhead_ms,
            frozen_ms: point.frozen_ms,
            size_bytes: sum(|disk| disk.size_bytes),
            read_bytes: sum(|disk| disk.read_bytes),
            changed_bytes: sum(|disk| disk.changed_bytes),
            stored_bytes: point.written.stored_bytes,
            disks: point.disks.iter().map(DiskShape::new).collect(),
            hooks: point.hooks.iter().map(HookShape::new).collect(),
            notes: point.notes.iter().map(NoteShape::new).collect(),
            attachments: (point.attachments.iter())
                .map(|attachment| AttachmentShape {
                    name: attachment.name.clone(),
                    media_type: attachment.media_type.clone(),
                    size_bytes: attachment.size_bytes,
                })
                .collect(),
            provider: point.provider.as_ref().map(|provider| ProviderShape {
                name: provider.name.clone(),
                version: provider.version.clone(),
                digest: provider.digest.clone(),
                pinned: provider.pinned,
            }),
            policy: point.policy.clone(),
            job: point.job.clone(),
            host: point.host.clone(),
            coffre: point.coffre.clone(),
        }
    }
}

impl PinShape {
    pub fn new(pin: &Pin) -> Self {
        Self {
            at: pin.at,
            reason: pin.reason.clone(),
        }
    }
}

/// Until when a forgotten point of a vault can be brought back at least: a clean-up purges it some time later.
pub fn undelete_until(point: &Point, vault: &VaultConfig) -> Option<Timestamp> {
    let allowed = SignedDuration::try_from(vault.undelete_for).unwrap_or(SignedDuration::MAX);
    Some(point.forgotten_since?.checked_add(allowed).unwrap_or(Timestamp::MAX))
}

impl DiskShape {
    fn new(disk: &PointDisk) -> Self {
        Self {
            id: disk.id.clone(),
            label: disk.label.clone(),
            size_bytes: disk.size_bytes,
            compared: disk.compared.how.to_string(),
            compared_why: disk.compared.why.clone(),
            base_point: disk.base.map(|base| base.0),
            read_bytes: disk.read_bytes,
            changed_bytes: disk.changed_bytes,
            sampled_bytes: disk.sampled_bytes,
            stored_bytes: disk.stored_bytes,
            tracking_lied: disk.tracking_lied,
        }
    }
}

impl HookShape {
    fn new(hook: &HookOutcome) -> Self {
        let step = |step: &Option<StepOutcome>| {
            step.as_ref().map(|step| StepShape {
                ok: step.ok,
                attempts: step.attempts,
                duration_ms: step.duration_ms,
                error: step.error.clone(),
                code: step.code.clone(),
                output: step.output.clone(),
            })
        };
        Self {
            name: hook.name.clone(),
            kind: hook.kind.clone(),
            application_consistent: hook.application_consistent,
            pre: step(&hook.pre),
            post: step(&hook.post),
        }
    }
}

impl NoteShape {
    pub fn new(note: &Note) -> Self {
        Self {
            level: format!("{:?}", note.level).to_lowercase(),
            code: note.code.clone(),
            disk: note.disk.clone(),
            text: note.text.clone(),
        }
    }
}
