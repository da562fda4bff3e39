//! Those who back up: sessions with and without a base, that share content with others, die at any request, are resumed,
//! stall past their deadline, and forget points of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coffre_vault::testing::{Dice, SimStore, packs_of_piece};
use coffre_vault::{
    BeginError, Clock, CommitError, Fate, MachineNumber, OpenError, Point, PointAttachment, PointDisk, PointDraft,
    ReadError, SessionNumber, SessionPlan, Vault,
};
use jiff::SignedDuration;
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::disk::{self, Base, Pauses, WriteDiskError};
use crate::fates;
use crate::host::{Host, rest, until_death};
use crate::ledger::{Content, PointName};

/// Programs that a job is tried with before its snapshot is released.
const LIVES: u64 = 5;

/// Why one program did not finish a backup.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error("open: {0}")]
    Open(#[from] OpenError),
    #[error("begin: {0}")]
    Begin(#[from] BeginError),
    #[error("read: {0}")]
    Read(#[from] ReadError),
    #[error("write: {0}")]
    Write(#[from] WriteDiskError),
    #[error("commit: {0}")]
    Commit(#[from] CommitError),
}

type Begun = Arc<Mutex<Option<(MachineNumber, SessionNumber)>>>;

/// One snapshot that is to become a point. What is here survives the program.
#[derive(Clone)]
struct Job {
    machine_name: String,
    content: Arc<Content>,
    gather: bool,
    dice: Dice,
    /// The last session that was begun for it.
    session: Begun,
    /// A commit may have been sent.
    committing: bool,
}

pub async fn run(host: Arc<Host>, machine_name: String, dice: Dice) {
    host.ledger.writer_begins();
    back_up(&host, machine_name, dice).await;
    host.ledger.writer_ends();
}

async fn back_up(host: &Arc<Host>, machine_name: String, dice: Dice) {
    let mut disk = disk::Disk::default();
    for number in 0..host.plan.backups {
        let mut dice = dice.nth("backup", number);
        rest(&mut dice, &host.plan).await;
        disk = disk.changed(&mut dice, host.plan.shared_blocks, host.plan.places);
        let length = if dice.once_in(3) {
            dice.within(1..3000) as usize
        } else {
            0
        };
        let content = Content {
            disk: disk.clone(),
            attachment: disk::bytes(dice.number(), length),
        };
        let job = Job {
            machine_name: machine_name.clone(),
            content: Arc::new(content),
            gather: dice.once_in(2),
            dice,
            session: Begun::default(),
            committing: false,
        };
        work_off(host, job).await;
        if host.ledger.is_wrong() {
            return;
        }
    }
}

/// Starts programs for a job until one of them is done with it.
async fn work_off(host: &Arc<Host>, mut job: Job) {
    for number in 0..LIVES {
        let mut dice = job.dice.nth("life", number);
        let store = host.life("backup", number + 1 < LIVES);
        if dice.once_in(8) && host.plan.writers_give_up {
            leave_behind(host, &store, &mut job, &mut dice).await;
            continue;
        }
        let outcome = until_death(&store, one_life(host, &store, &mut job, dice.clone())).await;
        match outcome {
            Some(Ok(())) => return,
            Some(Err(error)) => {
                host.ledger.count("backups that failed");
                host.world.note(&host.name, format!("backup failed: {}", chain(&error)));
                judge(host, &job, &error).await;
            }
            None => host.ledger.count("backups that died"),
        }
        if host.ledger.is_wrong() || dice.once_in(8) {
            return;
        }
        rest(&mut dice, &host.plan).await;
    }
}

/// A program that is taken for dead and goes on some time later, as in a virtual machine that was paused. The next one does
/// its work meanwhile.
async fn leave_behind(host: &Arc<Host>, store: &Arc<SimStore>, job: &mut Job, dice: &mut Dice) {
    let (host, store, dice_there) = (Arc::clone(host), Arc::clone(store), dice.of("left behind"));
    let mut left = job.clone();
    left.session = Arc::new(Mutex::new(*job.session.lock()));
    let session = Arc::clone(&left.session);
    host.ledger.count("programs left behind");
    let longest = host.plan.longest_rest;
    tokio::spawn(async move {
        if let Some(Err(error)) = until_death(&store, one_life(&host, &store, &mut left, dice_there)).await {
            host.world.note(
                &host.name,
                format!("the program that was left behind failed: {}", chain(&error)),
            );
            judge(&host, &left, &error).await;
        }
    });
    sleep(dice.duration(Duration::from_secs(1), longest)).await;
    job.session = Arc::new(Mutex::new(*session.lock()));
    job.committing = false;
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut all = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        all = format!("{all}: {error}");
        next = error.source();
    }
    all
}

async fn one_life(host: &Arc<Host>, store: &Arc<SimStore>, job: &mut Job, mut dice: Dice) -> Result<(), JobError> {
    let vault = host.open(store).await?;
    let begun = *job.session.lock();
    if let (Some((machine, number)), true) = (begun, job.committing)
        && dice.within(0..4) > 0
    {
        match vault
            .commit_again(machine, number, &commit_file(host, (machine, number)))
            .await
        {
            Ok(_) => {
                host.ledger.count("commits sent again");
                host.ledger.acknowledge((machine, number));
                return Ok(());
            }
            Err(CommitError::Fenced { .. }) => host.ledger.count("commits refused"),
            Err(CommitError::CommitFile { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let machine = vault.machine_or_create(&job.machine_name).await?;
    let resumes = begun.filter(|(on, _)| *on == machine && dice.within(0..4) > 0);
    let earlier: Vec<SessionNumber> = match host.plan.keeps_newest_only {
        true => vault.points(machine).await?.iter().map(|point| point.number).collect(),
        false => Vec::new(),
    };
    let (base, plan) = plan_session(host, &vault, machine, resumes.map(|(_, number)| number), &mut dice).await?;
    let writer = vault.begin(plan).await?;
    let name = (machine, writer.number());
    *job.session.lock() = Some(name);
    job.committing = false;
    host.ledger.count(if resumes.is_some() {
        "sessions resumed"
    } else {
        "sessions begun"
    });
    let base_number = base.as_ref().map(|point| point.number);
    if host.plan.keeps_newest_only
        && let Some(base) = base_number
        && dice.of("early").once_in(3)
    {
        // It is pinned, so it may go no sooner than the session is over, however long that takes.
        fates::forget(host, &vault, (machine, base)).await;
        sleep(
            dice.of("long")
                .duration(Duration::from_secs(60), 4 * host.plan.longest_rest),
        )
        .await;
    }
    let base = base.and_then(|point| {
        let entry = host.ledger.entry((machine, point.number))?;
        let disk = entry.content.disk.clone();
        let root = point.disks.first()?.root;
        Some(Base {
            disk,
            root,
            reader: vault.chunks(),
        })
    });
    let mut pauses = Pauses {
        dice: dice.of("pauses"),
        longest: host.plan.longest_pause,
    };
    let root = disk::write(
        &writer,
        vault.hasher(),
        base,
        &job.content.disk,
        job.gather,
        &mut pauses,
    )
    .await?;
    let mut attachments = Vec::new();
    if !job.content.attachment.is_empty() {
        attachments.push(PointAttachment {
            name: "definition".to_owned(),
            media_type: String::new(),
            size_bytes: job.content.attachment.len() as u64,
            chunks: writer
                .put_bytes(&job.content.attachment)
                .map_err(WriteDiskError::from)?,
        });
    }
    if dice.once_in(20) && host.plan.writers_give_up {
        writer.abort("given up").await?;
        host.ledger.count("sessions given up");
        return Ok(());
    }
    if host.plan.writers_stall && dice.once_in(4) {
        host.world.note(&host.name, "stalls before its commit");
        host.ledger.count("writers that stalled");
        sleep(dice.duration(Duration::from_secs(3600), Duration::from_secs(3 * 86_400))).await;
    }
    host.ledger.intend(name, &job.content);
    job.committing = true;
    if host.plan.weather.death > 0 && dice.once_in(5) {
        let (store, after) = (
            Arc::clone(store),
            dice.duration(Duration::from_millis(1), Duration::from_secs(30)),
        );
        tokio::spawn(async move {
            sleep(after).await;
            store.kill();
        });
    }
    let draft = PointDraft {
        disks: vec![PointDisk {
            id: "disk".to_owned(),
            size_bytes: disk::SIZE_BYTES,
            root,
            base: base_number,
            ..PointDisk::default()
        }],
        attachments,
        ..PointDraft::default()
    };
    let point = writer.commit(draft, &commit_file(host, name)).await?;
    host.ledger.acknowledge(name);
    if host.plan.keeps_newest_only {
        for older in earlier {
            fates::forget(host, &vault, (machine, older)).await;
        }
    } else if let Some(older) = base_number
        && dice.once_in(3)
    {
        fates::forget(host, &vault, (machine, older)).await;
    }
    debug_assert_eq!((point.machine_number, point.number), name);
    Ok(())
}

fn commit_file(host: &Host, of: PointName) -> PathBuf {
    host.folder().join(format!("commit-{}-{}", of.0, of.1))
}

/// Some point that is not purged as the base, or none, and how long the session may take.
async fn plan_session(
    host: &Host,
    vault: &Vault,
    machine: MachineNumber,
    resumes: Option<SessionNumber>,
    dice: &mut Dice,
) -> Result<(Option<Point>, SessionPlan), ReadError> {
    let base = match dice.within(0..5) {
        0 => None,
        _ => {
            let mut points = vault.points(machine).await?;
            points.retain(|point| matches!(point.fate, Fate::Kept | Fate::Forgotten));
            match (dice.once_in(3), points.len() as u64) {
                (_, 0) => None,
                (true, count) => Some(points.swap_remove(dice.within(0..count) as usize)),
                (false, _) => points.pop(),
            }
        }
    };
    let allowed = dice.duration(Duration::from_secs(1), host.plan.longest_deadline);
    let plan = SessionPlan {
        machine,
        bases: base.iter().map(|point| point.number).collect(),
        deadline: host.clock.now() + SignedDuration::try_from(allowed).unwrap_or(SignedDuration::ZERO),
        host: host.name.clone(),
        resumes,
    };
    Ok((base, plan))
}

/// What an undecided session relies on stays; once it is fenced, that is over.
fn is_undecided(host: &Host, job: &Job) -> bool {
    let begun = *job.session.lock();
    begun.is_some_and(|(machine, number)| {
        let point = format!("points/{}/{}", machine.key(), number.key());
        host.world.created(&point).is_none()
    })
}

/// A session that stalled and was fenced may list a pack in the index when the pack is long gone and the log no longer says that
/// it was condemned. Whoever believes it finds out before the commit.
async fn was_listed_when_it_was_gone(host: &Host, job: &Job, pack: &str) -> bool {
    let Some(deleted) = host.world.deleted(&format!("packs/{pack}")) else {
        return false;
    };
    let Ok(vault) = host.open_calmly().await else {
        return false;
    };
    // What the session itself has listed was there then, or should have been.
    let own = (*job.session.lock()).map(|(machine, number)| format!("index/{}/{}/", machine.key(), number.key()));
    let late = host.world.made_after("index/", deleted);
    late.iter()
        .filter(|(piece, _)| own.as_ref().is_none_or(|own| !piece.starts_with(own)))
        .any(|(piece, bytes)| packs_of_piece(&vault, piece, bytes).iter().any(|listed| listed == pack))
}

/// Whether a store that never loses anything can be the cause of a failure.
async fn judge(host: &Arc<Host>, job: &Job, error: &JobError) {
    let damage = match error {
        JobError::Read(error) | JobError::Begin(BeginError::Read(error)) => error.is_damage(),
        JobError::Commit(CommitError::Read(error)) => error.is_damage(),
        JobError::Commit(CommitError::PackMissing { pack, .. }) => {
            host.ledger.count("packs missing at the commit");
            is_undecided(host, job) && !was_listed_when_it_was_gone(host, job, pack).await
        }
        JobError::Commit(CommitError::OtherPoint) => true,
        JobError::Commit(CommitError::Write(_)) => false,
        JobError::Write(WriteDiskError::Map(error)) => disk::is_damage(error) && is_undecided(host, job),
        _ => false,
    };
    if let JobError::Commit(CommitError::Fenced { .. }) = error {
        host.ledger.count("commits refused");
    }
    if damage {
        let what = format!(
            "{} backing up {} meets damage: {}",
            host.name,
            job.machine_name,
            chain(error)
        );
        host.ledger.wrong(what);
    }
}
