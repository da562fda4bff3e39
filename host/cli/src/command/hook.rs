//! `coffre hook list|check|new|test`.

mod check;
mod list;
mod lose;
mod new;
mod test;
mod timeline;

use coffre_engine::config::{Config, MachineConfig};

use crate::args::{Global, HookCommand};
use crate::exit::{Complaint, Exit};
use crate::output::Output;
use crate::report::Report;
use crate::stop;

pub async fn run(command: &HookCommand, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    match command {
        HookCommand::List => list::run(global, output),
        HookCommand::Check { hooks, machine } => {
            stop::or_dropped(check::run(hooks, machine.as_deref(), global, output)).await
        }
        HookCommand::New(args) => new::run(args, global, output),
        HookCommand::Test(args) => test::run(args, global, output).await,
    }
}

/// The machines whose configuration names a hook.
fn users<'a>(config: &'a Config, hook: &'a str) -> impl Iterator<Item = &'a MachineConfig> + 'a {
    let uses = move |machine: &&MachineConfig| machine.hooks.iter().any(|name| name == hook);
    config.machines.values().filter(uses)
}

/// What stands before an error of one hook among several, where the error does not name it.
fn about(hook: &str, error: &Report) -> String {
    if error.message.contains(hook) {
        return String::new();
    }
    format!("{hook}: ")
}

/// The machine that hooks are tried for: the one that was named, or the only one that uses them all.
fn machine<'a>(config: &'a Config, hooks: &[String], named: Option<&str>) -> anyhow::Result<&'a MachineConfig> {
    if let Some(name) = named {
        return Ok(config.machine(name)?);
    }
    let all = config.machines.values();
    let fitting: Vec<_> = all
        .filter(|machine| hooks.iter().all(|hook| machine.hooks.contains(hook)))
        .collect();
    let names = |machines: &[&MachineConfig]| -> String {
        let names: Vec<_> = machines.iter().map(|machine| format!("`{}`", machine.name)).collect();
        names.join(", ")
    };
    match fitting.as_slice() {
        [machine] => Ok(machine),
        [] if config.machines.len() == 1 => Ok(config.machines.values().next().unwrap_or_else(|| unreachable!())),
        [] => {
            let hint = "say for which: --machine MACHINE";
            Err(Complaint::usage("no machine uses these hooks", hint).into())
        }
        several => {
            let hint = format!("--machine says which: {}", names(several));
            Err(Complaint::usage("for which machine?", hint).into())
        }
    }
}
