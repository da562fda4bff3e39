//! What a test of hooks is said to have shown: the timeline, what hooks said and what went wrong, and whether everybody was
//! let go.

use std::sync::atomic::Ordering;
use std::time::Duration;

use coffre_engine::Consistency;
use coffre_engine::job::{JobErrorKind, Rehearsal};
use coffre_engine::rehearsal::{Fault, SpanStep, Timeline};
use coffre_guard::{Payer, Settlement, SettlementEnd};
use coffre_vault::NoteLevel;
use serde::Serialize;

use super::super::timeline;
use super::Test;
use crate::exit::{self, Complaint, Exit};
use crate::output::{Output, span, terminal_columns};
use crate::report::Report;
use crate::shape::NoteShape;

/// Of what a hook said, so many lines are shown without `-v`: the last ones, where programs say why they end.
const LINES_SHOWN: usize = 10;

#[derive(Serialize)]
struct Document {
    machine: String,
    hooks: Vec<String>,
    fault: Option<&'static str>,
    /// `pretended` or `real`.
    snapshot: &'static str,
    job: String,
    /// What a point would have been worth; none where there would have been no point.
    consistency: Option<Consistency>,
    consistency_reason: Option<String>,
    consistency_wanted: Consistency,
    hold_at_most_ms: u64,
    timeline: Timeline,
    notes: Vec<NoteShape>,
    all_let_go: bool,
    error: Option<Report>,
    exit_code: u8,
}

