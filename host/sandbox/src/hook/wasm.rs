//! Hooks of the kind `wasm`: a component of the contract's world `application-hook`.
//!
//! It is bound as plugins are: it may do what its manifest asks for *and* the configuration grants, within the same limits
//! of memory and time. Who may have written its file is looked at as with scripts, instead of a pin. Each call has a fresh
//! instance, so nothing is left of an attempt that failed half-way.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coffre_engine::secret::SecretSource;
use coffre_engine::{
    Attachment, Consistency, DiskId, Finding, HookContext, HookFailure, HookFailureKind, HookRunner, PostReport,
    PreReport, SnapshotOutcome,
};
use coffre_guard::{Guard, Owner};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::Value;
use wasmtime::Store;

use super::call::{Phase, guarded, timed_out};
use super::exchange::is_attachment_name;
use super::limits::{ATTACHMENT_BYTES, ATTACHMENTS, FINDINGS, MEMORY_BYTES};
use super::spec::HookSpec;
use super::transcript::Transcript;
use super::trust;
use super::{environment, failure, secrets};
use crate::broker::Broker;
use crate::catalog;
use crate::compiled::CompileCache;
use crate::component::ComponentFile;
use crate::engine::SandboxEngine;
use crate::error::PluginError;
use crate::grant::{GrantTable, Permissions};
use crate::guest::bindings::coffre::plugin::types as wit;
use crate::guest::hook_bindings::ApplicationHook;
use crate::guest::hook_bindings::exports::coffre::plugin::hook as exported;
use crate::guest::{Around, CallError, GuestEngine, GuestState, plain};
use crate::limits::{LOOK_DEADLINE, MEMORY_BYTES as GUEST_MEMORY_BYTES, TEXT_BYTES};
use crate::manifest::World;
use crate::provider::words;

/// How long a secret's command may take; the call's own deadline ends the waiting before that.
const SECRET_DEADLINE: Duration = Duration::from_secs(30);

type Said = Arc<Mutex<Transcript>>;

/// A component that may be run.
pub(super) struct WasmHook {
    name: String,
    spec: HookSpec,
    asked: GrantTable,
    granted: GrantTable,
    guests: GuestEngine<ApplicationHook>,
    declares_application: bool,
}

impl WasmHook {
    pub(super) fn load(name: &str, spec: &HookSpec) -> Result<Self, HookFailure> {
        trust::look(&spec.file)
            .map_err(|error| failure::invalid(format!("the hook `{name}`: {error}"), error.hint()))?;
        let invalid = |error: PluginError| {
            let hint = error.hint();
            failure::invalid(format!("the hook `{name}`: {}", coffre_engine::Chain(&error)), hint)
        };
        let component = ComponentFile::read(&spec.file).map_err(invalid)?;
        let anatomy = component.anatomy().map_err(invalid)?;
        let manifest = anatomy.fits(World::ApplicationHook, &spec.file).map_err(invalid)?;
        let bad_grant = |(grant, cause)| failure::invalid(format!("[hook.{name}.grant] {grant}: {cause}"), None);
        let asked = GrantTable::from_asks(&manifest.asks).map_err(bad_grant)?;
        let granted = GrantTable::from_config(&grants(spec)).map_err(bad_grant)?;
        let engine = SandboxEngine::shared().map_err(invalid)?;
        let folder = spec.cache_folder.clone();
        let compiled = match folder {
            Some(folder) => CompileCache::new(folder).load(&engine, &component).map_err(invalid)?,
            None => wasmtime::component::Component::from_binary(engine.wasmtime(), &component.bytes)
                .map_err(|error| failure::invalid(format!("the hook `{name}`: {error:#}"), None))?,
        };
        let guests = GuestEngine::new(engine, &compiled, GUEST_MEMORY_BYTES)
            .map_err(|cause| failure::invalid(format!("the hook `{name}` cannot be started: {cause}"), None))?;
        let mut hook = Self {
            name: name.to_owned(),
            spec: spec.clone(),
            asked,
            granted,
            guests,
            declares_application: false,
        };
        hook.declares_application = hook.describe()?.declares_application;
        Ok(hook)
    }

