//! Hooks of the kind `rhai`: loads a script, and runs its functions one call at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use coffre_engine::{
    Finding, FindingLevel, HookContext, HookFailure, HookFailureKind, HookFreeze, HookRunner, PostReport, PreReport,
    SnapshotOutcome,
};
use rhai::{AST, CallFnOptions, Dynamic, Engine, Scope};

use super::call::{Call, Phase, State};
use super::held::EndOf;
use super::import::ScriptsFolder;
use super::left::OfJobs;
use super::spec::HookSpec;
use super::{api, context, failure, limits, trust};
use crate::process::ProcessError;

/// A script that parses and has what a hook needs.
pub(super) struct RhaiHook {
    name: String,
    file: PathBuf,
    spec: HookSpec,
    tree: AST,
    functions: Vec<Phase>,
    /// What `pre` left open for `post`.
    open: OfJobs,
}

impl RhaiHook {
    pub(super) fn load(name: &str, spec: &HookSpec) -> Result<Self, HookFailure> {
        // What does not depend on a machine's settings is found wrong now.
        spec.commands(name, &serde_json::Value::Null)?;
        let (_, content) = trust::read(&spec.file, trust::Readers::Any)
            .map_err(|error| failure::invalid(format!("the hook `{name}`: {error}"), error.hint()))?;
        let mut tree = engine(spec)
            .compile(&content)
            .map_err(|error| failure::of_parsing(&spec.file, &error))?;
        tree.set_source(spec.file.display().to_string());
        let mut functions = Vec::new();
        for phase in [Phase::Check, Phase::Pre, Phase::Post] {
            let named = |function: &rhai::ScriptFnMetadata<'_>| function.name == phase.as_str();
            match tree.iter_functions().find(named) {
                Some(function) if function.params.len() == 1 => functions.push(phase),
                Some(_) => {
                    let text = format!("{}: `{}` must take one parameter", spec.file.display(), phase.as_str());
                    return Err(failure::invalid(
                        text,
                        Some(format!("fn {}(ctx) {{ … }}", phase.as_str())),
                    ));
                }
                None => {}
            }
        }
        if !functions.iter().any(|phase| matches!(phase, Phase::Pre | Phase::Post)) {
            let text = format!("{} has neither `fn pre(ctx)` nor `fn post(ctx)`", spec.file.display());
            return Err(failure::invalid(text, None));
        }
        Ok(Self {
            name: name.to_owned(),
            file: spec.file.clone(),
            spec: spec.clone(),
            tree,
            functions,
            open: OfJobs::default(),
        })
    }

    /// Calls one of the script's functions on a thread of its own. None: the script does not have it.
    async fn call(
        &self,
        phase: Phase,
        context: &HookContext,
        memory: Option<&str>,
        outcome: Option<SnapshotOutcome>,
    ) -> Result<Option<(Dynamic, State, String)>, HookFailure> {
        if !self.functions.contains(&phase) {
            return Ok(None);
        }
        let call = Arc::new(Call::begin(&self.name, &self.spec, phase, context, outcome)?);
        if phase == Phase::Post {
            call.state.lock().left = self.open.take(&context.job);
        }
        let told = context::told(&self.name, &self.spec.settings, phase, context, memory, outcome)
            .map_err(|cause| failure::invalid(format!("{}: {cause}", self.file.display()), None))?;
        // Should nobody wait any more, the script and its commands end soon.
        let _cancelled = CancelOnDrop(call.clone());
        let (send, receive) = tokio::sync::oneshot::channel();
        let (with, spec, tree) = (call.clone(), self.spec.clone(), self.tree.clone());
        let started = std::thread::Builder::new()
            .name(format!("hook {}", self.name))
            .stack_size(limits::STACK_BYTES)
            .spawn(move || {
                let mut engine = engine(&spec);
                api::register(&mut engine, &with);
                let mut scope = Scope::new();
                context::Told::register(&mut engine);
                let ended = engine.call_fn_with_options::<Dynamic>(
                    CallFnOptions::default(),
                    &mut scope,
                    &tree,
                    phase.as_str(),
                    (told,),
                );
                // The closures hold the call, and the waiter wants to be the last who does.
                drop(engine);
                drop(with);
                let _ = send.send(match ended.map_err(|error| *error) {
                    // A script's `exit(value)` is a return from wherever it is.
                    Err(rhai::EvalAltResult::Exit(value, _)) => Ok(value),
                    other => other,
                });
            });
        let internal = |cause: String| HookFailure {
            output: call.output(),
            ..HookFailure::new(HookFailureKind::Failed, format!("the hook `{}`: {cause}", self.name))
        };
        if let Err(error) = started {
            return Err(internal(format!("starting a thread: {error}")));
        }
        match receive.await {
            Ok(Ok(value)) => {
                let output = call.output();
                Ok(Some((value, std::mem::take(&mut *call.state.lock()), output)))
            }
            Ok(Err(error)) => {
                let left = std::mem::take(&mut call.state.lock().left);
                for wrong in left.clear(false).await.wrong {
                    call.state.lock().transcript.line(&wrong);
                }
                Err(self.redacted(&call, failure::of_running(&self.file, &error, call.output())))
            }
            Err(_) => Err(internal("the interpreter ended without an answer".to_owned())),
        }
    }

    /// A message may quote what the script worked with.
    fn redacted(&self, call: &Call, mut failure: HookFailure) -> HookFailure {
        let state = call.state.lock();
        failure.text = state.transcript.redact(&failure.text);
        failure.hint = failure.hint.map(|hint| state.transcript.redact(&hint));
        failure
    }
}

