//! `coffre hook list`: the hooks of the configuration.

use std::path::PathBuf;

use coffre_engine::config::{HookConfig, HookPlace, OnFailure};
use coffre_sandbox::hook;
use serde::Serialize;

use super::{about, users};
use crate::args::Global;
use crate::exit::Exit;
use crate::output::{Output, span, table};
use crate::report::Report;
use crate::{screen, wire};

#[derive(Serialize)]
struct Document {
    hooks: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: String,
    kind: &'static str,
    on: Option<String>,
    file: PathBuf,
    timeout_ms: u64,
    retries: u32,
    on_failure: OnFailure,
    machines: Vec<String>,
    /// Why it cannot be loaded.
    error: Option<Report>,
}

pub fn run(global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let entry = |hook: &HookConfig| Entry {
        name: hook.name.clone(),
        kind: hook.kind.as_str(),
        on: hook.on.as_ref().map(place),
        file: hook.file.clone(),
        timeout_ms: u64::try_from(hook.timeout.as_millis()).unwrap_or(u64::MAX),
        retries: hook.retries,
        on_failure: hook.on_failure,
        machines: users(&config, &hook.name).map(|machine| machine.name.clone()).collect(),
        error: hook::load_from_config(&config, hook)
            .err()
            .map(|error| Report::new(&error.into())),
    };
    let hooks: Vec<Entry> = config.hooks.values().map(entry).collect();
    if hooks.is_empty() {
        output.line("the configuration has no hooks; `coffre hook new NAME` begins one")?;
    } else {
        let rows = hooks.iter().map(|hook| {
            vec![
                hook.name.clone(),
                hook.kind.to_owned(),
                hook.on.clone().unwrap_or_default(),
                span(std::time::Duration::from_millis(hook.timeout_ms)),
                hook.machines.join(", "),
                if hook.error.is_some() { "NOT FINE" } else { "fine" }.to_owned(),
                // As it may stand in the configuration.
                hook.file
                    .strip_prefix(&config.coffre.scripts)
                    .unwrap_or(&hook.file)
                    .display()
                    .to_string(),
            ]
        });
        let headers = ["HOOK", "KIND", "ON", "TIMEOUT", "MACHINES", "STATE", "FILE"];
        output.result(table(&headers, &[3], rows.collect()))?;
        for hook in &hooks {
            if let Some(error) = &hook.error {
                screen::above(error.render_for(&about(&hook.name, error), output.colour()).as_bytes());
            }
        }
    }
    let exit = hooks
        .iter()
        .find_map(|hook| hook.error.as_ref())
        .map_or(Exit::Done, |error| error.exit);
    output.document(&Document { hooks })?;
    Ok(exit)
}

fn place(place: &HookPlace) -> String {
    match place {
        HookPlace::Host => "host".to_owned(),
        HookPlace::Agent => "agent".to_owned(),
        HookPlace::Ssh(name) => format!("ssh:{name}"),
    }
}
