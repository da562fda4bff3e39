//! Transfer and restore against a model: a disk in memory that is changed at random, backed up in every way there is, and
//! read back byte for byte.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use coffre_engine::restore::{self, DiskRestore, Overwrite, RestorePlan, Target};
use coffre_engine::transfer::{self, DiskBase, DiskResult, DiskTransfer, TransferError, TransferPlan};
use coffre_engine::{ChangeList, DiskId, DiskSource, Extent, ProviderError, ProviderErrorKind, SourceError};
use coffre_vault::{
    ComparedHow, Encryption, InitOptions, MachineNumber, OpenOptions, PointDisk, PointDraft, SessionPlan, Store, Vault,
};

/// A disk to transfer: its bytes, its base, and what is said to have changed.
type Disk = (
    Arc<dyn DiskSource>,
    Option<DiskBase>,
    Result<Box<dyn ChangeList>, String>,
);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A disk in memory; runs of 64 KiB of zeroes are holes.
#[derive(Clone)]
struct MemoryDisk(Vec<u8>);

impl DiskSource for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        buffer.copy_from_slice(&self.0[offset_bytes as usize..offset_bytes as usize + buffer.len()]);
        Ok(())
    }

    fn next_data(&self, from_bytes: u64) -> Result<Option<Range<u64>>, SourceError> {
        const UNIT: usize = 64 << 10;
        let has_data = |unit: &usize| {
            let start = unit * UNIT;
            self.0[start..(start + UNIT).min(self.0.len())]
                .iter()
                .any(|byte| *byte != 0)
        };
        let units = self.0.len().div_ceil(UNIT);
        let Some(first) = (from_bytes as usize / UNIT..units).find(has_data) else {
            return Ok(None);
        };
        let last = (first..units).find(|unit| !has_data(unit)).unwrap_or(units);
        let end = ((last * UNIT) as u64).min(self.size_bytes());
        let start = ((first * UNIT) as u64).max(from_bytes);
        Ok((start < end).then_some(start..end))
    }
}

/// A disk that cannot be read past some byte.
struct BrokenDisk(MemoryDisk, u64);

impl DiskSource for BrokenDisk {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        if offset_bytes + buffer.len() as u64 > self.1 {
            return Err(SourceError::Provider("the medium is broken here".into()));
        }
        self.0.read_at(offset_bytes, buffer)
    }

    fn next_data(&self, from_bytes: u64) -> Result<Option<Range<u64>>, SourceError> {
        self.0.next_data(from_bytes)
    }
}

/// A provider's list, in pieces, and how it ends.
struct ListedChanges {
    pieces: VecDeque<Vec<Extent>>,
    breaks_off: bool,
}

#[async_trait]
impl ChangeList for ListedChanges {
    async fn next(&mut self) -> Result<Vec<Extent>, ProviderError> {
        match self.pieces.pop_front() {
            Some(piece) => Ok(piece),
            None if self.breaks_off => Err(ProviderError {
                kind: ProviderErrorKind::Trapped,
                text: "trapped".into(),
                hint: None,
            }),
            None => Ok(Vec::new()),
        }
    }
}

/// A provider's list, or why there is none.
type Tracked = Result<Box<dyn ChangeList>, String>;

fn tracked(extents: Vec<Extent>) -> Tracked {
    let pieces = extents.chunks(3).map(<[Extent]>::to_vec).collect();
    Ok(Box::new(ListedChanges {
        pieces,
        breaks_off: false,
    }))
}

/// xorshift64*, so that a failing seed can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

