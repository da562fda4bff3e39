//! Running full: the vault's file system at many points of a backup and at every single write, and the file system of state
//! and cache.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::mount::Scratch;
use coffre_tests::strike::{Blow, Operation, each};
use coffre_tests::{Place, VaultKind};

use crate::machine::{CLEAN, Machine, assert_done};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Takes all of a file system but this much, until the file is removed.
fn fill_up(folder: &Path, free_bytes: u64) {
    let file = fs::File::create(folder.join("ballast")).unwrap();
    let mut length = 0;
    for step in [8 * MIB, MIB, 64 * KIB, 4 * KIB] {
        while rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), length, step).is_ok() {
            length += step;
        }
    }
    file.set_len(length.saturating_sub(free_bytes)).unwrap();
    file.sync_all().unwrap();
}

fn make_room(folder: &Path) {
    fs::remove_file(folder.join("ballast")).unwrap();
}

#[test]
fn a_vault_that_runs_full_anywhere_in_a_backup_keeps_what_it_has_and_goes_on_when_there_is_room() {
    let scratch = Scratch::new("ext4", 160 * MIB);
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image");
    let vault = scratch.path().join("vault");
    fs::create_dir(&vault).unwrap();
    symlink(&vault, place.path("vault")).unwrap();
    let place = place.init();
    let image = place.images().join("root.img");
    let disk = sparse(&image, 64 * MIB);
    write_noise(&disk, 0, 4 * MIB, 1);
    place.backup("web01");
    let first = place.path("first.img");
    fs::copy(&image, &first).unwrap();

    // The second backup stores some 50 MiB in two packs, then their index, then the point.
    write_noise(&disk, 0, 48 * MIB, 2);
    let mut finished = false;
    for free_bytes in [0, 64 * KIB, MIB, 16 * MIB, 33 * MIB, 48 * MIB] {
        fill_up(&scratch.path(), free_bytes);
        let ran = place.run(&["backup", "web01"]);
        // What earlier tries have stored is used again, so a late one may need no more room than there is.
        match ran.code {
            0 => finished = true,
            _ => drop(ran.refused(1, &["No space left on device", "make room on the vault's file system"])),
        }
        assert_eq!(place.points("web01").len(), 1 + usize::from(finished));
        place.run(&["verify", "main", "--read-data"]).expect(0);
        make_room(&scratch.path());
        if finished {
            break;
        }
    }
    let second = place.backup("web01");
    place.run(&["verify", "main", "--read-data"]).expect(0);
    let restored = place.restore(&format!("web01@{}", second["point"]));
    assert_same(&image, &restored.join("root.img"));
    let restored = place.restore("web01@0");
    assert_same(&first, &restored.join("root.img"));
}

#[test]
fn a_full_disk_below_state_and_cache_fails_with_a_hint_and_harms_no_point() {
    let scratch = Scratch::new("ext4", 32 * MIB);
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image");
    for folder in ["state", "cache"] {
        fs::create_dir(scratch.path().join(folder)).unwrap();
        symlink(scratch.path().join(folder), place.path(folder)).unwrap();
    }
    let place = place.init();
    let image = place.images().join("root.img");
    let disk = sparse(&image, 64 * MIB);
    write_noise(&disk, 0, 4 * MIB, 1);
    place.backup("web01");
    write_noise(&disk, 0, 8 * MIB, 2);
    let mut failed = 0;
    for free_bytes in [0, 4 * KIB, 16 * KIB, 64 * KIB] {
        fill_up(&scratch.path(), free_bytes);
        let ran = place.run(&["backup", "web01"]);
        if ran.code != 0 {
            ran.refused(1, &["No space left on device", "make room on the file system"]);
            failed += 1;
        }
        make_room(&scratch.path());
    }
    assert!(failed > 0);
    let second = place.backup("web01");
    place.run(&["verify", "main", "--read-data"]).expect(0);
    let restored = place.restore(&format!("web01@{}", second["point"]));
    assert_same(&image, &restored.join("root.img"));
}

/// What takes room on a disk.
fn full(operation: &Operation) -> &'static [Blow] {
    const ENOSPC: i32 = 28;
    match operation.verb.as_str() {
        "create" | "write" | "link" | "mkdir" => &[Blow::Fail(ENOSPC)],
        _ => &[],
    }
}

#[test]
fn a_vault_that_is_full_from_any_write_on_keeps_what_it_has_and_goes_on_when_there_is_room() {
    let told = ["No space left on device", "make room on the vault's file system"];
    let mut machine = Machine::new(VaultKind::Folder);
    let mut backup = Vec::new();
    for _ in 0..3 {
        machine.change();
        backup = machine.run(&["backup", "web01"], &[]).operations;
    }
    let strikes = each(&backup, full);
    assert!(strikes.len() >= 15, "{strikes:?}");
    for strike in &strikes {
        machine.change();
        let before = machine.points().len();
        let struck = machine.run(&["backup", "web01"], std::slice::from_ref(strike));
        if struck.struck == 0 {
            // Two packs that go at once make their folder both, or one finds it made.
            assert!(strike.verb == "mkdir" && strike.nth > 1, "{strike}");
            struck.ran.expect(0);
            continue;
        }
        // A commit that could not be written is sent again by the next backup, which is asked for then.
        let code = if strike.object == "points" { 75 } else { 1 };
        struck.ran.refused(code, &told);
        assert_eq!(machine.points().len(), before, "{strike}");
        machine.place.run(&["verify", "main", "--read-data"]).expect(0);
        machine.back_up("with room");
        machine.assert_newest_is_the_disk();
    }

    machine.forget_old();
    let clean = machine.run(&CLEAN, &[]).operations;
    let strikes = each(&clean, full);
    assert!(strikes.len() >= 4, "{strikes:?}");
    for strike in &strikes {
        for _ in 0..2 {
            machine.change();
            machine.back_up("with room");
        }
        machine.forget_old();
        let struck = machine.run(&CLEAN, std::slice::from_ref(strike));
        if struck.struck > 0 {
            struck.ran.refused(1, &told);
        }
        machine.assert_all_restore(&strike.to_string());
        assert_done(&machine.run(&CLEAN, &[]), "with room");
    }
    machine.assert_all_restore("in the end");
}
