//! `coffre config check|show|example`.

use anyhow::Context;
use coffre_engine::config::EXAMPLE;
use serde_json::json;

use super::check;
use crate::args::{ConfigCommand, Global};
use crate::exit::{Complaint, Exit};
use crate::output::Output;
use crate::wire;

/// Configurations to start from: name, what it is for, text.
const EXAMPLES: [(&str, &str, &str); 7] = [
    ("full", "every key there is, explained", EXAMPLE),
    (
        "local",
        "the smallest: images into a folder on another disk",
        include_str!("../../../../examples/local.toml"),
    ),
    (
        "nas",
        "virtual machines on XFS or Btrfs, every night to a NAS",
        include_str!("../../../../examples/nas.toml"),
    ),
    (
        "s3",
        "to S3, or anything that speaks it",
        include_str!("../../../../examples/s3.toml"),
    ),
    (
        "azure",
        "to Azure Blob Storage",
        include_str!("../../../../examples/azure.toml"),
    ),
    (
        "postgres",
        "a host whose PostgreSQL is backed up at rest",
        include_str!("../../../../examples/postgres.toml"),
    ),
    (
        "hooks",
        "a host whose application has scripts of its own, or those for Azure VM Backup",
        include_str!("../../../../examples/hooks.toml"),
    ),
];

pub async fn run(command: &ConfigCommand, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Check => check::run(global, output).await,
        ConfigCommand::Show => show(global, output),
        ConfigCommand::Example { list: true, .. } => list(output),
        ConfigCommand::Example { name, .. } => example(name, output),
    }
}

fn show(global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    output.document(&config)?;
    if !output.json {
        let text = toml::to_string_pretty(&config).context("cannot write the configuration as TOML")?;
        output.result(text)?;
    }
    Ok(Exit::Done)
}

fn list(output: &Output) -> anyhow::Result<Exit> {
    let names: Vec<_> = EXAMPLES
        .iter()
        .map(|(name, about, _)| json!({ "name": name, "about": about }))
        .collect();
    for (name, about, _) in EXAMPLES {
        output.result(format!("{name:9} {about}\n"))?;
    }
    output.document(&json!({ "examples": names }))?;
    Ok(Exit::Done)
}

fn example(name: &str, output: &Output) -> anyhow::Result<Exit> {
    let (_, _, text) = EXAMPLES.iter().find(|(known, ..)| *known == name).ok_or_else(|| {
        Complaint::usage(
            format!("there is no example `{name}`"),
            "`coffre config example --list` names them",
        )
    })?;
    output.result(text)?;
    output.document(&json!({ "name": name, "text": text }))?;
    Ok(Exit::Done)
}
