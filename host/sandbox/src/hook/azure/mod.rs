//! Hooks of the kind `azure`: a `VMSnapshotScriptPluginConfig.json` of Azure's framework for pre and post scripts on Linux,
//! as it is.
//!
//! What the file says counts, with the framework's defaults. Failures keep the framework's names, as its extension writes
//! them into its status. A file or a script that is not as it should be does not end the backup: as there, no script runs,
//! and the point is worth less, unless the file asks for no backup in that case. Both scripts are looked at before the
//! first one runs, so that nothing is held that could not be let go.
//!
//! What the framework promises and does not do is done here: a retry runs the script again, a script that takes too long is
//! killed with everything that it started, its output cannot block it, it is run by path so that its `#!` counts
//! (without one /bin/sh runs it), and the folders above the file and the scripts are looked at too.

mod file;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use async_trait::async_trait;
use coffre_engine::config::OnFailure;
use coffre_engine::{
    Finding, FindingLevel, HookContext, HookFailure, HookFailureKind, HookRunner, HookTerms, PostReport, PreReport,
    SnapshotOutcome,
};

use super::call::{Phase, guarded};
use super::program::{Program, Started, Unsuccessful, nothing_to_undo, on_a_thread};
use super::transcript::Transcript;
use super::trust::{self, Readers, TrustError};
use super::{environment, failure};
use file::{PluginFile, Script};

/// The framework's names for what went wrong with one of the two scripts.
struct Names {
    script: &'static str,
    failed: &'static str,
    not_found: &'static str,
    permission: &'static str,
    timeout: &'static str,
}

const PRE: Names = Names {
    script: "pre script",
    failed: "FailedPrepostPreScriptFailed",
    not_found: "FailedPrepostPreScriptNotFound",
    permission: "FailedPrepostPreScriptPermissionError",
    timeout: "FailedPrepostPreScriptTimeout",
};
const POST: Names = Names {
    script: "post script",
    failed: "FailedPrepostPostScriptFailed",
    not_found: "FailedPrepostPostScriptNotFound",
    permission: "FailedPrepostPostScriptPermissionError",
    timeout: "FailedPrepostPostScriptTimeout",
};

/// What a framework's file says, or why it says nothing.
pub(super) struct AzureHook {
    name: String,
    path: PathBuf,
    file: Result<PluginFile, HookFailure>,
    started: Arc<Started>,
}

impl AzureHook {
    /// Never fails: what is wrong with the file is an outcome of `pre`, as in the framework.
    pub(super) fn load(name: &str, path: &Path) -> Self {
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            file: PluginFile::read(path),
            started: Arc::default(),
        }
    }

    /// The file and both scripts are as they should be.
    fn ready(&self) -> Result<&PluginFile, HookFailure> {
        let file = self.file.as_ref().map_err(Clone::clone)?;
        for (script, names) in [(&file.pre, &PRE), (&file.post, &POST)] {
            trust::program(&script.location, Readers::OwnerAlone)
                .map_err(|error| untrusted(&script.location, &error, names))?;
        }
        Ok(file)
    }

    async fn run(
        &self,
        phase: Phase,
        context: &HookContext,
        outcome: Option<SnapshotOutcome>,
        script: &Script,
    ) -> Result<String, HookFailure> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let names = if phase == Phase::Pre { &PRE } else { &POST };
        let program = Program {
            hook: self.name.clone(),
            phase,
            file: script.location.clone(),
            readers: Readers::OwnerAlone,
            arguments: script.parameters.clone(),
            environment: environment::of(&self.name, phase, context, outcome),
            deadline: Instant::now() + context.timeout,
            timeout: context.timeout,
            cancelled: cancelled.clone(),
            guard: guarded(context),
        };
        let (started, location) = (self.started.clone(), script.location.clone());
        on_a_thread(&cancelled, move || {
            let mut transcript = Transcript::default();
            let before = started.starting();
            let ended = program.run(&mut transcript);
            let failure = match ended {
                Ok(()) => return Ok(transcript.text()),
                Err(Unsuccessful::Untrusted(error)) => {
                    started.was_not(before);
                    untrusted(&location, &error, names)
                }
                Err(unsuccessful @ Unsuccessful::NotStarted(_)) => {
                    started.was_not(before);
                    named(unsuccessful.into_failure(&location), names.failed)
                }
                Err(unsuccessful @ Unsuccessful::Ended(_)) => {
                    let failure = unsuccessful.into_failure(&location);
                    let timed_out = failure.kind == HookFailureKind::TimedOut;
                    named(failure, if timed_out { names.timeout } else { names.failed })
                }
            };
            Err(HookFailure {
                // The framework's file has the timeout, not the configuration.
                hint: match failure.kind {
                    HookFailureKind::TimedOut => {
                        Some("give it more by timeoutInSeconds, or find out what it waits for".to_owned())
                    }
                    _ => failure.hint,
                },
                output: transcript.text(),
                ..failure
            })
        })
        .await
    }
}