struct CancelOnDrop(Arc<Call>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl HookRunner for RhaiHook {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &str {
        "rhai"
    }

    async fn check(&self, context: &HookContext) -> Result<Vec<Finding>, HookFailure> {
        let mut findings: Vec<_> = self
            .spec
            .commands
            .iter()
            .filter_map(|words| words.first())
            .filter(|program| !std::path::Path::new(program).is_file())
            .map(|program| Finding {
                level: FindingLevel::Warning,
                disk: None,
                text: format!("the hook `{}` is granted {program}, which is not there", self.name),
            })
            .collect();
        if let Some((_, state, _)) = self.call(Phase::Check, context, None, None).await? {
            findings.extend(state.findings);
        }
        Ok(findings)
    }

    async fn pre(&self, context: &HookContext) -> Result<PreReport, HookFailure> {
        let Some((returned, mut state, output)) = self.call(Phase::Pre, context, None, None).await? else {
            return Ok(PreReport::default());
        };
        let left = std::mem::take(&mut state.left);
        let report = self.report(&returned, &state, output);
        if report.is_ok() {
            self.open.put(&context.job, left);
        } else {
            left.clear(false).await;
        }
        report
    }

    fn still_held(&self, job: &str) -> Result<(), HookFailure> {
        match self.open.lost(job) {
            None => Ok(()),
            Some((name, why)) => Err(HookFailure {
                hint: Some(
                    "the point is not worth what it would be; look why its server or its client ended it".to_owned(),
                ),
                ..HookFailure::new(
                    HookFailureKind::Failed,
                    format!(
                        "{}: the session `{name}` ended before the snapshot was there: {why}",
                        self.file.display()
                    ),
                )
            }),
        }
    }

    fn frozen(&self, job: &str) -> Vec<HookFreeze> {
        self.open.frozen(job)
    }

    async fn post(
        &self,
        context: &HookContext,
        memory: Option<&str>,
        outcome: SnapshotOutcome,
    ) -> Result<PostReport, HookFailure> {
        let called = self.call(Phase::Post, context, memory, Some(outcome)).await?;
        let (mut state, output) = match called {
            Some((_, state, output)) => (state, output),
            None => {
                let left = self.open.take(&context.job);
                (
                    State {
                        left,
                        ..State::default()
                    },
                    String::new(),
                )
            }
        };
        let left = std::mem::take(&mut state.left);
        if left.is_empty() && state.thawed_early.is_none() {
            return Ok(PostReport {
                attachments: state.attachments,
                output,
            });
        }
        let cleared = left.clear(true).await;
        let mut wrong: Vec<String> = state.thawed_early.take().into_iter().chain(cleared.wrong).collect();
        for EndOf { name, outcome } in cleared.sessions {
            state.transcript.line(&format!("[{name} was left open and is ended]"));
            match outcome {
                Ok(output) => api::tell(&mut state.transcript, &output),
                Err(error @ ProcessError::LeftBehind { .. }) => wrong.push(error.to_string()),
                Err(error) => state.transcript.line(&error.to_string()),
            }
        }
        let output = state.transcript.text();
        if !wrong.is_empty() {
            let text = format!("{}: {}", self.file.display(), wrong.join("; "));
            return Err(HookFailure {
                output,
                ..HookFailure::new(HookFailureKind::Failed, text)
            });
        }
        Ok(PostReport {
            attachments: state.attachments,
            output,
        })
    }
}

impl RhaiHook {
    /// What a `pre` that came to its end reports.
    fn report(&self, returned: &Dynamic, state: &State, output: String) -> Result<PreReport, HookFailure> {
        let wrong = |kind, cause: String| HookFailure {
            output: output.clone(),
            ..HookFailure::new(kind, format!("{}: {cause}", self.file.display()))
        };
        let memory = context::memory(returned).map_err(|cause| wrong(HookFailureKind::Failed, cause))?;
        if let Some(memory) = &memory {
            if memory.len() > limits::MEMORY_BYTES {
                let cause = format!("`pre` returned more than {} bytes for `post`", limits::MEMORY_BYTES);
                return Err(wrong(HookFailureKind::Limit, cause));
            }
            if let Some(secret) = state.transcript.secret_in(memory) {
                let cause = format!("`pre` returned the secret `{secret}`, which would be written to disk");
                return Err(HookFailure {
                    hint: Some("`post` can ask for it again".to_owned()),
                    ..wrong(HookFailureKind::Denied, cause)
                });
            }
        }
        Ok(PreReport {
            application_consistent: state.application_consistent,
            memory,
            output,
        })
    }
}

/// An interpreter with every limit set, and none of the functions that act.
fn engine(spec: &HookSpec) -> Engine {
    let mut engine = Engine::new();
    engine
        .set_max_operations(limits::OPERATIONS)
        .set_max_call_levels(limits::CALL_LEVELS)
        .set_max_expr_depths(limits::EXPRESSION_DEPTH, limits::FUNCTION_EXPRESSION_DEPTH)
        .set_max_string_size(limits::STRING_BYTES)
        .set_max_array_size(limits::ARRAY_ITEMS)
        .set_max_map_size(limits::MAP_ITEMS)
        .set_max_variables(limits::VARIABLES)
        .set_max_functions(limits::FUNCTIONS)
        .set_max_modules(limits::MODULES)
        .set_strict_variables(true)
        .set_fail_on_invalid_map_property(true)
        .disable_symbol("eval")
        .set_module_resolver(ScriptsFolder::new(&spec.scripts_folder));
    engine
}