struct Harness {
    vault: Vault,
    machine: MachineNumber,
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Harness {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let (vault, machine) = runtime.block_on(async {
            // In files, since a store in memory keeps what it is given, and pack buffers would never come back.
            std::fs::create_dir(folder.path().join("vault")).unwrap();
            let objects = object_store::local::LocalFileSystem::new_with_prefix(folder.path().join("vault")).unwrap();
            let store = Store::over(Arc::new(objects), "v");
            let options = InitOptions {
                encryption: Encryption::None,
                recovery_key: false,
                host: "test".into(),
            };
            Vault::init(store.clone(), options).await.unwrap();
            let options = OpenOptions {
                cache_folder: cache,
                expect_id: None,
                allow_unencrypted: true,
            };
            let vault = Vault::open(store, None, options).await.unwrap();
            let machine = vault.machine_or_create("web01").await.unwrap();
            (vault, machine)
        });
        Self {
            vault,
            machine,
            folder,
            runtime,
        }
    }

    fn digests(&self) -> std::path::PathBuf {
        self.folder.path().join("digests-here")
    }

    fn transfer(&self, disks: Vec<Disk>) -> Result<(Vec<DiskResult>, coffre_vault::SessionWriter), TransferError> {
        let bases = disks
            .iter()
            .filter_map(|(_, base, _)| base.as_ref().map(|base| base.point))
            .take(1)
            .collect();
        let plan = SessionPlan {
            machine: self.machine,
            bases,
            deadline: jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1),
            host: "test".into(),
            resumes: None,
        };
        let writer = self.runtime.block_on(self.vault.begin(plan)).unwrap();
        let disks = disks
            .into_iter()
            .enumerate()
            .map(|(number, (source, base, tracked))| DiskTransfer {
                id: DiskId(format!("disk{number}")),
                source,
                base,
                tracked,
                counters: Default::default(),
            })
            .collect();
        let plan = TransferPlan {
            vault: self.vault.clone(),
            writer: writer.clone(),
            machine: "web01".into(),
            cache_folder: self.digests(),
            disks,
            cancel: Arc::new(AtomicBool::new(false)),
        };
        transfer::run(plan, self.runtime.handle()).map(|results| (results, writer))
    }

    /// One disk, committed; the base for next time and what was said of it.
    fn backup(
        &self,
        disk: &MemoryDisk,
        base: Option<DiskBase>,
        tracked: Result<Box<dyn ChangeList>, String>,
    ) -> (DiskBase, Said) {
        let (mut results, writer) = self.transfer(vec![(Arc::new(disk.clone()), base, tracked)]).unwrap();
        let result = results.remove(0);
        let entry = PointDisk {
            id: result.id.to_string(),
            size_bytes: result.size_bytes,
            root: result.root,
            ..PointDisk::default()
        };
        let draft = PointDraft {
            disks: vec![entry],
            ..PointDraft::default()
        };
        let commit_file = self.folder.path().join("commit");
        let point = self.runtime.block_on(writer.commit(draft, &commit_file)).unwrap();
        let said = Said {
            how: result.how,
            stored_bytes: result.stored_bytes,
            changed_bytes: result.changed_bytes,
            read_bytes: result.read_bytes,
            lied_at: result.tracking_lied_at,
        };
        let base = DiskBase {
            point: point.number,
            size_bytes: result.size_bytes,
            root: result.root,
        };
        result.keep_digests().unwrap();
        (base, said)
    }

    fn restored(&self, base: &DiskBase) -> Vec<u8> {
        let path = self.folder.path().join("restored.img");
        let target = Target::open(&path, base.size_bytes, Overwrite::Allow).unwrap();
        let disk = DiskRestore {
            id: DiskId("disk0".into()),
            size_bytes: base.size_bytes,
            root: base.root,
            target,
            counters: Default::default(),
        };
        let plan = RestorePlan {
            vault: self.vault.clone(),
            disks: vec![disk],
            cancel: Arc::new(AtomicBool::new(false)),
        };
        restore::run(plan, self.runtime.handle()).unwrap();
        std::fs::read(&path).unwrap()
    }

    #[track_caller]
    fn assert_restores(&self, base: &DiskBase, disk: &MemoryDisk) {
        let restored = self.restored(base);
        assert_eq!(restored.len(), disk.0.len());
        if let Some(at) = (0..restored.len()).find(|at| restored[*at] != disk.0[*at]) {
            panic!("point {} differs at byte {at} of {}", base.point, restored.len());
        }
    }
}

