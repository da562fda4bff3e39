//! Transfer and restore against a model: a disk in memory that is changed at random, backed up in every way there is, and
//! read back byte for byte.

mod harness;
mod heal;

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coffre_engine::transfer::{self, DiskBase, DiskTransfer, TransferError, TransferPlan};
use coffre_engine::{DiskId, DiskSource, Extent, SourceError};
use coffre_vault::{ComparedHow, SessionPlan};
use harness::*;

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
        disks_at_once: transfer::DISKS_AT_ONCE,
        paused: Arc::default(),
    };
    assert!(matches!(
        transfer::run(plan, harness.runtime.handle()),
        Err(TransferError::Cancelled)
    ));
}