/// A failure under the framework's name, which people search for.
fn named(failure: HookFailure, code: &'static str) -> HookFailure {
    HookFailure {
        code: Some(code),
        text: format!("{} ({code})", failure.text),
        ..failure
    }
}

fn untrusted(location: &Path, error: &TrustError, names: &Names) -> HookFailure {
    let missing = match error {
        TrustError::Read { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        TrustError::NotAFile { .. } => true,
        _ => false,
    };
    if missing {
        let text = format!("the {} {} is not there", names.script, location.display());
        return named(failure::invalid(text, None), names.not_found);
    }
    let text = format!("the {}: {error}", names.script);
    named(failure::invalid(text, error.hint()), names.permission)
}

#[async_trait]
impl HookRunner for AzureHook {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &str {
        "azure"
    }

    fn terms(&self) -> HookTerms {
        match &self.file {
            Ok(file) => file.terms(),
            // The framework goes on without its scripts when it cannot read its file.
            Err(_) => HookTerms {
                on_failure: Some(OnFailure::Downgrade),
                ..HookTerms::default()
            },
        }
    }

    async fn check(&self, _context: &HookContext) -> Result<Vec<Finding>, HookFailure> {
        let finding = |level, text: String| Finding {
            level,
            disk: None,
            text: format!("the hook `{}`: {text}", self.name),
        };
        let ends_the_backup = self.terms().on_failure == Some(OnFailure::Fail);
        let file = match self.ready() {
            Ok(file) => file,
            Err(failure) => {
                let level = if ends_the_backup {
                    FindingLevel::Blocking
                } else {
                    FindingLevel::Warning
                };
                return Ok(vec![finding(level, failure.text)]);
            }
        };
        let mut found = Vec::new();
        if !file.unknown.is_empty() {
            let text = format!(
                "{} says {}, which means nothing here",
                self.path.display(),
                file.unknown.join(", ")
            );
            found.push(finding(FindingLevel::Note, text));
        }
        Ok(found)
    }

    async fn pre(&self, context: &HookContext) -> Result<PreReport, HookFailure> {
        if context.attempt == 1 {
            self.started.not_yet();
        }
        let file = self.ready()?;
        let output = self.run(Phase::Pre, context, None, &file.pre).await?;
        Ok(PreReport {
            application_consistent: true,
            memory: None,
            output,
        })
    }

    async fn post(
        &self,
        context: &HookContext,
        _memory: Option<&str>,
        outcome: SnapshotOutcome,
    ) -> Result<PostReport, HookFailure> {
        if context.attempt == 1 && self.started.take_nothing_to_undo() {
            return Ok(nothing_to_undo());
        }
        let file = self.file.as_ref().map_err(Clone::clone)?;
        let output = self.run(Phase::Post, context, Some(outcome), &file.post).await?;
        Ok(PostReport {
            output,
            ..PostReport::default()
        })
    }
}
