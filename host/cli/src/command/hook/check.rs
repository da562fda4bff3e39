//! `coffre hook check`: loads hooks and lets them look for obstacles.

use coffre_engine::config::{Config, MachineConfig};
use coffre_engine::{FindingLevel, HookContext, SoFar};
use coffre_sandbox::hook;
use serde::Serialize;

use super::{about, users};
use crate::args::Global;
use crate::exit::{Complaint, Exit};
use crate::output::Output;
use crate::report::Report;
use crate::{screen, wire};

#[derive(Serialize)]
struct Document {
    ok: bool,
    hooks: Vec<Checked>,
}

#[derive(Serialize)]
struct Checked {
    hook: String,
    /// None: no machine uses it, so it was only loaded.
    machine: Option<String>,
    ok: bool,
    findings: Vec<Found>,
    error: Option<Report>,
}

#[derive(Serialize)]
struct Found {
    level: FindingLevel,
    text: String,
}

pub async fn run(hooks: &[String], machine: Option<&str>, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let named = machine.map(|name| config.machine(name)).transpose()?;
    if config.hooks.is_empty() {
        let hint = "`coffre hook new NAME` begins one";
        return Err(Complaint::config("the configuration has no hooks", hint).into());
    }
    let names: Vec<String> = match hooks {
        [] => config.hooks.keys().cloned().collect(),
        some => some.to_vec(),
    };
    let mut checked = Vec::new();
    for name in &names {
        config.hook(name)?;
        let mut machines: Vec<&MachineConfig> =
            named.map_or_else(|| users(&config, name).collect(), |named| vec![named]);
        // The only one that there is can be meant.
        if machines.is_empty() && config.machines.len() == 1 {
            machines.extend(config.machines.values());
        }
        if machines.is_empty() {
            checked.push(check(&config, name, None).await);
        }
        for machine in machines {
            checked.push(check(&config, name, Some(machine)).await);
        }
    }
    for one in &checked {
        say(one, output)?;
    }
    let failed = checked.iter().filter(|one| !one.ok);
    let exit = failed
        .map(|one| one.error.as_ref().map_or(Exit::Failed, |error| error.exit))
        .next();
    output.document(&Document {
        ok: exit.is_none(),
        hooks: checked,
    })?;
    Ok(exit.unwrap_or(Exit::Done))
}

async fn check(config: &Config, name: &str, machine: Option<&MachineConfig>) -> Checked {
    let mut checked = Checked {
        hook: name.to_owned(),
        machine: machine.map(|machine| machine.name.clone()),
        ok: true,
        findings: Vec::new(),
        error: None,
    };
    match ask(config, name, machine).await {
        Ok(findings) => {
            checked.ok = findings.iter().all(|found| found.level != FindingLevel::Blocking);
            checked.findings = findings;
        }
        Err(error) => {
            checked.ok = false;
            checked.error = Some(Report::new(&error));
        }
    }
    checked
}

async fn ask(config: &Config, name: &str, machine: Option<&MachineConfig>) -> anyhow::Result<Vec<Found>> {
    let hook = config.hook(name)?;
    let runner = hook::load_from_config(config, hook)?;
    let Some(machine) = machine else { return Ok(Vec::new()) };
    let context = HookContext {
        machine: machine.machine(),
        // The disks are the provider's to find; a check by itself does without it.
        disks: Vec::new(),
        job: "check".to_owned(),
        policy: machine.policy.clone(),
        wanted: config.wanted(machine),
        attempt: 1,
        timeout: runner.terms().timeout.unwrap_or(hook.timeout),
        hold_at_most: config.policy_of(machine).hold_at_most,
        hold_left: config.policy_of(machine).hold_at_most,
        guard: None,
        freezer: None,
        so_far: SoFar::default(),
    };
    let findings = runner.check(&context).await?;
    let found = findings.into_iter().map(|finding| Found {
        level: finding.level,
        text: finding.text,
    });
    Ok(found.collect())
}

fn say(checked: &Checked, output: &Output) -> anyhow::Result<()> {
    let machine = match &checked.machine {
        Some(machine) => format!(" for {machine}"),
        None => " (no machine uses it, so it was only loaded; --machine says for which to look)".to_owned(),
    };
    let state = if checked.ok { "fine" } else { "NOT FINE" };
    output.line(format!("{}{machine}: {state}", checked.hook))?;
    for found in &checked.findings {
        let level = match found.level {
            FindingLevel::Note => "note",
            FindingLevel::Warning => "warning",
            FindingLevel::Blocking => "blocking",
        };
        output.result(format!("  {level}: {}\n", found.text))?;
    }
    if let Some(error) = &checked.error {
        let about = about(&checked.hook, error);
        screen::above(error.render_for(&about, output.colour()).as_bytes());
    }
    Ok(())
}
