//! `cargo xtask fuzz`: libFuzzer over every parser, for some time each.

use anyhow::{Context, Result, bail};

use crate::command::{self, say};
use crate::workspace::Workspace;

const SECONDS: u32 = 60;
/// The fuzzers. All targets of the vault are one program, since they differ in one word.
const PROGRAMS: [&str; 3] = ["vault", "config", "manifest"];
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
    // cargo-fuzz passes flags that a stable compiler takes only so.
    let fuzz = |program: &str| {
        let mut cargo = workspace.cargo(&["fuzz", "run", "--fuzz-dir", ".", program]);
        cargo.current_dir(&folder).env("RUSTC_BOOTSTRAP", "1");
        cargo
    };
    let mut targets = Vec::new();
    for program in PROGRAMS {
        say("Building", format!("the fuzzer `{program}` and its seeds"));
        let names = command::output(fuzz(program).env("COFFRE_FUZZ_SEEDS", "corpus"))
            .context("if cargo knows no `fuzz`, `cargo install cargo-fuzz --locked` adds it")?;
        targets.extend(names.lines().map(|name| (program, name.to_owned())));
    }
    if let Some(unknown) = wanted
        .iter()
        .find(|wanted| !targets.iter().any(|(_, name)| name == *wanted))
    {
        let known: Vec<&str> = targets.iter().map(|(_, name)| name.as_str()).collect();
        bail!("there is no target `{unknown}`; there are {}", known.join(", "));
    }
    targets.retain(|(_, name)| wanted.is_empty() || wanted.contains(name));
    for (program, target) in targets {
        say("Fuzzing", &target);
        let mut cargo = fuzz(program);
        cargo.arg(format!("corpus/{target}"));
        cargo.args([
            "--",
            &format!("-max_total_time={seconds}"),
            &format!("-rss_limit_mb={MEMORY_MIB}"),
        ]);
        cargo.args(["-print_final_stats=1", &format!("-artifact_prefix=artifacts/{target}-")]);
        command::run(cargo.env("COFFRE_FUZZ_TARGET", &target)).with_context(|| format!("fuzz {target}"))?;
    }
    Ok(())
}
