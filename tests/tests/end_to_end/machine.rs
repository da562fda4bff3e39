//! A machine whose vault lies behind a door, and what its disk held at every point: what tests of kills and faults share.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::strike::{Strike, Struck};
use coffre_tests::{Door, Place, VaultKind};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// As somebody cleans who wants the space now.
pub const CLEAN: [&str; 5] = ["clean", "main", "--force", "--undelete-for", "0s"];
/// How many points stay when the older ones are forgotten.
pub const POINTS_KEPT: usize = 2;

/// One machine with one disk.
pub struct Machine {
    pub place: Place,
    pub door: Door,
    disk: File,
    changes: u64,
    taken: BTreeMap<u64, PathBuf>,
}

impl Machine {
    pub fn new(kind: VaultKind) -> Self {
        let mut place = Place::new(kind).with_machine("web01", "image").init();
        let door = place.behind_door();
        let disk = sparse(&place.images().join("root.img"), 4 * MIB);
        write_noise(&disk, 0, MIB, 99);
        let mut machine = Self {
            place,
            door,
            disk,
            changes: 0,
            taken: BTreeMap::new(),
        };
        machine.change();
        machine
    }

    /// A part of the disk that changes every time, and one that only this change touches.
    pub fn change(&mut self) {
        self.changes += 1;
        write_noise(&self.disk, 0, 256 * KIB, self.changes);
        write_noise(
            &self.disk,
            2 * MIB + self.changes % 8 * 64 * KIB,
            64 * KIB,
            self.changes,
        );
        std::fs::copy(self.place.images().join("root.img"), self.image()).unwrap();
    }

    fn image(&self) -> PathBuf {
        self.place.path(&format!("change-{}.img", self.changes))
    }

    pub fn run(&self, arguments: &[&str], strikes: &[Strike]) -> Struck {
        self.door.run(self.place.command(arguments), strikes)
    }

    /// Backs up and is not struck.
    pub fn back_up(&mut self, what: &str) {
        assert_done(&self.run(&["backup", "web01"], &[]), what);
        self.points();
    }

    /// The points that are there and not purged. Those that were not there before hold the disk as it is now.
    pub fn points(&mut self) -> Vec<u64> {
        let points = self.place.points("web01");
        let there = points.iter().filter(|point| point["fate"] != "purged");
        let numbers: Vec<u64> = there.map(|point| point["point"].as_u64().unwrap()).collect();
        let image = self.image();
        for number in &numbers {
            self.taken.entry(*number).or_insert_with(|| image.clone());
        }
        let gone = self.taken.extract_if(.., |number, _| !numbers.contains(number));
        let images: BTreeSet<PathBuf> = gone.map(|(_, image)| image).collect();
        for old in images {
            if old != image && !self.taken.values().any(|kept| *kept == old) {
                std::fs::remove_file(old).unwrap();
            }
        }
        numbers
    }

    fn assert_restores(&self, number: u64) {
        let restored = self.place.restore(&format!("web01@{number}"));
        assert_same(&self.taken[&number], &restored.join("root.img"));
    }

    /// And everything in the vault verifies.
    pub fn assert_all_restore(&mut self, what: &str) {
        let points = self.points();
        assert!(!points.is_empty(), "{what}: no point is left");
        for number in points {
            self.assert_restores(number);
        }
        let verified = self.place.run(&["verify", "main", "--read-data"]);
        assert_eq!(verified.code, 0, "{what}:\n{}\n{}", verified.stdout, verified.stderr);
    }

    pub fn assert_newest_is_the_disk(&mut self) {
        let newest = *self.points().last().unwrap();
        let restored = self.place.restore(&format!("web01@{newest}"));
        assert_same(&self.image(), &restored.join("root.img"));
    }

    /// All but the newest points.
    pub fn forget_old(&mut self) {
        let points = self.points();
        let old = points[..points.len().saturating_sub(POINTS_KEPT)].iter();
        let old: Vec<String> = old.map(|number| format!("web01@{number}")).collect();
        if !old.is_empty() {
            let forget: Vec<&str> = ["forget"].into_iter().chain(old.iter().map(String::as_str)).collect();
            self.place.run(&forget).expect(0);
        }
    }
}

#[track_caller]
pub fn assert_done(struck: &Struck, what: &str) {
    let ran = &struck.ran;
    assert_eq!(ran.code, 0, "{what}:\n{}\n{}", ran.stdout, ran.stderr);
}