    /// Asks the component what it is, on a thread and a runtime of its own: whoever loads a hook need not be async.
    fn describe(&self) -> Result<exported::Description, HookFailure> {
        let failed = |cause: String| failure::invalid(format!("the hook `{}`: `describe` {cause}", self.name), None);
        let broker = self.broker(&Value::Null, None)?;
        let asked = std::thread::scope(|scope| {
            let asking = scope.spawn(|| -> Result<exported::Description, String> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                let runtime = runtime.map_err(|error| error.to_string())?;
                runtime.block_on(async {
                    let started = self.guests.instantiate(&broker, Around::default(), LOOK_DEADLINE).await;
                    let mut instance = started.map_err(|error| error.to_string())?;
                    let described = instance.call(LOOK_DEADLINE, |guest, store| {
                        Box::pin(guest.coffre_plugin_hook().call_describe(store))
                    });
                    described.await.map_err(|error| error.to_string())
                })
            });
            asking.join().unwrap_or_else(|_| Err("panicked".to_owned()))
        });
        asked.map_err(failed)
    }

    fn broker(&self, settings: &Value, guard: Option<(Guard, Owner)>) -> Result<Arc<Broker>, HookFailure> {
        let permissions = Permissions::new(&self.name, &self.asked, &self.granted, settings)
            .map_err(|(grant, cause)| failure::invalid(format!("[hook.{}.grant] {grant}: {cause}", self.name), None))?;
        let secrets = Secrets(self.spec.secrets.clone());
        Ok(Arc::new(Broker::new(permissions.of_hook(), Arc::new(secrets), guard)))
    }

    /// One call in an instance of its own. When it returns, no program that it started is left.
    async fn call<T: Send>(
        &self,
        phase: Phase,
        context: &HookContext,
        outcome: Option<SnapshotOutcome>,
        make: impl for<'a> FnOnce(
            &'a exported::Guest,
            &'a mut Store<GuestState>,
        ) -> BoxFuture<'a, wasmtime::Result<Result<T, wit::Failure>>>
        + Send,
    ) -> Result<(T, Said), HookFailure> {
        struct CancelOnDrop(Arc<Broker>);
        impl Drop for CancelOnDrop {
            fn drop(&mut self) {
                self.0.cancel();
            }
        }
        let deadline = Instant::now() + context.timeout;
        let broker = self.broker(&context.machine.settings, guarded(context))?;
        let cancel = CancelOnDrop(broker.clone());
        let said = Said::default();
        let around = Around {
            environment: environment::of(&self.name, phase, context, outcome),
            transcript: Some(said.clone()),
        };
        let answered = match self.guests.instantiate(&broker, around, context.timeout).await {
            Ok(mut instance) => {
                let left = deadline.saturating_duration_since(Instant::now());
                instance
                    .call(left, |guest, store| make(guest.coffre_plugin_hook(), store))
                    .await
            }
            Err(error) => Err(error),
        };
        drop(cancel);
        // It blocks for as long as killing takes.
        let _ = tokio::task::spawn_blocking(move || broker.wait_for_programs()).await;
        let failed = match answered {
            Ok(Ok(answer)) => return Ok((answer, said)),
            Ok(Err(failure)) => self.said_no(phase, failure),
            Err(error) => self.died(phase, context.timeout, &error),
        };
        let transcript = said.lock();
        Err(HookFailure {
            text: transcript.redact(&failed.text),
            output: transcript.text(),
            ..failed
        })
    }

    fn said_no(&self, phase: Phase, failure: wit::Failure) -> HookFailure {
        use HookFailureKind::{Denied, Failed, Invalid, TimedOut, TryAgain};
        let (kind, cause) = match failure {
            wit::Failure::InvalidSettings(cause) => (Invalid, cause),
            wit::Failure::Denied(cause) => (Denied, cause),
            wit::Failure::Busy(cause) => (TryAgain, cause),
            wit::Failure::TimedOut(cause) => (TimedOut, cause),
            wit::Failure::Unsupported(cause) => (Invalid, cause),
            wit::Failure::NotFound(cause) | wit::Failure::Unavailable(cause) | wit::Failure::Failed(cause) => {
                (Failed, cause)
            }
        };
        let hint = match kind {
            Invalid => Some(format!("mend `settings` in [hook.{}]", self.name)),
            _ => None,
        };
        HookFailure {
            hint,
            ..self.failure(kind, phase, &plain(&cause, TEXT_BYTES))
        }
    }

    fn died(&self, phase: Phase, timeout: Duration, error: &CallError) -> HookFailure {
        match error {
            CallError::Deadline(_) => {
                let (text, hint) = timed_out(&self.name, phase, timeout);
                HookFailure {
                    hint: Some(hint),
                    ..HookFailure::new(HookFailureKind::TimedOut, text)
                }
            }
            CallError::Trap(_) => self.failure(HookFailureKind::Failed, phase, &format!("trapped: {error}")),
            _ => self.failure(HookFailureKind::Limit, phase, &format!("it {error}")),
        }
    }

    fn failure(&self, kind: HookFailureKind, phase: Phase, cause: &str) -> HookFailure {
        let file = self.spec.file.display();
        HookFailure::new(kind, format!("{file} ({}): {cause}", phase.as_str()))
    }

    /// What cannot be an answer: a mistake in the component.
    fn bad_answer(&self, phase: Phase, cause: String) -> HookFailure {
        self.failure(
            HookFailureKind::Failed,
            phase,
            &format!("answered with what cannot be: {cause}"),
        )
    }

    fn attachments(&self, found: Vec<wit::Attachment>, said: &Transcript) -> Result<Vec<Attachment>, HookFailure> {
        let bad = |cause: String| self.bad_answer(Phase::Post, cause);
        if found.len() > ATTACHMENTS {
            return Err(bad(format!(
                "{} attachments; a hook may attach {ATTACHMENTS}",
                found.len()
            )));
        }
        let mut names = HashSet::new();
        let mut attachments = Vec::with_capacity(found.len());
        for attachment in found {
            if !is_attachment_name(&attachment.name) || !names.insert(attachment.name.clone()) {
                return Err(bad("an attachment whose name is odd or there twice".to_owned()));
            }
            let is_plain = |text: &str| text.len() <= 128 && !text.chars().any(char::is_control);
            if !is_plain(&attachment.media_type) || !attachment.media_type.contains('/') {
                return Err(bad(format!("the attachment {} without a media type", attachment.name)));
            }
            if attachment.content.len() > ATTACHMENT_BYTES {
                return Err(bad(format!(
                    "the attachment {} of more than {ATTACHMENT_BYTES} bytes",
                    attachment.name
                )));
            }
            if let Some(secret) = said.secret_in(&String::from_utf8_lossy(&attachment.content)) {
                let text = format!("the attachment {:?} holds the secret `{secret}`", attachment.name);
                return Err(HookFailure::new(HookFailureKind::Denied, text));
            }
            attachments.push(words::attachment(attachment));
        }
        Ok(attachments)
    }
}

