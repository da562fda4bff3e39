//! Everybody who can be killed is, while something is owed.

use std::path::Path;
use std::time::{Duration, Instant};

use coffre_guard::{Debt, Found, Payer, SettlementEnd, Why};
use coffre_tests::mount::Scratch;
use rustix::process::Signal;

use crate::world::{A_WHILE, SOON, World, is_gone, takes_writes, until};

const MIB: u64 = 1 << 20;
/// Longer than any of these tests takes: nothing is thawed by a deadline where that is not asked for.
const LONG: &str = "600000";

fn frozen(kind: &str) -> (Scratch, World, crate::world::Host) {
    let scratch = Scratch::new(kind, 320 * MIB);
    let world = World::new();
    let mount = scratch.freezable().display().to_string();
    let mut host = world.host(&["freeze", LONG, &mount]);
    host.expect("frozen");
    assert!(!takes_writes(&scratch.path(), A_WHILE), "it is frozen");
    (scratch, world, host)
}

/// Exactly one debt was left, and it has been paid like this.
#[track_caller]
pub fn told(found: Found) -> (Payer, Why, String) {
    assert!(found.unreadable.is_empty() && found.running.is_empty());
    let mut all: Vec<_> = found.left.iter().flat_map(|left| left.settlements.clone()).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    let settled = all.remove(0);
    assert!(settled.is_well(), "{settled}");
    assert_eq!(
        (settled.owner.machine.as_str(), settled.owner.job.as_str()),
        ("web01", "j1")
    );
    let SettlementEnd::Paid { by, why, .. } = settled.end else {
        panic!("{settled}");
    };
    let text = settled.to_string();
    found.left.into_iter().for_each(|left| left.told());
    (by, why, text)
}

#[test]
fn a_killed_host_leaves_nothing_frozen_and_the_next_start_is_told() {
    for kind in ["ext4", "xfs"] {
        let (scratch, world, host) = frozen(kind);
        host.send(Signal::KILL);
        assert!(takes_writes(&scratch.path(), SOON), "{kind}");
        until(|| is_gone(host.guard));
        let (by, why, text) = told(world.settle());
        assert_eq!((by, why), (Payer::Guard, Why::HostGone), "{text}");
        assert!(
            text.contains("was thawed by the guard") && text.contains("takes writes"),
            "{text}"
        );
        assert!(world.ledgers().is_empty(), "{:?}", world.ledgers());
    }
}

#[test]
fn a_killed_guard_makes_its_host_thaw_at_once() {
    let (scratch, world, mut host) = frozen("ext4");
    host.send_guard(Signal::KILL);
    assert!(takes_writes(&scratch.path(), SOON));
    host.expect("[GuardGone]");
    drop(host);
    assert!(world.settle().running.is_empty());
}

#[test]
fn a_guard_outlives_its_hosts_whole_process_group() {
    let (scratch, world, host) = frozen("ext4");
    host.send_group(Signal::KILL);
    assert!(takes_writes(&scratch.path(), SOON));
    until(|| is_gone(host.guard));
    assert_eq!(told(world.settle()).1, Why::HostGone);
}

#[test]
fn a_guard_outlives_its_hosts_control_group() {
    let group = Group::new();
    let scratch = Scratch::new("ext4", 320 * MIB);
    let world = World::new();
    let mount = scratch.freezable().display().to_string();
    let mut host = world.host_in(Some(&group.path), &["freeze", LONG, &mount]);
    host.expect("frozen");
    assert!(host.own_group, "it left the group that its host is in");
    let members = std::fs::read_to_string(group.path.join("cgroup.procs")).unwrap();
    assert!(
        !members
            .lines()
            .any(|line| line == host.guard.as_raw_nonzero().to_string())
    );
    std::fs::write(group.path.join("cgroup.kill"), "1").unwrap();
    until(|| is_gone(host.pid()));
    assert!(takes_writes(&scratch.path(), SOON));
    until(|| is_gone(host.guard));
    assert_eq!(told(world.settle()).1, Why::HostGone);
}

