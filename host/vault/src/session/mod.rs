//! A session: what one job writes into the vault, in the order that makes it safe beside other writers and a clean-up.
//!
//! 1. Create `sessions/<m>/<n>`, naming the base points: from now on they and their packs stay.
//! 2. *Then* read the clean-up log, and check that no base is purged. The other way round, a clean-up could condemn a pack
//!    between the two and see no session that might use it.
//! 3. Deduplicate only against packs that are not condemned or quarantined in what was read.
//! 4. Put packs, each opened again and hashed before it leaves.
//! 5. Put index pieces, every 8 packs or 32 Ki chunks.
//! 6. Check that every pack that is new or newly deduplicated against is there at its size.
//! 7. Create the point. 8. Only now say so.

mod adopt;
mod commit;
#[cfg(test)]
mod tests;
mod used;
mod writer;

use std::sync::Arc;

use jiff::Timestamp;

use crate::fate;
use crate::gclog::GcLog;
use crate::ids::{MachineNumber, SessionNumber};
use crate::index;
use crate::object::{self, ObjectType};
use crate::pack::PackListing;
use crate::point::Fate;
use crate::read::ReadError;
use crate::register::{self, PointRecord, Session};
use crate::store::StoreError;
use crate::vault::{Inner, LeftOut};

pub(crate) use commit::commit_again;
pub use writer::SessionWriter;

/// A session to begin.
#[derive(Clone, Debug)]
pub struct SessionPlan {
    pub machine: MachineNumber,
    /// The points whose maps and chunks the new one builds upon. They stay while the session is undecided.
    pub bases: Vec<SessionNumber>,
    /// Past it the job fails, and clean-up may fence the session two hours later.
    pub deadline: Timestamp,
    pub host: String,
    /// An earlier session of the same snapshot: it is aborted after the new one exists, and its packs are used again.
    pub resumes: Option<SessionNumber>,
}

/// Why no session was begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    #[error("the vault has no machine {0}")]
    NoMachine(MachineNumber),
    #[error("point {0} cannot be a base: {1}")]
    Base(SessionNumber, &'static str),
    #[error("session {0} is committed already and cannot be resumed")]
    ResumedIsCommitted(SessionNumber),
    #[error("abort session {0}, which the new one resumes")]
    Resume(SessionNumber, #[source] Box<CommitError>),
    #[error("read the vault before writing to it")]
    Read(#[from] ReadError),
    #[error("begin a session")]
    Store(#[from] StoreError),
}

/// Why a chunk was not taken. The session has failed and takes nothing more.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    #[error("put pack {pack} into the vault")]
    Pack { pack: String, source: Arc<StoreError> },
    /// Memory, processor or program: the bytes are not what they were.
    #[error("pack {pack} did not open again as it was filled: {what}")]
    NotProven { pack: String, what: String },
    #[error("put a piece of the index into the vault")]
    Index { source: Arc<StoreError> },
    #[error("look into the local index")]
    Cache { source: Arc<std::io::Error> },
    #[error("a chunk has {bytes} bytes, at most {limit_bytes} are taken")]
    ChunkTooLarge { bytes: usize, limit_bytes: usize },
    #[error("the session is over")]
    Over,
    #[error("a task of the session ended early: {what}")]
    Broken { what: String },
}

/// Why a point was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    #[error("write what the point needs")]
    Write(#[from] WriteError),
    #[error("look whether everything that the point needs is there")]
    Check { source: StoreError },
    /// What was deduplicated against is not there. It is quarantined now, so a new session stores its chunks again.
    #[error("pack {pack}, which the point needs, is not in the vault as it should be: {what}")]
    PackMissing { pack: String, what: String },
    #[error("write the point to {}", path.display())]
    CommitFile {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error("the session was aborted by somebody else ({reason}): begin a new one upon the same snapshot")]
    Fenced { reason: String },
    #[error("session {0} is committed")]
    IsCommitted(SessionNumber),
    #[error("another point stands where only this session's may: two programs use one session")]
    OtherPoint,
    /// Neither yes nor no. The very same bytes may be sent again later.
    #[error("whether the point is in the vault cannot be known")]
    Unknown(#[source] StoreError),
    /// The store has no room, and the point is not there. The very same bytes may be sent again when there is some.
    #[error("the point is not in the vault yet")]
    Full(#[source] StoreError),
    #[error("the commit cannot be read")]
    Read(#[from] ReadError),
}

/// Whether a chunk must be put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is in the vault, or somebody else in this session is putting it.
    Known,
    /// The caller must put it.
    New,
}

/// What a put has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutReport {
    /// With its tag.
    pub stored_bytes: u32,
}

/// What a session has written so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteStats {
    pub packs: u32,
    /// Packs and index pieces that are in the vault.
    pub stored_bytes: u64,
    pub new_chunks: u64,
    /// Claims that were answered with `Known`.
    pub known_chunks: u64,
}

/// How often the next number is tried where others begin sessions of the same machine at the same time.
const BEGIN_ATTEMPTS: usize = 64;

pub(crate) async fn begin(vault: &Arc<Inner>, plan: SessionPlan) -> Result<SessionWriter, BeginError> {
    let records = vault.records();
    let log = vault.log_so_far().await?;
    // Asked again once the session is there; but what is known to fail need not leave one.
    log.require_whole()?;
    let machines = register::machines_after(records, log.machines()).await?;
    let machine = machines.into_iter().find(|(number, _)| *number == plan.machine);
    let machine = machine.ok_or(BeginError::NoMachine(plan.machine))?;
    let early_log = match vault.leaves_out(LeftOut::LogAfterSession) {
        true => Some(vault.log().await?),
        false => None,
    };
    let number = create_session(vault, &plan).await?;
    let begun = begin_upon(vault, &plan, early_log).await;
    let (log, adopted) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            // Nobody will go on with it, and until its deadline it would hold up every clean-up.
            if let Err(unended) = abort(vault, plan.machine, number, "it could not begin").await {
                tracing::debug!(session = %number, error = %unended, "a session that could not begin stays undecided");
            }
            return Err(error);
        }
    };
    tracing::debug!(machine = %plan.machine, session = %number, adopted = adopted.len(), "session begun");
    let vault = Arc::clone(vault);
    Ok(SessionWriter::new(vault, machine, number, plan.host, log, adopted))
}