struct Said {
    how: ComparedHow,
    stored_bytes: u64,
    changed_bytes: u64,
    read_bytes: u64,
    lied_at: Option<u64>,
}

fn not_tracked() -> Tracked {
    Err("the provider does not track changes".into())
}

/// Random content with holes, in a disk whose size is no multiple of anything but sectors.
fn random_disk(random: &mut Random, size_bytes: u64) -> MemoryDisk {
    let mut disk = MemoryDisk(vec![0; size_bytes as usize]);
    for _ in 0..12 {
        write_somewhere(random, &mut disk);
    }
    disk
}

/// Changes a random range and returns it, rounded to pages.
fn write_somewhere(random: &mut Random, disk: &mut MemoryDisk) -> Extent {
    let size = disk.0.len() as u64;
    let longest = [512, 4 * KIB, 4 * KIB, 20 * KIB, 300 * KIB, 2 * MIB][random.below(6) as usize];
    let length = (1 + random.below(longest / 512)) * 512;
    let start = random.below(size / 512) * 512;
    let end = (start + length).min(size);
    let bytes = &mut disk.0[start as usize..end as usize];
    if random.below(4) == 0 {
        bytes.fill(0);
    } else {
        random.fill(bytes);
    }
    Extent {
        offset_bytes: start,
        length_bytes: end - start,
    }
}

fn sorted(mut extents: Vec<Extent>) -> Vec<Extent> {
    extents.sort_by_key(|extent| extent.offset_bytes);
    let mut merged: Vec<Extent> = Vec::new();
    for extent in extents {
        match merged.last_mut() {
            Some(last) if extent.offset_bytes <= last.end_bytes() => {
                let end = last.end_bytes().max(extent.end_bytes());
                last.length_bytes = end - last.offset_bytes;
            }
            _ => merged.push(extent),
        }
    }
    merged
}

#[test]
fn every_way_to_compare_gives_the_same_bytes_back() {
    for seed in 1..=6_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let harness = Harness::new();
        let size_bytes = 9 * MIB + 512 * (1 + random.below(5000));
        let mut disk = random_disk(&mut random, size_bytes);
        let mut points = Vec::new();
        let (mut base, said) = harness.backup(&disk, None, not_tracked());
        assert_eq!(said.how, ComparedHow::Full);
        points.push((base.clone(), disk.clone()));
        for _ in 0..6 {
            let before = disk.0.len();
            match random.below(5) {
                0 => disk.0.resize(before + 512 * (1 + random.below(20_000)) as usize, 0),
                1 => disk.0.truncate(before - 512 * (1 + random.below(4_000)) as usize),
                _ => {}
            }
            let common = before.min(disk.0.len()) as u64;
            let changes = (0..1 + random.below(8))
                .map(|_| write_somewhere(&mut random, &mut disk))
                .collect();
            let (list, way) = match random.below(3) {
                0 => {
                    // What lies past the smaller size is not the provider's to say.
                    let inside = sorted(changes)
                        .into_iter()
                        .filter(|extent| extent.offset_bytes < common)
                        .collect();
                    (tracked(inside), ComparedHow::Tracked)
                }
                1 => {
                    std::fs::remove_dir_all(harness.digests()).unwrap();
                    (not_tracked(), ComparedHow::Vault)
                }
                // Digests are there, unless a resize or a removal came before.
                _ => (not_tracked(), ComparedHow::Scan),
            };
            let (next, said) = harness.backup(&disk, Some(base), list);
            assert_eq!(said.lied_at, None, "seed {seed}");
            if way != ComparedHow::Scan {
                assert_eq!(said.how, way, "seed {seed}");
            }
            base = next;
            points.push((base.clone(), disk.clone()));
        }
        for (base, disk) in &points {
            harness.assert_restores(base, disk);
        }
    }
}

