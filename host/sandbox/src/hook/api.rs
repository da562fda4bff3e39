//! The functions that a script can call beside Rhai's own. `docs/hooks.md` describes each with an example.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coffre_engine::{Attachment, Finding, FindingLevel, HookFailureKind};
use rhai::{Array, Dynamic, Engine, EvalAltResult, FnPtr, ImmutableString, Map, NativeCallContext};

use super::call::{Call, Phase, Stop};
use super::exchange::is_attachment_name;
use super::transcript::{Transcript, log_line};
use super::{held, limits, secrets, undo};
use crate::process::{self, Command, Output, ProcessError};

pub(super) type Outcome<T> = Result<T, Box<EvalAltResult>>;

/// Gives the engine everything that a script may do, within one call.
pub(super) fn register(engine: &mut Engine, call: &Arc<Call>) {
    register_output(engine, call);
    register_commands(engine, call);
    held::register(engine, call);
    undo::register(engine, call);
    register_waiting(engine, call);
    register_declarations(engine, call);
    register_endings(engine);
    register_checked_replace(engine);
}

fn register_output(engine: &mut Engine, call: &Arc<Call>) {
    let said = |call: &Arc<Call>, text: &str| {
        let mut state = call.state.lock();
        let line = state.transcript.redact(text);
        tracing::info!(hook = %call.hook, "{}", log_line(&line));
        state.transcript.line(log_line(&line));
    };
    let with = call.clone();
    engine.register_fn("log", move |text: &str| said(&with, text));
    let with = call.clone();
    engine.on_print(move |text| said(&with, text));
    let with = call.clone();
    engine.on_debug(move |text, _, position| said(&with, &format!("{position:?}: {text}")));
    let with = call.clone();
    engine.on_progress(move |operations| {
        let looks_at = |every: u64| operations.is_multiple_of(every);
        let stop = looks_at(limits::OPERATIONS_PER_LOOK)
            .then(|| with.must_stop())
            .flatten();
        let too_much = || {
            looks_at(limits::OPERATIONS_PER_MEMORY_LOOK)
                .then(|| with.holds_too_much())
                .flatten()
        };
        stop.or_else(too_much).map(Dynamic::from)
    });
}

fn register_commands(engine: &mut Engine, call: &Arc<Call>) {
    let with = call.clone();
    engine.register_fn("run", move |at: NativeCallContext<'_>, program: &str| {
        run(&with, &at, program, Array::new(), Map::new())
    });
    let with = call.clone();
    engine.register_fn("run", move |at: NativeCallContext<'_>, program: &str, args: Array| {
        run(&with, &at, program, args, Map::new())
    });
    let with = call.clone();
    engine.register_fn(
        "run",
        move |at: NativeCallContext<'_>, program: &str, args: Array, options: Map| {
            run(&with, &at, program, args, options)
        },
    );
    let with = call.clone();
    engine.register_fn("secret", move |at: NativeCallContext<'_>, name: &str| {
        secret(&with, name).map_err(|stop| stop.at(&at))
    });
}

/// Runs a granted command to its end: `#{status, stdout, stderr, cut}`.
fn run(call: &Call, at: &NativeCallContext<'_>, program: &str, args: Array, options: Map) -> Outcome<Map> {
    let fail = |text: String| thrown(text, at);
    let arguments = words(args).map_err(&fail)?;
    let (input, own_timeout) = run_options(options).map_err(&fail)?;
    allowed(call, program, &arguments).map_err(|stop| stop.at(at))?;
    if let Some(stop) = call.must_stop() {
        return Err(stop.at(at));
    }
    call.state.lock().transcript.line(&shown(program, &arguments));
    let own_deadline = own_timeout.map(|timeout| Instant::now() + timeout);
    let command = Command {
        environment: call.environment.clone(),
        input,
        deadline: own_deadline.map_or(call.deadline, |own| own.min(call.deadline)),
        cancelled: Some(call.cancelled.clone()),
        guard: call.guard.clone(),
        ..Command::new(program, call.timeout)
    };
    let ended = process::run(&command.args(arguments));
    let mut state = call.state.lock();
    if let Some(output) = ended.as_ref().map_or_else(ProcessError::output, Some) {
        tell(&mut state.transcript, output);
    }
    match ended {
        Ok(output) => {
            if output.status != 0 {
                state.transcript.line(&format!("[status {}]", output.status));
            }
            Ok(as_map(&output))
        }
        Err(error @ ProcessError::TimedOut { .. }) => {
            if own_deadline.is_some_and(|own| own < call.deadline) {
                return Err(fail(error.to_string()));
            }
            Err(Stop {
                text: error.to_string(),
                ..call.timed_out()
            }
            .at(at))
        }
        Err(error @ (ProcessError::Cancelled { .. } | ProcessError::LeftBehind { .. })) => {
            Err(Stop::new(HookFailureKind::Failed, error.to_string()).at(at))
        }
        Err(error) => Err(fail(error.to_string())),
    }
}

