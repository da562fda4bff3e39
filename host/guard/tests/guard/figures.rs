//! What a guard costs and how soon it acts: the figures that the documentation gives, measured. With
//! `cargo test --release -p coffre-guard --test guard figures -- --nocapture` they are shown; `cargo build --release
//! -p coffre-guard --examples` builds the programs before.

use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coffre_guard::{Debt, Outcome, Owner, SettlementEnd};
use coffre_tests::mount::Scratch;
use rustix::process::Signal;

use crate::world::{World, is_gone, until};

const TIMES: usize = 20;
const MIB: u64 = 1 << 20;
/// On a machine that does nothing else it is a hundredth of this; there is always somebody who builds beside a test.
const SOON: Duration = Duration::from_secs(2);
/// Locked memory counts against everybody else.
const MEMORY_AT_MOST_KIB: u64 = 8 * 1024;

fn say(what: &str, mut taken: Vec<Duration>) -> Duration {
    taken.sort_unstable();
    let (median, most) = (taken[taken.len() / 2], taken[taken.len() - 1]);
    let _ = writeln!(
        std::io::stderr(),
        "{what}: {median:.1?}, {most:.1?} at most, of {}",
        taken.len()
    );
    most
}

#[test]
fn figures_of_a_guard_that_starts_and_is_owed_something() {
    let owner = Owner {
        machine: "web01".to_owned(),
        job: "j1".to_owned(),
    };
    let (mut started, mut owed) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let world = World::new();
        let guard = world.guard();
        let began = Instant::now();
        guard.start().unwrap();
        started.push(began.elapsed());
        let debt = Debt::EndTree {
            marker: "none-has-this-one".to_owned(),
        };
        let hour = Instant::now() + Duration::from_secs(3600);
        let began = Instant::now();
        let taken = guard.owe(&owner, &debt, hour).unwrap();
        owed.push(began.elapsed());
        taken.paid(Outcome::Nothing);
        if started.len() == TIMES {
            let status = std::fs::read_to_string(format!("/proc/{}/status", guard.process().unwrap())).unwrap();
            let kib = |key: &str| -> u64 {
                let line = status.lines().find(|line| line.starts_with(key)).unwrap();
                line.split_whitespace().nth(1).unwrap().parse().unwrap()
            };
            let (resident, locked) = (kib("VmRSS:"), kib("VmLck:"));
            let _ = writeln!(
                std::io::stderr(),
                "memory: {resident} KiB, {locked} KiB of addresses locked"
            );
            assert!(resident < MEMORY_AT_MOST_KIB, "{resident} KiB");
        }
    }
    assert!(say("from nothing to armed", started) < SOON);
    assert!(say("a debt, written down and entrusted", owed) < SOON);
}

#[test]
fn figures_of_a_thaw_after_the_host_is_killed() {
    let scratch = Scratch::new("ext4", 64 * MIB);
    let mount = scratch.freezable().display().to_string();
    let mut taken = Vec::new();
    for _ in 0..TIMES {
        let world = World::new();
        let mut host = world.host(&["freeze", "600000", &mount]);
        host.expect("frozen");
        let killed_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        host.send(Signal::KILL);
        until(|| is_gone(host.guard));
        let found = world.settle();
        let settled = &found.left[0].settlements[0];
        let SettlementEnd::Paid { at_unix_ms, .. } = settled.end else {
            panic!("{settled}");
        };
        taken.push(Duration::from_millis(at_unix_ms).saturating_sub(killed_at));
    }
    assert!(say("from SIGKILL to thawed and written down", taken) < SOON);
}
