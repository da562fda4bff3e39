//! What `pre` does to the system and `post` undoes: file systems frozen, services stopped, commands owed.
//!
//! Each is entrusted to the guard before it is done, so that it is undone when the hold is over or this process is gone,
//! whatever else happens. It belongs to the job, like a session (see `held`): what `post` does not undo is undone when it
//! returns, and what an attempt of `pre` has done is undone when it fails. Where the guard had to do it, the call says so by
//! failing, and the point is marked down.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coffre_engine::freeze::FrozenMounts;
use coffre_engine::{Chain, HookFailureKind, HookFreeze};
use coffre_guard::{Debt, FreezeEnd, Guard, Outcome as Paid, Owed, Owner, Settled, Thawed};
use rhai::{Array, Engine, Map, NativeCallContext};

use super::api::{Outcome, allowed, only_in, run_words, thrown, words};
use super::call::{Call, Phase, Stop};
use crate::process::{self, Command};

/// How long what is undone after the script may take: a service that starts.
const UNDO_WITHIN: Duration = Duration::from_secs(60);

/// What a job has done and not yet undone, in the order in which it was done.
#[derive(Default)]
pub(super) struct Undone(Vec<One>);

enum One {
    Frozen {
        frozen: Box<dyn FrozenMounts>,
        mounts: Vec<PathBuf>,
        since: Instant,
    },
    /// Stopped, and what starts it.
    Service {
        name: String,
        start: Vec<String>,
        owed: Owed,
    },
    /// To be run only if `post` does not come to its end. Owed to nobody where a hook is tried without a guard.
    Command { words: Vec<String>, owed: Option<Owed> },
}

impl Undone {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is frozen still.
    pub(super) fn frozen(&self) -> Vec<HookFreeze> {
        let held = self.0.iter().filter_map(|one| match one {
            One::Frozen { frozen, mounts, since } if frozen.holds() => Some((mounts, *since)),
            _ => None,
        });
        held.flat_map(|(mounts, since)| mounts.iter().cloned().map(move |mount| HookFreeze { mount, since }))
            .collect()
    }

    /// Undoes what the script has not, last first; what went wrong with that. `all_is_well`: the script came to its end, so
    /// commands that it owed for another case need not run.
    pub(super) fn undo_all(self, all_is_well: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        for one in self.0.into_iter().rev() {
            let outcome = match one {
                One::Frozen { frozen, .. } => told(&frozen.thaw()),
                One::Service { name, start, owed } => {
                    let started = succeed(&start);
                    started.and_then(|()| paid(owed, &format!("start {name}")))
                }
                One::Command { owed, .. } if all_is_well => {
                    owed.map(|owed| owed.paid(Paid::Nothing));
                    Ok(())
                }
                // One that fails stays owed: the guard tries it.
                One::Command { words, owed } => succeed(&words)
                    .and_then(|()| owed.map_or(Ok(()), |owed| paid(owed, &format!("run {}", words.join(" "))))),
            };
            wrong.extend(outcome.err());
        }
        wrong
    }
}

/// Runs a command that undoes something.
fn succeed(words: &[String]) -> Result<(), String> {
    let (program, rest) = words.split_first().ok_or("an empty command")?;
    let command = Command {
        leaves_daemons: true,
        ..Command::new(program, UNDO_WITHIN).args(rest)
    };
    let output = process::run(&command).map_err(|error| error.to_string())?;
    if output.status != 0 {
        return Err(format!(
            "{}: status {}: {}",
            words.join(" "),
            output.status,
            output.stderr.text().trim()
        ));
    }
    Ok(())
}

/// Takes a debt back, and fails if somebody else had to pay it.
fn paid(owed: Owed, what: &str) -> Result<(), String> {
    match owed.paid(Paid::Ran { status: 0 }) {
        Settled::ByHost => Ok(()),
        Settled::ByGuard => Err(format!("the guard had to {what}, since the hold was over")),
        Settled::GuardGone => Err(format!("it was time to {what} at once, since the guard was gone")),
    }
}

/// Whether a freeze held until it was thawed.
fn told(thawed: &Thawed) -> Result<(), String> {
    let ended = thawed.mounts.iter().filter_map(|mount| {
        let why = match &mount.end {
            FreezeEnd::Held => return None,
            FreezeEnd::ByGuard => "the guard had thawed it, since the hold was over",
            FreezeEnd::GuardGone => "it was thawed at once, since the guard was gone",
            FreezeEnd::ByOthers => "somebody else had thawed it",
            FreezeEnd::NotThawed(why) => return Some(format!("{} CANNOT BE THAWED: {why}", mount.mount.display())),
        };
        Some(format!("{}: {why}", mount.mount.display()))
    });
    let ended: Vec<_> = ended.collect();
    if ended.is_empty() {
        Ok(())
    } else {
        Err(ended.join("; "))
    }
}

