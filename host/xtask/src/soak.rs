//! `cargo xtask soak`: the vault's simulation for as long as one likes, a process on every core, until a seed fails.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::command::{self, say};
use crate::workspace::Workspace;

const DEFAULT_MINUTES: u64 = 30;
/// Between two lines that say how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    minutes: Option<u64>,
    first_seed: u64,
    seeds: Option<u64>,
}

impl Wanted {
    fn parse(arguments: &[String]) -> Result<Self> {
        // New ground every time, unless somebody wants to tread old one.
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let mut wanted = Self {
            minutes: None,
            first_seed: seconds << 20,
            seeds: None,
        };
        let mut rest = arguments.iter();
        while let Some(option) = rest.next() {
            let value = rest.next().with_context(|| format!("`{option}` needs a number"))?;
            let number: u64 = value.parse().with_context(|| format!("`{value}` is no number"))?;
            match option.as_str() {
                "--minutes" => wanted.minutes = Some(number),
                "--seed" => wanted.first_seed = number,
                "--seeds" => wanted.seeds = Some(number),
                other => bail!("soak does not know `{other}`; it takes --minutes, --seed and --seeds"),
            }
        }
        Ok(wanted)
    }

    /// How many of the seeds process `number` of `processes` does.
    fn seeds_of(&self, number: u64, processes: u64) -> Option<u64> {
        let all = self.seeds?;
        Some(all / processes + u64::from(number < all % processes))
    }

    fn minutes(&self) -> u64 {
        // A number of seeds alone is an end as well.
        self.minutes.unwrap_or(if self.seeds.is_some() {
            u64::MAX / 60
        } else {
            DEFAULT_MINUTES
        })
    }
}

/// What a process says on its standard output, a line each.
enum Word {
    /// So many seeds are done, since it began.
    Done(usize, u64),
    Other(String),
    Ended(usize),
}

/// `soak [--minutes M] [--seed S] [--seeds N]`.
pub fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let wanted = Wanted::parse(arguments)?;
    let program = build(workspace)?;
    let stories = workspace.made("soak");
    fs::create_dir_all(&stories).with_context(|| format!("make {}", stories.display()))?;
    let processes = thread::available_parallelism().map_or(1, usize::from);
    say(
        "Soaking",
        format!("{processes} processes, from seed {} on", wanted.first_seed),
    );
    let (said, words) = mpsc::channel();
    let mut children = Vec::new();
    for number in 0..processes {
        children.push(start(&program, &stories, &wanted, number, processes, said.clone())?);
    }
    drop(said);
    let began = Instant::now();
    let done = listen(&words, &mut children, began);
    let mut failed = false;
    for child in &mut children {
        failed |= !child.wait().context("wait for a process of the simulation")?.success();
    }
    if failed {
        bail!("a seed has failed; its story lies in {}", stories.display());
    }
    say(
        "Done",
        format!("{done} seeds in {} s, all of them well", began.elapsed().as_secs()),
    );
    Ok(())
}

/// The simulation as a program, optimised.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    say("Building", "the simulation");
    let mut cargo = workspace.cargo(&[
        "test",
        "--release",
        "-p",
        "coffre-vault",
        "--test",
        "simulation",
        "--no-run",
    ]);
    cargo
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit());
    let built = cargo
        .output()
        .with_context(|| format!("start {}", command::line(&cargo)))?;
    if !built.status.success() {
        bail!("{} failed ({})", command::line(&cargo), built.status);
    }
    let messages = String::from_utf8_lossy(&built.stdout);
    let executable = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    executable.context("cargo built the simulation and did not say where")
}

/// Of `processes` that share the seeds, number `number`.
fn start(
    program: &Path,
    stories: &Path,
    wanted: &Wanted,
    number: usize,
    processes: usize,
    said: Sender<Word>,
) -> Result<Child> {
    let (index, step) = (number as u64, processes as u64);
    let mut command = Command::new(program);
    command
        .args(["--ignored", "--exact", "soak", "--nocapture"])
        .env("COFFRE_SIM_SEED", (wanted.first_seed + index).to_string())
        .env("COFFRE_SIM_STEP", step.to_string())
        .env("COFFRE_SIM_MINUTES", wanted.minutes().to_string())
        .env("COFFRE_SIM_STORIES", stories)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    if let Some(own) = wanted.seeds_of(index, step) {
        command.env("COFFRE_SIM_SEEDS", own.to_string());
    }
    let mut child = command
        .spawn()
        .with_context(|| format!("start {}", command::line(&command)))?;
    let output = child.stdout.take().context("take the output of the simulation")?;
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let done = line.strip_prefix("seeds done: ").and_then(|count| count.parse().ok());
            let _ = said.send(match done {
                Some(count) => Word::Done(number, count),
                None => Word::Other(line),
            });
        }
        let _ = said.send(Word::Ended(number));
    });
    Ok(child)
}

/// Tells how far it is until all have ended. The first that fails ends the others.
fn listen(words: &Receiver<Word>, children: &mut [Child], began: Instant) -> u64 {
    let mut done = vec![0; children.len()];
    let mut reported = Instant::now();
    let mut stopping = false;
    loop {
        match words.recv_timeout(REPORT_EVERY) {
            Ok(Word::Done(number, count)) => done[number] = count,
            // The harness has its own words, which say nothing here.
            Ok(Word::Other(line)) if line.is_empty() || line.starts_with("test ") || line.starts_with("running ") => {}
            Ok(Word::Other(line)) => println!("{line}"),
            Ok(Word::Ended(number)) => {
                let well = children[number].wait().is_ok_and(|status| status.success());
                if !well && !stopping {
                    stopping = true;
                    for child in children.iter_mut() {
                        let _ = child.kill();
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return done.iter().sum(),
        }
        if reported.elapsed() >= REPORT_EVERY {
            reported = Instant::now();
            let sum: u64 = done.iter().sum();
            let rate = sum as f64 / began.elapsed().as_secs_f64();
            say("Soaking", format!("{sum} seeds, {rate:.1} a second"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Wanted> {
        Wanted::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn seeds_alone_are_an_end_as_well_as_minutes_are() {
        let wanted = parse("--seed 7 --seeds 100").unwrap();
        assert_eq!((wanted.first_seed, wanted.seeds, wanted.minutes), (7, Some(100), None));
        assert!(wanted.minutes() > 1_000_000);
        assert_eq!(parse("").unwrap().minutes(), DEFAULT_MINUTES);
        assert_eq!(parse("--minutes 5 --seeds 9").unwrap().minutes(), 5);
    }

    #[test]
    fn the_seeds_of_all_processes_are_those_that_were_asked_for() {
        for (seeds, processes) in [(10_000, 2), (7, 3), (1, 4), (0, 2)] {
            let wanted = parse(&format!("--seeds {seeds}")).unwrap();
            let shares = (0..processes).filter_map(|number| wanted.seeds_of(number, processes));
            assert_eq!(shares.sum::<u64>(), seeds);
        }
        assert_eq!(parse("--minutes 1").unwrap().seeds_of(0, 2), None);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for line in ["--minute 5", "--seeds", "--seed x"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
