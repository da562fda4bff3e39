//! The snapshot's two ends: what is known before it is taken, and whether what was taken is what was asked for.

use std::sync::Arc;

use coffre_vault::{ConsistencyReached, HookOutcome, NoteLevel};
use jiff::Timestamp;

use super::base::Base;
use super::disks;
use super::error::JobError;
use super::rest::Rested;
use super::run::Run;
use crate::config::HookConfig;
use crate::consistency::{Facts, FreezeFact, decide};
use crate::freeze;
use crate::hook::{HookContext, HookRunner, HookTerms, SoFar};
use crate::journal::Event;
use crate::machine::{Attachment, DiskId, DiskInfo, Finding, FindingLevel};
use crate::nbd::NbdSource;
use crate::provider::{ProviderError, ProviderErrorKind, SnapshotId, SnapshotProvider, Source, TakenDisk};
use crate::source::{DiskSource, FileSource, SourceError};

/// What a plugin may hang on a point, so that none fills the vault by the back door.
const ATTACHMENTS_AT_MOST: usize = 64;
const ATTACHMENT_AT_MOST_BYTES: usize = 1 << 20;
/// What a provider hands out at a time, by its contract.
const STREAM_READ_AT_MOST_BYTES: usize = 4 << 20;

/// What is known before applications are disturbed.
pub(super) struct Known {
    /// All disks that were found.
    pub found: Vec<DiskInfo>,
    /// Those that are backed up.
    pub disks: Vec<DiskInfo>,
    /// In the order in which their `pre` runs.
    pub hooks: Vec<LoadedHook>,
    pub tracks_changes: bool,
}

/// A hook of the machine: what the config says of it, and what runs it.
#[derive(Clone)]
pub(super) struct LoadedHook {
    /// With what the hook's own file says in the place of what the config says.
    pub config: HookConfig,
    pub terms: HookTerms,
    pub runner: Arc<dyn HookRunner>,
}

impl LoadedHook {
    pub fn new(mut config: HookConfig, runner: Arc<dyn HookRunner>) -> Self {
        let terms = runner.terms();
        config.timeout = terms.timeout.unwrap_or(config.timeout);
        config.retries = terms.retries.unwrap_or(config.retries);
        config.on_failure = terms.on_failure.unwrap_or(config.on_failure);
        Self { config, terms, runner }
    }
}

impl Known {
    pub fn ids(&self) -> Vec<DiskId> {
        self.disks.iter().map(|disk| disk.id.clone()).collect()
    }
}

/// A snapshot that is what was asked for, with what it is worth.
pub(super) struct Taken {
    pub at: Timestamp,
    pub disks: Vec<OpenDisk>,
    pub consistency: ConsistencyReached,
    pub held_ms: Option<u64>,
    pub hold_overhead_ms: Option<u64>,
    pub frozen_ms: Option<u64>,
    pub hooks: Vec<HookOutcome>,
    pub attachments: Vec<Attachment>,
    pub id: SnapshotId,
}

/// One disk of it, ready to be read.
pub(super) struct OpenDisk {
    pub info: DiskInfo,
    pub source: Arc<dyn DiskSource>,
    /// The same where it is an NBD export, which may know what changed.
    pub nbd: Option<Arc<NbdSource>>,
    pub token: Option<String>,
}

