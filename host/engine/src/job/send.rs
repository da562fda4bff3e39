//! From the snapshot into the vault: session, transfer, commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coffre_vault::{
    BeginError, CommitError, Note, NoteLevel, Pace, Point, PointAttachment, SessionPlan, SessionWriter, WriteError,
};
use tokio::time::{Instant, sleep, sleep_until};

use super::base::Base;
use super::changes::{Caught, ask};
use super::debts::{Resumes, abort};
use super::error::JobError;
use super::point::draft;
use super::run::Run;
use super::snapshot::Taken;
use crate::error_chain::Chain;
use crate::journal::{Event, OwedSession};
use crate::machine::DiskId;
use crate::progress::Phase;
use crate::provider;
use crate::transfer::{self, DiskBase, DiskResult, DiskTransfer, TransferError, TransferPlan};

/// How often a commit whose answer was lost is sent again before it is left to the next job.
const COMMIT_ATTEMPTS: u32 = 3;
/// How often it is looked whether the transfer may go on.
const GATE_ASKED: Duration = Duration::from_secs(1);
const COMMIT_PAUSE: Duration = Duration::from_secs(5);

/// An open session and when it must be over.
pub(super) struct Session {
    writer: SessionWriter,
    deadline: Instant,
    pace: Option<Arc<dyn Pace>>,
}

/// What the transfer has put into the vault.
pub(super) struct Sent {
    results: Vec<DiskResult>,
    attachments: Vec<PointAttachment>,
}

/// A point, and what this host keeps for the next one.
pub(super) struct Committed {
    pub point: Point,
    pub results: Vec<DiskResult>,
}

/// Begins a session upon the base. One that a job which died has left is taken over: aborted once ours exists, its packs
/// used again.
pub(super) async fn begin(
    run: &mut Run<'_>,
    base: &Base,
    resumes: Option<Resumes>,
    deadline: Instant,
) -> Result<Session, JobError> {
    let vault = &run.deps.vault;
    let machine = vault.machine_or_create(&run.machine.name).await.map_err(begin_failed)?;
    let plan = SessionPlan {
        machine,
        bases: base.points(),
        deadline: run.deps.clock.now() + deadline.saturating_duration_since(Instant::now()),
        host: run.deps.host.clone(),
        resumes: resumes.as_ref().map(|resumes| resumes.session),
    };
    let writer = vault.begin(plan).await.map_err(begin_failed)?;
    run.writer = Some(writer.clone());
    run.record(Event::Session {
        machine,
        session: writer.number(),
    })?;
    if let Some(mut resumes) = resumes {
        let over = Event::SessionOver {
            session: resumes.session,
            why: format!("resumed as session {}", writer.number()),
        };
        resumes.journal.append(run.deps.clock.now(), over)?;
    }
    let pace = run.deps.gate.pace();
    if let Some(pace) = &pace {
        writer.pace_by(pace.clone());
    }
    Ok(Session { writer, deadline, pace })
}

fn begin_failed(error: BeginError) -> JobError {
    JobError::Begin(Box::new(error))
}

/// Reads every disk and stores what changed, all disks at once.
pub(super) async fn transfer(
    run: &mut Run<'_>,
    session: &Session,
    taken: &Taken,
    base: &Base,
) -> Result<Sent, JobError> {
    let caught = Caught::default();
    let mut disks = Vec::with_capacity(taken.disks.len());
    for disk in &taken.disks {
        let of_disk = base.disk(&disk.info.id);
        disks.push(DiskTransfer {
            id: disk.info.id.clone(),
            source: disk.source.clone(),
            base: of_disk.map(|base| DiskBase {
                point: base.point,
                size_bytes: base.disk.size_bytes,
                root: base.disk.root,
            }),
            tracked: ask(run, taken, disk, of_disk, &caught).await,
            counters: run.deps.progress.disk(&disk.info.id, disk.source.size_bytes()),
        });
    }
    let stop = Arc::new(AtomicBool::new(false));
    let paused = Arc::new(AtomicBool::new(!run.deps.gate.is_open()));
    let plan = TransferPlan {
        vault: run.deps.vault.clone(),
        writer: session.writer.clone(),
        machine: run.machine.name.clone(),
        cache_folder: run.deps.config.coffre.cache.clone(),
        disks,
        disks_at_once: run.deps.config.coffre.disks.get(),
        cancel: stop.clone(),
        paused: paused.clone(),
    };
    let runtime = tokio::runtime::Handle::current();
    let mut work = tokio::task::spawn_blocking(move || transfer::run(plan, &runtime));
    let mut deadline_passed = false;
    // Packs that wait for their share of the line would hold up the end.
    let end = || {
        stop.store(true, Ordering::Relaxed);
        let_go(session);
    };
    let ended = tokio::select! {
        ended = &mut work => ended,
        () = run.deps.cancel.cancelled() => {
            end();
            work.await
        }
        () = sleep_until(session.deadline) => {
            deadline_passed = true;
            end();
            work.await
        }
        () = pause_and_go_on(run, &paused) => work.await,
    };
    let results = match ended {
        Ok(Ok(results)) => results,
        Ok(Err(TransferError::Cancelled)) if deadline_passed => {
            return Err(JobError::DeadlinePassed(run.policy.deadline));
        }
        Ok(Err(TransferError::Cancelled)) => return Err(JobError::Cancelled),
        Ok(Err(error)) => return Err(JobError::Transfer(Box::new(error))),
        Err(error) => return Err(JobError::Panicked(error.to_string())),
    };
    hear_of_lies(run, &results, caught.lock().take())?;
    tell_what_was_healed(run, &results)?;
    let attachments = store_attachments(session, taken).await?;
    Ok(Sent { results, attachments })
}

