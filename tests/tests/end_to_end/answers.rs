//! Answers of a store that say something else than what happened, to every kind of write of a backup and of a clean-up, by real
//! servers with a door before them: 503 after the act, 409 with nothing stored, a connection that breaks before the answer.

use coffre_tests::VaultKind;
use coffre_tests::strike::{Blow, Strike};

use crate::machine::{CLEAN, Machine, assert_done};

const BLOWS: [Blow; 3] = [Blow::UnavailableAfter, Blow::ConflictBefore, Blow::CutAfter];
/// Everything that a second backup writes, the commit last.
const WRITTEN: [&str; 4] = ["sessions/", "packs/", "index/", "points/"];

fn strikes(blow: Blow, writes: &[(&str, &str)]) -> Vec<Strike> {
    let strike = |(verb, object): &(&str, &str)| Strike::new(blow, 1, verb, object);
    writes.iter().map(strike).collect()
}

fn a_write_answered_wrongly_is_done_once(kind: VaultKind) {
    let mut machine = Machine::new(kind);
    machine.back_up("first");
    for blow in BLOWS {
        machine.change();
        let before = machine.points().len();
        let struck = machine.run(&["backup", "web01"], &strikes(blow, &WRITTEN.map(|part| ("PUT", part))));
        assert_done(&struck, &format!("{blow:?}"));
        assert_eq!(struck.struck, WRITTEN.len() as u32, "{blow:?}");
        assert_eq!(machine.points().len(), before + 1, "{blow:?}");
        machine.assert_all_restore(&format!("{blow:?}"));
    }
    // The commit alone, as the last thing that is wrong.
    for blow in BLOWS {
        machine.change();
        let before = machine.points().len();
        let struck = machine.run(&["backup", "web01"], &strikes(blow, &[("PUT", "points/")]));
        assert_done(&struck, &format!("{blow:?}"));
        assert_eq!((struck.struck, machine.points().len()), (1, before + 1), "{blow:?}");
        machine.assert_newest_is_the_disk();
    }
    for blow in BLOWS {
        machine.forget_old();
        let writes = [("PUT", "fates/"), ("PUT", "gclog/")];
        let struck = machine.run(&CLEAN, &strikes(blow, &writes));
        assert_done(&struck, &format!("{blow:?}"));
        machine.change();
        machine.back_up("between");
        machine.assert_all_restore(&format!("{blow:?}"));
    }
    // What is to go is there to be condemned by the first, and gone after the second.
    machine.forget_old();
    assert_done(&machine.run(&CLEAN, &[]), "condemns");
    for blow in [Blow::UnavailableAfter, Blow::CutAfter] {
        let struck = machine.run(&CLEAN, &strikes(blow, &[("DELETE", "packs/"), ("DELETE", "index/")]));
        assert_done(&struck, &format!("{blow:?}"));
        assert!(struck.struck > 0, "{blow:?}: nothing was deleted");
        machine.assert_all_restore(&format!("{blow:?}"));
        machine.change();
        machine.back_up("between");
        machine.forget_old();
        assert_done(&machine.run(&CLEAN, &[]), "condemns again");
    }
}

#[test]
fn every_write_to_s3_that_is_answered_wrongly_is_done_once() {
    a_write_answered_wrongly_is_done_once(VaultKind::S3);
}

#[test]
fn every_write_to_azure_blob_that_is_answered_wrongly_is_done_once() {
    a_write_answered_wrongly_is_done_once(VaultKind::Azure);
}
