//! `kill -9` at every request of a backup and of a clean-up: a process of its own, a vault in a local folder, and every
//! request once before it is sent and once after it was answered. Whatever the moment, earlier points restore, the same thing
//! done again succeeds, and everything in the vault verifies.

#![allow(clippy::print_stdout, reason = "tells how many requests there were")]

#[allow(dead_code, reason = "the simulation uses the rest")]
#[path = "../simulation/disk.rs"]
mod disk;

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use coffre_vault::testing::{Death, Dice, MortalStore};
use coffre_vault::{
    CleanPlan, Credential, Encryption, Fate, InitOptions, OpenOptions, Point, PointDisk, PointDraft, ReadData,
    SessionPlan, Store, StoreConfig, StoreOptions, Tuning, Vault, VerifyPlan,
};
use disk::{Base, Disk, Pauses, Places, Reading};
use jiff::{SignedDuration, Timestamp};

/// More than a program here ever sends.
const REQUESTS_LIMIT: u64 = 400;
const KILLED: i32 = 9;

fn credential() -> Credential {
    Credential::Secret((0..32).collect::<Vec<u8>>().into())
}

fn now<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work)
}

/// A vault in a folder and a host's cache beside it.
struct Place {
    folder: PathBuf,
}

impl Place {
    fn store(&self) -> Store {
        let url = url::Url::from_file_path(self.folder.join("vault")).expect("an absolute path");
        let options = StoreOptions::default();
        Store::connect(&StoreConfig { url, options }).expect("a folder")
    }

    async fn open(&self, death: Option<Death>) -> Vault {
        let options = OpenOptions {
            cache_folder: self.folder.join("cache"),
            expect_id: None,
            allow_unencrypted: false,
        };
        let tuning = Tuning {
            pack_target_bytes: Some(4096),
            packs_alive: 64,
            packs_per_piece: 2,
            ..Tuning::default()
        };
        let store = self.store().through(|inner| MortalStore::over(inner, death));
        Vault::open_tuned(store, Some(credential()), options, tuning)
            .await
            .expect("the vault opens")
    }

    async fn init(&self) {
        std::fs::create_dir_all(self.folder.join("vault")).unwrap();
        let options = InitOptions {
            encryption: Encryption::Encrypted {
                slots: vec![("main".to_owned(), credential())],
            },
            recovery_key: false,
            host: "test".to_owned(),
        };
        Vault::init(self.store(), options).await.unwrap();
    }

    /// The same files in another folder.
    fn copy_to(&self, folder: &Path) -> Place {
        let copied = Command::new("cp")
            .arg("-r")
            .arg(&self.folder)
            .arg(folder)
            .status()
            .unwrap();
        assert!(copied.success());
        Place {
            folder: folder.to_owned(),
        }
    }

    /// Does it in a process of its own, which may die. False when it has.
    fn does(&self, what: &str, death: Option<Death>) -> bool {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "program"])
            .env("COFFRE_TEST_FOLDER", &self.folder)
            .env("COFFRE_TEST_DOES", what)
            .stdout(Stdio::null());
        if let Some(death) = death {
            command.env("COFFRE_TEST_DIES_AT", death.at_request.to_string());
            command.env("COFFRE_TEST_DIES_AFTER", death.after.to_string());
        }
        let status = command.status().unwrap();
        assert!(status.success() || status.signal() == Some(KILLED), "{what}: {status}");
        status.success()
    }
}

/// The disk as it was at the `number`th backup.
fn disk(number: u32) -> Disk {
    let mut dice = Dice::new(5);
    (0..=number).fold(Disk::default(), |disk, _| disk.changed(&mut dice, 6, Places::Many))
}

/// Which backup a point is of.
fn number(point: &Point) -> u32 {
    let number = point.job.as_ref().and_then(|job| job.parse().ok());
    number.expect("every backup here writes its number into its point")
}

/// Backs up the next disk upon the last point, if there is one.
async fn back_up(vault: &Vault, folder: &Path) {
    let machine = vault.machine_or_create("web01").await.unwrap();
    let points = vault.points(machine).await.unwrap();
    let last = points.last().filter(|point| point.fate != Fate::Purged);
    let next = points.last().map_or(0, |point| number(point) + 1);
    let left_over = vault.sessions_undecided(machine).await.unwrap();
    let plan = SessionPlan {
        machine,
        bases: last.iter().map(|point| point.number).collect(),
        deadline: Timestamp::now() + SignedDuration::from_hours(1),
        host: "test".to_owned(),
        resumes: left_over.last().map(|(number, _)| *number),
    };
    let base = last.map(|point| Base {
        disk: disk(next - 1),
        root: point.disks[0].root,
        reader: vault.chunks(),
    });
    let writer = vault.begin(plan).await.unwrap();
    let mut pauses = Pauses {
        dice: Dice::new(0),
        longest: Duration::from_millis(1),
    };
    let root = disk::write(&writer, vault.hasher(), base, &disk(next), true, &mut pauses)
        .await
        .unwrap();
    let draft = PointDraft {
        job: Some(next.to_string()),
        disks: vec![PointDisk {
            root,
            size_bytes: disk::SIZE_BYTES,
            ..PointDisk::default()
        }],
        ..PointDraft::default()
    };
    writer.commit(draft, &folder.join("commit")).await.unwrap();
}