fn let_go(session: &Session) {
    if let Some(pace) = &session.pace {
        pace.let_go();
    }
}

async fn wants_to_end(run: &Run<'_>, session: &Session) {
    tokio::select! {
        () = run.deps.cancel.cancelled() => {}
        () = sleep_until(session.deadline) => {}
    }
}

/// Pauses the transfer while the gate is closed. Never ends.
async fn pause_and_go_on(run: &Run<'_>, paused: &AtomicBool) {
    let mut was_open = true;
    loop {
        let open = run.deps.gate.is_open();
        paused.store(!open, Ordering::Relaxed);
        if open != was_open {
            match open {
                true => run.deps.progress.enter(Phase::Transfer),
                false => run.deps.progress.step("paused until its window opens"),
            }
            tracing::info!(job = run.id, open, "the window of the transfer has changed");
            was_open = open;
        }
        sleep(GATE_ASKED).await;
    }
}

/// Damage that stopped a transfer is recorded, with what else of the base's maps cannot be read, so that the next session
/// knows. Whether anything was.
pub(super) async fn quarantine(run: &mut Run<'_>, session: &Session, base: &Base, error: &JobError) -> bool {
    let JobError::Transfer(transfer) = error else {
        return false;
    };
    let Some(damage) = transfer.damage() else { return false };
    let machine = session.writer.machine();
    match run.deps.vault.quarantine(machine, &base.points(), damage).await {
        Ok(0) => return false,
        Ok(packs) => tracing::warn!(
            job = run.id,
            packs,
            "packs that the base needs are damaged; they are quarantined"
        ),
        Err(error) => {
            tracing::error!(job = run.id, error = %Chain(&error), "damage that the base has could not be recorded");
            return false;
        }
    }
    abort(run, owed(session), &error.to_string()).await;
    true
}

/// Stands in the point: what was damaged in its base, and whether earlier points are whole again.
fn tell_what_was_healed(run: &mut Run<'_>, results: &[DiskResult]) -> Result<(), JobError> {
    for result in results {
        let healed = result.healed;
        let disk = Some(result.id.0.clone());
        if healed.chunks + healed.nodes > 0 {
            let text = format!(
                "disk {}: {} damaged chunks and {} damaged nodes of the map ({} bytes) are stored again; earlier points that \
                 need them are whole again",
                result.id, healed.chunks, healed.nodes, healed.bytes
            );
            run.note(Note {
                level: NoteLevel::Info,
                code: "healed".to_owned(),
                disk: disk.clone(),
                text,
            })?;
        }
        if healed.lost_chunks + healed.lost_nodes > 0 {
            let text = format!(
                "disk {}: {} damaged chunks and {} damaged nodes of the map could not be stored again as they were; this point \
                 is whole, earlier points that need them stay damaged, and `coffre verify` names them",
                result.id, healed.lost_chunks, healed.lost_nodes
            );
            run.note(Note {
                level: NoteLevel::Warning,
                code: "not-healed".to_owned(),
                disk,
                text,
            })?;
        }
    }
    Ok(())
}

/// A provider that was caught is not believed any more. The point is right: what it said was not used.
fn hear_of_lies(run: &mut Run<'_>, results: &[DiskResult], impossible: Option<String>) -> Result<(), JobError> {
    let lie = results
        .iter()
        .find_map(|result| Some((&result.id, result.tracking_lied_at?)));
    let why = match (lie, impossible) {
        (Some((disk, at_bytes)), _) => {
            format!(
                "disk {disk} had changed at {at_bytes}, where {} said that it had not",
                run.provider.name
            )
        }
        (None, Some(what)) => format!("{} answered what cannot be: {what}", run.provider.name),
        (None, None) => return Ok(()),
    };
    run.memory.distrust(
        &run.provider.name,
        run.deps.clock.now(),
        why.clone(),
        run.config.tracking,
    );
    run.state.write_machine(&run.machine.name, &run.memory)?;
    let text = format!(
        "{why}; everything was read instead, and its word is not used until the config says `tracking = \"trust-again\"`"
    );
    run.say(NoteLevel::Error, "tracking-lied", text)
}

