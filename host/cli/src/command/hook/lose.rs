//! Takes away what a hook holds open from pre to post, as a crash of the database's client would.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A killed process is gone in milliseconds; on a machine that is very busy its keeper notices later.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Kills what this program runs on behalf of the hook, but for the keepers on top, which must see it, and waits until they
/// have ended.
pub(super) fn session_of(hook: &str) -> Result<(), String> {
    let processes = Processes::now().map_err(|error| error.to_string())?;
    let mark = format!("COFFRE_HOOK={hook}");
    // The same hook may be held by another program at this time: what that one started is not ours to take.
    let of_hook: Vec<i32> = (processes.0.keys().copied())
        .filter(|number| processes.is_below(*number, std::process::id() as i32) && has(*number, &mark))
        .collect();
    let (victims, keepers): (Vec<i32>, Vec<i32>) =
        (of_hook.iter()).partition(|number| of_hook.contains(&processes.0[number].parent));
    if victims.is_empty() {
        return Err(format!("{hook} holds nothing open that could be lost"));
    }
    for number in victims {
        if let Some(process) = Pid::from_raw(number) {
            // One that has ended by itself is lost as well.
            let _ = kill_process(process, Signal::KILL);
        }
    }
    let until = Instant::now() + NOTICED_WITHIN;
    while keepers
        .iter()
        .any(|keeper| Process::of(*keeper).is_some_and(|it| it.runs))
    {
        if Instant::now() > until {
            return Err(format!(
                "what {hook} holds open was killed, and its keeper did not notice"
            ));
        }
        sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Whether this stands in the environment that a process was started with. One that is gone, or not ours to look at, has
/// none.
fn has(number: i32, variable: &str) -> bool {
    let environment = fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|word| word == variable.as_bytes())
}

/// The processes of this machine, by number.
struct Processes(BTreeMap<i32, Process>);

struct Process {
    parent: i32,
    /// It has not ended: a zombie, which nobody has waited for, has.
    runs: bool,
}

impl Processes {
    fn now() -> std::io::Result<Self> {
        let numbers = fs::read_dir("/proc")?.flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(Self(
            numbers
                .filter_map(|number| Some((number, Process::of(number)?)))
                .collect(),
        ))
    }

    fn is_below(&self, number: i32, ancestor: i32) -> bool {
        let mut at = number;
        // Numbers are given anew, so what was read one after the other might go round in a circle.
        for _ in 0..self.0.len() {
            match self.0.get(&at) {
                Some(process) if process.parent == ancestor => return true,
                Some(process) => at = process.parent,
                None => return false,
            }
        }
        false
    }
}

impl Process {
    fn of(number: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
        // The name may hold anything; after its last bracket come the state and the parent.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut words = rest.split_whitespace();
        let runs = !matches!(words.next()?, "Z" | "X");
        let parent = words.next()?.parse().ok()?;
        Some(Self { parent, runs })
    }
}
