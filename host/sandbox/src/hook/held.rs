//! Sessions that stay open from `pre` to `post`: `hold`, `held`, and what a script can do with one.
//!
//! A database lets a lock go when the session that took it ends, so the session has to stay. It belongs to the job that
//! opened it: a good `pre` leaves it (see `left`), `post` finds it there, and it is gone when `post` returns. Whatever
//! fails instead (another attempt of `pre`, a script that is ended, a job that nobody waits for) ends it too, and so does
//! the end of the hold. After a crash there is none: the database has seen its client go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coffre_engine::HookFailureKind;
use rhai::{Array, Dynamic, Engine, Map, NativeCallContext};

use super::api::{Outcome, allowed, milliseconds, only_in, shown, thrown, words};
use super::call::{Call, Phase, Stop};
use super::limits;
use crate::process::{Command, Output, ProcessError, Session, SessionError};

/// What a script has open, by name, in the order in which it was opened.
#[derive(Default)]
pub(super) struct Sessions(Vec<Held>);

/// How one of them ended.
pub(super) struct EndOf {
    pub name: String,
    pub outcome: Result<Output, ProcessError>,
}

impl Sessions {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn find(&self, name: &str) -> Option<&Held> {
        self.0.iter().find(|held| held.name == name)
    }

    /// The first that has ended although nobody closed it, and why.
    pub(super) fn lost(&self) -> Option<(String, String)> {
        let lost = |held: &Held| Some((held.name.clone(), held.session.why_ended()?));
        self.0.iter().filter(|held| !held.session.is_closed()).find_map(lost)
    }

    /// Ends those that the script has not closed, the last one first, and waits for that.
    pub(super) fn end_all(self) -> Vec<EndOf> {
        let open = self.0.into_iter().rev().filter(|held| !held.session.is_closed());
        open.map(|held| EndOf {
            outcome: held.session.end(Instant::now() + limits::SESSION_END),
            name: held.name,
        })
        .collect()
    }
}

/// One open session, as scripts have it.
#[derive(Clone)]
pub(super) struct Held {
    name: String,
    session: Arc<Session>,
}

/// Gives the engine what a script can do with sessions.
pub(super) fn register(engine: &mut Engine, call: &Arc<Call>) {
    let with = call.clone();
    engine.register_fn(
        "hold",
        move |at: NativeCallContext<'_>, name: &str, program: &str, args: Array| {
            hold(&with, &at, name, program, args, Map::new())
        },
    );
    let with = call.clone();
    engine.register_fn(
        "hold",
        move |at: NativeCallContext<'_>, name: &str, program: &str, args: Array, options: Map| {
            hold(&with, &at, name, program, args, options)
        },
    );
    let with = call.clone();
    engine.register_fn("held", move |name: &str| {
        let state = with.state.lock();
        let found = state.left.sessions.find(name).cloned();
        found.map_or(Dynamic::UNIT, Dynamic::from)
    });
    engine.register_type_with_name::<Held>("session");
    engine.register_get("name", |held: &mut Held| held.name.clone());
    engine.register_get("alive", |held: &mut Held| held.session.is_alive());
    let with = call.clone();
    engine.register_fn("send", move |at: NativeCallContext<'_>, held: &mut Held, text: &str| {
        send(&with, &at, held, text)
    });
    let with = call.clone();
    engine.register_fn(
        "read_until",
        move |at: NativeCallContext<'_>, held: &mut Held, wanted: &str, ms: i64| {
            read_until(&with, &at, held, wanted, milliseconds(ms))
        },
    );
    let with = call.clone();
    engine.register_fn("close", move |at: NativeCallContext<'_>, held: &mut Held| {
        close(&with, &at, held)
    });
}

