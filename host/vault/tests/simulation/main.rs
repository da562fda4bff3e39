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
mod run;
mod writer;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use coffre_vault::LeftOut;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")),
    )
}

/// Which seeds, and for how long.
struct Seeds {
    first: u64,
    step: u64,
    count: u64,
    for_at_most: Duration,
}

impl Seeds {
    /// As the environment says, and where it says nothing, so many for so long.
    fn of_environment(count: u64, for_at_most: Duration) -> Self {
        Self {
            first: number("COFFRE_SIM_SEED").unwrap_or(0),
            step: number("COFFRE_SIM_STEP").unwrap_or(1),
            count: number("COFFRE_SIM_SEEDS").unwrap_or(count),
            for_at_most: number("COFFRE_SIM_MINUTES").map_or(for_at_most, |minutes| Duration::from_secs(60 * minutes)),
        }
    }

    /// Runs them until one fails, all are done or the time is up.
    fn run(&self) {
        let began = Instant::now();
        let mut said = began;
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        let mut done = 0;
        while done < self.count && began.elapsed() < self.for_at_most {
            let seed = self.first + done * self.step;
            let outcome = run::run(seed, None);
            done += 1;
            for (what, times) in &outcome.counts {
                *counts.entry(what).or_default() += times;
            }
            if let Some(wrong) = outcome.wrong {
                fail(seed, &wrong, &outcome.log);
            }
            if said.elapsed() > Duration::from_secs(2) {
                said = Instant::now();
                println!("seeds done: {done}");
            }
        }
        println!("seeds done: {done}");
        println!("{counts:#?}");
    }
}

fn fail(seed: u64, wrong: &str, story: &str) -> ! {
    let told = match std::env::var_os("COFFRE_SIM_STORIES") {
        Some(folder) => {
            let file = std::path::Path::new(&folder).join(format!("seed-{seed}.log"));
            std::fs::write(&file, story).expect("the story is written down");
            format!("its story: {}", file.display())
        }
        None => story.to_owned(),
    };
    let replay = "cargo test -p coffre-vault --test simulation replay -- --ignored --nocapture";
    println!("{told}\nseed {seed}: {wrong}\nreplay it: COFFRE_SIM_SEED={seed} {replay}");
    panic!("seed {seed}: {wrong}");
}

#[test]
fn every_acknowledged_point_restores_whatever_happens() {
    Seeds::of_environment(300, Duration::from_secs(25)).run();
}

#[test]
#[ignore = "does not hold for every seed yet: with a clean-up beside them, some stories differ from run to run"]
fn the_same_seed_gives_the_same_story() {
    for seed in 0..3 {
        let (first, second) = (run::run(seed, None), run::run(seed, None));
        assert!(first.log == second.log, "seed {seed}");
    }
}

/// Leaves a rule out and sees that a seed notices: a simulation that cannot fail shows nothing. The search begins at a seed that
/// is known to notice, or was when this was written.
fn notices(rule: LeftOut, from_seed: u64) {
    for seed in from_seed..from_seed + 200 {
        if let Some(wrong) = run::run(seed, Some(rule)).wrong {
            println!("without {rule:?}, seed {seed}: {wrong}");
            return;
        }
    }
    panic!("200 seeds without {rule:?}, and nothing is wrong");
}

#[test]
#[ignore = "may take minutes to find it"]
fn a_log_that_is_read_before_the_session_exists_loses_points() {
    notices(LeftOut::LogAfterSession, 0);
}

#[test]
#[ignore = "may take minutes to find it"]
fn relying_on_condemned_packs_loses_points() {
    notices(LeftOut::CondemnedPacks, 3);
}

#[test]
#[ignore = "may take minutes to find it"]
fn inheriting_from_a_base_that_is_not_pinned_loses_points() {
    notices(LeftOut::PinnedBases, 0);
}

#[test]
#[ignore = "may take minutes to find it"]
fn deleting_before_all_are_decided_that_may_rely_on_it_loses_points() {
    notices(LeftOut::Drain, 12);
}

#[test]
#[ignore = "may take minutes to find it"]
fn waiting_for_those_of_before_the_condemn_loses_points() {
    notices(LeftOut::WaitsAfterCondemn, 0);
}

#[test]
#[ignore = "may take minutes to find it"]
fn taking_a_session_for_over_without_a_fence_loses_points() {
    notices(LeftOut::Fence, 3);
}

#[test]
fn deleting_what_lives_nowhere_else_loses_points() {
    notices(LeftOut::MovedBeforeDeleted, 1);
}

/// `cargo xtask soak` runs this; the environment says which seeds.
#[test]
#[ignore = "as long as one likes"]
fn soak() {
    Seeds::of_environment(u64::MAX, Duration::MAX).run();
}

/// Tells the story of one seed.
#[test]
#[ignore = "wants a seed"]
fn replay() {
    let seed = number("COFFRE_SIM_SEED").expect("COFFRE_SIM_SEED says which seed");
    let outcome = run::run(seed, None);
    println!("{}", outcome.log);
    println!(
        "seed {seed}: {:?}, {:?}, {:#?}",
        outcome.wrong, outcome.lasted, outcome.counts
    );
    assert!(outcome.wrong.is_none());
}