impl Test<'_> {
    fn snapshot(&self) -> &'static str {
        if self.is_real() { "real" } else { "pretended" }
    }

    /// Says what is about to happen: with a fault it may take as long as the hook's timeout.
    pub(super) fn begin(&self, output: &Output) -> anyhow::Result<()> {
        let fault = self.args.fault.map(Fault::as_str);
        output.line(format!(
            "{}: {} around a {} snapshot{}\n",
            self.machine.name,
            self.hooks.join(", "),
            self.snapshot(),
            fault.map_or(String::new(), |fault| format!(", with the fault {fault}")),
        ))
    }

    /// `left` is what a process that was killed had left behind.
    pub(super) fn tell(
        &self,
        mut rehearsal: Rehearsal,
        left: Vec<Settlement>,
        output: &Output,
    ) -> anyhow::Result<Exit> {
        let by_guard: Vec<u64> = left.iter().filter_map(paid_by_the_guard_at).collect();
        rehearsal.timeline.guard_let_go(&by_guard);
        let exit = self.judge(&rehearsal);
        output.result(timeline::draw(&rehearsal.timeline, terminal_columns()))?;
        output.line("")?;
        let said = self.what_was_said(&rehearsal, output);
        if !said.is_empty() {
            output.line(said)?;
        }
        self.tell_who_was_held(&rehearsal, output)?;
        let hold_at_most = self.config.policy_of(&self.machine).hold_at_most;
        let notes = rehearsal.notes.iter().map(NoteShape::new).collect();
        let (worth, error) = match rehearsal.result {
            Ok(worth) => (Some(worth), None),
            Err(error) => (None, Some(Report::new(&error.into()))),
        };
        let error = self.fault_did_not_happen().or(error);
        match (&worth, &error) {
            (_, Some(error)) => {
                let mut text = format!("there would be no point: {}\n", error.message);
                for cause in &error.causes {
                    text.push_str(&format!("  cause: {cause}\n"));
                }
                for hint in &error.hints {
                    text.push_str(&format!("hint: {hint}\n"));
                }
                output.line(text.trim_end())?;
            }
            (Some(worth), None) => {
                let (reached, reason) = (worth.reached, &worth.reason);
                output.line(format!("a point would be {reached}-consistent: {reason}"))?;
                if exit == Exit::Downgraded && !rehearsal.declared {
                    output.line(
                        "hint: no hook declares that its application is at rest: `application_consistent()` in a script's pre, \
                         `application = true` in the table of a program",
                    )?;
                }
            }
            (None, None) => {}
        }
        output.result(if rehearsal.all_let_go {
            "everybody was let go\n"
        } else {
            "NOT EVERYBODY WAS LET GO: `coffre doctor` and the machine's next backup try again\n"
        })?;
        output.document(&Document {
            machine: self.machine.name.clone(),
            hooks: self.hooks.clone(),
            fault: self.args.fault.map(Fault::as_str),
            snapshot: self.snapshot(),
            job: rehearsal.job,
            consistency: worth.as_ref().map(|worth| worth.reached),
            consistency_reason: worth.map(|worth| worth.reason),
            consistency_wanted: self.config.wanted(&self.machine),
            hold_at_most_ms: u64::try_from(hold_at_most.as_millis()).unwrap_or(u64::MAX),
            timeline: rehearsal.timeline,
            notes,
            all_let_go: rehearsal.all_let_go,
            error,
            exit_code: exit.code(),
        })?;
        Ok(exit)
    }

    /// What hooks and their commands said, and then what went wrong and what the guard did.
    fn what_was_said(&self, rehearsal: &Rehearsal, output: &Output) -> String {
        let mut text = String::new();
        let said = rehearsal.timeline.spans.iter().filter(|span| !span.output.is_empty());
        for step in said {
            let lines: Vec<&str> = step.output.trim_end().lines().collect();
            let shown = if output.verbose > 0 { lines.len() } else { LINES_SHOWN };
            let left_out = lines.len().saturating_sub(shown);
            let hook = step.hook.as_deref().unwrap_or_default();
            text.push_str(&format!("{} of {hook} said:\n", step.step.as_str()));
            if left_out > 0 {
                text.push_str(&format!("  … ({left_out} lines more: -v)\n"));
            }
            for line in &lines[left_out..] {
                text.push_str(&format!("  {line}\n"));
            }
        }
        // What the last lines say already, and what is said of every machine.
        let told = |note: &&coffre_vault::Note| note.code != "downgraded" && note.level != NoteLevel::Info;
        for note in rehearsal.notes.iter().filter(told) {
            let level = match (note.code.as_str(), note.level) {
                ("guard", NoteLevel::Warning) => "left behind",
                (_, NoteLevel::Error) => "error",
                _ => "warning",
            };
            text.push_str(&format!("{level}: {}\n", note.text.replace("; hint: ", "\nhint: ")));
        }
        text
    }

    fn tell_who_was_held(&self, rehearsal: &Rehearsal, output: &Output) -> anyhow::Result<()> {
        for (hook, held) in &rehearsal.timeline.held_ms {
            match held {
                Some(ms) => output.line(format!("{hook} was held for {}", span(Duration::from_millis(*ms))))?,
                None => output.result(format!("{hook} IS STILL HELD, as far as is known\n"))?,
            }
        }
        output.line(format!(
            "held in all: {} of at most {}",
            span(Duration::from_millis(rehearsal.timeline.end_ms())),
            span(self.config.policy_of(&self.machine).hold_at_most)
        ))
    }

    fn fault_did_not_happen(&self) -> Option<Report> {
        if !self.not_lost.load(Ordering::SeqCst) {
            return None;
        }
        let hook = self.hooks.first().map_or("the hook", String::as_str);
        let text = format!("{hook} holds nothing open from pre to post, so there was nothing to lose");
        let hint = "the fault lose-session is for hooks that use `hold`";
        Some(Report::new(&Complaint::failed(text, hint).into()))
    }

    /// With a fault it is enough that it did no harm.
    fn judge(&self, rehearsal: &Rehearsal) -> Exit {
        let fault = self.args.fault;
        let of_first = |hook: &Option<String>| hook.as_ref() == self.hooks.first();
        let failed = rehearsal.timeline.spans.iter().any(|span| {
            let on_purpose = fault.is_some_and(|fault| span.error == Some(fault.text()));
            // Whoever has lost its session may well say so.
            let follows = fault == Some(Fault::LoseSession) && span.step == SpanStep::Post && of_first(&span.hook);
            span.error.is_some() && !on_purpose && !follows
        });
        if !rehearsal.all_let_go || rehearsal.timeline.is_held() || failed || self.not_lost.load(Ordering::SeqCst) {
            return Exit::Failed;
        }
        match (&rehearsal.result, fault) {
            (Err(error), _) if error.kind() == JobErrorKind::Cancelled => Exit::Cancelled,
            (_, Some(_)) => Exit::Done,
            (Err(error), None) => exit::job(error).unwrap_or(Exit::Failed),
            (Ok(worth), None) if worth.reached < self.config.wanted(&self.machine) => Exit::Downgraded,
            (Ok(_), None) => Exit::Done,
        }
    }
}

fn paid_by_the_guard_at(settled: &Settlement) -> Option<u64> {
    match settled.end {
        SettlementEnd::Paid {
            by: Payer::Guard,
            at_unix_ms,
            ..
        } => Some(at_unix_ms),
        _ => None,
    }
}
