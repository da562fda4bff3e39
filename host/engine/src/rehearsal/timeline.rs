//! Who was held from when to when, out of a job's journal: so it can be told of a job that died as well.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::journal::{Event, JobRecord};
use crate::progress::Phase;

/// What lay between the first pre and the last post of a job. Times are milliseconds since the first pre began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// When the first pre began; none where no hook was started.
    pub began_at: Option<Timestamp>,
    /// In the order in which they began.
    pub spans: Vec<Span>,
    /// By hook, from the beginning of its pre to the end of its post; none while it is still held.
    pub held_ms: BTreeMap<String, Option<u64>>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    pub step: SpanStep,
    /// None for the snapshot and the guard.
    pub hook: Option<String>,
    pub from_ms: u64,
    /// None: it never ended, since its process went away.
    pub to_ms: Option<u64>,
    pub attempts: u32,
    pub error: Option<String>,
    /// What the hook said.
    pub output: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpanStep {
    Pre,
    Snapshot,
    Post,
    /// The guard let go what a killed process had held.
    Guard,
}

impl SpanStep {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Snapshot => "snapshot",
            Self::Post => "post",
            Self::Guard => "guard",
        }
    }
}

impl Timeline {
    /// Of a job that ran hooks; empty for one that ran none.
    pub fn of(job: &JobRecord) -> Self {
        let first = job.records.iter().find_map(|record| match record.event {
            Event::HookStarting { .. } => Some(record.at),
            _ => None,
        });
        let Some(first) = first else { return Self::default() };
        let ms = |at: Timestamp| u64::try_from(at.as_millisecond() - first.as_millisecond()).unwrap_or(0);
        let mut timeline = Self {
            began_at: Some(first),
            ..Self::default()
        };
        for record in &job.records {
            timeline.add(ms(record.at), &record.event);
        }
        timeline.spans.sort_by_key(|span| span.from_ms);
        timeline
    }

    /// When the guard let go what was held, in milliseconds since 1970: from the first to the last thing that it undid.
    pub fn guard_let_go(&mut self, at_unix_ms: &[u64]) {
        let Some(began) = self.began_at.map(Timestamp::as_millisecond) else {
            return;
        };
        let since = |at: &u64| at.saturating_sub(began.unsigned_abs());
        let (Some(from_ms), Some(to_ms)) = (at_unix_ms.iter().map(since).min(), at_unix_ms.iter().map(since).max())
        else {
            return;
        };
        let mut span = Span::begun(SpanStep::Guard, None, from_ms);
        span.to_ms = Some(to_ms);
        self.spans.push(span);
        self.spans.sort_by_key(|span| span.from_ms);
    }

    /// Whether something is held still.
    pub fn is_held(&self) -> bool {
        self.held_ms.values().any(Option::is_none)
    }

    /// When the last step ended, as far as any did.
    pub fn end_ms(&self) -> u64 {
        let ends = self.spans.iter().map(|span| span.to_ms.unwrap_or(span.from_ms));
        ends.max().unwrap_or(0)
    }

    fn add(&mut self, at_ms: u64, event: &Event) {
        match event {
            Event::HookStarting { hook } => {
                self.held_ms.insert(hook.clone(), None);
                self.spans.push(Span::begun(SpanStep::Pre, Some(hook), at_ms));
            }
            Event::HookPre { hook, outcome, .. } => {
                if let Some(span) = self.open(SpanStep::Pre, Some(hook)) {
                    span.to_ms = Some(at_ms);
                    span.attempts = outcome.attempts;
                    span.error.clone_from(&outcome.error);
                    span.output.clone_from(&outcome.output);
                }
            }
            Event::Taking { .. } => self.spans.push(Span::begun(SpanStep::Snapshot, None, at_ms)),
            // Nobody is let go before the snapshot is there, unless it is late.
            Event::Phase { phase: Phase::Post } | Event::Taken { .. } => {
                if let Some(span) = self.open(SpanStep::Snapshot, None) {
                    span.to_ms = Some(at_ms);
                }
            }
            Event::HookEnded { hook, outcome } => {
                let mut span = Span::begun(SpanStep::Post, Some(hook), at_ms.saturating_sub(outcome.duration_ms));
                span.to_ms = Some(at_ms);
                span.attempts = outcome.attempts;
                span.error.clone_from(&outcome.error);
                span.output.clone_from(&outcome.output);
                let began = self.spans.iter().find(|span| span.hook.as_deref() == Some(hook));
                let held = began.map(|pre| at_ms.saturating_sub(pre.from_ms));
                self.spans.push(span);
                self.held_ms.insert(hook.clone(), held);
            }
            _ => {}
        }
    }

    fn open(&mut self, step: SpanStep, hook: Option<&String>) -> Option<&mut Span> {
        let is_it = |span: &&mut Span| span.step == step && span.hook.as_ref() == hook && span.to_ms.is_none();
        self.spans.iter_mut().find(is_it)
    }
}

impl Span {
    fn begun(step: SpanStep, hook: Option<&String>, from_ms: u64) -> Self {
        Self {
            step,
            hook: hook.cloned(),
            from_ms,
            to_ms: None,
            attempts: 1,
            error: None,
            output: String::new(),
        }
    }
}
