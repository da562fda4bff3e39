//! Freezing file systems for a moment, so that nobody is left with a frozen one.
//!
//! The order, and why:
//! 1. Everything that must go on taking writes is looked at, and a file system that holds any of it is refused.
//! 2. What lies on a file of another file system is frozen before that one, since it must be able to write there until it is
//!    at rest; else the deepest mount first. Thawing goes the other way.
//! 3. Each thaw is owed to the guard, with the mount's descriptor, before the freeze. A freeze that ends after the deadline
//!    (much was to be written) is thawed by whoever sees it first.
//! 4. EBUSY means that somebody else froze it. Theirs is never thawed: the debt is taken back and the step fails.
//!
//! While anything is frozen, this process must write nothing that could lie on it: see [`anything_frozen`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::debt::{Debt, Device, Outcome, Owner};
use crate::handle::{Guard, GuardError, Owed, Settled};
use crate::ioctl;
use crate::mounts::{Mount, mount_of, mount_of_open, mounts, stands_on};

/// Tries of a thaw before it is left to the guard, which goes on trying.
const THAW_ATTEMPTS: u32 = 3;
const THAW_PAUSE: Duration = Duration::from_millis(50);

static FROZEN: AtomicUsize = AtomicUsize::new(0);

/// Whether this process holds a freeze right now. What it logs meanwhile must wait in memory: a log that lies on a frozen
/// file system would stop the very thread that is to thaw it.
pub fn anything_frozen() -> bool {
    FROZEN.load(Ordering::SeqCst) > 0
}

/// Something that must take writes while others are frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// As in "the state folder".
    pub what: String,
    pub path: PathBuf,
}

impl Protected {
    pub fn new(what: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            what: what.into(),
            path: path.into(),
        }
    }
}

/// Why nothing is frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("{} is not a mount point", .0.display())]
    NotAMountPoint(PathBuf),
    #[error("look at {}", path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error("{} must not be frozen: it holds {what} ({})", mount.display(), path.display())]
    Holds {
        mount: PathBuf,
        what: String,
        path: PathBuf,
    },
    #[error("{} is frozen already, by somebody else", .0.display())]
    Busy(PathBuf),
    #[error("{} is {kind}, which cannot be frozen", mount.display())]
    Unsupported { mount: PathBuf, kind: String },
    #[error("freezing {} took until after the deadline", .0.display())]
    Late(PathBuf),
    #[error("freeze {}", mount.display())]
    Failed { mount: PathBuf, source: io::Error },
    #[error("entrust the thaw of {} to the guard", mount.display())]
    Guard { mount: PathBuf, source: GuardError },
}

impl FreezeError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotAMountPoint(_) => "name mount points, as `findmnt` lists them".to_owned(),
            Self::Holds { .. } => {
                "what Coffre needs while it works must lie on another file system; else leave this one out of `freeze`"
                    .to_owned()
            }
            Self::Busy(mount) => format!(
                "find out who froze it; `fsfreeze --unfreeze {}` thaws it if nobody needs that any more",
                mount.display()
            ),
            Self::Unsupported { .. } => "leave it out of `freeze`".to_owned(),
            Self::Late(_) => "more was to be written than fits into the time: give `freeze-at-most` more".to_owned(),
            Self::Failed { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "only root may freeze a file system".to_owned()
            }
            Self::Guard { source, .. } => return source.hint(),
            Self::Look { .. } | Self::Failed { .. } => return None,
        };
        Some(hint)
    }
}

/// Finds the mounts and refuses what must not be frozen; disturbs nothing. In the order in which they are to be frozen, each
/// file system once.
pub fn look(paths: &[PathBuf], protected: &[Protected]) -> Result<Vec<Mount>, FreezeError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| FreezeError::Look { path, source }
    };
    let all = mounts().map_err(failed(Path::new("/proc/self/mountinfo")))?;
    let mut found: Vec<Mount> = Vec::new();
    for path in paths {
        let real = path.canonicalize().map_err(failed(path))?;
        // Of several mounts on one another, the last is the one that is seen.
        let mount = all.iter().rev().find(|mount| mount.point == real);
        let mount = mount.ok_or_else(|| FreezeError::NotAMountPoint(path.clone()))?;
        if !found.iter().any(|other| other.device == mount.device) {
            found.push(mount.clone());
        }
    }
    let always = always_protected();
    for protected in always.iter().chain(protected) {
        let holder = mount_of(&protected.path, &all).map_err(failed(&protected.path))?;
        let Some(holder) = holder else { continue };
        let needed = stands_on(holder.device, &all);
        if let Some(mount) = found.iter().find(|mount| needed.contains(&mount.device)) {
            return Err(FreezeError::Holds {
                mount: mount.point.clone(),
                what: protected.what.clone(),
                path: protected.path.clone(),
            });
        }
    }
    // What stands on another one needs more to take writes than that one does.
    let order = |mount: &Mount| (stands_on(mount.device, &all).len(), mount.point.components().count());
    found.sort_by_key(|mount| std::cmp::Reverse(order(mount)));
    Ok(found)
}

