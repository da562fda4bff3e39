//! `coffre config check`: everything that can be known without disturbing anything.

use std::path::PathBuf;

use coffre_engine::config::{Config, MachineConfig};
use coffre_engine::freeze;
use coffre_engine::{
    DiskId, DiskInfo, Finding, FindingLevel, HookContext, HookRunner, ProviderIdentity, SnapshotProvider, SoFar,
};
use coffre_guard::Guard;
use coffre_sandbox::PluginCatalog;
use serde::Serialize;

use crate::args::Global;
use crate::exit::{Complaint, Exit};
use crate::machine::Parts;
use crate::output::{Output, count, size};
use crate::report::Report;
use crate::{plugins, screen, wire};

#[derive(Serialize)]
struct Document {
    config: PathBuf,
    ok: bool,
    machines: Vec<Checked>,
}

#[derive(Serialize)]
struct Checked {
    machine: String,
    ok: bool,
    provider: Option<ProviderIdentity>,
    disks: Vec<Disk>,
    findings: Vec<Found>,
    errors: Vec<Report>,
}

#[derive(Serialize)]
struct Disk {
    id: String,
    label: Option<String>,
    size_bytes: u64,
    /// The configuration does not exclude it.
    selected: bool,
}

#[derive(Serialize)]
struct Found {
    level: FindingLevel,
    /// The hook that says it; the provider otherwise.
    hook: Option<String>,
    disk: Option<DiskId>,
    text: String,
}

pub async fn run(global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let policies = if config.policies.len() == 1 {
        "policy"
    } else {
        "policies"
    };
    output.line(format!(
        "{}: {}, {}, {} {policies}, {}",
        config.file.display(),
        count(config.machines.len(), "machine"),
        count(config.vaults.len(), "vault"),
        config.policies.len(),
        count(config.hooks.len(), "hook"),
    ))?;
    let guard = wire::guard(&config);
    let catalog = plugins::catalog(&config, &guard)?;
    let mut machines = Vec::with_capacity(config.machines.len());
    let mut exit = Exit::Done;
    for machine in config.machines.values() {
        let checked = check(&config, &catalog, &guard, machine).await;
        say(&checked, output)?;
        if exit == Exit::Done
            && let Some(code) = checked.exit()
        {
            exit = code;
        }
        machines.push(checked);
    }
    output.document(&Document {
        config: config.file.clone(),
        ok: exit == Exit::Done,
        machines,
    })?;
    Ok(exit)
}

impl Checked {
    fn exit(&self) -> Option<Exit> {
        let blocked = self.findings.iter().any(|found| found.level == FindingLevel::Blocking);
        self.errors
            .first()
            .map(|error| error.exit)
            .or(blocked.then_some(Exit::Failed))
    }

    fn add(&mut self, hook: Option<&str>, findings: Vec<Finding>) {
        self.findings.extend(findings.into_iter().map(|finding| Found {
            level: finding.level,
            hook: hook.map(str::to_owned),
            disk: finding.disk,
            text: finding.text,
        }));
    }
}

async fn check(config: &Config, catalog: &PluginCatalog, guard: &Guard, machine: &MachineConfig) -> Checked {
    let mut checked = Checked {
        machine: machine.name.clone(),
        ok: true,
        provider: None,
        disks: Vec::new(),
        findings: Vec::new(),
        errors: Vec::new(),
    };
    if let Err(error) = look(config, catalog, guard, machine, &mut checked).await {
        checked.errors.push(Report::new(&error));
    }
    checked.ok = checked.exit().is_none();
    checked
}

