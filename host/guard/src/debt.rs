//! What may have to be undone when the process that did it cannot do so itself any more.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Whose debt it is, for the journal that is told what became of it. Both are empty where no job is running.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    pub machine: String,
    pub job: String,
}

/// A file system, by the numbers that the kernel gives it (`major:minor` in proc_pid_mountinfo(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.major, self.minor)
    }
}

/// One thing to undo.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Debt {
    /// A file system is frozen, or about to be.
    Thaw { mount: PathBuf, device: Device },
    /// The file systems in a machine are frozen by its guest agent, or about to be; its socket on this host.
    AgentThaw { socket: PathBuf },
    /// Every process that carries this marker in its environment, and everything below those, is to end.
    EndTree { marker: String },
    /// A command is to run, as `KILL id` for a lock that outlives its session. The environment is fixed (PATH, HOME, LANG)
    /// but for these variables. No secret belongs in here: it is written down.
    Command {
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
        timeout_ms: u64,
    },
}

impl Debt {
    /// Whether a power cut pays it: freezes and processes end with the kernel, and so does a machine that has its agent's
    /// socket here.
    pub fn ends_with_the_kernel(&self) -> bool {
        match self {
            Self::Thaw { .. } | Self::AgentThaw { .. } | Self::EndTree { .. } => true,
            Self::Command { .. } => false,
        }
    }
}

/// What is owed, as a clause: "thaw /srv/app".
impl fmt::Display for Debt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Thaw { mount, .. } => write!(out, "thaw {}", mount.display()),
            Self::AgentThaw { socket } => write!(out, "thaw the machine whose agent is at {}", socket.display()),
            Self::EndTree { marker } => write!(out, "end the processes of the run {marker}"),
            Self::Command { arguments, .. } => write!(out, "run {}", arguments.join(" ")),
        }
    }
}

/// Who paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Payer {
    /// The process that owed it.
    Host,
    Guard,
    /// Another process that came later and found it owed.
    Later,
}

/// Why it was paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// In the ordinary course of things; nothing to tell anybody.
    Done,
    /// The deadline had passed.
    Deadline,
    /// The process that owed it went away.
    HostGone,
    /// The guard went away, so its host paid at once.
    GuardGone,
    /// Both went away; found at a later start.
    Found,
}

/// What paying came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Outcome {
    Thawed,
    /// There was nothing to thaw: it had not been frozen yet, or somebody else had thawed it.
    NotFrozen,
    /// How many processes had to be ended.
    Ended {
        processes: u32,
    },
    /// A command ran; 0 is what it is run for.
    Ran {
        status: i32,
    },
    /// It was never incurred, or its end came in the ordinary way.
    Nothing,
}