/// What no freeze may hold up, whatever the configuration says.
fn always_protected() -> Vec<Protected> {
    let mut all = vec![
        Protected::new("the root of this host", "/"),
        Protected::new("/run", "/run"),
        Protected::new("the system's log", "/var/log"),
        Protected::new("temporary files", std::env::temp_dir()),
    ];
    let program = std::env::current_exe().ok();
    all.extend(program.map(|program| Protected::new("the program itself", program)));
    // A log that somebody redirected into a file.
    for (what, descriptor) in [("what is said on stdout", 1), ("what is said on stderr", 2)] {
        let target = std::fs::read_link(format!("/proc/self/fd/{descriptor}"));
        all.extend(
            target
                .ok()
                .filter(|target| target.is_absolute() && target.exists())
                .map(|target| Protected::new(what, target)),
        );
    }
    all
}

/// File systems that are frozen, until [`Frozen::thaw`].
#[must_use = "what is frozen must be thawed"]
pub struct Frozen {
    /// In the order in which they were frozen.
    mounts: Vec<One>,
    began: Instant,
    deadline: Instant,
    is_over: bool,
}

struct One {
    mount: Mount,
    file: OwnedFd,
    owed: Option<Owed>,
}

/// What came of a freeze.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thawed {
    /// From the first freeze to the last thaw.
    pub held: Duration,
    /// In the order in which they were frozen.
    pub mounts: Vec<ThawedMount>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThawedMount {
    pub mount: PathBuf,
    pub end: FreezeEnd,
}

/// How the freeze of one file system ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FreezeEnd {
    /// By the thaw that was asked for: it held until then.
    Held,
    /// The guard had thawed it, since the deadline had passed.
    ByGuard,
    /// It was thawed at once when the guard went away.
    GuardGone,
    /// Somebody else had thawed it.
    ByOthers,
    /// It could not be thawed; the guard goes on trying, and this is said on every channel.
    NotThawed(String),
}

impl Thawed {
    /// Whether every file system was frozen from the beginning until it was asked to be thawed.
    pub fn held_all_the_while(&self) -> bool {
        self.mounts.iter().all(|mount| mount.end == FreezeEnd::Held)
    }
}

impl Guard {
    /// Freezes file systems until [`Frozen::thaw`], or `deadline` at most. All or none: what was frozen before one that
    /// cannot be is thawed again. Blocks for as long as writing what is dirty takes.
    pub fn freeze(
        &self,
        owner: &Owner,
        paths: &[PathBuf],
        protected: &[Protected],
        deadline: Instant,
    ) -> Result<Frozen, FreezeError> {
        let mut own = vec![
            Protected::new("what this guard writes down", &self.config().run),
            Protected::new("the state folder", &self.config().state),
            Protected::new("the guard's program", &self.config().program),
        ];
        own.extend_from_slice(protected);
        let mounts = look(paths, &own)?;
        let mut frozen = Frozen {
            mounts: Vec::with_capacity(mounts.len()),
            began: Instant::now(),
            deadline,
            is_over: false,
        };
        FROZEN.fetch_add(1, Ordering::SeqCst);
        for mount in mounts {
            if let Err(error) = frozen.add(self, owner, mount) {
                frozen.thaw();
                return Err(error);
            }
        }
        Ok(frozen)
    }
}

