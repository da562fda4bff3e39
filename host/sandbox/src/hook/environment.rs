//! What programs are told about the call that they run in, as environment variables.

use std::time::Duration;

use coffre_engine::{HookContext, SnapshotOutcome};

use super::call::Phase;
use super::context::{consistency_word, os_word, outcome_word};

/// The variables of one call. What is not known is not set. Values that are lists have a line for each item.
pub(super) fn of(
    hook: &str,
    phase: Phase,
    context: &HookContext,
    outcome: Option<SnapshotOutcome>,
) -> Vec<(String, String)> {
    let ms = |duration: Duration| duration.as_millis().to_string();
    let disks: Vec<&str> = context.disks.iter().map(|disk| disk.0.as_str()).collect();
    let told = [
        ("HOOK", Some(hook.to_owned())),
        ("PHASE", Some(phase.as_str().to_owned())),
        ("MACHINE", Some(context.machine.name.clone())),
        ("OS", Some(os_word(context.machine.os).to_owned())),
        ("DISKS", Some(disks.join("\n"))),
        ("JOB", Some(context.job.clone())),
        ("POLICY", context.policy.clone()),
        ("WANTED", Some(consistency_word(context.wanted).to_owned())),
        ("ATTEMPT", Some(context.attempt.to_string())),
        ("TIMEOUT_MS", Some(ms(context.timeout))),
        ("HOLD_AT_MOST_MS", Some(ms(context.hold_at_most))),
        ("OUTCOME", outcome.map(|outcome| outcome_word(outcome).to_owned())),
        (
            "CONSISTENCY",
            context
                .so_far
                .consistency
                .map(|reached| consistency_word(reached).to_owned()),
        ),
        ("HELD_MS", context.so_far.held.map(ms)),
        ("FROZEN_MS", context.so_far.frozen.map(ms)),
    ];
    told.into_iter()
        .filter_map(|(name, value)| Some((format!("COFFRE_{name}"), value?)))
        .collect()
}
