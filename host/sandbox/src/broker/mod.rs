//! Checks what a plugin asks for against its grants, opens it, and has it done.
//!
//! Takes and gives plain data only, and blocks: it is to run in a process of its own one day, with a socket between it
//! and the guest. It holds neither vault keys nor cloud credentials.

mod nbd;
mod resolve;
mod socket;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coffre_engine::nbd::Socket;
use coffre_guard::{Guard, Owner};
use parking_lot::RwLock;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::acts::{self, ActError, Entry, Kind, Mapped, Status, Usage};
use crate::catalog::SecretSource;
use crate::grant::{GrantKind, Permissions, Place, Refusal};
use crate::limits::{EXTENTS_COUNTED, EXTENTS_PER_STEP, FOLDER_ENTRIES, OUTPUT_BYTES};
use crate::process;

pub(crate) use socket::Connection;

/// Why something was not done; becomes the contract's `failure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    NotFound,
    Denied,
    Busy,
    TimedOut,
    Unsupported,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub kind: FailureKind,
    pub text: String,
}

impl Failure {
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
        }
    }
}

/// A program's end.
#[derive(Clone, Debug)]
pub(crate) struct ProgramOutput {
    pub status: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// What a program is run with.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub program: String,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub input: Vec<u8>,
    pub max_output_bytes: u32,
    pub deadline: Instant,
}

/// A disk's bytes, opened for the host.
#[derive(Debug)]
pub(crate) struct OpenedDisk {
    pub file: File,
    pub size_bytes: u64,
}

/// Acts for one plugin and one machine.
pub(crate) struct Broker {
    permissions: Permissions,
    secrets: Arc<dyn SecretSource>,
    /// To whom the processes of the plugin's programs are owed while they run.
    guard: Option<(Guard, Owner)>,
    cancelled: Arc<AtomicBool>,
    /// Held for reading while a program runs.
    running: RwLock<()>,
}

type Done<T> = Result<T, Failure>;

impl Broker {
    pub fn new(permissions: Permissions, secrets: Arc<dyn SecretSource>, guard: Option<(Guard, Owner)>) -> Self {
        Self {
            permissions,
            secrets,
            guard,
            cancelled: Arc::default(),
            running: RwLock::new(()),
        }
    }

    /// Ends the programs that run for a guest which nobody waits for, and refuses to start others.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Blocks until no program runs.
    pub fn wait_for_programs(&self) {
        drop(self.running.write());
    }

    pub fn plugin(&self) -> &str {
        &self.permissions.plugin
    }

    /// The folders and files that it may write to.
    pub fn writes_below(&self) -> Vec<PathBuf> {
        self.permissions.patterns(GrantKind::StorageWrite)
    }

    fn refused(&self, refusal: Refusal) -> Failure {
        Failure::new(FailureKind::Denied, refusal.text(&self.permissions))
    }

    fn place(&self, kind: GrantKind, path: &str) -> Done<Place> {
        self.permissions
            .path(kind, path)
            .map_err(|refusal| self.refused(refusal))
    }

    /// What lies there, without opening it for anything.
    fn look(&self, kind: GrantKind, path: &str) -> Done<OwnedFd> {
        resolve::open(&self.place(kind, path)?, OFlags::PATH).map_err(|errno| said(path, "open", errno))
    }

    /// A regular file or block device, open for reading.
    fn readable(&self, path: &str) -> Done<OwnedFd> {
        let there = self.look(GrantKind::DiskRead, path)?;
        let kind = acts::kind_of(there.as_fd()).map_err(|error| acted(path, error))?;
        if !matches!(kind, Kind::RegularFile | Kind::BlockDevice) {
            return Err(Failure::new(
                FailureKind::Failed,
                format!("{path} is neither a regular file nor a block device"),
            ));
        }
        resolve::again(&there, OFlags::RDONLY).map_err(|errno| said(path, "open", errno))
    }

    fn parent(&self, kind: GrantKind, path: &str) -> Done<(OwnedFd, String)> {
        resolve::parent(&self.place(kind, path)?).map_err(|errno| said(path, "open the folder of", errno))
    }

    pub fn stat(&self, path: &str) -> Done<Status> {
        let there = self.look(GrantKind::DiskRead, path)?;
        let acted = |error| acted(path, error);
        if acts::kind_of(there.as_fd()).map_err(acted)? == Kind::BlockDevice {
            let opened = resolve::again(&there, OFlags::RDONLY).map_err(|errno| said(path, "open", errno))?;
            return acts::status(opened.as_fd()).map_err(acted);
        }
        acts::status(there.as_fd()).map_err(acted)
    }

    pub fn list_folder(&self, path: &str) -> Done<Vec<Entry>> {
        let there = self.look(GrantKind::DiskRead, path)?;
        let opened =
            resolve::again(&there, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|errno| said(path, "list", errno))?;
        acts::list_folder(opened.as_fd(), FOLDER_ENTRIES).map_err(|error| acted(path, error))
    }