async fn look(
    config: &Config,
    catalog: &PluginCatalog,
    guard: &Guard,
    machine: &MachineConfig,
    checked: &mut Checked,
) -> anyhow::Result<()> {
    let parts = Parts::load(config, catalog, guard, machine).await?;
    checked.provider = Some(parts.provider.identity());
    let told = machine.machine();
    let outside = parts.provider.describe().await?.runs_outside;
    for hook in machine.hooks.iter().filter_map(|name| config.hooks.get(name)) {
        if outside && hook.on.is_none() {
            let text = format!(
                "hook `{}` does not say where it runs, and {} is not this host",
                hook.name, machine.name
            );
            let hint = format!(
                "add `on = \"host\"`, `on = \"agent\"` or `on = \"ssh:NAME\"` to [hook.{}]",
                hook.name
            );
            checked.errors.push(Report::new(&Complaint::config(text, hint).into()));
        }
    }
    let disks = parts.provider.discover(&told).await?;
    let selected: Vec<DiskId> = disks
        .iter()
        .filter(|disk| selects(machine, disk))
        .map(|disk| disk.id.clone())
        .collect();
    checked.disks = (disks.into_iter())
        .map(|disk| Disk {
            selected: selected.contains(&disk.id),
            id: disk.id.0,
            label: disk.label,
            size_bytes: disk.size_bytes,
        })
        .collect();
    if selected.is_empty() {
        checked.add(None, vec![blocking("there is no disk to back up")]);
    }
    checked.add(None, parts.provider.check(&told, &selected).await?);
    let runners: Vec<&dyn HookRunner> = parts.hooks.iter().map(|hook| &**hook).collect();
    checked.add(None, freeze::check(&*parts.freezer, machine, &runners));
    checked.add(None, freeze::check_guard(Some(guard), machine));
    let policy = config.policy_of(machine);
    for hook in &parts.hooks {
        let context = HookContext {
            machine: told.clone(),
            disks: selected.clone(),
            job: "check".to_owned(),
            policy: machine.policy.clone(),
            wanted: config.wanted(machine),
            attempt: 1,
            timeout: hook.terms().timeout.unwrap_or(config.hook(hook.name())?.timeout),
            hold_at_most: policy.hold_at_most,
            guard: Some(guard.clone()),
            freezer: Some(parts.freezer.clone()),
            hold_left: policy.hold_at_most,
            so_far: SoFar::default(),
        };
        match hook.check(&context).await {
            Ok(findings) => checked.add(Some(hook.name()), findings),
            Err(error) => {
                let error = anyhow::Error::new(error).context(format!("hook `{}` would fail", hook.name()));
                checked.errors.push(Report::new(&error));
            }
        }
    }
    Ok(())
}

fn selects(machine: &MachineConfig, disk: &DiskInfo) -> bool {
    let any = |patterns: &[coffre_engine::config::Pattern]| patterns.iter().any(|pattern| pattern.matches(&disk.id.0));
    machine.disks.include.as_deref().is_none_or(any) && !any(&machine.disks.exclude)
}

fn blocking(text: &str) -> Finding {
    Finding {
        level: FindingLevel::Blocking,
        disk: None,
        text: text.to_owned(),
    }
}

fn say(checked: &Checked, output: &Output) -> anyhow::Result<()> {
    let disks: Vec<String> = (checked.disks.iter())
        .map(|disk| {
            let excluded = if disk.selected { "" } else { ", excluded" };
            format!("{} ({}{excluded})", disk.id, size(disk.size_bytes))
        })
        .collect();
    let provider = checked
        .provider
        .as_ref()
        .map(|provider| format!(", {} {}", provider.name, provider.version));
    output.line(format!(
        "{}: {}{}{}",
        checked.machine,
        if checked.ok { "fine" } else { "NOT FINE" },
        provider.unwrap_or_default(),
        if disks.is_empty() {
            String::new()
        } else {
            format!(", {}: {}", count(disks.len(), "disk"), disks.join(", "))
        },
    ))?;
    for found in &checked.findings {
        let level = match found.level {
            FindingLevel::Note => "note",
            FindingLevel::Warning => "warning",
            FindingLevel::Blocking => "blocking",
        };
        let about = [
            found.hook.as_ref().map(|hook| format!("hook {hook}: ")),
            found.disk.as_ref().map(|disk| format!("{disk}: ")),
        ];
        output.result(format!(
            "  {level}: {}{}\n",
            about.into_iter().flatten().collect::<String>(),
            found.text
        ))?;
    }
    for error in &checked.errors {
        let named = format!("{}: ", checked.machine);
        screen::above(error.render_for(&named, output.colour()).as_bytes());
    }
    Ok(())
}
