//! What an earlier process that was killed has left: undone at every start, told to its jobs, and said.

use coffre_engine::config::Config;
use coffre_engine::job::{Told, tell};
use coffre_engine::state::State;
use coffre_engine::{Chain, SystemClock};
use coffre_guard::{Found, Guard, Settlement, settle};

use crate::{rehearsals, screen};

/// What was found, and told to the journals of the jobs that it was about.
pub struct LeftBehind {
    pub settled: Vec<Settlement>,
    /// The files that keep what is still owed.
    pub kept_in: Vec<std::path::PathBuf>,
    /// How much is owed by processes that run.
    pub running: usize,
    /// Ledgers that cannot be read, in words.
    pub unreadable: Vec<String>,
}

/// Pays, tells the journals, and forgets what has been told. What a busy machine could not be told is told next time.
pub fn settle_and_tell(config: &Config, guard: &Guard) -> LeftBehind {
    coffre_sandbox::hook::remove_left_behind();
    let Found {
        left,
        running,
        unreadable,
    } = settle(guard.config());
    let states = [State::new(&config.coffre.state), rehearsals::state(config)];
    let mut found = LeftBehind {
        settled: Vec::new(),
        kept_in: Vec::new(),
        running: running.len(),
        unreadable: unreadable.iter().map(|error| Chain(error).to_string()).collect(),
    };
    for left in left {
        let mut all_told = true;
        for settled in &left.settlements {
            // The journal of one of them knows the job.
            for state in &states {
                match tell(state, &SystemClock, settled) {
                    Ok(Told::Yes) => break,
                    Ok(Told::NoSuchJob) => {}
                    Ok(Told::Busy) => all_told = false,
                    Err(error) => {
                        all_told = false;
                        tracing::warn!(job = settled.owner.job, "its journal was not told: {}", Chain(&error));
                    }
                }
            }
        }
        found.settled.extend(left.settlements.iter().cloned());
        if left.settlements.iter().any(|settled| !settled.is_well()) {
            found.kept_in.push(left.path().to_owned());
        }
        if all_told {
            left.told();
        }
    }
    found
}

/// At the start of other work: whatever comes of it, the work goes on.
pub fn settle_and_say(config: &Config, guard: &Guard) {
    let found = settle_and_tell(config, guard);
    for settled in &found.settled {
        let level = if settled.is_well() { "left behind" } else { "STILL OWED" };
        screen::note(&format!("{level}: {}{settled}", of(settled)));
    }
    for text in &found.unreadable {
        screen::note(&format!("cannot tell what an earlier run has left: {text}"));
    }
}

/// Whose it was.
pub fn of(settled: &Settlement) -> String {
    if settled.owner.job.is_empty() {
        String::new()
    } else {
        format!("{} (job {}): ", settled.owner.machine, settled.owner.job)
    }
}
