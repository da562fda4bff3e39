//! `kill -9` of the program at the operations of a backup and of a clean-up, on every kind of store: before one reaches it, when
//! half of it has, and when it is done and the program does not know yet. Earlier points restore, the same thing done again
//! succeeds, and everything verifies.
//!
//! In every run the first and the last operation of each kind that changes something is tried. With `COFFRE_KILL_EVERY=1` every single one is, which takes an hour.

#![allow(clippy::print_stdout, reason = "tells how many kills fell")]

use std::collections::VecDeque;

use coffre_tests::VaultKind;
use coffre_tests::strike::{Blow, Operation, Strike, Struck, each, ends_of_each_kind};

use crate::machine::{CLEAN, Machine, POINTS_KEPT, assert_done};

/// How often a blow that did not fall is tried: not every clean-up has something of everything to do.
const TRIES: u32 = 3;

/// Backs the changed disk up, and is struck; then again.
fn back_up(machine: &mut Machine, strike: Option<&Strike>) -> Struck {
    machine.change();
    let before = machine.points().len();
    let struck = machine.run(&["backup", "web01"], strike.cloned().as_slice());
    let what = strike.map(|strike| format!("backup, {strike}")).unwrap_or_default();
    if struck.killed {
        machine.assert_all_restore(&what);
        assert_done(&machine.run(&["backup", "web01"], &[]), &what);
    } else {
        assert_done(&struck, &what);
    }
    // One that died with its commit made has made a point, and so has the one after it.
    let made = machine.points().len() - before;
    assert!(made == 1 || (made == 2 && struck.killed), "{what}: {made} points");
    machine.assert_newest_is_the_disk();
    struck
}

/// Forgets old points and cleans up, and is struck; then again.
fn clean(machine: &mut Machine, strike: Option<&Strike>) -> Struck {
    machine.forget_old();
    let struck = machine.run(&CLEAN, strike.cloned().as_slice());
    let what = strike.map(|strike| format!("clean, {strike}")).unwrap_or_default();
    machine.assert_all_restore(&what);
    if struck.killed {
        assert_done(&machine.run(&CLEAN, &[]), &what);
    } else {
        assert_done(&struck, &what);
    }
    struck
}

/// What makes a difference to whoever looks at the vault afterwards: reads make none.
fn blows(operation: &Operation) -> &'static [Blow] {
    // A folder's new files are written beside their names, which they get when they are whole.
    let is_beside = operation.object.contains('#');
    match operation.verb.as_str() {
        "PUT" => &[Blow::KillBefore, Blow::KillMidway, Blow::KillAfter],
        "write" => &[Blow::KillMidway],
        "link" | "DELETE" => &[Blow::KillBefore, Blow::KillAfter],
        "unlink" if !is_beside => &[Blow::KillBefore, Blow::KillAfter],
        _ => &[],
    }
}

/// The same; half of a request is what a backup has shown.
fn blows_on_a_clean_up(operation: &Operation) -> &'static [Blow] {
    match operation.verb.as_str() {
        "PUT" => &[Blow::KillBefore, Blow::KillAfter],
        _ => blows(operation),
    }
}

/// Every operation that there is: a server's before and after it, a folder's before it, and half of a write.
fn all(operation: &Operation) -> &'static [Blow] {
    match operation.verb.as_str() {
        "PUT" => &[Blow::KillBefore, Blow::KillMidway, Blow::KillAfter],
        "DELETE" | "GET" | "HEAD" | "LIST" => &[Blow::KillBefore, Blow::KillAfter],
        _ => &[Blow::KillMidway],
    }
}

/// The strikes of one program, each of which is tried until it has fallen.
struct Plan {
    strikes: VecDeque<Strike>,
    tries: u32,
    fallen: usize,
    missed: Vec<Strike>,
}

impl Plan {
    fn new(operations: &[Operation], every: bool, some: fn(&Operation) -> &'static [Blow]) -> Self {
        let mut strikes = if every {
            each(operations, all)
        } else {
            ends_of_each_kind(operations, some)
        };
        // A session that died without a word holds deletes up until its deadline, so what deletes comes first, and what
        // begins sessions last.
        let begins = |strike: &Strike| strike.object == "sessions";
        let deletes = |strike: &Strike| matches!(strike.verb.as_str(), "DELETE" | "unlink");
        strikes.sort_by_key(|strike| (begins(strike), !deletes(strike)));
        Self {
            strikes: strikes.into(),
            tries: 0,
            fallen: 0,
            missed: Vec::new(),
        }
    }

    fn next(&self) -> Option<Strike> {
        self.strikes.front().cloned()
    }

    fn saw(&mut self, struck: &Struck) {
        self.tries += 1;
        if struck.killed {
            self.fallen += 1;
        }
        if struck.killed || self.tries == TRIES {
            let done = self.strikes.pop_front();
            self.missed.extend(done.filter(|_| !struck.killed));
            self.tries = 0;
        }
    }
}

fn killed_and_done_again(kind: VaultKind) {
    let every = std::env::var_os("COFFRE_KILL_EVERY").is_some();
    let mut machine = Machine::new(kind);
    let (mut of_backup, mut of_clean) = (Vec::new(), Vec::new());
    // Until there is something to purge, something to condemn and something to delete.
    for _ in 0..POINTS_KEPT + 2 {
        of_backup = back_up(&mut machine, None).operations;
        of_clean = clean(&mut machine, None).operations;
    }
    let mut plans = [
        Plan::new(&of_backup, every, blows),
        Plan::new(&of_clean, every, blows_on_a_clean_up),
    ];
    let planned = plans.each_ref().map(|plan| plan.strikes.len());
    while plans.iter().any(|plan| plan.next().is_some()) {
        let [of_backup, of_clean] = &mut plans;
        if let Some(strike) = of_backup.next() {
            of_backup.saw(&back_up(&mut machine, Some(&strike)));
        } else {
            back_up(&mut machine, None);
        }
        if let Some(strike) = of_clean.next() {
            of_clean.saw(&clean(&mut machine, Some(&strike)));
        }
    }
    for (what, (plan, planned)) in ["backup", "clean"].iter().zip(plans.iter().zip(planned)) {
        println!("{kind:?}: {what} was killed {} times of {planned}", plan.fallen);
        let missed = &plan.missed;
        assert!(planned >= 8, "{what}: {planned} kinds of operations");
        // Of how many there are of a kind the last one need not be there each time.
        assert!(missed.len() * 10 <= planned, "{what}: these did not fall: {missed:?}");
        assert!(
            every || missed.iter().all(|strike| strike.nth > 1),
            "{what}: these did not fall: {missed:?}"
        );
    }
}

#[test]
fn a_program_killed_at_any_operation_on_a_folder_harms_nothing_and_is_done_again() {
    killed_and_done_again(VaultKind::Folder);
}

#[test]
fn a_program_killed_at_any_request_to_s3_harms_nothing_and_is_done_again() {
    killed_and_done_again(VaultKind::S3);
}

#[test]
fn a_program_killed_at_any_request_to_azure_blob_harms_nothing_and_is_done_again() {
    killed_and_done_again(VaultKind::Azure);
}
