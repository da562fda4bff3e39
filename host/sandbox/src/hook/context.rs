//! What a hook is told of its call: for scripts as `ctx`, for programs as a JSON document; and what `pre` of a script leaves
//! for `post`.

use std::sync::Arc;

use coffre_engine::{Consistency, HookContext, OsFamily, SnapshotOutcome};
use rhai::{Dynamic, Engine, EvalAltResult, Map, NativeCallContext};
use serde_json::{Value, json};

use super::call::Phase;

pub(super) fn outcome_word(outcome: SnapshotOutcome) -> &'static str {
    match outcome {
        SnapshotOutcome::Taken => "taken",
        SnapshotOutcome::Failed => "failed",
        SnapshotOutcome::NotTried => "not-tried",
    }
}

pub(super) fn consistency_word(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Crash => "crash",
        Consistency::FileSystem => "file-system",
        Consistency::Application => "application",
    }
}

pub(super) fn os_word(os: OsFamily) -> &'static str {
    match os {
        OsFamily::Linux => "linux",
        OsFamily::Windows => "windows",
        OsFamily::Other => "other",
    }
}

/// What a script's functions get: a map that can be read and not changed.
#[derive(Clone)]
pub(super) struct Told(Arc<Map>);

impl Told {
    /// Teaches the interpreter to read one.
    pub(super) fn register(engine: &mut Engine) {
        engine.register_type_with_name::<Self>("context").register_indexer_get(
            |at: NativeCallContext<'_>, told: &mut Self, name: &str| -> Result<Dynamic, Box<EvalAltResult>> {
                told.0.get(name).cloned().ok_or_else(|| {
                    let known: Vec<_> = told.0.keys().map(|name| name.as_str()).collect();
                    let text = format!("ctx has no `{name}` here; it has {}", known.join(", "));
                    EvalAltResult::ErrorRuntime(text.into(), at.call_position()).into()
                })
            },
        );
    }
}

/// What one call is told, but for what `pre` left.
pub(super) fn facts(
    hook: &str,
    settings: &Value,
    phase: Phase,
    context: &HookContext,
    outcome: Option<SnapshotOutcome>,
) -> Value {
    let os = os_word(context.machine.os);
    let ms = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let mut facts = json!({
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
        facts["outcome"] = outcome_word(outcome).into();
        facts["consistency"] = context.so_far.consistency.map(consistency_word).into();
        facts["held_ms"] = context.so_far.held.map(ms).into();
        facts["frozen_ms"] = context.so_far.frozen.map(ms).into();
    }
    facts
}

/// What one call of a script is told.
pub(super) fn told(
    hook: &str,
    settings: &Value,
    phase: Phase,
    context: &HookContext,
    memory: Option<&str>,
    outcome: Option<SnapshotOutcome>,
) -> Result<Told, String> {
    let mut told = facts(hook, settings, phase, context, outcome);
    if outcome.is_some() {
        told["memory"] = match memory {
            Some(text) => {
                serde_json::from_str(text).map_err(|error| format!("what `pre` left cannot be read: {error}"))?
            }
            None => Value::Null,
        };
    }
    let told = rhai::serde::to_dynamic(told).map_err(|error| error.to_string())?;
    told.try_cast::<Map>()
        .map(|map| Told(Arc::new(map)))
        .ok_or_else(|| "it is not a map".to_owned())
}

/// What `pre` returned, as JSON. None: nothing.
pub(super) fn memory(returned: &Dynamic) -> Result<Option<String>, String> {
    if returned.is_unit() {
        return Ok(None);
    }
    let kept = plain(returned).ok_or_else(|| {
        let what = "only texts, numbers, truths, lists and maps of them can";
        format!(
            "what `pre` returned ({}) cannot be kept for `post`: {what}",
            returned.type_name()
        )
    })?;
    Ok(Some(kept.to_string()))
}

fn plain(value: &Dynamic) -> Option<Value> {
    if let Ok(list) = value.as_array_ref() {
        return list.iter().map(plain).collect();
    }
    if let Ok(map) = value.as_map_ref() {
        return map
            .iter()
            .map(|(name, value)| Some((name.to_string(), plain(value)?)))
            .collect();
    }
    Some(match value.type_name() {
        "()" => Value::Null,
        "bool" => value.as_bool().ok()?.into(),
        "i64" => value.as_int().ok()?.into(),
        "f64" => value.as_float().ok()?.into(),
        "string" | "char" => value.to_string().into(),
        _ => return None,
    })
}