/// What the configuration grants, with secrets by name as components ask for them.
fn grants(spec: &HookSpec) -> BTreeMap<String, Value> {
    let mut grants = spec.grants.clone();
    if !spec.secrets.is_empty() {
        let names: Vec<Value> = spec.secrets.keys().map(|name| Value::String(name.clone())).collect();
        grants.insert("secret".to_owned(), Value::Array(names));
    }
    grants
}

struct Secrets(BTreeMap<String, SecretSource>);

impl catalog::SecretSource for Secrets {
    fn get(&self, name: &str) -> Result<Option<String>, String> {
        let Some(source) = self.0.get(name) else {
            return Ok(None);
        };
        let deadline = Instant::now() + SECRET_DEADLINE;
        let resolved = secrets::resolve(name, source, deadline, &Arc::default(), None);
        resolved.map(Some).map_err(|failure| failure.text)
    }
}

fn told(spec: &HookSpec, context: &HookContext) -> exported::Context {
    let ms = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    exported::Context {
        machine: words::machine(&context.machine),
        settings: spec.settings.to_string(),
        job: context.job.clone(),
        policy: context.policy.clone(),
        disks: words::ids(&context.disks),
        wanted: consistency(context.wanted),
        attempt: context.attempt,
        hold_at_most_ms: ms(context.hold_at_most),
    }
}