    pub fn create_folder(&self, path: &str) -> Done<()> {
        let (parent, name) = self.parent(GrantKind::StorageWrite, path)?;
        acts::create_folder(parent.as_fd(), &name).map_err(|error| acted(path, error))
    }

    pub fn extents(&self, path: &str, offset: u64) -> Done<Vec<Mapped>> {
        let file = self.readable(path)?;
        acts::mapped(file.as_fd(), offset, EXTENTS_PER_STEP as u32).map_err(|error| acted(path, error))
    }

    pub fn extent_count(&self, path: &str, at_most: u32) -> Done<u32> {
        let file = self.readable(path)?;
        acts::extent_count(file.as_fd(), at_most.min(EXTENTS_COUNTED)).map_err(|error| acted(path, error))
    }

    pub fn reflink(&self, source: &str, target: &str) -> Done<()> {
        let (parent, name) = self.parent(GrantKind::StorageWrite, target)?;
        let file = self.readable(source)?;
        acts::clone_file(file.as_fd(), parent.as_fd(), &name).map_err(|error| match error.errno {
            Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY => {
                let text =
                    format!("the file system of {source} makes no clones; XFS (made with reflink=1) and Btrfs do");
                Failure::new(FailureKind::Unsupported, text)
            }
            Errno::XDEV => {
                let text = format!(
                    "{source} and {target} lie on different file systems, so one cannot be a clone of the other"
                );
                Failure::new(FailureKind::Unsupported, text)
            }
            _ => acted(target, error),
        })
    }

    pub fn sync(&self, path: &str) -> Done<()> {
        let place = self.place(GrantKind::StorageWrite, path)?;
        let there = resolve::open(&place, OFlags::PATH).map_err(|errno| said(path, "open", errno))?;
        if acts::kind_of(there.as_fd()).map_err(|error| acted(path, error))? != Kind::RegularFile {
            return Err(Failure::new(FailureKind::Failed, format!("{path} is no regular file")));
        }
        let opened = resolve::again(&there, OFlags::RDONLY).map_err(|errno| said(path, "open", errno))?;
        let (parent, _) = resolve::parent(&place).map_err(|errno| said(path, "open the folder of", errno))?;
        acts::sync(opened.as_fd(), parent.as_fd()).map_err(|error| acted(path, error))
    }

    pub fn link(&self, source: &str, target: &str) -> Done<()> {
        let (from, source_name) = self.parent(GrantKind::StorageWrite, source)?;
        let (to, target_name) = self.parent(GrantKind::StorageWrite, target)?;
        acts::link(from.as_fd(), &source_name, to.as_fd(), &target_name).map_err(|error| {
            let path = if error.errno == Errno::NOENT { source } else { target };
            acted(path, error)
        })
    }

    pub fn remove(&self, path: &str) -> Done<()> {
        let (parent, name) = match self.parent(GrantKind::StorageWrite, path) {
            // The folder is gone, and all in it.
            Err(Failure {
                kind: FailureKind::NotFound,
                ..
            }) => return Ok(()),
            found => found?,
        };
        acts::remove(parent.as_fd(), &name).map_err(|error| acted(path, error))
    }

    pub fn usage(&self, path: &str) -> Done<Usage> {
        let file = self.readable(path)?;
        acts::usage(file.as_fd()).map_err(|error| acted(path, error))
    }

    pub fn secret(&self, name: &str) -> Done<String> {
        self.permissions
            .word(GrantKind::Secret, name)
            .map_err(|refusal| self.refused(refusal))?;
        match self.secrets.get(name) {
            Ok(Some(secret)) => Ok(secret),
            Ok(None) => Err(Failure::new(
                FailureKind::NotFound,
                format!("the configuration has no secret `{name}`"),
            )),
            Err(cause) => Err(Failure::new(
                FailureKind::Failed,
                format!("the secret `{name}` cannot be had: {cause}"),
            )),
        }
    }

