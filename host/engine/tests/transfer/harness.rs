//! A vault in files, disks in memory, and what is asked of them.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use coffre_engine::restore::{self, DiskRestore, Overwrite, RestorePlan, Target};
use coffre_engine::transfer::{self, DiskBase, DiskResult, DiskTransfer, Healed, TransferError, TransferPlan};
use coffre_engine::{ChangeList, DiskId, DiskSource, Extent, ProviderError, ProviderErrorKind, SourceError};
use coffre_vault::{
    ComparedHow, Encryption, InitOptions, MachineNumber, OpenOptions, PointDisk, PointDraft, SessionPlan, Store, Vault,
};

/// A disk to transfer: its bytes, its base, and what is said to have changed.
pub type Disk = (
    Arc<dyn DiskSource>,
    Option<DiskBase>,
    Result<Box<dyn ChangeList>, String>,
);

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;

/// A disk in memory; runs of 64 KiB of zeroes are holes.
#[derive(Clone)]
pub struct MemoryDisk(pub Vec<u8>);

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
pub struct BrokenDisk(pub MemoryDisk, pub u64);

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
pub struct ListedChanges {
    pub pieces: VecDeque<Vec<Extent>>,
    pub breaks_off: bool,
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
pub type Tracked = Result<Box<dyn ChangeList>, String>;

pub fn tracked(extents: Vec<Extent>) -> Tracked {
    let pieces = extents.chunks(3).map(<[Extent]>::to_vec).collect();
    Ok(Box::new(ListedChanges {
        pieces,
        breaks_off: false,
    }))
}

/// xorshift64*, so that a failing seed can be run again.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// In files, since a store in memory keeps what it is given, and pack buffers would never come back.
fn store(folder: &Path) -> Store {
    let objects = object_store::local::LocalFileSystem::new_with_prefix(folder.join("vault")).unwrap();
    Store::over(Arc::new(objects), "v")
}

async fn open(folder: &Path, cache: &str) -> Vault {
    let options = OpenOptions {
        cache_folder: folder.join(cache),
        expect_id: None,
        allow_unencrypted: true,
    };
    Vault::open(store(folder), None, options).await.unwrap()
}

pub struct Harness {
    pub vault: Vault,
    pub machine: MachineNumber,
    pub folder: tempfile::TempDir,
    pub runtime: tokio::runtime::Runtime,
}

impl Harness {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (vault, machine) = runtime.block_on(async {
            std::fs::create_dir(folder.path().join("vault")).unwrap();
            let store = store(folder.path());
            let options = InitOptions {
                encryption: Encryption::None,
                recovery_key: false,
                host: "test".into(),
            };
            Vault::init(store.clone(), options).await.unwrap();
            let vault = open(folder.path(), "cache").await;
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

    /// As a new process would see it: nothing of the vault is in memory.
    pub fn restart(&mut self) {
        self.vault = self.runtime.block_on(open(self.folder.path(), "cache"));
    }

    pub fn digests(&self) -> std::path::PathBuf {
        self.folder.path().join("digests-here")
    }

    pub fn transfer(&self, disks: Vec<Disk>) -> Result<(Vec<DiskResult>, coffre_vault::SessionWriter), TransferError> {
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
            disks_at_once: transfer::DISKS_AT_ONCE,
            paused: Arc::new(AtomicBool::new(false)),
        };
        transfer::run(plan, self.runtime.handle()).map(|results| (results, writer))
    }

    /// One disk, committed; the base for next time and what was said of it.
    pub fn backup(
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
            healed: result.healed,
        };
        let base = DiskBase {
            point: point.number,
            size_bytes: result.size_bytes,
            root: result.root,
        };
        result.keep_digests().unwrap();
        (base, said)
    }

    pub fn restored(&self, base: &DiskBase) -> Vec<u8> {
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
            skip_damaged: false,
            cancel: Arc::new(AtomicBool::new(false)),
        };
        restore::run(plan, self.runtime.handle()).unwrap();
        std::fs::read(&path).unwrap()
    }

    #[track_caller]
    pub fn assert_restores(&self, base: &DiskBase, disk: &MemoryDisk) {
        let restored = self.restored(base);
        assert_eq!(restored.len(), disk.0.len());
        if let Some(at) = (0..restored.len()).find(|at| restored[*at] != disk.0[*at]) {
            panic!("point {} differs at byte {at} of {}", base.point, restored.len());
        }
    }
}

pub struct Said {
    pub how: ComparedHow,
    pub stored_bytes: u64,
    pub changed_bytes: u64,
    pub read_bytes: u64,
    pub lied_at: Option<u64>,
    pub healed: Healed,
}

pub fn not_tracked() -> Tracked {
    Err("the provider does not track changes".into())
}

/// Random content with holes, in a disk whose size is no multiple of anything but sectors.
pub fn random_disk(random: &mut Random, size_bytes: u64) -> MemoryDisk {
    let mut disk = MemoryDisk(vec![0; size_bytes as usize]);
    for _ in 0..12 {
        write_somewhere(random, &mut disk);
    }
    disk
}

/// Changes a random range and returns it, rounded to pages.
pub fn write_somewhere(random: &mut Random, disk: &mut MemoryDisk) -> Extent {
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

pub fn sorted(mut extents: Vec<Extent>) -> Vec<Extent> {
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