/// Asks the provider and hooks everything that can be known, and refuses what cannot work.
pub(super) async fn prepare(run: &mut Run<'_>) -> Result<Known, JobError> {
    let provider = run.deps.provider.clone();
    let description = provider
        .describe()
        .await
        .map_err(run.provider_failed("describe itself"))?;
    let hooks = loaded_hooks(run, description.runs_outside)?;
    let found = provider
        .discover(&run.machine)
        .await
        .map_err(run.provider_failed("find the machine's disks"))?;
    let disks = disks::select(&run.machine.name, &run.provider.name, &run.config.disks, found.clone())?;
    let known = Known {
        found,
        disks,
        hooks,
        tracks_changes: description.tracks_changes,
    };
    run.disks = known.ids();
    run.record(Event::Disks { disks: known.ids() })?;

    let checked = provider.check(&run.machine, &known.ids()).await;
    let mut findings = checked.map_err(run.provider_failed("check the machine"))?;
    let runners: Vec<&dyn HookRunner> = known.hooks.iter().map(|hook| &*hook.runner).collect();
    findings.extend(freeze::check(&*run.deps.freezer, run.config, &runners));
    findings.extend(freeze::check_guard(run.deps.guard.as_ref(), run.config));
    for hook in &known.hooks {
        let context = context(run, &run.disks, hook);
        let checked = hook.runner.check(&context).await;
        findings.extend(checked.map_err(|source| JobError::Hook {
            hook: hook.config.name.clone(),
            step: "check",
            source: Box::new(source),
        })?);
    }
    let (blocking, others): (Vec<Finding>, Vec<Finding>) = findings
        .into_iter()
        .partition(|finding| finding.level == FindingLevel::Blocking);
    if !blocking.is_empty() {
        return Err(JobError::Blocked(blocking));
    }
    for finding in others {
        run.note(coffre_vault::Note {
            level: if finding.level == FindingLevel::Warning {
                NoteLevel::Warning
            } else {
                NoteLevel::Info
            },
            code: "check".to_owned(),
            disk: finding.disk.map(|disk| disk.0),
            text: finding.text,
        })?;
    }
    Ok(known)
}

fn loaded_hooks(run: &Run<'_>, runs_outside: bool) -> Result<Vec<LoadedHook>, JobError> {
    let load = |name: &String| {
        let config = run.deps.config.hook(name)?.clone();
        if runs_outside && config.on.is_none() {
            return Err(JobError::HookNowhere {
                hook: name.clone(),
                provider: run.provider.name.clone(),
            });
        }
        let runner = run.deps.hooks.iter().find(|runner| runner.name() == name);
        let runner = runner
            .cloned()
            .ok_or_else(|| JobError::HookNotLoaded { hook: name.clone() })?;
        Ok(LoadedHook::new(config, runner))
    };
    run.config.hooks.iter().map(load).collect()
}

/// What a hook of this job is told.
pub(super) fn context(run: &Run<'_>, disks: &[DiskId], hook: &LoadedHook) -> HookContext {
    HookContext {
        machine: run.machine.clone(),
        disks: disks.to_vec(),
        job: run.id.clone(),
        policy: run.config.policy.clone(),
        wanted: run.wanted,
        attempt: 1,
        timeout: hook.config.timeout,
        hold_at_most: run.policy.hold_at_most,
        guard: run.deps.guard.clone(),
        freezer: Some(run.deps.freezer.clone()),
        hold_left: run.policy.hold_at_most,
        so_far: SoFar::default(),
    }
}

