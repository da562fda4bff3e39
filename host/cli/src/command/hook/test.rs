//! `coffre hook test`: hooks around a snapshot, without a backup, in good weather or with a fault.
//!
//! Around a pretended snapshot nothing but the hooks themselves is touched: see `rehearsals`. With `--snapshot real` it is a
//! job of the machine.

mod told;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use coffre_engine::config::{Config, MachineConfig};
use coffre_engine::job::{self, JobDeps, Rehearsal};
use coffre_engine::journal::JobRecord;
use coffre_engine::progress::{Cancel, Progress};
use coffre_engine::rehearsal::{Fault, FaultyHook, FaultyProvider};
use coffre_engine::state::State;
use coffre_engine::{HookRunner, OpenGate, SnapshotProvider};
use coffre_guard::Guard;
use coffre_vault::Vault;

use super::{lose, machine};
use crate::args::{Global, SnapshotKind, TestHookArgs};
use crate::exit::{Complaint, Exit};
use crate::machine::Parts;
use crate::output::Output;
use crate::rehearsals::{self, Pretended};
use crate::{left_behind, plugins, stop, wire};

pub async fn run(args: &TestHookArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    args.hooks.iter().try_for_each(|hook| config.hook(hook).map(drop))?;
    let machine = machine(&config, &args.hooks, args.machine.as_deref())?.clone();
    let hooks = match args.hooks.as_slice() {
        [] => machine.hooks.clone(),
        some => some.to_vec(),
    };
    if hooks.is_empty() {
        let hint = format!("add `hooks = [\"NAME\"]` to [machine.{}], or name a hook", machine.name);
        return Err(Complaint::usage(format!("{} has no hooks", machine.name), hint).into());
    }
    let test = Test {
        args,
        machine,
        hooks,
        guard: wire::guard(&config),
        config,
        not_lost: Arc::default(),
    };
    left_behind::settle_and_say(&test.config, &test.guard);
    if args.fault == Some(Fault::KillHost) && !args.die_while_held {
        return test.killed(global, output).await;
    }
    let place = test.place().await?;
    let deps = test.deps(&place).await?;
    test.begin(output)?;
    let rehearsal = test.rehearse(&deps).await?;
    test.tell(rehearsal, Vec::new(), output)
}

struct Test<'a> {
    args: &'a TestHookArgs,
    config: Config,
    machine: MachineConfig,
    hooks: Vec<String>,
    guard: Guard,
    /// There was nothing to lose for the fault lose-session.
    not_lost: Arc<AtomicBool>,
}

/// Where the job is written down, and what is held while it runs.
enum Place {
    Pretended(Box<Pretended>),
    Real { config: Arc<Config>, vault: Vault },
}