#[test]
fn a_change_of_4_kib_costs_about_4_kib() {
    let harness = Harness::new();
    let mut random = Random(77);
    let mut disk = MemoryDisk(vec![0; 16 * MIB as usize]);
    random.fill(&mut disk.0);
    let (base, _) = harness.backup(&disk, None, not_tracked());
    random.fill(&mut disk.0[5 * MIB as usize..(5 * MIB + 4 * KIB) as usize]);
    let change = vec![Extent {
        offset_bytes: 5 * MIB,
        length_bytes: 4 * KIB,
    }];
    let (base, said) = harness.backup(&disk, Some(base), tracked(change));
    assert_eq!((said.how, said.changed_bytes), (ComparedHow::Tracked, 4 * KIB));
    assert!(said.read_bytes <= 4 * KIB + MIB, "read {}", said.read_bytes);
    assert!(said.stored_bytes < 8 * KIB, "stored {}", said.stored_bytes);
    harness.assert_restores(&base, &disk);
}

#[test]
fn an_unchanged_disk_stores_nothing() {
    let harness = Harness::new();
    let disk = random_disk(&mut Random(5), 12 * MIB);
    let (base, _) = harness.backup(&disk, None, not_tracked());
    let (again, said) = harness.backup(&disk, Some(base.clone()), not_tracked());
    assert_eq!(
        (said.how, said.changed_bytes, said.stored_bytes),
        (ComparedHow::Scan, 0, 0)
    );
    assert_eq!(again.root, base.root);
}

#[test]
fn an_empty_disk_has_no_map() {
    let harness = Harness::new();
    let disk = MemoryDisk(vec![0; MIB as usize]);
    let (base, said) = harness.backup(&disk, None, not_tracked());
    assert_eq!((base.root, said.stored_bytes, said.read_bytes), (None, 0, 0));
    harness.assert_restores(&base, &disk);
    let nothing = MemoryDisk(Vec::new());
    let (base, _) = harness.backup(&nothing, Some(base), not_tracked());
    harness.assert_restores(&base, &nothing);
}

#[test]
fn a_lie_about_what_changed_is_caught_and_the_disk_is_scanned() {
    let harness = Harness::new();
    let mut random = Random(9);
    let mut disk = MemoryDisk(vec![0; 24 * MIB as usize]);
    random.fill(&mut disk.0);
    let (base, _) = harness.backup(&disk, None, not_tracked());
    // The next session samples the segment of its own number; change a byte there and keep quiet about it.
    let turn = u64::from(base.point.0) + 1;
    disk.0[(turn * MIB + 700) as usize] ^= 1;
    let (base, said) = harness.backup(&disk, Some(base), tracked(Vec::new()));
    assert_eq!(said.lied_at, Some(turn * MIB));
    assert_eq!(said.how, ComparedHow::Scan);
    harness.assert_restores(&base, &disk);
}

#[test]
fn a_list_that_breaks_off_or_overlaps_leads_to_a_scan() {
    let harness = Harness::new();
    let mut disk = random_disk(&mut Random(31), 10 * MIB);
    let (base, _) = harness.backup(&disk, None, not_tracked());
    disk.0[12345] ^= 1;
    let list = ListedChanges {
        pieces: VecDeque::new(),
        breaks_off: true,
    };
    let (base, said) = harness.backup(&disk, Some(base), Ok(Box::new(list)));
    assert_eq!(said.how, ComparedHow::Scan);
    harness.assert_restores(&base, &disk);
    disk.0[54321] ^= 1;
    let twice = Extent {
        offset_bytes: 0,
        length_bytes: 64 * KIB,
    };
    let (base, said) = harness.backup(&disk, Some(base), tracked(vec![twice, twice]));
    assert_eq!(said.how, ComparedHow::Scan);
    harness.assert_restores(&base, &disk);
}

