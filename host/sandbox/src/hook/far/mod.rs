//! Hooks that run inside the machine: programs there, reached by the guest agent or by ssh.
//!
//! The contract is that of the kind `exec`. A shell script of ours (`side.sh`) is handed to the machine's `/bin/sh`, which
//! looks at the program, runs it, ends it with all that it started when its time is over, and reports. So the far side keeps
//! the deadline by itself even if nobody hears it any more; what is told and left (memory, attachments, secrets) lies there
//! in a folder of the call. Nothing ever falls back to running on this host.

mod agent;
mod script;
mod ssh;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coffre_engine::config::SshConfig;
use coffre_engine::{
    Attachment, Finding, FindingLevel, HookContext, HookFailure, HookFailureKind, HookRunner, PostReport, PreReport,
    SnapshotOutcome,
};
use coffre_guard::{Guard, Owner};

use super::call::{Phase, guarded, timed_out};
use super::exchange::{attachments_of, memory_of, without_secrets};
use super::exec::refuse_odd_names;
use super::program::{self, Started, nothing_to_undo, on_a_thread};
use super::spec::HookSpec;
use super::transcript::Transcript;
use super::trust::TrustError;
use super::{context, environment, failure, secrets};
use crate::process::{Kept, ProcessError};
use script::{Answer, Asked, Report};

/// How long the far side may take beyond the hook's own time, to end what still runs and to report. Within the time that a
/// job gives a runner.
const REPORT_WITHIN: Duration = Duration::from_secs(5);

