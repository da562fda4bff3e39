//! The exit codes, and the one place that says which error of the lower crates means which of them, with its hints.

use std::error::Error;
use std::process::ExitCode;

/// How `coffre` ends. The numbers are promised in docs/cli.md; 64 and above follow sysexits.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    /// Of several machines, some failed.
    SomeFailed = 3,
    /// A point exists, but it is worth less than the policy wants.
    Downgraded = 4,
    Usage = 64,
    Config = 65,
    /// Busy, or the store or provider is out of reach: the same call may succeed later.
    TryAgain = 75,
    Denied = 77,
    Cancelled = 130,
}

impl Exit {
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Something the command line itself found wrong.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Complaint {
    pub exit: Exit,
    pub text: String,
    pub hint: Option<String>,
}

impl Complaint {
    pub fn usage(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            text: text.into(),
            hint: Some(hint.into()),
        }
    }

    pub fn failed(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            text: text.into(),
            hint: Some(hint.into()),
        }
    }
}

/// What an error means to whoever called `coffre`.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub exit: Exit,
    pub hints: Vec<String>,
}

/// Judges an error by the outermost cause in its chain that is known here; hints come from all that are.
pub fn judge(error: &anyhow::Error) -> Verdict {
    let mut exit = None;
    let mut hints: Vec<String> = Vec::new();
    let mut add = |found: Option<(Exit, Option<String>)>| {
        if let Some((code, hint)) = found {
            exit.get_or_insert(code);
            if let Some(hint) = hint
                && !hints.contains(&hint)
            {
                hints.push(hint);
            }
        }
    };
    // What was attached by `.context` is found through anyhow only, not by walking the chain.
    add(error
        .downcast_ref::<Complaint>()
        .map(|found| (found.exit, found.hint.clone())));
    for cause in error.chain() {
        add(known(cause));
    }
    Verdict {
        exit: exit.unwrap_or(Exit::Failed),
        hints,
    }
}

/// The exit code and hint of one error, if its type is known here.
fn known(cause: &(dyn Error + 'static)) -> Option<(Exit, Option<String>)> {
    if let Some(found) = cause.downcast_ref::<Complaint>() {
        return Some((found.exit, found.hint.clone()));
    }
    None
}