async fn clean(vault: &Vault) {
    let plan = CleanPlan {
        force: true,
        undelete_for: Duration::ZERO,
        host: "test".to_owned(),
        ..CleanPlan::default()
    };
    vault.clean(&plan, &|_| {}).await.unwrap();
}

async fn forget(vault: &Vault, numbers: std::ops::Range<usize>) {
    let machine = vault.machine("web01").await.unwrap().unwrap();
    for point in &vault.points(machine).await.unwrap()[numbers] {
        vault.forget(machine, point.number, None).await.unwrap();
    }
}

/// Every point that is not purged is what it was, and everything verifies. Gives how many backups have succeeded in all.
async fn all_is_well(place: &Place, what: &str) -> u32 {
    let vault = place.open(None).await;
    let machine = vault.machine("web01").await.unwrap().unwrap();
    let points: Vec<Point> = vault.points(machine).await.unwrap();
    let reading = Reading::new(vault.chunks());
    for point in points.iter().filter(|point| point.fate != Fate::Purged) {
        let compared = disk::compare(&reading, point.disks[0].root, &disk(number(point))).await;
        assert!(compared.is_ok(), "{what}: point {}: {compared:?}", point.number);
    }
    let plan = VerifyPlan {
        read: ReadData::All,
        ..VerifyPlan::default()
    };
    let report = vault.verify(plan, &|_| {}).await.unwrap();
    let damage: Vec<_> = report
        .damage
        .iter()
        .filter(|damage| !damage.object.starts_with("index/"))
        .collect();
    assert!(damage.is_empty(), "{what}: {damage:?}");
    points.last().map_or(0, |point| number(point) + 1)
}

/// Kills `what` at every request of it, each time in a fresh copy of `template`.
fn kill_everywhere(template: &Place, what: &str, folder: &Path, mut check: impl FnMut(&Place, &str)) {
    for after in [false, true] {
        let mut at_request = 1;
        loop {
            let death = Death { at_request, after };
            let place = template.copy_to(&folder.join(format!("{what}-{at_request}-{after}")));
            let finished = place.does(what, Some(death));
            check(&place, &format!("{what}, {death:?}"));
            std::fs::remove_dir_all(&place.folder).unwrap();
            if finished {
                break;
            }
            at_request += 1;
            assert!(at_request < REQUESTS_LIMIT);
        }
        assert!(
            at_request > 20,
            "{what} was to be killed at many requests, not at {at_request}"
        );
        println!("{what} was killed at {} requests, after them: {after}", at_request - 1);
    }
}

fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    tempfile::tempdir_in(folder).unwrap()
}

/// What the processes do that are killed.
#[test]
#[ignore = "the other tests start it"]
fn program() {
    let variable = |name: &str| std::env::var(name).ok();
    let folder = PathBuf::from(variable("COFFRE_TEST_FOLDER").expect("who starts it says where"));
    let death = variable("COFFRE_TEST_DIES_AT").map(|number| Death {
        at_request: number.parse().unwrap(),
        after: variable("COFFRE_TEST_DIES_AFTER").is_some_and(|after| after == "true"),
    });
    let what = variable("COFFRE_TEST_DOES").expect("who starts it says what");
    let place = Place { folder };
    now(async {
        let vault = place.open(death).await;
        match what.as_str() {
            "backup" => back_up(&vault, &place.folder).await,
            "clean" => clean(&vault).await,
            other => panic!("nobody does `{other}`"),
        }
    });
}

#[test]
fn a_backup_killed_at_every_request_harms_nothing_and_succeeds_when_it_is_done_again() {
    let scratch = scratch();
    let template = Place {
        folder: scratch.path().join("template"),
    };
    now(async {
        template.init().await;
        for _ in 0..2 {
            back_up(&template.open(None).await, &template.folder).await;
        }
    });
    kill_everywhere(&template, "backup", scratch.path(), |place, moment| {
        let before = now(all_is_well(place, moment));
        assert!(before >= 2, "{moment}: {before} points");
        assert!(place.does("backup", None));
        assert_eq!(now(all_is_well(place, moment)), before + 1, "{moment}");
    });
}

#[test]
fn a_clean_up_killed_at_every_request_takes_nothing_that_is_needed_and_is_finished_by_the_next() {
    let scratch = scratch();
    let young = Place {
        folder: scratch.path().join("young"),
    };
    now(async {
        young.init().await;
        for _ in 0..5 {
            back_up(&young.open(None).await, &young.folder).await;
        }
        forget(&young.open(None).await, 0..3).await;
    });
    // One in which the clean-up purges and condemns, and one in which it moves and deletes.
    let condemned = young.copy_to(&scratch.path().join("condemned"));
    assert!(condemned.does("clean", None));
    for template in [young, condemned] {
        kill_everywhere(&template, "clean", scratch.path(), |place, moment| {
            assert_eq!(now(all_is_well(place, moment)), 5, "{moment}");
            for _ in 0..3 {
                assert!(place.does("clean", None));
            }
            assert!(place.does("backup", None));
            assert_eq!(now(all_is_well(place, moment)), 6, "{moment}");
        });
    }
}