/// Gives the engine what a script can do to the system.
pub(super) fn register(engine: &mut Engine, call: &Arc<Call>) {
    let with = call.clone();
    engine.register_fn("freeze", move |at: NativeCallContext<'_>, mount: &str| {
        freeze(&with, &at, vec![mount.to_owned()], Map::new())
    });
    let with = call.clone();
    engine.register_fn("freeze", move |at: NativeCallContext<'_>, mounts: Array| {
        let mounts = words(mounts).map_err(|text| thrown(text, &at))?;
        freeze(&with, &at, mounts, Map::new())
    });
    let with = call.clone();
    engine.register_fn(
        "freeze",
        move |at: NativeCallContext<'_>, mounts: Array, options: Map| {
            let mounts = words(mounts).map_err(|text| thrown(text, &at))?;
            freeze(&with, &at, mounts, options)
        },
    );
    let with = call.clone();
    engine.register_fn("thaw", move |at: NativeCallContext<'_>| thaw(&with, &at));
    let with = call.clone();
    engine.register_fn("service_stop", move |at: NativeCallContext<'_>, name: &str| {
        service_stop(&with, &at, name)
    });
    let with = call.clone();
    engine.register_fn("service_start", move |at: NativeCallContext<'_>, name: &str| {
        service_start(&with, &at, name)
    });
    let with = call.clone();
    engine.register_fn("debt", move |at: NativeCallContext<'_>, program: &str, args: Array| {
        debt(&with, &at, program, args)
    });
}

/// To whom something is owed, which exists only around a snapshot.
fn guard<'a>(call: &'a Call, at: &NativeCallContext<'_>, function: &str) -> Outcome<&'a (Guard, Owner)> {
    call.guard.as_ref().ok_or_else(|| {
        let text = format!("{function} needs the guard, and there is none here");
        Stop::new(HookFailureKind::Failed, text).at(at)
    })
}

fn denied(call: &Call, at: &NativeCallContext<'_>, grant: &str, what: &str, wanted: &str) -> Box<rhai::EvalAltResult> {
    Stop::new(HookFailureKind::Denied, format!("no grant allows {what} {wanted}"))
        .with_hint(format!(
            "allow it in [hook.{}.grant]: {grant} = [{wanted:?}]",
            call.hook
        ))
        .at(at)
}

/// Freezes file systems by mount point until `thaw`, or the end of the hold.
fn freeze(call: &Call, at: &NativeCallContext<'_>, mounts: Vec<String>, options: Map) -> Outcome<()> {
    only_in(call, at, "freeze", Phase::Pre)?;
    let mut skip = Vec::new();
    for (name, value) in options {
        if name != "skip" {
            return Err(thrown(format!("`freeze` has no option `{name}`; there is `skip`"), at));
        }
        let list = value
            .into_array()
            .map_err(|_| thrown("`skip` is a list".to_owned(), at))?;
        skip = words(list).map_err(|text| thrown(text, at))?;
    }
    let mounts: Vec<PathBuf> = mounts
        .into_iter()
        .filter(|mount| !skip.contains(mount))
        .map(PathBuf::from)
        .collect();
    for mount in &mounts {
        if !call.freezable.iter().any(|granted| Path::new(granted) == mount) {
            return Err(denied(call, at, "freeze", "freezing", &mount.display().to_string()));
        }
    }
    let (_, owner) = guard(call, at, "freeze")?;
    let Some(freezer) = &call.freezer else {
        return Err(Stop::new(HookFailureKind::Failed, "nothing can be frozen here").at(at));
    };
    let names: Vec<_> = mounts.iter().map(|mount| mount.display().to_string()).collect();
    call.state
        .lock()
        .transcript
        .line(&format!("freeze {}", names.join(" ")));
    let since = Instant::now();
    let frozen = freezer.freeze(owner, &mounts, call.hold_until).map_err(|error| {
        let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        thrown(format!("{}{hint}", Chain(&error)), at)
    })?;
    call.state
        .lock()
        .left
        .undone
        .0
        .push(One::Frozen { frozen, mounts, since });
    Ok(())
}

/// Thaws all that `freeze` has frozen, last first. Throws if something was thawed before.
fn thaw(call: &Call, at: &NativeCallContext<'_>) -> Outcome<()> {
    let frozen = {
        let mut state = call.state.lock();
        let (frozen, others): (Vec<_>, Vec<_>) = std::mem::take(&mut state.left.undone.0)
            .into_iter()
            .partition(|one| matches!(one, One::Frozen { .. }));
        state.left.undone.0 = others;
        Undone(frozen)
    };
    if frozen.is_empty() {
        return Ok(());
    }
    let wrong = frozen.undo_all(true);
    let mut state = call.state.lock();
    state.transcript.line("thaw");
    if wrong.is_empty() {
        return Ok(());
    }
    let wrong = wrong.join("; ");
    state.thawed_early.get_or_insert_with(|| wrong.clone());
    Err(thrown(wrong, at))
}