    /// Runs a program to its end, or kills it with all that it started.
    pub fn run(&self, asked: Program) -> Done<ProgramOutput> {
        let Program {
            program,
            arguments,
            environment,
            input,
            max_output_bytes,
            deadline,
        } = asked;
        self.permissions
            .command(&program, &arguments)
            .map_err(|refusal| self.refused(refusal))?;
        let _running = self.running.read();
        let left = deadline.saturating_duration_since(Instant::now());
        let keep_bytes = max_output_bytes.min(OUTPUT_BYTES) as usize;
        let mut command = process::Command::new(&program, left).args(arguments);
        command.environment = environment;
        command.input = input;
        command.keep_bytes = keep_bytes;
        command.guard = self.guard.clone();
        command.cancelled = Some(self.cancelled.clone());
        let output = process::run(&command).map_err(|error| {
            let kind = match &error {
                process::ProcessError::TimedOut { .. } => FailureKind::TimedOut,
                process::ProcessError::NotRunnable { .. } => FailureKind::NotFound,
                _ => FailureKind::Failed,
            };
            Failure::new(kind, error.to_string())
        })?;
        if output.stdout.is_cut() || output.stderr.is_cut() {
            let text = format!("{program} wrote more than the {keep_bytes} bytes that were asked for");
            return Err(Failure::new(FailureKind::Failed, text));
        }
        Ok(ProgramOutput {
            status: output.status,
            stdout: output.stdout.bytes,
            stderr: output.stderr.bytes,
        })
    }

    /// Interfaces whose acts come with a later version: the grant decides between `denied` and `unsupported`.
    pub fn later(&self, kind: GrantKind, what: &str, described: &str) -> Failure {
        let granted = if what.starts_with('/') {
            self.permissions.path(kind, what).map(drop)
        } else {
            self.permissions.word(kind, what)
        };
        self.unsupported(granted, described)
    }

    /// As [`Self::later`], for commands.
    pub fn later_command(&self, program: &str, arguments: &[String], described: &str) -> Failure {
        self.unsupported(self.permissions.command(program, arguments), described)
    }

    fn unsupported(&self, granted: Result<(), Refusal>, described: &str) -> Failure {
        match granted {
            Err(refusal) => self.refused(refusal),
            Ok(()) => Failure::new(
                FailureKind::Unsupported,
                format!("this version of Coffre does not offer {described} yet"),
            ),
        }
    }

    /// A path that a provider returned, opened for the host to read: it must lie in the grants as if the plugin had opened
    /// it.
    pub fn open_disk(&self, path: &str) -> Done<OpenedDisk> {
        let opened = self.readable(path)?;
        let status = acts::status(opened.as_fd()).map_err(|error| acted(path, error))?;
        Ok(OpenedDisk {
            file: File::from(opened),
            size_bytes: status.size_bytes,
        })
    }

    /// An NBD address that a provider returned, connected to for the host to read, and the export's name.
    pub fn open_nbd(&self, uri: &str) -> Done<(Socket, String)> {
        let failed = |cause: String| Failure::new(FailureKind::Failed, format!("{uri:?}: {cause}"));
        let address = nbd::address(uri).map_err(|cause| failed(format!("it is no NBD address: {cause}")))?;
        let socket = match &address.place {
            nbd::Place::Socket(path) => {
                let there = self.look(GrantKind::Nbd, path)?;
                if acts::kind_of(there.as_fd()).map_err(|error| acted(path, error))? != Kind::Other {
                    return Err(failed(format!("{path} is no socket")));
                }
                // To what was looked at, whatever its name means by now.
                let connected = UnixStream::connect(format!("/proc/self/fd/{}", there.as_raw_fd()));
                connected.map(Socket::Unix).map_err(|error| failed(error.to_string()))?
            }
            nbd::Place::Tcp(host_and_port) => {
                self.permissions
                    .word(GrantKind::Nbd, host_and_port)
                    .map_err(|refusal| self.refused(refusal))?;
                nbd::connect(host_and_port).map_err(|error| failed(error.to_string()))?
            }
        };
        Ok((socket, address.export))
    }
}

/// How long `time.sleep` may be asked for at once; the deadline ends it earlier.
pub(crate) const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

fn acted(path: &str, error: ActError) -> Failure {
    said(path, error.doing, error.errno)
}

/// The kernel's answer, for the operator.
fn said(path: &str, doing: &str, errno: Errno) -> Failure {
    let (kind, cause) = match errno {
        Errno::NOENT | Errno::NOTDIR => (FailureKind::NotFound, "it is not there".to_owned()),
        Errno::LOOP | Errno::XDEV => (
            FailureKind::Denied,
            "it is a symbolic link, or lies behind one, and a plugin follows none".to_owned(),
        ),
        Errno::ACCESS | Errno::PERM => (
            FailureKind::Failed,
            format!("{errno}; the user that runs Coffre may not"),
        ),
        Errno::BUSY | Errno::AGAIN | Errno::TXTBSY => (FailureKind::Busy, errno.to_string()),
        Errno::NOSPC | Errno::DQUOT => (FailureKind::Failed, "there is no space left".to_owned()),
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS => {
            (FailureKind::Unsupported, "the file system cannot do that".to_owned())
        }
        errno => (FailureKind::Failed, errno.to_string()),
    };
    let whole = if doing == "open" || doing.ends_with(" of") || doing == "list" {
        format!("cannot {doing} {path}: {cause}")
    } else {
        format!("{path}: cannot {doing}: {cause}")
    };
    Failure::new(kind, whole)
}
