//! A conversation with the QEMU guest agent in a machine, through its socket on this host (QEMU's
//! docs/interop/qemu-ga-ref.html).
//!
//! The agent talks to one at a time, and nothing says so: whoever comes second waits for an answer. What is left of an
//! earlier conversation is passed over by a number that only we know.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Begins what is not read by whoever has lost the beginning of something.
const SENTINEL: u8 = 0xff;
/// The agent keeps 16 MiB of a command's output, which comes in base64.
const ANSWER_BYTES: usize = 32 << 20;
/// How long one answer may take. A thaw, the slowest thing that is asked for, takes tenths of a second.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often an agent that says nothing is left to look whether anybody still waits.
const LOOK: Duration = Duration::from_millis(20);

/// Why the agent did not do it.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("connect to the guest agent at {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("talk to the guest agent at {}", path.display())]
    Talk { path: PathBuf, source: io::Error },
    #[error("the guest agent at {} answers nothing", .0.display())]
    Silent(PathBuf),
    #[error("the guest agent at {} says more than {ANSWER_BYTES} bytes", .0.display())]
    TooMuch(PathBuf),
    #[error("the guest agent at {} refuses: {words}", path.display())]
    Refused {
        path: PathBuf,
        /// The agent's name for the kind of error.
        class: String,
        words: String,
    },
    #[error("cancelled")]
    Cancelled,
}

impl AgentError {
    /// The agent is told not to do this for anybody.
    pub fn is_blocked(&self) -> bool {
        match self {
            Self::Refused { class, words, .. } => {
                class == "CommandNotFound" || words.contains("has been disabled") || words.contains("not allowed")
            }
            _ => false,
        }
    }
}

/// A conversation.
pub struct Agent {
    path: PathBuf,
    stream: UnixStream,
    read: Vec<u8>,
    give_up: Instant,
    cancelled: Arc<AtomicBool>,
}

impl fmt::Debug for Agent {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Agent")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// Begins one that may take until `give_up`.
    pub fn connect(path: &Path, give_up: Instant, cancelled: Arc<AtomicBool>) -> Result<Self, AgentError> {
        let failed = |source| AgentError::Connect {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(LOOK)).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
        let mut agent = Self {
            path: path.to_owned(),
            stream,
            read: Vec::new(),
            give_up,
            cancelled,
        };
        agent.synchronize()?;
        Ok(agent)
    }

    /// From now on it may take until then, and is not cancelled: for the last word of one that was.
    pub fn extend(&mut self, give_up: Instant) {
        self.give_up = give_up;
        self.cancelled = Arc::default();
    }

    /// Asks for something and waits for what it returns.
    pub fn ask(&mut self, execute: &str, arguments: Value) -> Result<Value, AgentError> {
        let question = json!({ "execute": execute, "arguments": arguments });
        self.say(format!("{question}\n").as_bytes())?;
        let line = self.line()?;
        let mut answer: Value = serde_json::from_slice(&line).map_err(|error| self.broken(error.into()))?;
        if let Some(error) = answer.get("error") {
            let word = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
            return Err(AgentError::Refused {
                path: self.path.clone(),
                class: word("class"),
                words: word("desc"),
            });
        }
        Ok(answer["return"].take())
    }

    fn synchronize(&mut self) -> Result<(), AgentError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // As many bits as every reader of JSON has for a number.
        let id = since.as_nanos() as u64 & ((1 << 52) - 1);
        let question = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        let mut bytes = vec![SENTINEL];
        bytes.extend(question.to_string().into_bytes());
        bytes.push(b'\n');
        self.say(&bytes)?;
        loop {
            let line = self.line()?;
            let after = line.iter().rposition(|byte| *byte == SENTINEL).map_or(0, |at| at + 1);
            let answer: Option<Value> = serde_json::from_slice(&line[after..]).ok();
            if answer.is_some_and(|answer| answer["return"] == id) {
                return Ok(());
            }
        }
    }

    fn say(&self, bytes: &[u8]) -> Result<(), AgentError> {
        (&self.stream).write_all(bytes).map_err(|error| self.broken(error))
    }

    fn line(&mut self) -> Result<Vec<u8>, AgentError> {
        let give_up = self.give_up.min(Instant::now() + ANSWER_WITHIN);
        let mut buffer = [0; 16 << 10];
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.read, rest));
            }
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(AgentError::Cancelled);
            }
            if Instant::now() >= give_up {
                return Err(AgentError::Silent(self.path.clone()));
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(self.broken(ErrorKind::UnexpectedEof.into())),
                Ok(read) => self.read.extend_from_slice(&buffer[..read]),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(self.broken(error)),
            }
            if self.read.len() > ANSWER_BYTES {
                return Err(AgentError::TooMuch(self.path.clone()));
            }
        }
    }

    fn broken(&self, source: io::Error) -> AgentError {
        AgentError::Talk {
            path: self.path.clone(),
            source,
        }
    }
}

/// Thaws the machine's file systems; how many that were.
pub(crate) fn thaw(path: &Path, give_up: Instant) -> Result<u64, AgentError> {
    let mut agent = Agent::connect(path, give_up, Arc::default())?;
    let thawed = agent.ask("guest-fsfreeze-thaw", json!({}))?;
    Ok(thawed.as_u64().unwrap_or_default())
}