/// Decides what the snapshot is worth, and opens its disks. A snapshot that is not what was asked for is refused.
pub(super) async fn accept(run: &mut Run<'_>, known: &Known, base: &Base, rested: Rested) -> Result<Taken, JobError> {
    let consistency = worth(run, &rested)?;
    if !rested.snapshot.one_instant && known.disks.len() > 1 {
        let text = "the disks do not all show the same instant".to_owned();
        run.say(NoteLevel::Warning, "not-one-instant", text)?;
    }
    let (hooks, mut attachments) = rested
        .hooks
        .into_iter()
        .map(|hook| (hook.outcome, hook.attachments))
        .fold(
            (Vec::new(), rested.snapshot.attachments),
            |(mut outcomes, mut all), (outcome, attachments)| {
                outcomes.push(outcome);
                all.extend(attachments);
                (outcomes, all)
            },
        );
    check_attachments(run, &mut attachments)?;

    let mut answered = rested.snapshot.disks;
    let mut open = Vec::with_capacity(known.disks.len());
    for info in &known.disks {
        let at = answered.iter().position(|disk| disk.id == info.id);
        let at = at.ok_or_else(|| run.bad_answer(format!("a snapshot without disk {}", info.id)))?;
        let disk = answered.swap_remove(at);
        let token = disk.token.clone();
        let (source, nbd) = open_source(run, &rested.id, disk).await?;
        open.push(OpenDisk {
            info: info.clone(),
            source,
            nbd,
            token,
        });
    }
    if let Some(more) = answered.first() {
        return Err(run.bad_answer(format!(
            "a snapshot with disk {}, which nobody asked for or which it has twice",
            more.id
        )));
    }
    let sizes: Vec<(DiskId, u64)> = open
        .iter()
        .map(|disk| (disk.info.id.clone(), disk.source.size_bytes()))
        .collect();
    if let Some(before) = &base.newest {
        for note in disks::compare(&before.disks, &known.found, &sizes) {
            run.note(note)?;
        }
    }
    Ok(Taken {
        at: rested.at,
        disks: open,
        consistency,
        held_ms: rested.held.map(|held| held.as_millis() as u64),
        hold_overhead_ms: rested.overhead.map(|overhead| overhead.as_millis() as u64),
        frozen_ms: (rested.freeze.frozen())
            .map(|frozen| frozen.as_millis() as u64)
            .or(rested.snapshot.frozen_ms.map(u64::from)),
        hooks,
        attachments,
        id: rested.id,
    })
}

fn worth(run: &mut Run<'_>, rested: &Rested) -> Result<ConsistencyReached, JobError> {
    let hooks: Vec<_> = rested.hooks.iter().map(|hook| hook.facts()).collect();
    // What is read while it changes again is not what was frozen.
    let freeze = match rested.freeze.fact() {
        FreezeFact::Held(_) if !rested.snapshot.one_instant => {
            FreezeFact::Not("file systems were frozen, and the snapshot does not show that one instant")
        }
        freeze => freeze,
    };
    let decision = decide(&Facts {
        provider: rested.snapshot.consistency,
        provider_reason: &rested.snapshot.consistency_reason,
        hooks: &hooks,
        held: rested.held.unwrap_or_default(),
        hold_at_most: run.policy.hold_at_most,
        snapshot_late: rested.late,
        freeze,
    });
    if decision.reached < run.policy.accept {
        return Err(JobError::LessThanAccepted {
            reached: decision.reached,
            accept: run.policy.accept,
            reason: decision.reason,
        });
    }
    if decision.reached < run.wanted {
        let text = format!(
            "{} was wanted, {} was reached: {}",
            run.wanted, decision.reached, decision.reason
        );
        run.say(NoteLevel::Warning, "downgraded", text)?;
    }
    Ok(ConsistencyReached {
        reached: decision.reached,
        wanted: run.wanted,
        reason: decision.reason,
    })
}

/// What is too large is left out and said, rather than failing a snapshot that is good.
fn check_attachments(run: &mut Run<'_>, attachments: &mut Vec<Attachment>) -> Result<(), JobError> {
    let mut refused = Vec::new();
    attachments.retain(|attachment| {
        let fits = attachment.content.len() <= ATTACHMENT_AT_MOST_BYTES;
        if !fits {
            refused.push(format!("{} ({} bytes)", attachment.name, attachment.content.len()));
        }
        fits
    });
    refused.extend(
        attachments
            .drain(attachments.len().min(ATTACHMENTS_AT_MOST)..)
            .map(|more| more.name),
    );
    if refused.is_empty() {
        return Ok(());
    }
    let text = format!(
        "left out: {}; a point has at most {ATTACHMENTS_AT_MOST} attachments of {ATTACHMENT_AT_MOST_BYTES} bytes",
        refused.join(", ")
    );
    run.say(NoteLevel::Warning, "attachment-refused", text)
}

