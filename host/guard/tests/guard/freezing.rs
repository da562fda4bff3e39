//! What is frozen, in which order, and what is refused.

use std::io::Write;
use std::time::{Duration, Instant};

use coffre_guard::{FreezeEnd, FreezeError, Owner, Protected, anything_frozen, look};
use coffre_tests::mount::Scratch;

use crate::world::{A_WHILE, SOON, World, takes_writes, until};

const MIB: u64 = 1 << 20;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

#[test]
fn what_is_frozen_takes_no_writes_until_it_is_thawed() {
    let world = World::new();
    let (one, other) = (Scratch::new("ext4", 320 * MIB), Scratch::new("xfs", 320 * MIB));
    let guard = world.guard();
    let paths = [one.freezable(), other.freezable()];
    let frozen = guard.freeze(&Owner::default(), &paths, &[], soon()).unwrap();
    assert!(anything_frozen());
    for path in &paths {
        assert!(!takes_writes(path, A_WHILE));
    }
    let thawed = frozen.thaw();
    assert!(thawed.held_all_the_while(), "{thawed:?}");
    assert!(thawed.held >= A_WHILE * 2);
    for path in &paths {
        assert!(takes_writes(path, SOON));
    }
    drop(guard);
    until(|| world.ledgers().is_empty());
}

#[test]
fn a_file_system_in_a_file_of_another_is_frozen_first_and_thawed_last_of_all() {
    let world = World::new();
    let outer = Scratch::new("ext4", 320 * MIB);
    let inner = Scratch::within(&outer.path(), "ext4", 64 * MIB);
    // Something that the inner one must still write while it is frozen.
    let mut file = std::fs::File::create(inner.path().join("dirty")).unwrap();
    file.write_all(&vec![7; 8 << 20]).unwrap();
    let paths = [outer.freezable(), inner.freezable()];
    let frozen = world.guard().freeze(&Owner::default(), &paths, &[], soon()).unwrap();
    let order: Vec<_> = frozen.mounts().into_iter().map(|(path, _)| path).collect();
    assert_eq!(order, [inner.path(), outer.path()]);
    assert!(frozen.thaw().held_all_the_while());
    assert!(takes_writes(&inner.path(), SOON));
}

#[test]
fn what_somebody_else_froze_is_never_thawed() {
    let world = World::new();
    let (free, theirs) = (Scratch::new("ext4", 320 * MIB), Scratch::new("ext4", 320 * MIB));
    theirs.freeze();
    let guard = world.guard();
    // The one that is free may come first, and is thawed again.
    let paths = [free.freezable(), theirs.freezable()];
    let error = guard.freeze(&Owner::default(), &paths, &[], soon()).err().unwrap();
    assert!(
        matches!(&error, FreezeError::Busy(path) if *path == theirs.path()),
        "{error}"
    );
    drop(guard);
    until(|| world.ledgers().is_empty());
    assert!(takes_writes(&free.path(), SOON));
    assert!(!takes_writes(&theirs.path(), A_WHILE), "theirs is as it was");
    theirs.thaw();
    assert!(takes_writes(&theirs.path(), SOON));
}

#[test]
fn what_somebody_else_thaws_is_told() {
    let world = World::new();
    let scratch = Scratch::new("ext4", 320 * MIB);
    let frozen = world
        .guard()
        .freeze(&Owner::default(), &[scratch.freezable()], &[], soon())
        .unwrap();
    scratch.thaw();
    assert_eq!(frozen.thaw().mounts[0].end, FreezeEnd::ByOthers);
}

#[test]
fn what_is_dropped_frozen_is_thawed() {
    let world = World::new();
    let scratch = Scratch::new("ext4", 320 * MIB);
    let guard = world.guard();
    let frozen = guard.freeze(&Owner::default(), &[scratch.freezable()], &[], soon());
    assert!(!takes_writes(&scratch.path(), A_WHILE));
    drop(frozen);
    assert!(takes_writes(&scratch.path(), SOON));
}

#[test]
fn what_must_go_on_taking_writes_is_never_frozen() {
    let outer = Scratch::new("ext4", 320 * MIB);
    let inner = Scratch::within(&outer.path(), "ext4", 64 * MIB);
    let refused = |paths: &[&std::path::Path], protected: &[Protected]| {
        let paths: Vec<_> = paths.iter().map(|path| path.to_path_buf()).collect();
        look(&paths, protected)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let root = refused(&["/".as_ref()], &[]);
    assert_eq!(root, "/ must not be frozen: it holds the root of this host (/)");
    let not_a_mount = refused(&[&outer.path().join("lost+found")], &[]);
    assert!(not_a_mount.ends_with("is not a mount point"), "{not_a_mount}");

    // A folder that is not there yet, on the file system itself.
    let state = [Protected::new("the state folder", outer.path().join("not/yet"))];
    let text = refused(&[&outer.path()], &state);
    assert!(text.contains("it holds the state folder"), "{text}");
    // On a file system that lies in a file of the one to be frozen.
    let state = [Protected::new("the state folder", inner.path())];
    assert!(refused(&[&outer.path()], &state).contains("it holds the state folder"));
    // The other way round nothing is held up.
    let state = [Protected::new("the state folder", outer.path())];
    assert_eq!(refused(&[&inner.path()], &state), "");
}

#[test]
fn what_cannot_be_frozen_says_so() {
    let world = World::new();
    // A mount of its own in memory, which knows no freezing.
    let folder = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "coffre-test"])
        .arg(folder.path())
        .status();
    assert!(mounted.unwrap().success());
    let error = world
        .guard()
        .freeze(&Owner::default(), &[folder.path().to_owned()], &[], soon())
        .err();
    let _ = std::process::Command::new("umount").arg(folder.path()).status();
    let error = error.expect("memory cannot be frozen");
    assert!(
        matches!(&error, FreezeError::Unsupported { kind, .. } if kind == "tmpfs"),
        "{error}"
    );
}

#[test]
fn a_freeze_without_a_guard_does_not_happen() {
    let world = World::new();
    let scratch = Scratch::new("ext4", 320 * MIB);
    let mut config = world.config();
    config.program = world.path("not-there");
    let guard = coffre_guard::Guard::new(config);
    let error = guard.freeze(&Owner::default(), &[scratch.freezable()], &[], soon());
    assert!(matches!(error, Err(FreezeError::Guard { .. })));
    assert!(takes_writes(&scratch.path(), SOON));
}

#[test]
fn a_guard_stays_as_long_as_it_is_owed_something() {
    let world = World::new();
    let scratch = Scratch::new("ext4", 320 * MIB);
    // The handle is gone at once.
    let frozen = world
        .guard()
        .freeze(&Owner::default(), &[scratch.freezable()], &[], soon());
    std::thread::sleep(A_WHILE);
    assert!(!takes_writes(&scratch.path(), A_WHILE));
    assert!(frozen.unwrap().thaw().held_all_the_while());
    until(|| world.ledgers().is_empty());
}
