//! The way by the QEMU guest agent: guest-exec through the socket that the hypervisor has on this host (QEMU's
//! docs/interop/qemu-ga-ref.html).
//!
//! The agent hears nothing of us while a command runs, so the far side keeps the time by its own clock; one that nobody
//! waits for any more is told to end.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::{Errand, FarError, Heard, REPORT_WITHIN};

/// Begins what is not read by whoever has lost the beginning of something.
const SENTINEL: u8 = 0xff;
/// The agent keeps 16 MiB of a command's output, which comes in base64.
const ANSWER_BYTES: usize = 32 << 20;
/// How long the agent may take to answer at all, before the hook's time is used up on it.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How often a socket that says nothing is left to look whether anybody still waits.
const LOOK: Duration = Duration::from_millis(20);
/// Between two questions whether the command has ended.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

pub(super) fn send(socket: &Path, errand: &Errand<'_>) -> Result<Heard, FarError> {
    let mut agent = Agent::connect(socket, errand)?;
    let pid = agent.start("/bin/sh", &["-s"], errand.script.as_bytes())?;
    let mut pause = FIRST_PAUSE;
    loop {
        let why = if errand.cancelled.load(Ordering::Relaxed) {
            FarError::Cancelled
        } else if Instant::now() >= errand.deadline + REPORT_WITHIN {
            FarError::NoReport
        } else {
            if let Some(heard) = agent.ended(pid)? {
                return Ok(heard);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            continue;
        };
        agent.give_up(pid);
        return Err(why);
    }
}

/// A conversation with an agent. It has one at a time.
struct Agent {
    path: PathBuf,
    stream: UnixStream,
    read: Vec<u8>,
    cancelled: Arc<AtomicBool>,
    give_up: Instant,
}

impl Agent {
    fn connect(path: &Path, errand: &Errand<'_>) -> Result<Self, FarError> {
        let failed = |error: std::io::Error| FarError::Agent {
            path: path.to_owned(),
            cause: error.to_string(),
        };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(LOOK)).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
        let mut agent = Self {
            path: path.to_owned(),
            stream,
            read: Vec::new(),
            cancelled: errand.cancelled.clone(),
            give_up: errand.deadline + REPORT_WITHIN,
        };
        agent.synchronize()?;
        Ok(agent)
    }

    fn wrong(&self, cause: impl ToString) -> FarError {
        FarError::Agent {
            path: self.path.clone(),
            cause: cause.to_string(),
        }
    }

    /// Passes over what is left of another conversation.
    fn synchronize(&mut self) -> Result<(), FarError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // A number that JavaScript's can hold.
        let id = since.as_nanos() as u64 & ((1 << 52) - 1);
        let question = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        let mut bytes = vec![SENTINEL];
        bytes.extend(question.to_string().into_bytes());
        bytes.push(b'\n');
        (&self.stream).write_all(&bytes).map_err(|error| self.wrong(error))?;
        loop {
            let line = self.line()?;
            let after = line.iter().rposition(|byte| *byte == SENTINEL).map_or(0, |at| at + 1);
            let answer: Option<Value> = serde_json::from_slice(&line[after..]).ok();
            if answer.is_some_and(|answer| answer["return"] == id) {
                return Ok(());
            }
        }
    }

    fn line(&mut self) -> Result<Vec<u8>, FarError> {
        let give_up = self.give_up.min(Instant::now() + ANSWER_WITHIN);
        let mut buffer = [0; 64 << 10];
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let rest = self.read.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.read, rest));
            }
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(FarError::Cancelled);
            }
            if Instant::now() >= give_up {
                return Err(FarError::Silent {
                    path: self.path.clone(),
                });
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(self.wrong("it closed the connection")),
                Ok(read) => self.read.extend_from_slice(&buffer[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.wrong(error)),
            }
            if self.read.len() > ANSWER_BYTES {
                return Err(FarError::TooMuch);
            }
        }
    }

    fn ask(&mut self, execute: &str, arguments: Value) -> Result<Value, FarError> {
        let question = json!({ "execute": execute, "arguments": arguments });
        (&self.stream)
            .write_all(format!("{question}\n").as_bytes())
            .map_err(|error| self.wrong(error))?;
        let line = self.line()?;
        let mut answer: Value = serde_json::from_slice(&line).map_err(|error| self.wrong(error))?;
        if let Some(error) = answer.get("error") {
            let class = error["class"].as_str().unwrap_or_default();
            let words = error["desc"].as_str().unwrap_or(class).to_owned();
            let blocked =
                class == "CommandNotFound" || words.contains("has been disabled") || words.contains("not allowed");
            return Err(match blocked && execute.starts_with("guest-exec") {
                true => FarError::Blocked {
                    path: self.path.clone(),
                },
                false => self.wrong(words),
            });
        }
        Ok(answer["return"].take())
    }

    /// The number that the agent knows the command by.
    fn start(&mut self, program: &str, arguments: &[&str], input: &[u8]) -> Result<i64, FarError> {
        let arguments = json!({
            "path": program,
            "arg": arguments,
            "input-data": BASE64.encode(input),
            "capture-output": true,
        });
        let answer = self.ask("guest-exec", arguments)?;
        let pid = answer["pid"].as_i64();
        pid.ok_or_else(|| self.wrong("guest-exec gave no number"))
    }

    /// What a command has said, if it has ended.
    fn ended(&mut self, pid: i64) -> Result<Option<Heard>, FarError> {
        let status = self.ask("guest-exec-status", json!({ "pid": pid }))?;
        if status["exited"] != true {
            return Ok(None);
        }
        if status["out-truncated"] == true {
            return Err(FarError::TooMuch);
        }
        let data = |key: &str| BASE64.decode(status[key].as_str().unwrap_or_default());
        let stdout = data("out-data").map_err(|error| self.wrong(error))?;
        let aside = data("err-data").map_err(|error| self.wrong(error))?;
        Ok(Some(Heard {
            stdout,
            aside: String::from_utf8_lossy(&aside).into_owned(),
        }))
    }

    /// Tells the far side that nobody waits: it then ends what it runs. If that is not heard either, its clock does it.
    fn give_up(&mut self, pid: i64) {
        self.cancelled = Arc::default();
        self.give_up = Instant::now() + ANSWER_WITHIN;
        let told = self.start("/bin/sh", &["-c", &format!("kill -TERM {pid}")], &[]);
        if let Err(error) = told {
            tracing::warn!(agent = %self.path.display(), %error, "a hook that nobody waits for any more was not told so");
        }
    }
}
