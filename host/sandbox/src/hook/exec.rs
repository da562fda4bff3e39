//! Hooks of the kind `exec`: a program that is called with `pre` or `post`, and with the arguments that the configuration
//! adds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use async_trait::async_trait;
use coffre_engine::secret::SecretSource;
use coffre_engine::{
    Attachment, Finding, FindingLevel, HookContext, HookFailure, HookRunner, PostReport, PreReport, SnapshotOutcome,
};

use super::call::{Phase, guarded};
use super::exchange::{Exchange, is_attachment_name, without_secrets};
use super::program::{Program, Started, Unsuccessful, nothing_to_undo, on_a_thread};
use super::spec::HookSpec;
use super::transcript::Transcript;
use super::trust::{self, Readers};
use super::{context, environment, failure, secrets};

/// A program that may be run.
pub(super) struct ExecHook {
    name: String,
    spec: HookSpec,
    started: Arc<Started>,
}

/// What a call has brought.
struct Brought {
    memory: Option<String>,
    attachments: Vec<Attachment>,
    output: String,
}

impl ExecHook {
    pub(super) fn load(name: &str, spec: &HookSpec) -> Result<Self, HookFailure> {
        refuse_odd_names(name, &spec.secrets)?;
        trust::program(&spec.file, Readers::Any)
            .map_err(|error| failure::invalid(format!("the hook `{name}`: {error}"), error.hint()))?;
        Ok(Self {
            name: name.to_owned(),
            spec: spec.clone(),
            started: Arc::default(),
        })
    }

    async fn call(
        &self,
        phase: Phase,
        context: &HookContext,
        memory: Option<&str>,
        outcome: Option<SnapshotOutcome>,
    ) -> Result<Brought, HookFailure> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let call = Call {
            facts: context::facts(&self.name, &self.spec.settings, phase, context, outcome),
            memory: memory.map(str::to_owned),
            spec: self.spec.clone(),
            started: self.started.clone(),
            program: Program {
                hook: self.name.clone(),
                phase,
                file: self.spec.file.clone(),
                readers: Readers::Any,
                arguments: std::iter::once(phase.as_str().to_owned())
                    .chain(self.spec.args.iter().cloned())
                    .collect(),
                environment: environment::of(&self.name, phase, context, outcome),
                deadline: Instant::now() + context.timeout,
                timeout: context.timeout,
                cancelled: cancelled.clone(),
                guard: guarded(context),
            },
        };
        on_a_thread(&cancelled, move || call.run()).await
    }
}

/// Each secret becomes a file of its name.
pub(super) fn refuse_odd_names(hook: &str, secrets: &BTreeMap<String, SecretSource>) -> Result<(), HookFailure> {
    let odd = secrets.keys().find(|secret| !is_attachment_name(secret));
    odd.map_or(Ok(()), |secret| {
        let text = format!("[hook.{hook}.grant] secret: {secret:?} cannot be the name of the secret's file");
        Err(failure::invalid(text, None))
    })
}

/// One call, made on a thread that may block.
struct Call {
    facts: serde_json::Value,
    memory: Option<String>,
    spec: HookSpec,
    started: Arc<Started>,
    program: Program,
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

    fn run_into(mut self, transcript: &mut Transcript) -> Result<Brought, HookFailure> {
        let known = secrets::resolve_all(
            &self.spec.secrets,
            self.program.deadline,
            &self.program.cancelled,
            self.program.guard.as_ref(),
            transcript,
        )?;
        let (phase, file) = (self.program.phase, self.program.file.clone());
        let exchange = Exchange::open(phase, &self.facts, self.memory.as_deref(), &known)?;
        self.program.environment.extend(exchange.environment());
        let before = self.started.starting();
        if let Err(unsuccessful) = self.program.run(transcript) {
            if !matches!(unsuccessful, Unsuccessful::Ended(_)) {
                self.started.was_not(before);
            }
            return Err(unsuccessful.into_failure(&file));
        }
        let memory = match phase {
            Phase::Pre => exchange.memory()?,
            _ => None,
        };
        let attachments = match phase {
            Phase::Post => exchange.attachments()?,
            _ => Vec::new(),
        };
        without_secrets(transcript, memory.as_deref(), &attachments)?;
        Ok(Brought {
            memory,
            attachments,
            output: transcript.text(),
        })
    }
}

#[async_trait]
impl HookRunner for ExecHook {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &str {
        "exec"
    }

    /// Looks at the program without running it: what it did with a third word is not known.
    async fn check(&self, _context: &HookContext) -> Result<Vec<Finding>, HookFailure> {
        let looked = trust::program(&self.spec.file, Readers::Any);
        let found = looked.err().map(|error| Finding {
            level: FindingLevel::Blocking,
            disk: None,
            text: format!("the hook `{}`: {error}", self.name),
        });
        Ok(found.into_iter().collect())
    }

    async fn pre(&self, context: &HookContext) -> Result<PreReport, HookFailure> {
        if context.attempt == 1 {
            self.started.not_yet();
        }
        let brought = self.call(Phase::Pre, context, None, None).await?;
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
        let brought = self.call(Phase::Post, context, memory, Some(outcome)).await?;
        Ok(PostReport {
            attachments: brought.attachments,
            output: brought.output,
        })
    }
}
