//! The timeline of a rehearsal as a person reads it.

use std::time::Duration;

use coffre_engine::rehearsal::{Span, SpanStep, Timeline};

use crate::output::span;

/// Columns of the bars where there is room for them, and where there is none.
const WIDTH: usize = 40;
const LEAST_WIDTH: usize = 10;

/// A line per step: a bar, what it was, when it began, how it ended. `columns` is how wide the terminal is, where that is
/// known.
pub(super) fn draw(timeline: &Timeline, columns: Option<usize>) -> String {
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
    let line = |step: &Span| {
        let from = span(Duration::from_millis(step.from_ms));
        format!("{:widest$}  from {from:>7}  {}", name(step), ended(step))
    };
    let lines: Vec<String> = timeline.spans.iter().map(line).collect();
    let longest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    // Blanks, the bar's ends, and a last column that stays free.
    let room = columns.map_or(WIDTH, |columns| columns.saturating_sub(longest + "  ||  ".len() + 1));
    let width = room.clamp(LEAST_WIDTH, WIDTH) as u64;
    let mut text = String::new();
    for (step, line) in timeline.spans.iter().zip(lines) {
        text.push_str(format!("  {}  {line}", bar(step, whole, width)).trim_end());
        text.push('\n');
    }
    text
}

fn bar(step: &Span, whole_ms: u64, width: u64) -> String {
    let column = |at_ms: u64| at_ms * width / whole_ms;
    let from = column(step.from_ms).min(width - 1);
    let to = column(step.to_ms.unwrap_or(whole_ms)).clamp(from + 1, width);
    let sign = match (step.step, &step.error) {
        (_, Some(_)) => '!',
        (SpanStep::Snapshot, None) => '*',
        (SpanStep::Guard, None) => '+',
        (_, None) => '#',
    };
    let filled: String = std::iter::repeat_n(sign, (to - from) as usize).collect();
    format!(
        "|{}{filled}{}|",
        " ".repeat(from as usize),
        " ".repeat((width - to) as usize)
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
    let failed = if step.error.is_some() { ", failed" } else { "" };
    format!("took {took}{attempts}{failed}")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

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
            output: String::new(),
        };
        let timeline = Timeline {
            began_at: None,
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
        insta::assert_snapshot!(draw(&timeline, None));
        // Not a column more than there are.
        let narrow = draw(&timeline, Some(80));
        assert!(narrow.lines().all(|line| line.chars().count() < 80), "{narrow}");
        insta::assert_snapshot!(narrow);
        let mut died = Timeline {
            began_at: Some(Timestamp::UNIX_EPOCH),
            spans: vec![
                step(SpanStep::Pre, Some("orders-db"), 0, Some(50), None),
                step(SpanStep::Snapshot, None, 50, None, None),
                step(SpanStep::Post, Some("orders-db"), 120, Some(150), None),
            ],
            held_ms: Default::default(),
        };
        died.guard_let_go(&[58, 57]);
        insta::assert_snapshot!(draw(&died, None));
    }
}