/// The size is what is measured here; a provider that says another is not believed in anything.
async fn open_source(
    run: &Run<'_>,
    snapshot: &SnapshotId,
    disk: TakenDisk,
) -> Result<(Arc<dyn DiskSource>, Option<Arc<NbdSource>>), JobError> {
    let id = disk.id;
    let failed = |source| JobError::Source {
        disk: id.clone(),
        source,
    };
    let mut nbd = None;
    let source: Arc<dyn DiskSource> = match disk.source {
        Source::File { file, path } => Arc::new(FileSource::new(file, path).map_err(failed)?),
        Source::Stream => {
            let stream = StreamSource {
                provider: run.deps.provider.clone(),
                machine: run.machine.clone(),
                snapshot: snapshot.clone(),
                disk: id.clone(),
                size_bytes: disk.size_bytes,
                runtime: tokio::runtime::Handle::current(),
            };
            stream.measure().await.map_err(failed)?;
            Arc::new(stream)
        }
        Source::Nbd {
            socket,
            export,
            uri,
            changed_context,
        } => {
            let what = uri.clone();
            let opening =
                tokio::task::spawn_blocking(move || NbdSource::open(socket, &export, uri, changed_context.as_deref()));
            let opened = opening.await.map_err(|error| run.bad_answer(error.to_string()))?;
            let opened = opened.map_err(|source| failed(SourceError::Nbd { what, source }))?;
            nbd.insert(Arc::new(opened)).clone()
        }
    };
    if source.size_bytes() != disk.size_bytes {
        let what = format!(
            "disk {id} has {} bytes; it has {}",
            disk.size_bytes,
            source.size_bytes()
        );
        return Err(run.bad_answer(what));
    }
    Ok((source, nbd))
}

/// A disk whose bytes the provider hands out itself.
struct StreamSource {
    provider: Arc<dyn SnapshotProvider>,
    machine: crate::machine::Machine,
    snapshot: SnapshotId,
    disk: DiskId,
    size_bytes: u64,
    runtime: tokio::runtime::Handle,
}

impl StreamSource {
    async fn read(&self, offset_bytes: u64, length_bytes: usize) -> Result<Vec<u8>, SourceError> {
        let length = u32::try_from(length_bytes).unwrap_or(u32::MAX);
        let read = self
            .provider
            .read(&self.machine, &self.snapshot, &self.disk, offset_bytes, length)
            .await;
        let bytes = read.map_err(|error: ProviderError| SourceError::Provider(error.to_string()))?;
        if bytes.len() != length_bytes {
            return Err(SourceError::Provider(format!(
                "asked for {length_bytes} bytes at {offset_bytes} of disk {}, the provider gave {}",
                self.disk,
                bytes.len()
            )));
        }
        Ok(bytes)
    }

    /// Nothing but the provider knows such a disk's size: at least its last byte must be there.
    async fn measure(&self) -> Result<(), SourceError> {
        match self.size_bytes.checked_sub(1) {
            Some(last) => self.read(last, 1).await.map(drop),
            None => Ok(()),
        }
    }
}

impl DiskSource for StreamSource {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        let mut at_bytes = offset_bytes;
        for part in buffer.chunks_mut(STREAM_READ_AT_MOST_BYTES) {
            let bytes = self.runtime.block_on(self.read(at_bytes, part.len()))?;
            part.copy_from_slice(&bytes);
            at_bytes += part.len() as u64;
        }
        Ok(())
    }

    fn next_data(&self, from_bytes: u64) -> Result<Option<std::ops::Range<u64>>, SourceError> {
        Ok((from_bytes < self.size_bytes).then_some(from_bytes..self.size_bytes))
    }
}

/// Whether an error means that the provider broke its contract, not that something is missing.
pub(super) fn is_a_lie(error: &ProviderError) -> bool {
    error.kind == ProviderErrorKind::BadAnswer
}