async fn store_attachments(session: &Session, taken: &Taken) -> Result<Vec<PointAttachment>, JobError> {
    let writer = session.writer.clone();
    let attachments = taken.attachments.clone();
    let stored = tokio::task::spawn_blocking(move || {
        let store = |attachment: crate::machine::Attachment| {
            Ok::<_, WriteError>(PointAttachment {
                chunks: writer.put_bytes(&attachment.content)?,
                size_bytes: attachment.content.len() as u64,
                name: attachment.name,
                media_type: attachment.media_type,
            })
        };
        attachments.into_iter().map(store).collect::<Result<Vec<_>, _>>()
    });
    match stored.await {
        Ok(stored) => stored.map_err(JobError::Attachments),
        Err(error) => Err(JobError::Panicked(error.to_string())),
    }
}

/// Writes the point. When the answer is lost the very same bytes are sent again, and nothing is cleaned up meanwhile.
pub(super) async fn commit(
    run: &mut Run<'_>,
    session: &Session,
    taken: &Taken,
    sent: Sent,
) -> Result<Committed, JobError> {
    let number = session.writer.number();
    let file = run.journal.commit_file(number);
    run.record(Event::Committing { session: number })?;
    let point = draft(run, taken, &sent.results, sent.attachments);
    let mut answer = {
        let mut committed = std::pin::pin!(session.writer.commit(point, &file));
        // The last packs may wait for their share of the line. Whoever wants the job to end gets its end.
        tokio::select! {
            answer = &mut committed => answer,
            () = wants_to_end(run, session) => {
                let_go(session);
                committed.await
            }
        }
    };
    let mut attempt = 1;
    while let Err(error @ CommitError::Unknown(why)) = &answer {
        tracing::warn!(job = run.id, error = %Chain(error), attempt, "the answer to the commit was lost");
        if attempt == COMMIT_ATTEMPTS || !why.may_help_to_try_again() {
            break;
        }
        attempt += 1;
        sleep(COMMIT_PAUSE).await;
        answer = run
            .deps
            .vault
            .commit_again(session.writer.machine(), number, &file)
            .await;
    }
    match answer {
        Ok(point) => Ok(Committed {
            point,
            results: sent.results,
        }),
        Err(error) => {
            sent.results.into_iter().for_each(DiskResult::discard_digests);
            match &error {
                CommitError::Unknown(_) | CommitError::Full(_) => {
                    run.fate_unknown = true;
                    return Err(JobError::FateUnknown(Box::new(error)));
                }
                CommitError::Fenced { reason } => {
                    let why = reason.clone();
                    run.record(Event::SessionOver { session: number, why })?;
                }
                // What the index promised is not there. The vault has forgotten the promise: a new session puts it again.
                CommitError::PackMissing { .. } => abort(run, owed(session), &error.to_string()).await,
                _ => {}
            }
            Err(JobError::Commit(Box::new(error)))
        }
    }
}

fn owed(session: &Session) -> OwedSession {
    OwedSession {
        machine: session.writer.machine(),
        session: session.writer.number(),
        committing: true,
    }
}

/// Once there is a point: remembers its tokens and digests. The tokens first, for they say what the provider keeps when the
/// job dies from here on; losing the digests only costs time.
pub(super) async fn keep(run: &mut Run<'_>, point: &Point, results: Vec<DiskResult>) {
    let vault = run.deps.vault.id().to_string();
    run.memory.bases.insert(vault, bases_of(point));
    if let Err(error) = run.state.write_machine(&run.machine.name, &run.memory) {
        let text = format!("the change tokens could not be kept: {}", Chain(&error));
        run.say_quietly(NoteLevel::Warning, "tokens-lost", text);
    }
    run.record_quietly(Event::Committed { session: point.number });
    let kept = tokio::task::spawn_blocking(move || {
        let keep = |result: DiskResult| (result.id.clone(), result.keep_digests());
        results.into_iter().map(keep).collect::<Vec<_>>()
    });
    let failed = match kept.await {
        Ok(kept) => kept
            .into_iter()
            .filter_map(|(disk, kept)| Some((disk, kept.err()?)))
            .collect(),
        Err(error) => {
            tracing::error!(job = run.id, %error, "keeping the digests broke off");
            Vec::new()
        }
    };
    for (disk, error) in failed {
        let text = format!("the digests of disk {disk} could not be kept: {}", Chain(&error));
        run.say_quietly(NoteLevel::Warning, "digests-lost", text);
    }
}

/// The tokens of a point.
pub(super) fn bases_of(point: &Point) -> Vec<provider::Base> {
    let with_token = point.disks.iter().filter_map(|disk| Some((disk, disk.token.clone()?)));
    with_token
        .map(|(disk, token)| provider::Base {
            disk: DiskId(disk.id.clone()),
            token,
        })
        .collect()
}