impl Test<'_> {
    fn is_real(&self) -> bool {
        self.args.snapshot == SnapshotKind::Real
    }

    /// Where the job's journal lies.
    fn state(&self) -> State {
        if self.is_real() {
            State::new(&self.config.coffre.state)
        } else {
            rehearsals::state(&self.config)
        }
    }

    async fn place(&self) -> anyhow::Result<Place> {
        let name = &self.machine.name;
        if !self.is_real() {
            let pretended = Pretended::new(&self.config, name, &self.hooks, "hooks are tried").await?;
            return Ok(Place::Pretended(Box::new(pretended)));
        }
        let mut config = self.config.clone();
        if let Some(machine) = config.machines.get_mut(name) {
            machine.hooks.clone_from(&self.hooks);
        }
        let vault = wire::open_vault(&config, &self.machine.vault).await?.vault;
        let config = Arc::new(config);
        Ok(Place::Real { config, vault })
    }

    async fn deps(&self, place: &Place) -> anyhow::Result<JobDeps> {
        let deps = match place {
            Place::Pretended(pretended) => pretended.deps(&self.machine, &self.guard, self.args.takes)?,
            Place::Real { config, vault } => {
                let catalog = plugins::catalog(config, &self.guard)?;
                let machine = config.machine(&self.machine.name)?;
                let parts = Parts::load(config, &catalog, &self.guard, machine).await?;
                parts.into_deps(
                    config.clone(),
                    vault.clone(),
                    Progress::new(),
                    Cancel::new(),
                    Arc::new(OpenGate::default()),
                )
            }
        };
        Ok(JobDeps {
            provider: self.faulty_provider(deps.provider),
            hooks: self.faulty(deps.hooks),
            ..deps
        })
    }

    /// The first hook is the one that misbehaves.
    fn faulty(&self, hooks: Vec<Arc<dyn HookRunner>>) -> Vec<Arc<dyn HookRunner>> {
        let misbehaves = |hook: &Arc<dyn HookRunner>| Some(hook.name()) == self.hooks.first().map(String::as_str);
        let with_fault = |hook: Arc<dyn HookRunner>| match self.args.fault {
            Some(fault) if misbehaves(&hook) => Arc::new(FaultyHook { hook, fault }) as _,
            _ => hook,
        };
        hooks.into_iter().map(with_fault).collect()
    }

    fn faulty_provider(&self, provider: Arc<dyn SnapshotProvider>) -> Arc<dyn SnapshotProvider> {
        let in_take: Box<dyn Fn() -> Result<(), String> + Send + Sync> = match self.args.fault {
            Some(fault @ Fault::FailSnapshot) => Box::new(move || Err(fault.text())),
            Some(Fault::KillHost) => Box::new(|| {
                let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                Err(format!("the program was to kill itself: {killed:?}"))
            }),
            Some(Fault::LoseSession) => {
                let hook = self.hooks.first().cloned().unwrap_or_default();
                let not_lost = self.not_lost.clone();
                Box::new(move || lose::session_of(&hook).inspect_err(|_| not_lost.store(true, Ordering::SeqCst)))
            }
            _ => return provider,
        };
        Arc::new(FaultyProvider { provider, in_take })
    }

    async fn rehearse(&self, deps: &JobDeps) -> anyhow::Result<Rehearsal> {
        let rehearsing = job::rehearse(deps, &self.machine.name);
        tokio::pin!(rehearsing);
        // Asked to stop, it lets everybody go first.
        loop {
            tokio::select! {
                rehearsal = &mut rehearsing => return Ok(rehearsal?),
                asked = stop::asked(), if !deps.cancel.is_cancelled() => {
                    asked?;
                    deps.cancel.cancel();
                }
            }
        }
    }

    /// Starts the same test as a program of its own, which is killed while everything is held, then starts anew.
    async fn killed(&self, global: &Global, output: &Output) -> anyhow::Result<Exit> {
        self.begin(output)?;
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command
            .arg("--config")
            .arg(&self.config.file)
            .args(["--quiet", "hook", "test"]);
        command.args(&self.hooks).args(["--machine", &self.machine.name]);
        command.args(["--fault", "kill-host", "--die-while-held"]);
        if self.is_real() {
            command.args(["--snapshot", "real"]);
        }
        if let Some(log) = (global.verbose > 0).then_some("-v") {
            command.arg(log);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let state = self.state();
        let before: BTreeSet<String> = (JobRecord::all(&state, &self.machine.name)?.into_iter())
            .map(|job| job.id)
            .collect();
        let ended = tokio::task::spawn_blocking(move || command.status()).await??;
        let jobs = JobRecord::all(&state, &self.machine.name)?;
        let died = (jobs.iter()).find(|job| !before.contains(&job.id) && job.ended().is_none());
        let Some(died) = died else {
            // It has said so.
            if ended.code() == Some(i32::from(Exit::TryAgain.code())) {
                return Ok(Exit::TryAgain);
            }
            let text = format!("the program that was to be killed ended by itself ({ended})");
            let hint = "the same without --fault says what is wrong with the hooks";
            return Err(Complaint::failed(text, hint).into());
        };
        // The start after the crash.
        let left = left_behind::settle_and_tell(&self.config, &self.guard);
        let place = self.place().await?;
        let deps = self.deps(&place).await?;
        let paid = job::pay(&deps, &self.machine.name).await;
        let record = JobRecord::read(&state, &self.machine.name, &died.id)?;
        let all_paid = paid.is_ok() && left.settled.iter().all(|settled| settled.is_well());
        let result = Err(paid.err().unwrap_or(job::JobError::Died));
        let mut rehearsal = Rehearsal::of(&record, result, false);
        rehearsal.all_let_go &= all_paid;
        self.tell(rehearsal, left.settled, output)
    }
}