/// Runs a command of ours to its end, as [`run`] does one of the script's. What it starts may go on running.
pub(super) fn run_words(call: &Call, at: &NativeCallContext<'_>, words: &[String]) -> Outcome<Output> {
    if let Some(stop) = call.must_stop() {
        return Err(stop.at(at));
    }
    let (program, rest) = words.split_first().expect("a command has a program");
    call.state.lock().transcript.line(&shown(program, rest));
    let command = Command {
        environment: call.environment.clone(),
        deadline: call.deadline,
        cancelled: Some(call.cancelled.clone()),
        guard: call.guard.clone(),
        leaves_daemons: true,
        ..Command::new(program, call.timeout)
    };
    match process::run(&command.args(rest)) {
        Ok(output) => {
            tell(&mut call.state.lock().transcript, &output);
            Ok(output)
        }
        Err(error @ ProcessError::TimedOut { .. }) => Err(Stop {
            text: error.to_string(),
            ..call.timed_out()
        }
        .at(at)),
        Err(error) => Err(Stop::new(HookFailureKind::Failed, error.to_string()).at(at)),
    }
}

/// What a script may catch.
pub(super) fn thrown(text: String, at: &NativeCallContext<'_>) -> Box<EvalAltResult> {
    EvalAltResult::ErrorRuntime(text.into(), at.call_position()).into()
}

/// Keeps what a command wrote.
pub(super) fn tell(transcript: &mut Transcript, output: &Output) {
    transcript.command_output(&output.stdout.bytes, output.stdout.is_cut());
    transcript.command_output(&output.stderr.bytes, output.stderr.is_cut());
}

/// What a script gets of a command that has ended.
pub(super) fn as_map(output: &Output) -> Map {
    let text = |bytes: &[u8]| Dynamic::from(String::from_utf8_lossy(bytes).into_owned());
    Map::from([
        ("status".into(), i64::from(output.status).into()),
        ("stdout".into(), text(&output.stdout.bytes)),
        ("stderr".into(), text(&output.stderr.bytes)),
        ("cut".into(), (output.stdout.is_cut() || output.stderr.is_cut()).into()),
    ])
}

pub(super) fn words(args: Array) -> Result<Vec<String>, String> {
    if args.len() > limits::ARGUMENTS {
        return Err(format!("a command takes at most {} arguments", limits::ARGUMENTS));
    }
    args.into_iter()
        .map(|arg| match arg.type_name() {
            "string" | "char" | "i64" => Ok(arg.to_string()),
            other => Err(format!(
                "an argument of a command is a text or a whole number, not {other}"
            )),
        })
        .collect()
}

fn run_options(options: Map) -> Result<(Vec<u8>, Option<Duration>), String> {
    let mut input = Vec::new();
    let mut timeout = None;
    for (name, value) in options {
        match name.as_str() {
            "input" => {
                input = value
                    .into_string()
                    .map_err(|found| format!("`input` is a text, not {found}"))?
                    .into_bytes();
                if input.len() > limits::INPUT_BYTES {
                    return Err(format!("`input` may have at most {} bytes", limits::INPUT_BYTES));
                }
            }
            "timeout_ms" => {
                timeout = Some(milliseconds(
                    value
                        .as_int()
                        .map_err(|found| format!("`timeout_ms` is a number, not {found}"))?,
                ))
            }
            other => {
                return Err(format!(
                    "`run` has no option `{other}`; there are `input` and `timeout_ms`"
                ));
            }
        }
    }
    Ok((input, timeout))
}

