//! `coffre hook test`: hooks around a snapshot, without a backup, in good weather or with a fault.
//!
//! Around a pretended snapshot nothing but the hooks themselves is touched: the job's journal lies in a folder of its own
//! below the state folder, and the vault it is given lies in memory. With `--snapshot real` it is a job of the machine.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use coffre_engine::config::{Config, MachineConfig};
use coffre_engine::freeze::GuardedFreezer;
use coffre_engine::job::{self, JobDeps, JobErrorKind, Rehearsal};
use coffre_engine::journal::JobRecord;
use coffre_engine::progress::{Cancel, Progress};
use coffre_engine::rehearsal::{Fault, FaultyHook, FaultyProvider, PretendedProvider, Timeline};
use coffre_engine::state::{MachineLock, State};
use coffre_engine::{Consistency, DiskId, HookRunner, SnapshotProvider, SystemClock};
use coffre_vault::{Encryption, InitOptions, OpenOptions, Store, StoreConfig, StoreOptions, Vault};
use serde::Serialize;

use super::{lose, machine, timeline};
use crate::args::{Global, SnapshotKind, TestHookArgs};
use crate::exit::{self, Complaint, Exit};
use crate::machine::{Parts, load_hooks};
use crate::output::{Output, span};
use crate::report::Report;
use crate::{left_behind, plugins, stop, wire};

/// Below the state folder: journals of jobs that pretend.
const REHEARSALS: &str = "rehearsals";

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
    all_let_go: bool,
    error: Option<Report>,
    exit_code: u8,
}

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
        config,
    };
    if args.fault == Some(Fault::KillHost) && !args.die_while_held {
        return test.killed(global, output).await;
    }
    let place = test.place().await?;
    let deps = test.deps(&place).await?;
    let rehearsed = test.rehearse(&deps).await?;
    test.tell(rehearsed, output)
}

struct Test<'a> {
    args: &'a TestHookArgs,
    config: Config,
    machine: MachineConfig,
    hooks: Vec<String>,
}

/// Where the job is written down, and what is held while it runs.
struct Place {
    config: Arc<Config>,
    vault: Vault,
    /// The machine's own lock, where the job takes another one.
    _lock: Option<MachineLock>,
    _cache: Option<tempfile::TempDir>,
}