fn consistency(found: Consistency) -> wit::Consistency {
    match found {
        Consistency::Crash => wit::Consistency::Crash,
        Consistency::FileSystem => wit::Consistency::FileSystem,
        Consistency::Application => wit::Consistency::Application,
    }
}

fn report(context: &HookContext, outcome: SnapshotOutcome) -> exported::SnapshotReport {
    let ms = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
    exported::SnapshotReport {
        outcome: match outcome {
            SnapshotOutcome::Taken => exported::SnapshotOutcome::Taken,
            SnapshotOutcome::Failed => exported::SnapshotOutcome::Failed,
            SnapshotOutcome::NotTried => exported::SnapshotOutcome::NotTried,
        },
        consistency: context.so_far.consistency.map(consistency),
        held_ms: context.so_far.held.map(ms),
        frozen_ms: context.so_far.frozen.map(ms),
    }
}

#[async_trait]
impl HookRunner for WasmHook {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &str {
        "wasm"
    }

    async fn check(&self, context: &HookContext) -> Result<Vec<Finding>, HookFailure> {
        let asked = told(&self.spec, context);
        let (found, _) = self
            .call(Phase::Check, context, None, |guest, store| {
                Box::pin(async move { guest.call_check(store, &asked).await })
            })
            .await?;
        if found.len() > FINDINGS {
            let cause = format!("{} findings; a check may have {FINDINGS}", found.len());
            return Err(self.bad_answer(Phase::Check, cause));
        }
        let findings = found.into_iter().map(|finding| Finding {
            level: words::level(finding.level),
            disk: finding.disk.map(DiskId).filter(|disk| context.disks.contains(disk)),
            text: plain(&finding.text, TEXT_BYTES),
        });
        Ok(findings.collect())
    }

    async fn pre(&self, context: &HookContext) -> Result<PreReport, HookFailure> {
        let asked = told(&self.spec, context);
        let (rest, said) = self
            .call(Phase::Pre, context, None, |guest, store| {
                Box::pin(async move { guest.call_pre(store, &asked).await })
            })
            .await?;
        let said = said.lock();
        let refused = |failure: HookFailure| HookFailure {
            output: said.text(),
            ..failure
        };
        if rest.application_consistent && !self.declares_application {
            let cause = "an application at rest, where `describe` says that it never declares one".to_owned();
            return Err(refused(self.bad_answer(Phase::Pre, cause)));
        }
        if let Some(memory) = &rest.memory {
            if memory.len() > MEMORY_BYTES {
                let cause = format!("it returned more than {MEMORY_BYTES} bytes for `post`");
                return Err(refused(self.failure(HookFailureKind::Limit, Phase::Pre, &cause)));
            }
            if let Some(secret) = said.secret_in(memory) {
                let cause = format!("it returned the secret `{secret}`, which would be written to disk");
                return Err(refused(HookFailure {
                    hint: Some("`post` can ask for it again".to_owned()),
                    ..self.failure(HookFailureKind::Denied, Phase::Pre, &cause)
                }));
            }
        }
        Ok(PreReport {
            application_consistent: rest.application_consistent,
            memory: rest.memory,
            output: said.text(),
        })
    }

    async fn post(
        &self,
        context: &HookContext,
        memory: Option<&str>,
        outcome: SnapshotOutcome,
    ) -> Result<PostReport, HookFailure> {
        let (asked, memory) = (told(&self.spec, context), memory.map(str::to_owned));
        let report = report(context, outcome);
        let (found, said) = self
            .call(Phase::Post, context, Some(outcome), |guest, store| {
                Box::pin(async move { guest.call_post(store, &asked, memory.as_deref(), report).await })
            })
            .await?;
        let said = said.lock();
        let attachments = self.attachments(found, &said).map_err(|failure| HookFailure {
            output: said.text(),
            ..failure
        })?;
        Ok(PostReport {
            attachments,
            output: said.text(),
        })
    }
}