/// Whether the operator granted this command, and whether it says a secret where every user of the machine could read it.
pub(super) fn allowed(call: &Call, program: &str, arguments: &[String]) -> Result<(), Stop> {
    let state = call.state.lock();
    if !call.commands.iter().any(|pattern| pattern.covers(program, arguments)) {
        let command = state.transcript.redact(&shown_as_grant(program, arguments));
        return Err(Stop::new(
            HookFailureKind::Denied,
            format!("no grant allows the command {command}"),
        )
        .with_hint(format!(
            "allow it, or a pattern of it, in [hook.{}.grant]: process = [{command}]",
            call.hook
        )));
    }
    if let Some(name) = arguments
        .iter()
        .find_map(|argument| state.transcript.secret_in(argument))
    {
        let text = format!("the secret `{name}` may not be an argument: every user can see those in the process list");
        return Err(Stop::new(HookFailureKind::Denied, text)
            .with_hint("give it on standard input: run(program, args, #{ input: secret })"));
    }
    Ok(())
}

fn shown_as_grant(program: &str, arguments: &[String]) -> String {
    let words: Vec<_> = std::iter::once(program)
        .chain(arguments.iter().map(String::as_str))
        .collect();
    format!("{words:?}")
}

pub(super) fn shown(program: &str, arguments: &[String]) -> String {
    let plain = |text: &&str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_=./:,@%+".contains(&byte))
    };
    std::iter::once(program)
        .chain(arguments.iter().map(String::as_str))
        .fold("$".to_owned(), |line, word| {
            if plain(&word) {
                format!("{line} {word}")
            } else {
                format!("{line} {word:?}")
            }
        })
}

fn secret(call: &Call, name: &str) -> Result<ImmutableString, Stop> {
    if let Some(value) = call.state.lock().known_secrets.get(name) {
        return Ok(value.into());
    }
    let Some(source) = call.secrets.get(name) else {
        return Err(
            Stop::new(HookFailureKind::Denied, format!("no grant allows the secret `{name}`")).with_hint(format!(
                "allow it in [hook.{}.grant]: secret = {{ {name} = {{ file = \"/etc/coffre/{name}\" }} }}",
                call.hook
            )),
        );
    };
    let guard = call.guard.clone();
    let value = secrets::resolve(name, source, call.deadline, &call.cancelled, guard).map_err(|failure| Stop {
        hint: failure.hint,
        ..Stop::new(failure.kind, failure.text)
    })?;
    let mut state = call.state.lock();
    state.transcript.hide(name, &value);
    state.known_secrets.insert(name.to_owned(), value.clone());
    Ok(value.into())
}

pub(super) fn milliseconds(number: i64) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or(0))
}

fn register_waiting(engine: &mut Engine, call: &Arc<Call>) {
    let with = call.clone();
    engine.register_fn("sleep", move |at: NativeCallContext<'_>, ms: i64| -> Outcome<()> {
        with.pause(milliseconds(ms)).map_err(|stop| stop.at(&at))
    });
    // Rhai's own counts seconds and would sleep past the deadline.
    engine.register_fn("sleep", |at: NativeCallContext<'_>, _: f64| -> Outcome<()> {
        let text = "sleep takes whole milliseconds: sleep(500)";
        Err(EvalAltResult::ErrorRuntime(text.into(), at.call_position()).into())
    });
    let with = call.clone();
    engine.register_fn(
        "wait_until",
        move |at: NativeCallContext<'_>, is_so: FnPtr, ms: i64| -> Outcome<bool> {
            let until = Instant::now() + milliseconds(ms).min(with.timeout);
            let mut pause = limits::FIRST_WAIT;
            loop {
                if is_so.call_within_context::<bool>(&at, ())? {
                    return Ok(true);
                }
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(false);
                }
                with.pause(pause.min(left)).map_err(|stop| stop.at(&at))?;
                pause = (pause * 2).min(limits::LONGEST_WAIT);
            }
        },
    );
}