/// How the machine is reached.
#[derive(Clone, Debug)]
pub enum Reach {
    /// By the guest agent; its socket, by machine.
    Agent(BTreeMap<String, PathBuf>),
    Ssh(SshConfig),
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
enum FarError {
    #[error("the configuration names no guest agent for {machine}")]
    NoAgent { machine: String },
    #[error("{cause}")]
    Agent { cause: String },
    #[error("the guest agent at {} does not run commands: guest-exec is blocked there", path.display())]
    Blocked { path: PathBuf },
    #[error("the guest agent at {} answers nothing", path.display())]
    Silent { path: PathBuf },
    #[error("{0}")]
    Trust(#[from] TrustError),
    #[error("{to} does not have the pinned host key")]
    WrongHost { to: String },
    #[error("{to} lets nobody in with this key: {said}")]
    NotLetIn { to: String, said: String },
    #[error("ssh to {to}: {said}")]
    Ssh { to: String, said: String },
    #[error("{0}")]
    Process(#[from] ProcessError),
    #[error("the host key cannot be laid down for ssh: {0}")]
    Pin(#[source] std::io::Error),
    #[error("cancelled")]
    Cancelled,
    #[error("nothing was heard in time; what runs there ends by its own clock")]
    NoReport,
    #[error("it broke off without a report{said}")]
    BrokeOff { said: String },
    #[error("more came back than the way there carries: what it attaches is too large")]
    TooMuch,
}

impl FarError {
    fn kind(&self) -> HookFailureKind {
        match self {
            Self::NoAgent { .. } | Self::Blocked { .. } | Self::Trust(_) => HookFailureKind::Invalid,
            Self::WrongHost { .. } | Self::NotLetIn { .. } => HookFailureKind::Denied,
            Self::NoReport | Self::Silent { .. } => HookFailureKind::TimedOut,
            Self::TooMuch => HookFailureKind::Limit,
            Self::Process(ProcessError::NotRunnable { .. }) => HookFailureKind::Invalid,
            _ => HookFailureKind::Failed,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoAgent { .. } => {
                "add `agent = \"/run/qemu/web01.qga\"` to its table: the agent's socket on this host"
            }
            Self::Blocked { .. } => {
                "allow guest-exec and guest-exec-status in the machine: BLOCK_RPCS or FILTER_RPC_ARGS in \
                 /etc/sysconfig/qemu-ga, `block-rpcs` in /etc/qemu/qemu-ga.conf; or let the hook run by ssh"
            }
            Self::Silent { .. } => "is the machine on, does qemu-guest-agent run in it, does nobody else talk to it?",
            Self::WrongHost { .. } => {
                "somebody else may be answering; if the machine really has a new key, it is `host-key` in its [ssh] table"
            }
            Self::NotLetIn { .. } => "the key's public half belongs into authorized_keys of that user there",
            Self::Process(ProcessError::NotRunnable { .. }) => "the package openssh-client brings it",
            // Of a file that is not there, it would speak of scripts.
            Self::Trust(TrustError::Read { .. }) => return None,
            Self::Trust(error) => return error.hint(),
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// Whether a machine that is off, or busy for a moment, may be the cause.
    fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Silent { .. } | Self::Agent { .. } | Self::Ssh { .. } | Self::NoReport | Self::BrokeOff { .. }
        )
    }
}

/// What came back, as it came.
struct Heard {
    stdout: Vec<u8>,
    /// Words of the way there, not of the hook.
    aside: String,
}

/// One call on its way.
struct Errand<'a> {
    script: String,
    /// When the hook's time is over.
    deadline: Instant,
    cancelled: &'a Arc<AtomicBool>,
    guard: Option<(Guard, Owner)>,
}

impl Reach {
    fn send(&self, machine: &str, errand: &Errand<'_>) -> Result<Heard, FarError> {
        match self {
            Self::Agent(sockets) => {
                let socket = sockets.get(machine).ok_or_else(|| FarError::NoAgent {
                    machine: machine.to_owned(),
                })?;
                agent::send(socket, errand)
            }
            Self::Ssh(host) => ssh::send(host, errand),
        }
    }

    /// Whether the far side hears from us when nobody waits any more.
    fn watches_input(&self) -> bool {
        matches!(self, Self::Ssh(_))
    }
}

/// A program in the machine.
pub(super) struct FarHook {
    name: String,
    spec: HookSpec,
    reach: Reach,
    started: Arc<Started>,
}

/// What a call has brought.
struct Brought {
    memory: Option<String>,
    attachments: Vec<Attachment>,
    output: String,
}

impl FarHook {
    pub(super) fn load(name: &str, spec: &HookSpec, reach: Reach) -> Result<Self, HookFailure> {
        refuse_odd_names(name, &spec.secrets)?;
        Ok(Self {
            name: name.to_owned(),
            spec: spec.clone(),
            reach,
            started: Arc::default(),
        })
    }

    fn call(
        &self,
        phase: Phase,
        context: &HookContext,
        memory: Option<&str>,
        outcome: Option<SnapshotOutcome>,
    ) -> (Arc<AtomicBool>, Call) {
        let cancelled = Arc::new(AtomicBool::new(false));
        let call = Call {
            hook: self.name.clone(),
            machine: context.machine.name.clone(),
            phase,
            facts: context::facts(&self.name, &self.spec.settings, phase, context, outcome),
            environment: environment::of(&self.name, phase, context, outcome),
            memory: memory.map(str::to_owned),
            spec: self.spec.clone(),
            reach: self.reach.clone(),
            started: self.started.clone(),
            timeout: context.timeout,
            deadline: Instant::now() + context.timeout,
            cancelled: cancelled.clone(),
            guard: guarded(context),
        };
        (cancelled, call)
    }
}

/// One call, made on a thread that may block.
struct Call {
    hook: String,
    machine: String,
    phase: Phase,
    facts: serde_json::Value,
    environment: Vec<(String, String)>,
    memory: Option<String>,
    spec: HookSpec,
    reach: Reach,
    started: Arc<Started>,
    timeout: Duration,
    deadline: Instant,
    cancelled: Arc<AtomicBool>,
    guard: Option<(Guard, Owner)>,
}

impl Call {
    fn run(self) -> Result<Brought, HookFailure> {
        let mut transcript = Transcript::default();
        self.run_into(&mut transcript).map_err(|failure| HookFailure {
            text: transcript.redact(&failure.text),
            output: transcript.text(),
            ..failure
        })
    }

    fn run_into(&self, transcript: &mut Transcript) -> Result<Brought, HookFailure> {
        let known = secrets::resolve_all(
            &self.spec.secrets,
            self.deadline,
            &self.cancelled,
            self.guard.as_ref(),
            transcript,
        )?;
        let before = self.started.starting();
        let answer = self.ask(&known, transcript).map_err(|error| self.failed(&error))?;
        let report = match answer {
            Answer::Refused { invalid, text } => {
                self.started.was_not(before);
                return Err(match invalid {
                    true => failure::invalid(format!("in {}: {text}", self.machine), None),
                    false => HookFailure::new(HookFailureKind::Failed, format!("in {}: {text}", self.machine)),
                });
            }
            Answer::Fine => return Err(self.failed(&FarError::BrokeOff { said: String::new() })),
            Answer::Ended(report) => report,
        };
        self.came_of(report, transcript)
    }

    fn ask(&self, secrets: &[(String, String)], transcript: &Transcript) -> Result<Answer, FarError> {
        let asked = Asked {
            phase: self.phase,
            program: &self.spec.file,
            arguments: &self.spec.args,
            environment: &self.environment,
            facts: &self.facts.to_string(),
            memory: self.memory.as_deref().unwrap_or_default(),
            secrets,
            time: self.deadline.saturating_duration_since(Instant::now()),
            watch_input: self.reach.watches_input(),
        };
        let (mark, script) = asked.script();
        let errand = Errand {
            script,
            deadline: self.deadline,
            cancelled: &self.cancelled,
            guard: self.guard.clone(),
        };
        let heard = self.reach.send(&self.machine, &errand)?;
        Answer::read(&mark, &heard.stdout).ok_or_else(|| {
            let said = heard.aside.lines().rev().find(|line| !line.trim().is_empty());
            let said = said.map(|line| format!(": {}", transcript.redact(line.trim())));
            FarError::BrokeOff {
                said: said.unwrap_or_default(),
            }
        })
    }

    fn came_of(&self, report: Report, transcript: &mut Transcript) -> Result<Brought, HookFailure> {
        for kept in [&report.stdout, &report.stderr] {
            transcript.command_output(&kept.bytes, kept.is_cut());
        }
        let file = &self.spec.file;
        if !report.left.is_empty() {
            let what = format!(
                "left processes behind in {} that cannot be killed: {}",
                self.machine, report.left
            );
            return Err(program::failed(file, HookFailureKind::Failed, &what));
        }
        if report.was_late {
            let (text, hint) = timed_out(&self.hook, self.phase, self.timeout);
            return Err(HookFailure {
                hint: Some(hint),
                ..program::failed(file, HookFailureKind::TimedOut, &text)
            });
        }
        if report.status != 0 {
            let outputs: [&Kept; 2] = [&report.stderr, &report.stdout];
            return Err(program::said_no(file, report.status, outputs, transcript));
        }
        if let Some(odd) = report.odd.filter(|_| self.phase != Phase::Check) {
            return Err(HookFailure::new(HookFailureKind::Failed, odd));
        }
        let memory = match self.phase {
            Phase::Pre => memory_of(report.memory)?,
            _ => None,
        };
        let attachments = attachments_of(report.attached)?;
        without_secrets(transcript, memory.as_deref(), &attachments)?;
        Ok(Brought {
            memory,
            attachments,
            output: transcript.text(),
        })
    }

    fn failed(&self, error: &FarError) -> HookFailure {
        HookFailure {
            hint: error.hint(),
            ..program::failed(&self.spec.file, error.kind(), &error.to_string())
        }
    }

    /// Whether the machine can be reached, and the program is as it must be.
    fn look(&self) -> Result<(), (FindingLevel, String)> {
        let described = |error: &FarError| match error.hint() {
            Some(hint) => format!("{error}; {hint}"),
            None => error.to_string(),
        };
        match self.ask(&[], &Transcript::default()) {
            Ok(Answer::Fine) => Ok(()),
            Ok(Answer::Refused { text, .. }) => Err((FindingLevel::Blocking, format!("in {}: {text}", self.machine))),
            Ok(Answer::Ended(_)) => Err((FindingLevel::Blocking, "it answers what was not asked".to_owned())),
            // What the hook's failure means is said by its `on-failure`.
            Err(error) if error.may_pass() => Err((FindingLevel::Warning, described(&error))),
            Err(error) => Err((FindingLevel::Blocking, described(&error))),
        }
    }
}

#[async_trait]
impl HookRunner for FarHook {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &str {
        "exec"
    }

    /// Looks at the program in the machine without running it.
    async fn check(&self, context: &HookContext) -> Result<Vec<Finding>, HookFailure> {
        let (cancelled, call) = self.call(Phase::Check, context, None, None);
        let looked = on_a_thread(&cancelled, move || Ok(call.look())).await?;
        let found = looked.err().map(|(level, text)| Finding {
            level,
            disk: None,
            text: format!("the hook `{}`: {text}", self.name),
        });
        Ok(found.into_iter().collect())
    }

    async fn pre(&self, context: &HookContext) -> Result<PreReport, HookFailure> {
        if context.attempt == 1 {
            self.started.not_yet();
        }
        let (cancelled, call) = self.call(Phase::Pre, context, None, None);
        let brought = on_a_thread(&cancelled, move || call.run()).await?;
        Ok(PreReport {
            application_consistent: self.spec.application,
            memory: brought.memory,
            output: brought.output,
        })
    }

    async fn post(
        &self,
        context: &HookContext,
        memory: Option<&str>,
        outcome: SnapshotOutcome,
    ) -> Result<PostReport, HookFailure> {
        if context.attempt == 1 && self.started.take_nothing_to_undo() {
            return Ok(nothing_to_undo());
        }
        let (cancelled, call) = self.call(Phase::Post, context, memory, Some(outcome));
        let brought = on_a_thread(&cancelled, move || call.run()).await?;
        Ok(PostReport {
            attachments: brought.attachments,
            output: brought.output,
        })
    }
}
