//! The way by the QEMU guest agent: guest-exec.
//!
//! The agent hears nothing of us while a command runs, so the far side keeps the time by its own clock; one that nobody
//! waits for any more is told to end.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use coffre_engine::Chain;
use coffre_guard::agent::{Agent, AgentError};
use serde_json::json;

use super::{Errand, FarError, Heard, REPORT_WITHIN};

/// Between two questions whether the command has ended.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// The agent runs it at once. With the time for the report it stays within what a job gives a runner.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(2);

pub(super) fn send(socket: &Path, errand: &Errand<'_>) -> Result<Heard, FarError> {
    let give_up = errand.deadline + REPORT_WITHIN;
    let agent = Agent::connect(socket, give_up, errand.cancelled.clone()).map_err(of_agent)?;
    let mut commands = Commands {
        path: socket.to_owned(),
        agent,
    };
    let pid = commands.start(&["-s"], errand.script.as_bytes())?;
    let mut pause = FIRST_PAUSE;
    loop {
        let ended = match errand.cancelled.load(Ordering::Relaxed) {
            true => Err(FarError::Cancelled),
            false if Instant::now() >= give_up => Err(FarError::NoReport),
            false => commands.ended(pid),
        };
        match ended {
            Ok(None) => std::thread::sleep(pause),
            Ok(Some(heard)) => return Ok(heard),
            Err(why) => {
                commands.give_up(pid);
                return Err(why);
            }
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn of_agent(error: AgentError) -> FarError {
    match error {
        AgentError::Silent(path) => FarError::Silent { path },
        AgentError::TooMuch(_) => FarError::TooMuch,
        AgentError::Cancelled => FarError::Cancelled,
        error => FarError::Agent {
            cause: Chain(&error).to_string(),
        },
    }
}

/// Commands that an agent runs.
struct Commands {
    path: PathBuf,
    agent: Agent,
}

impl Commands {
    /// Runs the machine's shell; the number that the agent knows it by.
    fn start(&mut self, arguments: &[&str], input: &[u8]) -> Result<i64, FarError> {
        let arguments = json!({
            "path": "/bin/sh",
            "arg": arguments,
            "input-data": BASE64.encode(input),
            "capture-output": true,
        });
        let answer = self.agent.ask("guest-exec", arguments);
        let answer = answer.map_err(|error| match error.is_blocked() {
            true => FarError::Blocked {
                path: self.path.clone(),
            },
            false => of_agent(error),
        })?;
        answer["pid"]
            .as_i64()
            .ok_or_else(|| self.odd("guest-exec gave no number"))
    }

    /// What a command has said, if it has ended.
    fn ended(&mut self, pid: i64) -> Result<Option<Heard>, FarError> {
        let status = self.agent.ask("guest-exec-status", json!({ "pid": pid }));
        let status = status.map_err(of_agent)?;
        if status["exited"] != true {
            return Ok(None);
        }
        if status["out-truncated"] == true {
            return Err(FarError::TooMuch);
        }
        let data = |key: &str| BASE64.decode(status[key].as_str().unwrap_or_default());
        let (Ok(stdout), Ok(aside)) = (data("out-data"), data("err-data")) else {
            return Err(self.odd("guest-exec-status gave what is no base64"));
        };
        Ok(Some(Heard {
            stdout,
            aside: String::from_utf8_lossy(&aside).into_owned(),
        }))
    }

    /// Tells the far side that nobody waits: it then ends what it runs. If that is not heard either, its clock does it.
    fn give_up(&mut self, pid: i64) {
        self.agent.extend(Instant::now() + LAST_WORD_WITHIN);
        if let Err(error) = self.start(&["-c", &format!("kill -TERM {pid}")], &[]) {
            tracing::warn!(agent = %self.path.display(), %error, "a hook that nobody waits for any more was not told so");
        }
    }

    fn odd(&self, what: &str) -> FarError {
        FarError::Agent {
            cause: format!("the guest agent at {}: {what}", self.path.display()),
        }
    }
}