fn register_declarations(engine: &mut Engine, call: &Arc<Call>) {
    let with = call.clone();
    engine.register_fn(
        "application_consistent",
        move |at: NativeCallContext<'_>| -> Outcome<()> {
            only_in(&with, &at, "application_consistent", Phase::Pre)?;
            with.state.lock().application_consistent = true;
            Ok(())
        },
    );
    let with = call.clone();
    engine.register_fn("attach", move |at: NativeCallContext<'_>, name: &str, text: &str| {
        attach(&with, &at, name, text)
    });
    for (name, level) in [
        ("note", FindingLevel::Note),
        ("warning", FindingLevel::Warning),
        ("blocking", FindingLevel::Blocking),
    ] {
        let with = call.clone();
        engine.register_fn(name, move |at: NativeCallContext<'_>, text: &str| -> Outcome<()> {
            only_in(&with, &at, name, Phase::Check)?;
            let mut state = with.state.lock();
            if state.findings.len() >= limits::FINDINGS {
                let text = format!("a check may have at most {} findings", limits::FINDINGS);
                return Err(Stop::new(HookFailureKind::Limit, text).at(&at));
            }
            let text = log_line(&state.transcript.redact(text)).to_owned();
            state.findings.push(Finding {
                level,
                disk: None,
                text,
            });
            Ok(())
        });
    }
}

fn attach(call: &Call, at: &NativeCallContext<'_>, name: &str, text: &str) -> Outcome<()> {
    only_in(call, at, "attach", Phase::Post)?;
    let mut state = call.state.lock();
    let stop = if !is_attachment_name(name) {
        Stop::new(
            HookFailureKind::Failed,
            format!("{name:?} cannot be the name of an attachment"),
        )
        .with_hint("a name is like that of a file: no `/`, no `.` in front")
    } else if state.attachments.iter().any(|attachment| attachment.name == name) {
        Stop::new(
            HookFailureKind::Failed,
            format!("there is an attachment {name:?} already"),
        )
    } else if state.attachments.len() >= limits::ATTACHMENTS {
        let text = format!("a hook may attach at most {} texts", limits::ATTACHMENTS);
        Stop::new(HookFailureKind::Limit, text)
    } else if let Some(secret) = state.transcript.secret_in(text) {
        Stop::new(
            HookFailureKind::Denied,
            format!("the attachment {name:?} holds the secret `{secret}`"),
        )
        .with_hint("whoever restores the point could read it")
    } else {
        state.attachments.push(Attachment {
            name: name.to_owned(),
            media_type: "text/plain; charset=utf-8".to_owned(),
            content: text.as_bytes().to_vec(),
        });
        return Ok(());
    };
    Err(stop.at(at))
}

pub(super) fn only_in(call: &Call, at: &NativeCallContext<'_>, function: &str, phase: Phase) -> Outcome<()> {
    if call.phase == phase {
        return Ok(());
    }
    let text = format!(
        "{function} belongs in `fn {}`, not in `{}`",
        phase.as_str(),
        call.phase.as_str()
    );
    Err(Stop::new(HookFailureKind::Failed, text).at(at))
}

fn register_endings(engine: &mut Engine) {
    engine.register_fn("fail", |at: NativeCallContext<'_>, text: &str| -> Outcome<()> {
        Err(Stop::new(HookFailureKind::Failed, text).at(&at))
    });
    engine.register_fn("try_again", |at: NativeCallContext<'_>, text: &str| -> Outcome<()> {
        Err(Stop::new(HookFailureKind::TryAgain, text).at(&at))
    });
}

/// Rhai's own `replace` looks at the limit when the memory is already taken, and two texts within the limit can make one
/// of its square.
fn register_checked_replace(engine: &mut Engine) {
    fn replace(at: &NativeCallContext<'_>, text: &mut ImmutableString, old: &str, new: &str) -> Outcome<()> {
        let times = text.matches(old).count();
        if (text.len() - times * old.len()).saturating_add(times.saturating_mul(new.len())) > limits::STRING_BYTES {
            return Err(EvalAltResult::ErrorDataTooLarge("Length of string".to_owned(), at.call_position()).into());
        }
        *text = text.replace(old, new).into();
        Ok(())
    }
    engine.register_fn(
        "replace",
        |at: NativeCallContext<'_>, text: &mut ImmutableString, old: &str, new: &str| replace(&at, text, old, new),
    );
    engine.register_fn(
        "replace",
        |at: NativeCallContext<'_>, text: &mut ImmutableString, old: char, new: &str| {
            replace(&at, text, old.encode_utf8(&mut [0; 4]), new)
        },
    );
}
