//! A vault in a folder is on disk before anything says that it is: files before they have their names, names before what
//! relies on them, and what a program left that died before somebody counts on it. Seen between the program and the C library.

use std::path::Path;

use coffre_tests::preload::{Act, Preload};
use coffre_tests::strike::{Blow, Strike, Struck};
use coffre_tests::{Door, Place, VaultKind};

use crate::machine::{CLEAN, Machine, assert_done};

fn watched(machine: &Machine, arguments: &[&str], strike: Option<&Strike>) -> (Struck, Vec<Act>) {
    let Door::Folder(preload) = &machine.door else {
        panic!("this is about folders");
    };
    preload.run_and_watch(machine.place.command(arguments), strike)
}

fn succeeded(acts: &[Act], verb: &str, path: &str) -> impl Iterator<Item = usize> {
    let is_it = move |act: &Act| act.error.is_none() && act.verb == verb && act.path == path;
    let found: Vec<usize> = (0..acts.len()).filter(|at| is_it(&acts[*at])).collect();
    found.into_iter()
}

/// The folder that a file or folder of the vault lies in, as acts name it.
fn folder_of(path: &str) -> String {
    match path {
        "." => "..".to_owned(),
        path => match Path::new(path).parent().and_then(Path::to_str) {
            Some("") | None => ".".to_owned(),
            Some(folder) => folder.to_owned(),
        },
    }
}

/// Every new file was on disk before it had its name; every new name was, with all folders made for it, before the program
/// ended and before the next commit. Gives how many new names there were.
fn assert_on_disk(acts: &[Act]) -> usize {
    let mut names = 0;
    for (at, act) in acts.iter().enumerate().filter(|(_, act)| act.error.is_none()) {
        let is_new = match act.verb.as_str() {
            "mkdir" => true,
            "link" => {
                // Beside its name, it was written and then synced.
                let beside = format!("{}#", act.path);
                let of_it = |verb: &str| {
                    let is_it = |act: &Act| act.verb == verb && act.path.starts_with(&beside);
                    acts[..at].iter().rposition(is_it)
                };
                // A probe is made by several at once, to see that one of them is refused: whose bytes are whose cannot be seen.
                let is_probe = act.path.starts_with("probe/");
                assert!(
                    is_probe || of_it("fsync") > of_it("write"),
                    "{act:?} has its name before its bytes are on disk"
                );
                names += 1;
                true
            }
            _ => false,
        };
        if !is_new {
            continue;
        }
        let synced = succeeded(acts, "fsync", &folder_of(&act.path)).find(|synced| *synced > at);
        let synced = synced.unwrap_or_else(|| panic!("the folder of {act:?} never reached the disk"));
        let is_commit = |later: &Act| later.verb == "link" && later.path.starts_with("points/");
        let commit = acts[at + 1..].iter().position(is_commit).map(|behind| at + 1 + behind);
        assert!(
            commit.is_none_or(|commit| synced < commit),
            "{act:?} is on disk after the commit"
        );
    }
    names
}

#[test]
fn everything_in_a_folder_is_on_disk_before_what_relies_on_it_and_before_success_is_told() {
    let place = Place::new(VaultKind::Folder);
    // The folder is made by `init`, and its name is in the one above.
    let folder = place.path("vault");
    std::fs::create_dir(&folder).unwrap();
    let preload = Preload::before(&folder);
    std::fs::remove_dir(&folder).unwrap();
    let init = ["init", "main", "--recovery-key-file", "recovery.key"];
    let (struck, acts) = preload.run_and_watch(place.command(&init), None);
    assert_done(&struck, "init");
    assert!(assert_on_disk(&acts) >= 3, "{acts:?}");
    assert!(succeeded(&acts, "mkdir", ".").count() == 1, "{acts:?}");

    let mut machine = Machine::new(VaultKind::Folder);
    for _ in 0..4 {
        machine.change();
        let (struck, acts) = watched(&machine, &["backup", "web01"], None);
        assert_done(&struck, "backup");
        assert!(assert_on_disk(&acts) >= 4, "{acts:?}");
    }
    machine.forget_old();
    for _ in 0..2 {
        let (struck, acts) = watched(&machine, &CLEAN, None);
        assert_done(&struck, "clean");
        assert!(assert_on_disk(&acts) >= 1, "{acts:?}");
    }
}

/// From the file up to the folder that holds the vault.
fn assert_settled(acts: &[Act], object: &str) {
    let mut path = object.to_owned();
    let mut from = 0;
    while path != ".." {
        let synced = succeeded(acts, "fsync", &path).find(|at| *at >= from);
        from = synced.unwrap_or_else(|| panic!("{path} of {object} did not reach the disk: {acts:?}"));
        path = folder_of(&path);
    }
}

/// The last object that got its name.
fn newest(acts: &[Act]) -> String {
    let named = acts.iter().rev().find(|act| act.verb == "link" && act.error.is_none());
    named.expect("something was written").path.clone()
}

#[test]
fn a_commit_that_is_found_after_a_crash_is_written_to_disk_before_it_counts() {
    let mut machine = Machine::new(VaultKind::Folder);
    machine.back_up("first");
    machine.change();
    // It has its name; whether its folder is on disk nobody knows.
    let strike = Strike::new(Blow::KillAfter, 1, "link", "points/");
    let (struck, acts) = watched(&machine, &["backup", "web01"], Some(&strike));
    assert!(struck.killed);
    let point = newest(&acts);
    let (again, acts) = watched(&machine, &["backup", "web01"], None);
    assert_done(&again, "again");
    assert_settled(&acts, &point);
    machine.assert_all_restore("again");
}

#[test]
fn what_a_killed_backup_left_is_on_disk_before_the_next_one_relies_on_it() {
    let mut machine = Machine::new(VaultKind::Folder);
    machine.back_up("first");
    machine.change();
    let strike = Strike::new(Blow::KillAfter, 1, "link", "packs/");
    let (struck, acts) = watched(&machine, &["backup", "web01"], Some(&strike));
    assert!(struck.killed);
    let pack = newest(&acts);
    let (again, acts) = watched(&machine, &["backup", "web01"], None);
    assert_done(&again, "again");
    // The first record of a point is the abort of the session that died.
    let commit = acts
        .iter()
        .rposition(|act| act.verb == "link" && act.path.starts_with("points/"));
    assert_settled(&acts[..commit.unwrap()], &pack);
    machine.assert_all_restore("again");
}

#[test]
fn a_backup_whose_fsync_fails_is_not_done() {
    const EIO: i32 = 5;
    const FAILED: i32 = 1;
    // Whether the commit is in the vault is not known then.
    const TRY_AGAIN: i32 = 75;
    let mut machine = Machine::new(VaultKind::Folder);
    machine.back_up("first");
    for part in ["packs/", "points/"] {
        machine.change();
        let strike = Strike::new(Blow::Fail(EIO), 1, "fsync", part);
        let (struck, _) = watched(&machine, &["backup", "web01"], Some(&strike));
        assert!(struck.struck > 0, "{part}");
        assert!(matches!(struck.ran.code, FAILED | TRY_AGAIN), "{part}: {struck:?}");
        assert!(struck.ran.stderr.contains("Input/output error"), "{part}: {struck:?}");
        machine.back_up(part);
        machine.assert_newest_is_the_disk();
    }
    machine.assert_all_restore("in the end");
}
