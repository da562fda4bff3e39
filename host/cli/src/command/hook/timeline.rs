//! The timeline of a rehearsal as a person reads it.

use std::time::Duration;

use coffre_engine::rehearsal::{Span, SpanStep, Timeline};

use crate::output::span;

/// Columns of the bars.
const WIDTH: u64 = 40;

/// A line per step: a bar, what it was, when it began, how it ended.
pub(super) fn draw(timeline: &Timeline) -> String {
    let whole = timeline.end_ms().max(1);
    let name = |step: &Span| {
        let hook = step.hook.as_deref().unwrap_or_default();
        format!("{:8} {hook}", step.step.as_str()).trim_end().to_owned()
    };
    let widest = timeline
        .spans
        .iter()
        .map(|step| name(step).chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for step in &timeline.spans {
        let line = format!(
            "  {}  {:widest$}  from {:>7}  {}",
            bar(step, whole),
            name(step),
            span(Duration::from_millis(step.from_ms)),
            ended(step)
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn bar(step: &Span, whole_ms: u64) -> String {
    let column = |at_ms: u64| at_ms * WIDTH / whole_ms;
    let from = column(step.from_ms).min(WIDTH - 1);
    let to = column(step.to_ms.unwrap_or(whole_ms)).clamp(from + 1, WIDTH);
    let sign = match (step.step, &step.error) {
        (_, Some(_)) => '!',
        (SpanStep::Snapshot, None) => '*',
        (_, None) => '#',
    };
    let filled: String = std::iter::repeat_n(sign, (to - from) as usize).collect();
    format!(
        "|{}{filled}{}|",
        " ".repeat(from as usize),
        " ".repeat((WIDTH - to) as usize)
    )
}

fn ended(step: &Span) -> String {
    let Some(to_ms) = step.to_ms else {
        return "never ended: its process went away".to_owned();
    };
    let took = span(Duration::from_millis(to_ms.saturating_sub(step.from_ms)));
    let attempts = match step.attempts {
        0 | 1 => String::new(),
        many => format!(", {many} attempts"),
    };
    match &step.error {
        None => format!("took {took}{attempts}"),
        Some(error) => format!("took {took}{attempts}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_shows_who_was_held_and_what_went_wrong() {
        let step = |step, hook: Option<&str>, from_ms, to_ms, error: Option<&str>| Span {
            step,
            hook: hook.map(str::to_owned),
            from_ms,
            to_ms,
            attempts: 1,
            error: error.map(str::to_owned),
        };
        let timeline = Timeline {
            spans: vec![
                step(SpanStep::Pre, Some("orders-db"), 0, Some(52), None),
                step(
                    SpanStep::Pre,
                    Some("cache"),
                    52,
                    Some(60),
                    Some("a fault on purpose: fail-pre"),
                ),
                step(SpanStep::Snapshot, None, 60, Some(160), None),
                step(SpanStep::Post, Some("cache"), 160, Some(170), None),
                step(SpanStep::Post, Some("orders-db"), 170, Some(200), None),
            ],
            held_ms: Default::default(),
        };
        insta::assert_snapshot!(draw(&timeline));
        let died = Timeline {
            spans: vec![
                step(SpanStep::Pre, Some("orders-db"), 0, Some(50), None),
                step(SpanStep::Snapshot, None, 50, None, None),
            ],
            held_ms: Default::default(),
        };
        insta::assert_snapshot!(draw(&died));
    }
}
