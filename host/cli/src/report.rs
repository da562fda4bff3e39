//! How an error is told: `error:` with its causes, then a `hint:` line for each thing to do; or the same as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::exit::{Exit, judge};

/// An error as it is shown, in text or JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    pub message: String,
    /// From the outermost to the root.
    pub causes: Vec<String>,
    pub hints: Vec<String>,
    pub exit_code: u8,
    #[serde(skip)]
    pub exit: Exit,
}

impl Report {
    pub fn new(error: &anyhow::Error) -> Self {
        let verdict = judge(error);
        let mut chain = error.chain().map(|cause| cause.to_string());
        let message = chain.next().unwrap_or_default();
        let mut causes: Vec<String> = Vec::new();
        let mut said = message.clone();
        for cause in chain {
            // Many errors repeat their source in their own words; once is enough.
            if !cause.is_empty() && !said.contains(&cause) {
                said.clone_from(&cause);
                causes.push(cause);
            }
        }
        Self {
            message,
            causes,
            hints: verdict.hints,
            exit_code: verdict.exit.code(),
            exit: verdict.exit,
        }
    }

    /// Lines that end with a newline. `colour` is for terminals only.
    pub fn render(&self, colour: bool) -> String {
        self.render_for("", colour)
    }

    /// The same where several things may fail: `about` stands before the message.
    pub fn render_for(&self, about: &str, colour: bool) -> String {
        let paint = |code: &str, word: &str| {
            if colour {
                format!("\x1b[1;{code}m{word}\x1b[0m")
            } else {
                word.to_owned()
            }
        };
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}: {about}{}", paint("31", "error"), self.message.trim_end());
        for cause in &self.causes {
            let _ = writeln!(text, "  cause: {}", cause.trim_end().replace('\n', "\n         "));
        }
        for hint in &self.hints {
            let _ = writeln!(
                text,
                "{}: {}",
                paint("36", "hint"),
                hint.trim_end().replace('\n', "\n      ")
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use insta::assert_snapshot;

    use super::*;
    use crate::exit::Complaint;

    #[test]
    fn an_error_shows_its_causes_once_and_then_what_to_do() {
        let root = std::io::Error::other("connection refused");
        let error = Err::<(), _>(root)
            .context("read http://store/format: connection refused")
            .context(Complaint::failed("open vault `main`", "is the store running?"))
            .unwrap_err();
        assert_snapshot!(Report::new(&error).render(false), @r"
        error: open vault `main`
          cause: read http://store/format: connection refused
        hint: is the store running?
        ");
    }

    #[test]
    fn an_unknown_error_is_a_plain_failure() {
        let report = Report::new(&anyhow::anyhow!("nobody knows me"));
        assert_eq!(report.exit, Exit::Failed);
        assert_eq!(report.render(true), "\u{1b}[1;31merror\u{1b}[0m: nobody knows me\n");
    }
}
