//! One call of one of a hook's functions: its deadline, what it may do, and what it has said and asked for so far.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coffre_engine::freeze::Freezer;
use coffre_engine::secret::SecretSource;
use coffre_engine::{Attachment, Finding, HookContext, HookFailure, HookFailureKind, SnapshotOutcome};
use coffre_guard::{Guard, Owner};
use parking_lot::Mutex;
use rhai::{Dynamic, EvalAltResult, NativeCallContext, Position};

use super::environment;
use super::left::Left;
use super::limits::GROWTH_BYTES;
use super::spec::HookSpec;
use super::transcript::Transcript;
use super::undo::Services;
use crate::grant::CommandPattern;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Check,
    Pre,
    Post,
}

impl Phase {
    /// The script's function, too.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Pre => "pre",
            Self::Post => "post",
        }
    }
}

/// What ends a script at once; no `try` in it sees this.
#[derive(Clone, Debug)]
pub(super) struct Stop {
    pub kind: HookFailureKind,
    pub text: String,
    pub hint: Option<String>,
    /// Kept here, since the interpreter overwrites an error's own position with those of the calls around it.
    pub place: Option<(String, Position)>,
}

impl Stop {
    pub(super) fn new(kind: HookFailureKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            hint: None,
            place: None,
        }
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// As the interpreter passes it on, from the call of a function of ours.
    pub(super) fn at(self, context: &NativeCallContext<'_>) -> Box<EvalAltResult> {
        self.placed(context.call_source(), context.call_position())
    }

    pub(super) fn placed(mut self, file: Option<&str>, position: Position) -> Box<EvalAltResult> {
        self.place = Some((file.unwrap_or_default().to_owned(), position));
        EvalAltResult::ErrorTerminated(Dynamic::from(self), position).into()
    }
}

/// Shared by the script's thread and whoever waits for it.
pub(super) struct Call {
    pub hook: String,
    pub phase: Phase,
    pub deadline: Instant,
    pub timeout: Duration,
    /// When applications must be let go, whatever hangs: what the script holds open ends then.
    pub hold_until: Instant,
    /// The memory that the process had when the call began.
    resident_bytes: u64,
    /// Set when nobody waits for the outcome any more.
    pub cancelled: Arc<AtomicBool>,
    pub commands: Vec<CommandPattern>,
    pub secrets: BTreeMap<String, SecretSource>,
    pub freezable: Vec<String>,
    pub granted_services: Vec<String>,
    pub services: Services,
    /// What commands are told.
    pub environment: Vec<(String, String)>,
    /// To whom the processes of commands are owed.
    pub guard: Option<(Guard, Owner)>,
    pub freezer: Option<Arc<dyn Freezer>>,
    pub state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub transcript: Transcript,
    pub application_consistent: bool,
    pub attachments: Vec<Attachment>,
    pub findings: Vec<Finding>,
    /// What `pre` leaves, and what `post` finds.
    pub left: Left,
    /// What was not frozen until `thaw`, though the script may have caught that.
    pub thawed_early: Option<String>,
    /// Asked for once, however often the script does.
    pub known_secrets: BTreeMap<String, String>,
}

impl Call {
    /// Begins a call: from now on its timeout runs.
    pub(super) fn begin(
        hook: &str,
        spec: &HookSpec,
        phase: Phase,
        context: &HookContext,
        outcome: Option<SnapshotOutcome>,
    ) -> Result<Self, HookFailure> {
        let commands = spec.commands(hook, &context.machine.settings)?;
        Ok(Self {
            hook: hook.to_owned(),
            phase,
            deadline: Instant::now() + context.timeout,
            timeout: context.timeout,
            hold_until: Instant::now() + context.hold_left,
            resident_bytes: resident_bytes(),
            cancelled: Arc::default(),
            commands,
            secrets: spec.secrets.clone(),
            freezable: spec.freezable(hook, &context.machine.settings)?,
            granted_services: spec.granted_services.clone(),
            services: spec.services.clone(),
            environment: environment::of(hook, phase, context, outcome),
            guard: guarded(context),
            freezer: context.freezer.clone(),
            state: Mutex::default(),
        })
    }

    /// Why the script may not go on, if it may not.
    pub(super) fn must_stop(&self) -> Option<Stop> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Some(Stop::new(HookFailureKind::Failed, "cancelled"));
        }
        (Instant::now() >= self.deadline).then(|| self.timed_out())
    }

    /// Why the script may not go on, if what it holds has grown too large.
    pub(super) fn holds_too_much(&self) -> Option<Stop> {
        (resident_bytes().saturating_sub(self.resident_bytes) > GROWTH_BYTES).then(|| {
            Stop::new(HookFailureKind::Limit, "the script holds too much in memory")
                .with_hint(format!("the limit is {} MiB", GROWTH_BYTES >> 20))
        })
    }

    pub(super) fn timed_out(&self) -> Stop {
        let (text, hint) = timed_out(&self.hook, self.phase, self.timeout);
        Stop::new(HookFailureKind::TimedOut, text).with_hint(hint)
    }

    /// Sleeps, but not past the deadline and not on when cancelled.
    pub(super) fn pause(&self, how_long: Duration) -> Result<(), Stop> {
        let until = Instant::now() + how_long.min(Duration::from_secs(365 * 86_400));
        loop {
            if let Some(stop) = self.must_stop() {
                return Err(stop);
            }
            let left = until.min(self.deadline).saturating_duration_since(Instant::now());
            if left.is_zero() && Instant::now() < self.deadline {
                return Ok(());
            }
            std::thread::sleep(left.min(super::limits::SLEEP_STEP));
        }
    }

    pub(super) fn output(&self) -> String {
        self.state.lock().transcript.text()
    }
}

/// To whom what a call starts is owed, and on whose behalf.
pub(super) fn guarded(context: &HookContext) -> Option<(Guard, Owner)> {
    let owner = Owner {
        machine: context.machine.name.clone(),
        job: context.job.clone(),
    };
    context.guard.clone().map(|guard| (guard, owner))
}

/// What is said of a call that took too long, and what to do about it.
pub(super) fn timed_out(hook: &str, phase: Phase, timeout: Duration) -> (String, String) {
    let seconds = timeout.as_secs_f64();
    let text = format!("`{}` had not ended after {seconds:.1} s", phase.as_str());
    let hint = format!("give it more than {seconds:.1} s by `timeout` in [hook.{hook}], or find out what it waits for");
    (text, hint)
}

/// The process's memory (proc_pid_statm(5)); 0 where that is not known.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
