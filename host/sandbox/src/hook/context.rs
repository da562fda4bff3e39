//! What a script is told: `ctx`, and what `pre` leaves for `post`.

use coffre_engine::{HookContext, OsFamily, SnapshotOutcome};
use rhai::Dynamic;
use serde_json::{Value, json};

use super::call::Phase;

pub(super) fn outcome_word(outcome: SnapshotOutcome) -> &'static str {
    match outcome {
        SnapshotOutcome::Taken => "taken",
        SnapshotOutcome::Failed => "failed",
        SnapshotOutcome::NotTried => "not-tried",
    }
}

/// The map that the script's functions get. It is theirs alone: changing it would change nothing, so it is read-only.
pub(super) fn map(
    hook: &str,
    settings: &Value,
    phase: Phase,
    context: &HookContext,
    memory: Option<&str>,
    outcome: Option<SnapshotOutcome>,
) -> Result<Dynamic, String> {
    let os = match context.machine.os {
        OsFamily::Linux => "linux",
        OsFamily::Windows => "windows",
        OsFamily::Other => "other",
    };
    let ms = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let mut told = json!({
        "hook": hook,
        "phase": phase.as_str(),
        "machine": { "name": context.machine.name, "os": os, "settings": context.machine.settings },
        "settings": settings,
        "disks": context.disks,
        "job": context.job,
        "policy": context.policy,
        "wanted": context.wanted,
        "attempt": context.attempt,
        "timeout_ms": ms(context.timeout),
        "hold_at_most_ms": ms(context.hold_at_most),
    });
    if let Some(outcome) = outcome {
        told["outcome"] = outcome_word(outcome).into();
        told["memory"] = match memory {
            Some(text) => serde_json::from_str(text).map_err(|error| format!("what `pre` left cannot be read: {error}"))?,
            None => Value::Null,
        };
    }
    let told = rhai::serde::to_dynamic(told).map_err(|error| error.to_string())?;
    Ok(told.into_read_only())
}

/// What `pre` returned, as JSON. None: nothing.
pub(super) fn memory(returned: &Dynamic) -> Result<Option<String>, String> {
    if returned.is_unit() {
        return Ok(None);
    }
    serde_json::to_string(returned).map(Some).map_err(|_| {
        format!("`pre` returned {}, which cannot be kept: only texts, numbers, truths, lists and maps can", returned.type_name())
    })
}
