//! Shows that a file system takes writes: by writing, in a process of its own, since on a frozen one that sleeps for good.

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// What the program is told to do this.
pub(crate) const WORD: &str = "prove";
const FAILED: u8 = 1;
const READ_ONLY: u8 = 3;
const STEP: Duration = Duration::from_millis(5);

/// Whether a file system takes writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    Writes {
        took: Duration,
    },
    ReadOnly,
    /// The write had not ended in time: it is frozen, or its device hangs.
    Blocked {
        after: Duration,
    },
    Failed(String),
}

/// Writes to the file system of `folder` by `program` (`coffre-guard`), and waits for it no longer than `within`.
pub fn prove(program: &Path, folder: &Path, within: Duration) -> Proof {
    let began = Instant::now();
    let mut command = Command::new(program);
    command
        .arg(WORD)
        .arg(folder)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Proof::Failed(format!("cannot start {}: {error}", program.display())),
    };
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Proof::Writes { took: began.elapsed() },
            Ok(Some(status)) if status.code() == Some(i32::from(READ_ONLY)) => return Proof::ReadOnly,
            Ok(Some(status)) => {
                let mut said = String::new();
                let _ = child
                    .stderr
                    .take()
                    .map(|mut stderr| std::io::Read::read_to_string(&mut stderr, &mut said));
                return Proof::Failed(format!("{status}: {}", said.trim()));
            }
            Ok(None) if began.elapsed() < within => std::thread::sleep(STEP),
            Ok(None) => {
                // It may never hear of it; waiting for it would be to hang as well.
                let _ = child.kill();
                return Proof::Blocked { after: began.elapsed() };
            }
            Err(error) => return Proof::Failed(error.to_string()),
        }
    }
}

/// The child's side.
pub(crate) fn main(folder: &Path) -> ExitCode {
    match write(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Errno::ROFS) => ExitCode::from(READ_ONLY),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{}: {error}", folder.display());
            ExitCode::from(FAILED)
        }
    }
}

/// Into a file without a name where the file system has such, so that nothing is left whatever happens.
fn write(folder: &Path) -> rustix::io::Result<()> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let (file, name) = match rustix::fs::open(folder, flags | OFlags::TMPFILE, mode) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let name = folder.join(format!(".coffre-proof-{}", std::process::id()));
            let file = rustix::fs::open(&name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
            (file, Some(name))
        }
        file => (file?, None),
    };
    let written = rustix::io::write(&file, b"coffre").and_then(|_| rustix::fs::fsync(&file));
    if let Some(name) = name {
        rustix::fs::unlink(&name)?;
    }
    written
}
