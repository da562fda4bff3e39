//! The vault's own code under simulation: hosts that write, forget, clean up, restore and die, over a store that fails, lies
//! in its listings and takes its time; all of it in virtual time and drawn from one seed.

#![allow(clippy::print_stdout, reason = "whoever runs it wants to know how far it is")]

mod aftermath;
mod check;
mod cleaner;
mod disk;
mod fates;
mod host;
mod ledger;
mod plan;
mod reader;
mod rules;
mod run;
mod writer;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use coffre_vault::LeftOut;

/// What a test run has time for.
const SHORT: Duration = Duration::from_secs(25);
/// A machine that does fewer seeds in that time shows nothing.
const FEWEST_SEEDS: u64 = 10;
/// What telling stories twice has time for.
const TWICE: Duration = Duration::from_secs(10);

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")),
    )
}

/// The rule that `COFFRE_SIM_WITHOUT` leaves out.
fn left_out() -> Option<LeftOut> {
    let name = std::env::var("COFFRE_SIM_WITHOUT").ok()?;
    let rule = LeftOut::ALL.into_iter().find(|rule| format!("{rule:?}") == name);
    Some(rule.unwrap_or_else(|| panic!("COFFRE_SIM_WITHOUT is one of {:?}, not `{name}`", LeftOut::ALL)))
}

/// A line that shows also where a test passes.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Which seeds, and for how long.
struct Seeds {
    first: u64,
    step: u64,
    count: u64,
    for_at_most: Duration,
}

impl Seeds {
    /// As the environment says, and where it says nothing, all from the first on for so long.
    fn of_environment(for_at_most: Duration) -> Self {
        Self {
            first: number("COFFRE_SIM_SEED").unwrap_or(0),
            step: number("COFFRE_SIM_STEP").unwrap_or(1),
            count: number("COFFRE_SIM_SEEDS").unwrap_or(u64::MAX),
            for_at_most: number("COFFRE_SIM_MINUTES").map_or(for_at_most, |minutes| Duration::from_secs(60 * minutes)),
        }
    }

    /// Runs them until one fails, all are done or the time is up. Gives how many were done.
    fn run(&self) -> u64 {
        let rule = left_out();
        let began = Instant::now();
        let mut said = began;
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        let mut done = 0;
        while done < self.count && began.elapsed() < self.for_at_most {
            let seed = self.first + done * self.step;
            let outcome = run::run(seed, rule);
            done += 1;
            for (what, times) in &outcome.counts {
                *counts.entry(what).or_default() += times;
            }
            if let Some(wrong) = outcome.wrong {
                fail(seed, rule, &wrong, &outcome.log);
            }
            if said.elapsed() > Duration::from_secs(2) {
                said = Instant::now();
                println!("seeds done: {done}");
            }
        }
        println!("seeds done: {done}");
        println!("{counts:#?}");
        done
    }
}

fn fail(seed: u64, rule: Option<LeftOut>, wrong: &str, story: &str) -> ! {
    let told = match std::env::var_os("COFFRE_SIM_STORIES") {
        Some(folder) => {
            let file = std::path::Path::new(&folder).join(format!("seed-{seed}.log"));
            std::fs::write(&file, story).expect("the story is written down");
            format!("its story: {}", file.display())
        }
        None => story.to_owned(),
    };
    let without = rule.map_or_else(String::new, |rule| format!("COFFRE_SIM_WITHOUT={rule:?} "));
    let replay = "cargo test -p coffre-vault --test simulation -- --ignored --exact replay --nocapture";
    println!("{told}\nseed {seed}: {wrong}\nreplay it: COFFRE_SIM_SEED={seed} {without}{replay}");
    panic!("seed {seed}: {wrong}");
}

#[test]
fn every_acknowledged_point_restores_whatever_happens() {
    let seeds = Seeds::of_environment(SHORT);
    let done = seeds.run();
    tell(&format!(
        "simulation: {done} seeds from {} on, all of them well",
        seeds.first
    ));
    assert!(done >= FEWEST_SEEDS.min(seeds.count), "{done} seeds show nothing");
}

/// Without this, the seed of a failure would be worth nothing.
#[test]
fn the_same_seed_gives_the_same_story() {
    let began = Instant::now();
    let first = number("COFFRE_SIM_SEED").unwrap_or(0);
    let count = number("COFFRE_SIM_SEEDS").unwrap_or(u64::MAX);
    let mut done = 0;
    while done < count && began.elapsed() < TWICE {
        let seed = first + done;
        let (once, again) = (run::run(seed, None).log, run::run(seed, None).log);
        if once != again {
            let at = once.lines().zip(again.lines()).position(|(one, other)| one != other);
            let around = |story: &str| {
                let lines = story.lines().skip(at.unwrap_or_default().saturating_sub(5)).take(10);
                lines.collect::<Vec<_>>().join("\n")
            };
            panic!("seed {seed} tells two stories\n{}\n\n{}", around(&once), around(&again));
        }
        done += 1;
    }
    tell(&format!("simulation: {done} seeds told their story twice"));
}

/// `cargo xtask soak` runs this; the environment says which seeds.
#[test]
#[ignore = "as long as one likes"]
fn soak() {
    Seeds::of_environment(Duration::MAX).run();
}

/// Tells the story of one seed.
#[test]
#[ignore = "wants a seed"]
fn replay() {
    let seed = number("COFFRE_SIM_SEED").expect("COFFRE_SIM_SEED says which seed");
    let outcome = run::run(seed, left_out());
    println!("{}", outcome.log);
    println!(
        "seed {seed}: {:?}, {:?}, {:#?}",
        outcome.wrong, outcome.lasted, outcome.counts
    );
    assert!(outcome.wrong.is_none());
}

/// Goes on where a seed fails, and says how often they do: for whoever changes what plans are drawn.
#[test]
#[ignore = "says how often a rule is missed"]
fn survey() {
    let seeds = Seeds::of_environment(Duration::MAX);
    let rule = left_out();
    for seed in (0..seeds.count).map(|done| seeds.first + done * seeds.step) {
        if let Some(wrong) = run::run(seed, rule).wrong {
            println!("{rule:?}, seed {seed}: {wrong}");
        }
    }
}
