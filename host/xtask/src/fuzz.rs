//! `cargo xtask fuzz`: libFuzzer over every parser, for some time each.

use anyhow::{Context, Result, bail};

use crate::command;
use crate::workspace::Workspace;

const SECONDS: u32 = 60;
/// Targets that are programs of their own; all others, the vault's, are one.
const PROGRAMS: [&str; 2] = ["config", "manifest"];
/// What one input may take: a chunk and its frame are the largest, and a leak shows soon.
const MEMORY_MIB: u32 = 1024;

/// `fuzz [TARGET …] [--seconds N]`.
pub fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let mut seconds = SECONDS;
    let mut wanted = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => {
                let number = arguments.next().context("--seconds wants a number")?;
                seconds = number.parse().context("--seconds wants a number")?;
            }
            option if option.starts_with('-') => bail!("there is no option `{option}`"),
            target => wanted.push(target.to_owned()),
        }
    }
    let folder = workspace.root.join("host/vault/fuzz");
    let seeds = ["run", "--quiet", "--bin", "seeds", "--", "corpus"];
    let mut seeds = workspace.cargo(&seeds);
    let names = command::output(seeds.current_dir(&folder)).context("write the seeds")?;
    let known: Vec<&str> = names.lines().collect();
    if let Some(unknown) = wanted.iter().find(|target| !known.contains(&target.as_str())) {
        bail!("there is no target `{unknown}`; there are {}", known.join(", "));
    }
    for target in known {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == target) {
            continue;
        }
        let program = if PROGRAMS.contains(&target) { target } else { "vault" };
        let corpus = format!("corpus/{target}");
        let time = format!("-max_total_time={seconds}");
        let memory = format!("-rss_limit_mb={MEMORY_MIB}");
        let mut cargo = workspace.cargo(&["fuzz", "run", "--fuzz-dir", ".", program]);
        cargo.args([&corpus, "--", &time, &memory]);
        // cargo-fuzz passes flags that a stable compiler takes only so.
        cargo.env("RUSTC_BOOTSTRAP", "1").env("COFFRE_FUZZ_TARGET", target);
        command::run(cargo.current_dir(&folder)).with_context(|| {
            format!("fuzz {target}; if cargo knows no `fuzz`, `cargo install cargo-fuzz --locked` adds it")
        })?;
    }
    Ok(())
}
