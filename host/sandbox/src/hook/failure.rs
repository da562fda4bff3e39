//! Turns what the interpreter says into what the operator reads: `FILE:LINE:COLUMN: cause`, and what to do.

use std::path::Path;

use coffre_engine::{HookFailure, HookFailureKind};
use rhai::{EvalAltResult, ParseError, Position};

use super::call::Stop;
use super::limits;

/// A script that does not parse.
pub(super) fn of_parsing(file: &Path, error: &ParseError) -> HookFailure {
    let hint = match error.err_type() {
        rhai::ParseErrorType::BadInput(_) | rhai::ParseErrorType::Reserved(_) if error.to_string().contains("eval") => {
            Some("a script cannot make code as it runs".to_owned())
        }
        rhai::ParseErrorType::VariableUndefined(_) => {
            Some("functions see their parameters and `global::NAME` of constants, no other variables".to_owned())
        }
        _ => None,
    };
    let place = at(&file.display().to_string(), error.position());
    invalid(format!("{place}{}", error.err_type()), hint)
}

/// A hook that cannot be loaded.
pub(super) fn invalid(text: String, hint: Option<String>) -> HookFailure {
    HookFailure {
        hint,
        ..HookFailure::new(HookFailureKind::Invalid, text)
    }
}

/// A script that did not come to its end. `output` is what it had said.
pub(super) fn of_running(file: &Path, error: &EvalAltResult, output: String) -> HookFailure {
    let (file, cause) = innermost(file.display().to_string(), error);
    let mut place = at(&file, cause.position());
    let (kind, text, hint) = match cause {
        EvalAltResult::ErrorTerminated(token, _) => match token.read_lock::<Stop>() {
            Some(stop) => {
                if let Some((source, position)) = &stop.place {
                    place = at(if source.is_empty() { &file } else { source }, *position);
                }
                (stop.kind, stop.text.clone(), stop.hint.clone())
            }
            None => (HookFailureKind::Failed, token.to_string(), None),
        },
        EvalAltResult::ErrorRuntime(token, _) => (HookFailureKind::Failed, token.to_string(), None),
        EvalAltResult::ErrorParsing(cause, _) => (HookFailureKind::Invalid, cause.to_string(), None),
        EvalAltResult::ErrorFunctionNotFound(signature, _) => {
            let hint = "docs/hooks.md lists what a script can call, and with what";
            let signature = signature
                .replace("&str | ImmutableString | String", "text")
                .replace("i64", "number");
            (
                HookFailureKind::Failed,
                format!("there is no function {signature}"),
                Some(hint.to_owned()),
            )
        }
        other => match limit(other) {
            Some((text, hint)) => (HookFailureKind::Limit, text.to_owned(), Some(hint)),
            None => (HookFailureKind::Failed, without_position(other), None),
        },
    };
    HookFailure {
        hint,
        output,
        ..HookFailure::new(kind, format!("{place}{}", text.trim_end()))
    }
}

/// The error at the bottom of a chain of calls and imports, and the file that it is in.
fn innermost(mut file: String, mut error: &EvalAltResult) -> (String, &EvalAltResult) {
    loop {
        error = match error {
            EvalAltResult::ErrorInFunctionCall(_, source, inner, _) => {
                if !source.is_empty() {
                    file.clone_from(source);
                }
                inner
            }
            EvalAltResult::ErrorInModule(source, inner, _) => {
                if !source.is_empty() {
                    file.clone_from(source);
                }
                inner
            }
            _ => return (file, error),
        }
    }
}

fn limit(error: &EvalAltResult) -> Option<(&'static str, String)> {
    let most = |number: usize, what: &str| format!("the limit is {number} {what}");
    Some(match error {
        EvalAltResult::ErrorTooManyOperations(_) => (
            "the script computes without end",
            format!("the limit is {} operations", limits::OPERATIONS),
        ),
        EvalAltResult::ErrorStackOverflow(_) => (
            "functions call each other without end",
            most(limits::CALL_LEVELS, "calls within each other"),
        ),
        EvalAltResult::ErrorTooManyVariables(_) => ("too many variables", most(limits::VARIABLES, "at a time")),
        EvalAltResult::ErrorTooManyModules(_) => ("too many imports", most(limits::MODULES, "files")),
        EvalAltResult::ErrorDataTooLarge(..) => (
            "a value is too large",
            format!(
                "the limits are {} bytes of text, {} items of a list, {} of a map",
                limits::STRING_BYTES,
                limits::ARRAY_ITEMS,
                limits::MAP_ITEMS
            ),
        ),
        _ => return None,
    })
}

/// The interpreter adds "(line 3, position 5)", which we say in front and as editors understand it.
fn without_position(error: &EvalAltResult) -> String {
    let text = error.to_string();
    match text.rfind(" (line ") {
        Some(end) if text.ends_with(')') => text[..end].to_owned(),
        _ => text,
    }
}

fn at(file: &str, position: Position) -> String {
    match (position.line(), position.position()) {
        (Some(line), Some(column)) => format!("{file}:{line}:{column}: "),
        (Some(line), None) => format!("{file}:{line}: "),
        _ => format!("{file}: "),
    }
}