#[test]
fn one_broken_disk_of_two_fails_the_transfer_and_names_itself() {
    let harness = Harness::new();
    let good = random_disk(&mut Random(1), 20 * MIB);
    let mut full = MemoryDisk(vec![0; 20 * MIB as usize]);
    Random(2).fill(&mut full.0);
    let bad = BrokenDisk(full, 7 * MIB);
    let disks: Vec<(Arc<dyn DiskSource>, _, _)> = vec![
        (Arc::new(good), None, not_tracked()),
        (Arc::new(bad), None, not_tracked()),
    ];
    let Err(error) = harness.transfer(disks) else {
        panic!("a broken disk was transferred")
    };
    assert!(
        matches!(&error, TransferError::Source { disk, .. } if disk.0 == "disk1"),
        "{error:?}"
    );
}

/// A disk whose first read does not end before that of its fellow has begun.
struct MeetingDisk(MemoryDisk, Arc<(std::sync::Mutex<u32>, std::sync::Condvar)>, AtomicBool);

impl DiskSource for MeetingDisk {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> Result<(), SourceError> {
        if !self.2.swap(true, Ordering::SeqCst) {
            let (there, arrived) = &*self.1;
            let mut there = there.lock().unwrap();
            *there += 1;
            arrived.notify_all();
            let limit = std::time::Duration::from_secs(20);
            let (_there, waited) = arrived.wait_timeout_while(there, limit, |there| *there < 2).unwrap();
            if waited.timed_out() {
                return Err(SourceError::Provider("the other disk was not read meanwhile".into()));
            }
        }
        self.0.read_at(offset_bytes, buffer)
    }

    fn next_data(&self, from_bytes: u64) -> Result<Option<Range<u64>>, SourceError> {
        self.0.next_data(from_bytes)
    }
}

#[test]
fn two_disks_are_read_at_the_same_time() {
    let harness = Harness::new();
    let meeting = Arc::new((std::sync::Mutex::new(0), std::sync::Condvar::new()));
    let disk = |seed| -> (Arc<dyn DiskSource>, Option<DiskBase>, Tracked) {
        let disk = random_disk(&mut Random(seed), 3 * MIB);
        (
            Arc::new(MeetingDisk(disk, meeting.clone(), AtomicBool::new(false))),
            None,
            not_tracked(),
        )
    };
    let (results, _) = harness.transfer(vec![disk(6), disk(7)]).unwrap();
    assert_eq!(results.len(), 2);
}

#[test]
fn the_same_bytes_make_the_same_map_and_are_stored_once() {
    let harness = Harness::new();
    let disk = random_disk(&mut Random(3), 11 * MIB);
    let (first, _) = harness.backup(&disk, None, not_tracked());
    let (second, said) = harness.backup(&disk, None, not_tracked());
    assert_eq!(first.root, second.root);
    assert_eq!(said.stored_bytes, 0);
}

#[test]
fn a_cancelled_transfer_ends_soon() {
    let harness = Harness::new();
    let plan = SessionPlan {
        machine: harness.machine,
        bases: Vec::new(),
        deadline: jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1),
        host: "test".into(),
        resumes: None,
    };
    let writer = harness.runtime.block_on(harness.vault.begin(plan)).unwrap();
    let cancel = Arc::new(AtomicBool::new(false));
    cancel.store(true, Ordering::Relaxed);
    let disk = DiskTransfer {
        id: DiskId("disk0".into()),
        source: Arc::new(random_disk(&mut Random(4), 9 * MIB)),
        base: None,
        tracked: not_tracked(),
        counters: Default::default(),
    };
    let cache_folder = Path::new(&harness.digests()).to_owned();
    let plan = TransferPlan {
        vault: harness.vault.clone(),
        writer,
        machine: "web01".into(),
        cache_folder,
        disks: vec![disk],
        cancel,
    };
    assert!(matches!(
        transfer::run(plan, harness.runtime.handle()),
        Err(TransferError::Cancelled)
    ));
}