impl Test<'_> {
    fn is_real(&self) -> bool {
        self.args.snapshot == SnapshotKind::Real
    }

    /// The configuration as the job sees it: with the hooks that were chosen.
    fn chosen(&self) -> Config {
        let mut config = self.config.clone();
        if let Some(machine) = config.machines.get_mut(&self.machine.name) {
            machine.hooks.clone_from(&self.hooks);
        }
        if !self.is_real() {
            config.coffre.state = self.config.coffre.state.join(REHEARSALS);
        }
        config
    }

    async fn place(&self) -> anyhow::Result<Place> {
        let config = Arc::new(self.chosen());
        if self.is_real() {
            let vault = wire::open_vault(&config, &self.machine.vault).await?.vault;
            return Ok(Place {
                config,
                vault,
                _lock: None,
                _cache: None,
            });
        }
        let lock = State::new(&self.config.coffre.state).lock(&self.machine.name, "hooks are tried")?;
        let cache = tempfile::tempdir().context("make a folder")?;
        Ok(Place {
            config,
            vault: nowhere(cache.path()).await?,
            _lock: Some(lock),
            _cache: Some(cache),
        })
    }

    async fn deps(&self, place: &Place) -> anyhow::Result<JobDeps> {
        let config = &place.config;
        let machine = config.machine(&self.machine.name)?;
        let guard = wire::guard(config);
        let (provider, hooks, freezer): (Arc<dyn SnapshotProvider>, _, _) = if self.is_real() {
            let catalog = plugins::catalog(config, &guard)?;
            let parts = Parts::load(config, &catalog, &guard, machine).await?;
            (parts.provider, parts.hooks, parts.freezer)
        } else {
            let freezer = Arc::new(GuardedFreezer::new(guard.clone(), &self.config, []));
            (Arc::new(self.pretended()), load_hooks(config, machine)?, freezer)
        };
        Ok(JobDeps {
            config: Arc::clone(config),
            provider: self.faulty_provider(provider),
            hooks: self.faulty(hooks),
            vault: place.vault.clone(),
            guard: Some(guard),
            freezer,
            clock: Arc::new(SystemClock),
            progress: Progress::new(),
            cancel: Cancel::new(),
            host: wire::host(),
            notes: Vec::new(),
        })
    }

    fn pretended(&self) -> PretendedProvider {
        let include = self.machine.disks.include.as_deref().unwrap_or_default();
        let mut disks: Vec<DiskId> = include.iter().map(|pattern| DiskId(pattern.to_string())).collect();
        disks.retain(|disk| !disk.0.contains(['*', '?']));
        if disks.is_empty() {
            disks.push(DiskId("disk".to_owned()));
        }
        PretendedProvider {
            disks,
            takes: self.args.takes,
        }
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
            Some(Fault::FailSnapshot) => Box::new(|| Err("a fault on purpose: fail-snapshot".to_owned())),
            Some(Fault::KillHost) => Box::new(|| {
                let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                Err(format!("the program was to kill itself: {killed:?}"))
            }),
            Some(Fault::LoseSession) => {
                let hook = self.hooks.first().cloned().unwrap_or_default();
                Box::new(move || lose::session_of(&hook))
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
        let ended = tokio::task::spawn_blocking(move || command.status()).await??;
        let state = State::new(&self.chosen().coffre.state);
        let jobs = JobRecord::all(&state, &self.machine.name)?;
        let died = jobs.last().filter(|job| job.ended().is_none());
        let Some(died) = died else {
            bail!("the program that was to be killed ended by itself ({ended})");
        };
        // The start after the crash.
        left_behind::settle_and_tell(&self.config, &wire::guard(&self.config));
        let place = self.place().await?;
        let deps = self.deps(&place).await?;
        let paid = job::pay(&deps, &self.machine.name).await;
        let record = JobRecord::read(&state, &self.machine.name, &died.id)?;
        let rehearsal = Rehearsal {
            job: died.id.clone(),
            timeline: Timeline::of(&record),
            all_let_go: paid.is_ok() && record.owed().is_nothing(),
            result: Err(match paid {
                Ok(_) => job::JobError::Died,
                Err(error) => error,
            }),
        };
        self.tell(rehearsal, output)
    }

    fn tell(&self, rehearsal: Rehearsal, output: &Output) -> anyhow::Result<Exit> {
        let exit = self.judge(&rehearsal);
        let hold_at_most = self.config.policy_of(&self.machine).hold_at_most;
        let snapshot = if self.is_real() { "real" } else { "pretended" };
        let fault = self.args.fault.map(Fault::as_str);
        output.line(format!(
            "{}: {} around a {snapshot} snapshot{}",
            self.machine.name,
            self.hooks.join(", "),
            fault.map_or(String::new(), |fault| format!(", with the fault {fault}")),
        ))?;
        output.line("")?;
        output.result(timeline::draw(&rehearsal.timeline))?;
        output.line("")?;
        for (hook, held) in &rehearsal.timeline.held_ms {
            match held {
                Some(ms) => output.line(format!("{hook} was held for {}", span(Duration::from_millis(*ms))))?,
                None => output.result(format!("{hook} IS STILL HELD, as far as is known\n"))?,
            }
        }
        output.line(format!(
            "held in all: {} of at most {}",
            span(Duration::from_millis(rehearsal.timeline.end_ms())),
            span(hold_at_most)
        ))?;
        match &rehearsal.result {
            Ok(worth) => output.line(format!(
                "a point would be {}-consistent: {}",
                worth.reached, worth.reason
            ))?,
            Err(error) => output.line(format!("there would be no point: {}", coffre_engine::Chain(error)))?,
        }
        output.result(if rehearsal.all_let_go {
            "everybody was let go\n"
        } else {
            "NOT EVERYBODY WAS LET GO: the machine's next backup tries again\n"
        })?;
        let (worth, error) = match rehearsal.result {
            Ok(worth) => (Some(worth), None),
            Err(error) => (None, Some(Report::new(&error.into()))),
        };
        output.document(&Document {
            machine: self.machine.name.clone(),
            hooks: self.hooks.clone(),
            fault,
            snapshot,
            job: rehearsal.job,
            consistency: worth.as_ref().map(|worth| worth.reached),
            consistency_reason: worth.map(|worth| worth.reason),
            consistency_wanted: self.config.wanted(&self.machine),
            hold_at_most_ms: u64::try_from(hold_at_most.as_millis()).unwrap_or(u64::MAX),
            timeline: rehearsal.timeline,
            all_let_go: rehearsal.all_let_go,
            error,
            exit_code: exit.code(),
        })?;
        Ok(exit)
    }

    /// With a fault it is enough that it did no harm.
    fn judge(&self, rehearsal: &Rehearsal) -> Exit {
        let on_purpose = |error: &Option<String>| error.as_ref().is_some_and(|text| text.contains("on purpose"));
        let spans = &rehearsal.timeline.spans;
        let failed = spans
            .iter()
            .any(|span| span.error.is_some() && !on_purpose(&span.error));
        if !rehearsal.all_let_go || rehearsal.timeline.is_held() || failed {
            return Exit::Failed;
        }
        match (&rehearsal.result, self.args.fault) {
            (Err(error), _) if error.kind() == JobErrorKind::Cancelled => Exit::Cancelled,
            (_, Some(_)) => Exit::Done,
            (Err(error), None) => exit::job(error).unwrap_or(Exit::Failed),
            (Ok(worth), None) if worth.reached < self.config.wanted(&self.machine) => Exit::Downgraded,
            (Ok(_), None) => Exit::Done,
        }
    }
}

/// A vault that takes nothing, for a job that sends nothing.
async fn nowhere(cache: &Path) -> anyhow::Result<Vault> {
    let store = Store::connect(&StoreConfig {
        url: "memory:///".parse().context("the address of nowhere")?,
        options: StoreOptions::default(),
    })?;
    let init = InitOptions {
        encryption: Encryption::None,
        recovery_key: false,
        host: wire::host(),
    };
    Vault::init(store.clone(), init).await?;
    let options = OpenOptions {
        cache_folder: cache.to_owned(),
        expect_id: None,
        allow_unencrypted: true,
    };
    Ok(Vault::open(store, None, options).await?)
}