/// Steps 2 and 3, once the session is there: what it may rely on, and what it goes on with.
async fn begin_upon(
    vault: &Arc<Inner>,
    plan: &SessionPlan,
    early_log: Option<GcLog>,
) -> Result<(GcLog, Vec<PackListing>), BeginError> {
    if let Some(resumed) = plan.resumes {
        match abort(vault, plan.machine, resumed, "resumed by a later session").await {
            Ok(()) => {}
            Err(CommitError::IsCommitted(number)) => return Err(BeginError::ResumedIsCommitted(number)),
            Err(CommitError::Read(error)) => return Err(error.into()),
            Err(error) => return Err(BeginError::Resume(resumed, Box::new(error))),
        }
    }
    let log = match early_log {
        Some(log) => log,
        None if vault.leaves_out(LeftOut::CondemnedPacks) => GcLog::default(),
        // Read to its end anew: what is condemned from here on finds the session.
        None => vault.log().await?,
    };
    log.require_whole()?;
    for base in &plan.bases {
        check_base(vault, plan, *base).await?;
    }
    for unreadable in index::sync(vault).await? {
        tracing::warn!(error = %unreadable, "chunks that only this piece lists will be stored again");
    }
    let adopted = match plan.resumes {
        Some(resumed) => adopt::unlisted_packs(vault, plan.machine, resumed, &log).await?,
        None => Vec::new(),
    };
    Ok((log, adopted))
}

pub(crate) async fn create_session(vault: &Arc<Inner>, plan: &SessionPlan) -> Result<SessionNumber, BeginError> {
    let name = |number: u32| object::session(plan.machine, SessionNumber(number));
    let session = Session {
        bases: match vault.leaves_out(LeftOut::PinnedBases) {
            true => Vec::new(),
            false => plan.bases.clone(),
        },
        deadline: plan.deadline,
        begun_at: vault.records().now(),
        host: plan.host.clone(),
        resumes: plan.resumes,
    };
    let first = vault.log_so_far().await?.decided_below(plan.machine);
    let mut next = register::end(&vault.store, first, name).await?;
    let mut attempt = 1;
    loop {
        match vault.records().create(ObjectType::Session, &name(next), &session).await {
            Ok(()) => return Ok(SessionNumber(next)),
            Err(StoreError::Taken { .. }) if attempt < BEGIN_ATTEMPTS => {
                next += 1;
                attempt += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn check_base(vault: &Arc<Inner>, plan: &SessionPlan, base: SessionNumber) -> Result<(), BeginError> {
    match register::point_record(vault.records(), plan.machine, base).await? {
        Some(PointRecord::Commit { .. }) => {}
        Some(PointRecord::Abort { .. }) => return Err(BeginError::Base(base, "it was aborted")),
        None => return Err(BeginError::Base(base, "it is not there")),
    }
    match fate::read(vault.records(), plan.machine, base).await?.fate {
        Fate::Purged => Err(BeginError::Base(base, "it is purged")),
        Fate::Unknown => Err(BeginError::Base(base, "what became of it cannot be read")),
        Fate::Kept | Fate::Forgotten => Ok(()),
    }
}

/// Creates Abort where a session's point would stand. Aborted already is success; that is read, not guessed: a place that is
/// taken and then empty says nothing of whether the session may still commit.
pub(crate) async fn abort(
    vault: &Arc<Inner>,
    machine: MachineNumber,
    number: SessionNumber,
    reason: &str,
) -> Result<(), CommitError> {
    let object = object::point(machine, number);
    let record = PointRecord::Abort {
        reason: reason.to_owned(),
        host: String::new(),
        at: vault.records().now(),
    };
    match vault.records().create(ObjectType::Point, &object, &record).await {
        Ok(()) => Ok(()),
        Err(taken @ StoreError::Taken { .. }) => {
            match register::point_record(vault.records(), machine, number).await? {
                Some(PointRecord::Commit { .. }) => {
                    let settled = vault.store.settle(&object).await;
                    settled.map_err(|source| CommitError::Read(ReadError::Store(source)))?;
                    Err(CommitError::IsCommitted(number))
                }
                Some(PointRecord::Abort { .. }) => Ok(()),
                None => Err(CommitError::Unknown(taken)),
            }
        }
        Err(source) => Err(CommitError::Read(ReadError::Store(source))),
    }
}