impl Frozen {
    fn add(&mut self, guard: &Guard, owner: &Owner, mount: Mount) -> Result<(), FreezeError> {
        let point = mount.point.clone();
        let failed = |source: io::Error| FreezeError::Failed {
            mount: point.clone(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = rustix::fs::open(&point, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        // Something else may have been mounted there since it was looked at.
        let all = mounts().map_err(failed)?;
        if mount_of_open(&file, &all).map_err(failed)?.map(|found| found.device) != Some(mount.device) {
            return Err(FreezeError::NotAMountPoint(point));
        }
        let debt = Debt::Thaw {
            mount: point.clone(),
            device: mount.device,
        };
        let copy = file.as_fd().try_clone_to_owned().map_err(failed)?;
        let owed = guard.owe_with(owner, &debt, self.deadline, Some(copy));
        let owed = owed.map_err(|source| FreezeError::Guard {
            mount: point.clone(),
            source,
        })?;
        if let Err(error) = ioctl::freeze(&file) {
            owed.paid(Outcome::Nothing);
            return Err(match error {
                Errno::BUSY => FreezeError::Busy(point),
                Errno::OPNOTSUPP => FreezeError::Unsupported {
                    mount: point,
                    kind: mount.kind,
                },
                error => failed(error.into()),
            });
        }
        owed.held();
        let (gone, late) = (owed.guard_is_gone(), Instant::now() >= self.deadline);
        self.mounts.push(One {
            mount,
            file,
            owed: Some(owed),
        });
        if gone {
            let source = GuardError::Gone;
            return Err(FreezeError::Guard { mount: point, source });
        }
        if late {
            return Err(FreezeError::Late(point));
        }
        Ok(())
    }

    /// The latest moment at which they are thawed.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether neither the guard nor we for want of one have thawed them. That somebody else has is seen when they are thawed.
    pub fn holds(&self) -> bool {
        let gone = |one: &One| one.owed.as_ref().is_none_or(Owed::guard_is_gone);
        !self.is_over && Instant::now() < self.deadline && !self.mounts.iter().any(gone)
    }

    /// What is frozen: mount point and type of the file system.
    pub fn mounts(&self) -> Vec<(PathBuf, String)> {
        self.mounts
            .iter()
            .map(|one| (one.mount.point.clone(), one.mount.kind.clone()))
            .collect()
    }

    /// Thaws all, the last frozen first, and says for each whether it had been frozen until now.
    pub fn thaw(mut self) -> Thawed {
        self.thaw_all()
    }

    fn thaw_all(&mut self) -> Thawed {
        let first = !std::mem::replace(&mut self.is_over, true);
        let mut ends: Vec<ThawedMount> = Vec::with_capacity(self.mounts.len());
        // First all thaws, then all words about them.
        let thawed: Vec<_> = self.mounts.iter().rev().map(|one| thaw(&one.file)).collect();
        let held = self.began.elapsed();
        if first {
            FROZEN.fetch_sub(1, Ordering::SeqCst);
        }
        for (one, result) in self.mounts.iter_mut().rev().zip(thawed) {
            let end = match (result, one.owed.take()) {
                (Ok(()), owed) => {
                    owed.map(|owed| owed.paid(Outcome::Thawed));
                    FreezeEnd::Held
                }
                (Err(Errno::INVAL), owed) => match owed.map(|owed| owed.paid(Outcome::NotFrozen)) {
                    Some(Settled::ByGuard) => FreezeEnd::ByGuard,
                    Some(Settled::GuardGone) => FreezeEnd::GuardGone,
                    Some(Settled::ByHost) | None => FreezeEnd::ByOthers,
                },
                // Still owed: dropping it leaves it to the guard.
                (Err(error), _) => FreezeEnd::NotThawed(error.to_string()),
            };
            ends.push(ThawedMount {
                mount: one.mount.point.clone(),
                end,
            });
        }
        ends.reverse();
        Thawed { held, mounts: ends }
    }
}

impl Drop for Frozen {
    /// For a panic between freeze and thaw. Everybody else asks how it went.
    fn drop(&mut self) {
        if !self.is_over {
            self.thaw_all();
        }
    }
}

fn thaw(file: &OwnedFd) -> rustix::io::Result<()> {
    let mut attempt = 1;
    loop {
        match ioctl::thaw(file) {
            Ok(()) => return Ok(()),
            Err(Errno::INVAL) => return Err(Errno::INVAL),
            Err(error) if attempt == THAW_ATTEMPTS => return Err(error),
            Err(_) => std::thread::sleep(THAW_PAUSE),
        }
        attempt += 1;
    }
}

/// The file system as a ledger has it, opened so that it can be thawed: by its mount point, or by another mount of it.
pub(crate) fn open_to_thaw(point: &Path, device: Device) -> io::Result<Option<OwnedFd>> {
    let all = mounts()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let same = all.iter().filter(|mount| mount.device == device);
    let mut candidates: Vec<&Path> = same.map(|mount| mount.point.as_path()).collect();
    candidates.sort_by_key(|candidate| *candidate != point);
    for candidate in candidates {
        let Ok(file) = rustix::fs::open(candidate, flags, Mode::empty()) else {
            continue;
        };
        // Another mount may lie over that one.
        if mount_of_open(&file, &all)?.is_some_and(|mount| mount.device == device) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}