/// Stops a service if it runs; whether it did. That it is to be started again is owed before.
fn service_stop(call: &Call, at: &NativeCallContext<'_>, name: &str) -> Outcome<bool> {
    only_in(call, at, "service_stop", Phase::Pre)?;
    granted_service(call, at, name)?;
    let (guard, owner) = guard(call, at, "service_stop")?;
    let services = &call.services;
    if run_words(call, at, &services.words("is-active", name))?.status != 0 {
        return Ok(false);
    }
    let start = services.words("start", name);
    let debt = Debt::Command {
        arguments: start.clone(),
        environment: Vec::new(),
        timeout_ms: UNDO_WITHIN.as_millis() as u64,
    };
    let owed = guard.owe(owner, &debt, call.hold_until);
    let owed = owed.map_err(|error| thrown(format!("{} is not stopped: {}", name, Chain(&error)), at))?;
    call.state.lock().left.undone.0.push(One::Service {
        name: name.to_owned(),
        start,
        owed,
    });
    let stopped = run_words(call, at, &services.words("stop", name))?;
    if stopped.status != 0 {
        return Err(thrown(format!("stop {name}: {}", stopped.stderr.text().trim()), at));
    }
    Ok(true)
}

/// Starts a service that `service_stop` has stopped; whether there was one. After a crash the guard has started it.
fn service_start(call: &Call, at: &NativeCallContext<'_>, name: &str) -> Outcome<bool> {
    granted_service(call, at, name)?;
    let taken = {
        let mut state = call.state.lock();
        let is_it = |one: &One| matches!(one, One::Service { name: of, .. } if of == name);
        let at = state.left.undone.0.iter().position(is_it);
        at.map(|at| state.left.undone.0.remove(at))
    };
    let Some(One::Service { start, owed, .. }) = taken else {
        return Ok(false);
    };
    let started = run_words(call, at, &start)?;
    if started.status != 0 {
        // It stays owed, so the guard tries it too.
        drop(owed);
        return Err(thrown(format!("start {name}: {}", started.stderr.text().trim()), at));
    }
    paid(owed, &format!("start {name}")).map_err(|text| thrown(text, at))?;
    Ok(true)
}

fn granted_service(call: &Call, at: &NativeCallContext<'_>, name: &str) -> Outcome<()> {
    if name.starts_with('-') || !call.granted_services.iter().any(|granted| granted == name) {
        return Err(denied(call, at, "service", "stopping", name));
    }
    Ok(())
}

/// Owes a command: the guard runs it if this process is gone, or if `post` does not come to its end.
fn debt(call: &Call, at: &NativeCallContext<'_>, program: &str, args: Array) -> Outcome<()> {
    only_in(call, at, "debt", Phase::Pre)?;
    let arguments = words(args).map_err(|text| thrown(text, at))?;
    allowed(call, program, &arguments).map_err(|stop| stop.at(at))?;
    let words: Vec<String> = std::iter::once(program.to_owned()).chain(arguments).collect();
    let debt = Debt::Command {
        arguments: words.clone(),
        environment: call.environment.clone(),
        timeout_ms: UNDO_WITHIN.as_millis() as u64,
    };
    let owed = call
        .guard
        .as_ref()
        .map(|(guard, owner)| guard.owe(owner, &debt, call.hold_until));
    let owed = owed
        .transpose()
        .map_err(|error| thrown(Chain(&error).to_string(), at))?;
    let mut state = call.state.lock();
    state.transcript.line(&format!("owed: {}", words.join(" ")));
    state.left.undone.0.push(One::Command { words, owed });
    Ok(())
}

/// What starts and stops services on this host.
#[derive(Clone, Debug)]
pub struct Services {
    pub program: PathBuf,
    pub is_systemd: bool,
}

impl Services {
    /// systemd where it runs (sd_booted(3)), else init scripts.
    pub fn here() -> Self {
        let is_systemd = Path::new("/run/systemd/system").is_dir();
        let program = if is_systemd {
            "/usr/bin/systemctl"
        } else {
            "/usr/sbin/service"
        };
        Self {
            program: program.into(),
            is_systemd,
        }
    }

    fn words(&self, act: &str, name: &str) -> Vec<String> {
        let program = self.program.display().to_string();
        let rest: &[&str] = match (self.is_systemd, act) {
            (true, "is-active") => &["is-active", "--quiet", name],
            (true, act) => &[act, name],
            (false, "is-active") => &[name, "status"],
            (false, act) => &[name, act],
        };
        std::iter::once(program)
            .chain(rest.iter().map(|word| (*word).to_owned()))
            .collect()
    }
}