fn hold(
    call: &Call,
    at: &NativeCallContext<'_>,
    name: &str,
    program: &str,
    args: Array,
    options: Map,
) -> Outcome<Held> {
    only_in(call, at, "hold", Phase::Pre)?;
    let arguments = words(args).map_err(|text| thrown(text, at))?;
    let input = input(options).map_err(|text| thrown(text, at))?;
    allowed(call, program, &arguments).map_err(|stop| stop.at(at))?;
    if let Some(stop) = call.must_stop() {
        return Err(stop.at(at));
    }
    {
        let mut state = call.state.lock();
        if state.left.sessions.find(name).is_some() {
            return Err(thrown(format!("a session `{name}` is held already"), at));
        }
        if state.left.sessions.0.len() >= limits::SESSIONS {
            let text = format!("a hook may hold at most {} sessions", limits::SESSIONS);
            return Err(Stop::new(HookFailureKind::Limit, text).at(at));
        }
        let line = format!("{name}: {}", shown(program, &arguments));
        state.transcript.line(&line);
    }
    let command = Command {
        environment: call.environment.clone(),
        input,
        deadline: call.hold_until,
        guard: call.guard.clone(),
        ..Command::new(program, call.timeout)
    };
    let session = Session::start(&command.args(arguments)).map_err(|error| thrown(error.to_string(), at))?;
    let held = Held {
        name: name.to_owned(),
        session: Arc::new(session),
    };
    call.state.lock().left.sessions.0.push(held.clone());
    Ok(held)
}

fn input(options: Map) -> Result<Vec<u8>, String> {
    let mut input = Vec::new();
    for (name, value) in options {
        if name != "input" {
            return Err(format!("`hold` has no option `{name}`; there is `input`"));
        }
        input = value
            .into_string()
            .map_err(|found| format!("`input` is a text, not {found}"))?
            .into_bytes();
    }
    if input.len() > limits::INPUT_BYTES {
        return Err(format!("`input` may have at most {} bytes", limits::INPUT_BYTES));
    }
    Ok(input)
}

fn said_by(held: &Held, error: &SessionError) -> String {
    format!("the session `{}`: {error}", held.name)
}

fn send(call: &Call, at: &NativeCallContext<'_>, held: &Held, text: &str) -> Outcome<()> {
    let mut state = call.state.lock();
    state.transcript.line(&format!("{}> {}", held.name, text.trim_end()));
    drop(state);
    let sent = held.session.send(text.as_bytes());
    sent.map_err(|error| thrown(said_by(held, &error), at))
}

fn read_until(
    call: &Call,
    at: &NativeCallContext<'_>,
    held: &Held,
    wanted: &str,
    how_long: Duration,
) -> Outcome<String> {
    let own = Instant::now() + how_long.min(call.timeout);
    loop {
        if let Some(stop) = call.must_stop() {
            return Err(stop.at(at));
        }
        // Cut into steps, so that a cancelled job does not wait for it.
        let step = Instant::now() + limits::SLEEP_STEP;
        match held.session.read_until(wanted, step.min(own).min(call.deadline)) {
            Ok(said) => {
                let mut state = call.state.lock();
                state.transcript.command_output(said.as_bytes(), false);
                return Ok(said);
            }
            Err(SessionError::NotSaid { .. }) if Instant::now() < own => {}
            Err(error) => {
                return Err(thrown(said_by(held, &of_the_whole_wait(error, how_long)), at));
            }
        }
    }
}

/// An error that came after several steps tells of the whole wait.
fn of_the_whole_wait(error: SessionError, how_long: Duration) -> SessionError {
    match error {
        SessionError::NotSaid { wanted, said, .. } => SessionError::NotSaid {
            wanted,
            waited_ms: how_long.as_millis(),
            said,
        },
        other => other,
    }
}

/// Closes its input and waits for its end: `#{status, stdout, stderr, cut}`, as `run` gives.
fn close(call: &Call, at: &NativeCallContext<'_>, held: &Held) -> Outcome<Map> {
    let outcome = held
        .session
        .end(call.deadline.min(Instant::now() + limits::SESSION_END));
    let mut state = call.state.lock();
    state.left.sessions.0.retain(|other| other.name != held.name);
    match outcome {
        Ok(output) => {
            super::api::tell(&mut state.transcript, &output);
            Ok(super::api::as_map(&output))
        }
        Err(error @ ProcessError::LeftBehind { .. }) => {
            Err(Stop::new(HookFailureKind::Failed, error.to_string()).at(at))
        }
        Err(error) => {
            if let Some(output) = error.output() {
                super::api::tell(&mut state.transcript, output);
            }
            Err(thrown(format!("the session `{}`: {error}", held.name), at))
        }
    }
}