#[test]
fn when_all_are_killed_the_next_start_thaws_and_shows_that_writes_work() {
    for kind in ["ext4", "xfs"] {
        let (scratch, world, mut host) = frozen(kind);
        host.kill_both();
        assert!(!takes_writes(&scratch.path(), A_WHILE), "nobody is there to thaw it");
        let started = Instant::now();
        let found = world.settle();
        assert!(takes_writes(&scratch.path(), SOON));
        let (by, why, text) = told(found);
        assert_eq!((by, why), (Payer::Later, Why::Found), "{text}");
        assert!(text.contains("it takes writes"), "{text}");
        assert!(started.elapsed() < SOON);
        assert!(world.settle().left.is_empty(), "it is told once");
    }
}

#[test]
fn a_host_that_hangs_is_thawed_at_the_deadline_and_learns_of_it() {
    let scratch = Scratch::new("ext4", 320 * MIB);
    let world = World::new();
    let mount = scratch.freezable().display().to_string();
    let mut host = world.host(&["freeze", "1500", &mount]);
    host.expect("frozen");
    let began = Instant::now();
    host.send(Signal::STOP);
    assert!(!takes_writes(&scratch.path(), A_WHILE));
    assert!(takes_writes(&scratch.path(), SOON));
    assert!(began.elapsed() < Duration::from_millis(2000), "{:?}", began.elapsed());
    host.send(Signal::CONT);
    host.go_on();
    host.expect("[ByGuard]");
    until(|| is_gone(host.guard));
    assert!(world.settle().left.is_empty(), "its host knows");
}

#[test]
fn while_a_host_lives_nobody_else_pays_for_it() {
    let (scratch, world, mut host) = frozen("ext4");
    let found = world.settle();
    assert!(found.left.is_empty());
    assert!(matches!(found.running.as_slice(), [(_, Debt::Thaw { .. })]));
    assert!(!takes_writes(&scratch.path(), A_WHILE), "it is still frozen");
    host.go_on();
    host.expect("[Held]");
    until(|| world.ledgers().is_empty());
}

#[test]
fn a_killed_host_leaves_no_process_of_its_commands() {
    let world = World::new();
    let mut host = world.host(&["tree"]);
    host.expect("started");
    let marked = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let number = entry.file_name().to_string_lossy().into_owned();
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            number != host.guard.as_raw_nonzero().to_string()
                && String::from_utf8_lossy(&environment)
                    .contains(&format!("COFFRE_RUN={}-", host.pid().as_raw_nonzero()))
        })
    };
    assert!(marked());
    host.send(Signal::KILL);
    until(|| !marked());
    until(|| is_gone(host.guard));
    let (by, _, text) = told(world.settle());
    assert_eq!(by, Payer::Guard);
    assert!(
        text.contains("processes of a command were ended by the guard"),
        "{text}"
    );
}

#[test]
fn a_command_that_is_owed_runs_when_its_host_is_killed_and_at_a_start_when_the_guard_is_too() {
    for both in [false, true] {
        let world = World::new();
        let file = world.path("touched");
        let mut host = world.host(&["command", file.to_str().unwrap()]);
        host.expect("owed");
        let by = if both {
            host.kill_both();
            assert!(!file.exists());
            Payer::Later
        } else {
            host.send(Signal::KILL);
            until(|| file.exists() && is_gone(host.guard));
            Payer::Guard
        };
        let (paid_by, _, text) = told(world.settle());
        assert_eq!(paid_by, by, "{text}");
        assert!(file.exists());
        assert!(text.contains("/bin/touch"), "{text}");
    }
}

/// A control group of the new kind (cgroups(7)), in which everything can be killed at once.
struct Group {
    path: std::path::PathBuf,
}

impl Group {
    fn new() -> Self {
        let hint = "a control group must be made here; hint: as root, mount -t cgroup2 none /sys/fs/cgroup/unified";
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = mounts.lines().find(|line| line.contains(" - cgroup2 "));
        let root = root.and_then(|line| line.split(' ').nth(4)).expect(hint);
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect(hint);
        let name = format!("coffre-test-{}", std::process::id());
        let path = Path::new(root).join(own).join(name);
        std::fs::create_dir(&path).expect(hint);
        Self { path }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
