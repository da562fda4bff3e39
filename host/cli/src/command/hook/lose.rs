//! Takes away what a hook holds open from pre to post, as a crash of the database's client would.

use std::collections::BTreeMap;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Long enough for the end of a process to be noticed.
const NOTICED_WITHIN: Duration = Duration::from_millis(200);

/// Kills what runs on behalf of the hook, but for the keepers on top, which must see it.
pub(super) fn session_of(hook: &str) -> Result<(), String> {
    let mark = format!("COFFRE_HOOK={hook}");
    let mut parents: BTreeMap<i32, i32> = BTreeMap::new();
    for entry in fs::read_dir("/proc").map_err(|error| error.to_string())?.flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Gone meanwhile, or not ours to look at: it is not the hook's.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if !environment.split(|byte| *byte == 0).any(|word| word == mark.as_bytes()) {
            continue;
        }
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name may hold anything; after its last bracket come the state and the parent.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parents.insert(number, parent.unwrap_or(0));
    }
    let victims: Vec<i32> = (parents.iter())
        .filter(|(_, parent)| parents.contains_key(parent))
        .map(|(number, _)| *number)
        .collect();
    if victims.is_empty() {
        return Err(format!("{hook} holds nothing open that could be lost"));
    }
    for number in victims {
        if let Some(process) = Pid::from_raw(number) {
            // One that has ended by itself is lost as well.
            let _ = kill_process(process, Signal::KILL);
        }
    }
    sleep(NOTICED_WITHIN);
    Ok(())
}
