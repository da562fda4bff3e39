//! Finds the processes below one in `/proc`, and ends them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable that marks every process of one run.
pub const MARKER_NAME: &str = "COFFRE_RUN";

/// What tells the processes of one run from all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker(String);

impl Marker {
    /// Unique on this machine, which is enough: who forges it asks to be killed.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let nanoseconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        Self(format!(
            "{}-{nanoseconds:x}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ))
    }

    /// One that was written down.
    pub fn from_text(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub fn text(&self) -> &str {
        &self.0
    }

    fn is_on(&self, pid: i32) -> bool {
        let wanted = format!("{MARKER_NAME}={}", self.0);
        std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
            environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == wanted.as_bytes())
        })
    }
}

/// What became of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// How many processes were killed.
    pub processes: u32,
    /// Those that could not be: of another user, or asleep in the kernel.
    pub left: Vec<i32>,
}

/// One line of `/proc/PID/stat` (proc_pid_stat(5)).
#[derive(Clone, Copy)]
struct Process {
    parent: i32,
    /// With its number the name of a process that is never given to another.
    started_ticks: u64,
    is_dead: bool,
}

/// When a living process was started, in clock ticks since boot; none if there is no such process.
pub(crate) fn started_ticks(pid: i32) -> Option<u64> {
    let process = process(pid).filter(|process| !process.is_dead)?;
    Some(process.started_ticks)
}

/// Ends everything below `keeper`, but not the keeper, by `give_up`. Where the chain of parents may be broken, what carries
/// the marker counts as well.
///
/// All are stopped first, and looked for again until no new one shows up, since one that runs can fork faster than one
/// can kill. Killing a parent may wake a stopped child for a moment (the kernel sends SIGCONT to a group that became an
/// orphan), so the whole is repeated until nothing is left.
pub fn end_below(keeper: Pid, chain_holds: bool, marker: &Marker, give_up: Instant) -> Ended {
    let keeper = keeper.as_raw_nonzero().get();
    let mut pause = Duration::from_micros(100);
    let mut killed = HashSet::new();
    loop {
        let mut stopped = HashSet::new();
        let mut members = members(keeper, chain_holds, marker);
        if members.is_empty() {
            return Ended {
                processes: killed.len() as u32,
                left: Vec::new(),
            };
        }
        loop {
            let fresh: Vec<_> = members
                .iter()
                .filter(|member| !stopped.contains(*member))
                .copied()
                .collect();
            if fresh.is_empty() || Instant::now() >= give_up {
                break;
            }
            for (pid, started_ticks) in fresh {
                send(pid, started_ticks, Signal::STOP);
                stopped.insert((pid, started_ticks));
            }
            members = self::members(keeper, chain_holds, marker);
        }
        for (pid, started_ticks) in members.iter().copied().chain(stopped) {
            send(pid, started_ticks, Signal::KILL);
            killed.insert((pid, started_ticks));
        }
        if Instant::now() >= give_up {
            let left = self::members(keeper, chain_holds, marker);
            return Ended {
                processes: killed.len() as u32,
                left: left.into_iter().map(|(pid, _)| pid).collect(),
            };
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Ends every process that carries the marker, and everything below those, by `give_up`. For whoever did not start them.
///
/// A keeper carries the marker as long as it lives, and what is below it loses its chain to it when it dies: so it is
/// stopped, what is below it is ended, and only then it is.
pub fn end_marked(marker: &Marker, give_up: Instant) -> Ended {
    let mut ended = Ended::default();
    loop {
        let roots = roots(marker);
        if roots.is_empty() {
            return ended;
        }
        for (root, started_ticks) in &roots {
            send(*root, *started_ticks, Signal::STOP);
            if let Some(keeper) = Pid::from_raw(*root) {
                ended.processes += end_below(keeper, true, marker, give_up).processes;
            }
            send(*root, *started_ticks, Signal::KILL);
            ended.processes += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
        if Instant::now() >= give_up {
            ended.left = self::roots(marker).into_iter().map(|(pid, _)| pid).collect();
            return ended;
        }
    }
}

/// The living processes that carry the marker and whose parent does not.
fn roots(marker: &Marker) -> Vec<(i32, u64)> {
    let ours = std::process::id() as i32;
    let all = processes();
    let marked: HashSet<i32> = (all.iter())
        .filter(|(pid, process)| **pid != ours && !process.is_dead && marker.is_on(**pid))
        .map(|(pid, _)| *pid)
        .collect();
    (marked.iter())
        .filter_map(|pid| Some((*pid, all.get(pid)?)))
        .filter(|(_, process)| !marked.contains(&process.parent))
        .map(|(pid, process)| (pid, process.started_ticks))
        .collect()
}

/// The living processes of a run but the keeper, as number and start.
fn members(keeper: i32, chain_holds: bool, marker: &Marker) -> Vec<(i32, u64)> {
    let all = processes();
    let ours = std::process::id() as i32;
    let mut inside: HashMap<i32, bool> = HashMap::from([(keeper, true), (ours, false), (1, false), (0, false)]);
    let mut found = Vec::new();
    for (&pid, process) in &all {
        let mut path = Vec::new();
        let mut at = pid;
        let answer = loop {
            if let Some(known) = inside.get(&at) {
                break *known;
            }
            path.push(at);
            if !chain_holds && marker.is_on(at) {
                break true;
            }
            match all.get(&at) {
                // A loop cannot be, but a listing that is not taken at one instant may show one.
                Some(next) if path.len() <= all.len() => at = next.parent,
                _ => break false,
            }
        };
        inside.extend(path.into_iter().map(|pid| (pid, answer)));
        if answer && pid != keeper && !process.is_dead {
            found.push((pid, process.started_ticks));
        }
    }
    found
}

fn processes() -> HashMap<i32, Process> {
    let Ok(folder) = std::fs::read_dir("/proc") else {
        return HashMap::new();
    };
    folder
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| Some((pid, process(pid)?)))
        .collect()
}

fn process(pid: i32) -> Option<Process> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets, which may itself hold blanks and brackets.
    let mut fields = line.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let started_ticks = fields.nth(17)?.parse().ok()?;
    Some(Process {
        parent,
        started_ticks,
        is_dead: matches!(state, "Z" | "X" | "x"),
    })
}

/// Sends a signal to exactly this process: the descriptor is opened first, and only then is it asked whether the number is
/// still that of the process that was found.
fn send(pid: i32, started_ticks: u64, signal: Signal) {
    let Some(number) = Pid::from_raw(pid) else { return };
    let Ok(descriptor) = pidfd_open(number, PidfdFlags::empty()) else {
        return;
    };
    if process(pid).is_some_and(|process| process.started_ticks == started_ticks) {
        // Refused or gone: the next look at /proc tells.
        let _ = pidfd_send_signal(&descriptor, signal);
    }
}
