//! Gets a secret from where the configuration says it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use coffre_engine::secret::SecretSource;
use coffre_engine::{HookFailure, HookFailureKind};
use coffre_guard::{Guard, Owner};

use super::transcript::Transcript;
use crate::process::{self, Command};

/// All of them, by name; from now on the transcript hides them.
pub(super) fn resolve_all(
    sources: &BTreeMap<String, SecretSource>,
    deadline: Instant,
    cancelled: &Arc<AtomicBool>,
    guard: Option<&(Guard, Owner)>,
    transcript: &mut Transcript,
) -> Result<Vec<(String, String)>, HookFailure> {
    let mut known = Vec::with_capacity(sources.len());
    for (name, source) in sources {
        let value = resolve(name, source, deadline, cancelled, guard.cloned())?;
        transcript.hide(name, &value);
        known.push((name.clone(), value));
    }
    Ok(known)
}

/// The secret's text. A command that gives it is run by our own runner, which keeps the deadline and leaves nothing behind.
pub(super) fn resolve(
    name: &str,
    source: &SecretSource,
    deadline: Instant,
    cancelled: &Arc<AtomicBool>,
    guard: Option<(Guard, Owner)>,
) -> Result<String, HookFailure> {
    let unknown = |cause: String| HookFailure::new(HookFailureKind::Failed, format!("the secret `{name}`: {cause}"));
    let value = match source {
        SecretSource::Command(words) => {
            let (program, arguments) = words
                .split_first()
                .ok_or_else(|| unknown("an empty command".to_owned()))?;
            let command = Command {
                cancelled: Some(cancelled.clone()),
                guard,
                ..Command::new(program, deadline.saturating_duration_since(Instant::now())).args(arguments)
            };
            let output = process::run(&command).map_err(|error| unknown(error.to_string()))?;
            if output.status != 0 || output.stdout.is_cut() {
                return Err(unknown(format!("{program} failed (status {})", output.status)));
            }
            let text =
                String::from_utf8(output.stdout.bytes).map_err(|_| unknown("it is not UTF-8 text".to_owned()))?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
        source => match source.resolve_text() {
            Ok(text) => text.as_str().to_owned(),
            Err(error) => {
                return Err(HookFailure {
                    hint: error.hint(),
                    ..unknown(error.to_string())
                });
            }
        },
    };
    if value.is_empty() {
        return Err(unknown("it is empty".to_owned()));
    }
    Ok(value)
}
