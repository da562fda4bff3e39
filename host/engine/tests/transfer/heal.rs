//! Damage in a vault heals by itself with the next backup of a machine that still has the bytes, in every way of comparing.

use std::path::PathBuf;

use coffre_engine::Extent;
use coffre_engine::transfer::{DiskBase, Healed};
use coffre_vault::{ComparedHow, ReadData, VerifyPlan, VerifyReport};

use super::harness::*;

const DISK_BYTES: u64 = 14 * MIB + 5 * 512;

/// Two points of a disk: the first has whole slots, the second shares them and adds a few gathered pages.
struct Backed {
    harness: Harness,
    disk: MemoryDisk,
    points: Vec<(DiskBase, MemoryDisk)>,
}

const WAYS: [ComparedHow; 3] = [ComparedHow::Scan, ComparedHow::Vault, ComparedHow::Tracked];

impl Backed {
    fn new() -> Self {
        let harness = Harness::new();
        let mut disk = MemoryDisk(vec![0; DISK_BYTES as usize]);
        Random(3).fill(&mut disk.0);
        disk.0[3 * MIB as usize..4 * MIB as usize].fill(0);
        let (first, _) = harness.backup(&disk, None, not_tracked());
        let mut backed = Self {
            points: vec![(first, disk.clone())],
            harness,
            disk,
        };
        let pages = [700 * KIB, 704 * KIB, 5 * MIB, 8 * MIB + 8 * KIB, 8 * MIB + 16 * KIB];
        let changes = pages.iter().map(|at| backed.change(*at, 4 * KIB)).collect();
        backed.backup(ComparedHow::Tracked, changes);
        backed
    }

    fn base(&self) -> DiskBase {
        self.points.last().unwrap().0.clone()
    }

    /// Other bytes than before.
    fn change(&mut self, offset_bytes: u64, length_bytes: u64) -> Extent {
        for byte in &mut self.disk.0[offset_bytes as usize..(offset_bytes + length_bytes) as usize] {
            *byte = byte.wrapping_add(77);
        }
        Extent {
            offset_bytes,
            length_bytes,
        }
    }

    fn backup(&mut self, way: ComparedHow, changes: Vec<Extent>) -> Healed {
        self.harness.restart();
        let list = if way == ComparedHow::Tracked {
            tracked(changes)
        } else {
            not_tracked()
        };
        if way == ComparedHow::Vault {
            let _ = std::fs::remove_dir_all(self.harness.digests());
        }
        let (base, said) = self.harness.backup(&self.disk, Some(self.base()), list);
        assert_eq!(said.how, way);
        assert_eq!(said.lied_at, None);
        self.points.push((base, self.disk.clone()));
        said.healed
    }

    fn object(&self, object: &str) -> PathBuf {
        self.harness.folder.path().join("vault/v").join(object)
    }

    fn damage(&self, object: &str, damage: Damage) {
        let path = self.object(object);
        let mut bytes = std::fs::read(&path).unwrap();
        match damage {
            Damage::Lost => return std::fs::remove_file(path).unwrap(),
            // The first chunk.
            Damage::Flipped => bytes[60] ^= 1,
            Damage::CutShort => bytes.truncate(bytes.len() / 10 * 9),
        }
        std::fs::write(path, bytes).unwrap();
    }

    fn verify(&mut self) -> VerifyReport {
        self.harness.restart();
        let plan = VerifyPlan {
            read: ReadData::All,
            quarantine: true,
            ..VerifyPlan::default()
        };
        let vault = self.harness.vault.clone();
        self.harness
            .runtime
            .block_on(async move { vault.verify(plan, &|_| {}).await })
            .unwrap()
    }

    /// The numbers of the points that a verification finds damaged.
    #[track_caller]
    fn damaged(&mut self) -> Vec<u32> {
        let report = self.verify();
        let mut points: Vec<u32> = (report.damage.iter())
            .flat_map(|damage| &damage.touches)
            .map(|touched| touched.point.0)
            .collect();
        points.sort_unstable();
        points.dedup();
        assert_eq!(points.is_empty(), report.is_sound(), "{report:?}");
        points
    }

    #[track_caller]
    fn assert_restores(&mut self, points: &[usize]) {
        self.harness.restart();
        for at in points {
            let (base, disk) = &self.points[*at];
            self.harness.assert_restores(base, disk);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Lost,
    Flipped,
    CutShort,
}

const DAMAGES: [Damage; 3] = [Damage::Lost, Damage::Flipped, Damage::CutShort];
/// The packs that [`Backed::new`] writes: a session closes its nodes first.
const WHOLE_SLOTS: &str = "packs/00000001/00000000/00000001";
const GATHERED: &str = "packs/00000001/00000001/00000001";
const FIRST_MAP: &str = "packs/00000001/00000000/00000000";
const SECOND_MAP: &str = "packs/00000001/00000001/00000000";

#[test]
fn lost_data_whose_bytes_are_still_there_is_whole_again_in_every_point() {
    for way in WAYS {
        for damage in DAMAGES {
            for pack in [WHOLE_SLOTS, GATHERED] {
                let mut backed = Backed::new();
                backed.damage(pack, damage);
                assert!(!backed.damaged().is_empty(), "{way} {damage:?} {pack}");
                let healed = backed.backup(way, Vec::new());
                assert!(healed.chunks > 0, "{way} {damage:?} {pack}: {healed:?}");
                // Of three slots the disk has not all bytes any more: the second point changed some pages.
                let gone = healed.lost_chunks > 0;
                match damage {
                    Damage::Lost => assert_eq!(healed.lost_chunks, if pack == WHOLE_SLOTS { 3 } else { 0 }),
                    Damage::Flipped => assert!(!gone),
                    // Which chunks lie in the lost tenth is not always the same.
                    Damage::CutShort => {}
                }
                let expected = if gone { vec![0, 1] } else { Vec::new() };
                assert_eq!(backed.damaged(), expected, "{way} {damage:?} {pack}: {healed:?}");
                let whole: &[usize] = if gone { &[2] } else { &[0, 1, 2] };
                backed.assert_restores(whole);
                assert_eq!(backed.backup(way, Vec::new()).chunks, 0, "{way} {damage:?} {pack}");
            }
        }
    }
}

#[test]
fn where_bytes_have_changed_the_new_point_is_whole_and_the_old_ones_are_named() {
    for way in WAYS {
        for pack in [WHOLE_SLOTS, GATHERED] {
            let mut backed = Backed::new();
            backed.damage(pack, Damage::Lost);
            assert!(!backed.damaged().is_empty());
            // One page of the gathered chunk, and one of a whole slot beside it.
            let changes = vec![backed.change(5 * MIB, 4 * KIB), backed.change(11 * MIB, 4 * KIB)];
            let healed = backed.backup(way, changes);
            assert!(healed.lost_chunks > 0, "{way} {pack}: {healed:?}");
            let expected = if pack == WHOLE_SLOTS { vec![0, 1] } else { vec![1] };
            assert_eq!(backed.damaged(), expected, "{way} {pack}: {healed:?}");
            backed.assert_restores(&[2]);
        }
    }
}

#[test]
fn a_lost_map_is_made_anew_from_the_disk() {
    for way in WAYS {
        for damage in DAMAGES {
            for pack in [FIRST_MAP, SECOND_MAP] {
                let mut backed = Backed::new();
                backed.damage(pack, damage);
                assert!(!backed.damaged().is_empty(), "{way} {damage:?} {pack}");
                let changes = vec![backed.change(12 * MIB, 4 * KIB)];
                let healed = backed.backup(way, changes);
                // The second point has changed both leaves, so it needs nothing of the first one's map. A tenth of a pack may
                // hold nothing but a root, which is made anew in any case.
                let touches_base = pack == SECOND_MAP && damage != Damage::CutShort;
                assert!(!touches_base || healed != Healed::default(), "{way} {damage:?} {pack}");
                let damaged = backed.damaged();
                assert!(!damaged.contains(&2), "{way} {damage:?} {pack}: {healed:?} {damaged:?}");
                backed.assert_restores(&[2]);
            }
        }
    }
}

#[test]
fn nothing_is_walked_where_all_that_was_damaged_has_a_good_copy() {
    let mut backed = Backed::new();
    backed.damage(GATHERED, Damage::Flipped);
    assert_eq!(backed.damaged(), [1]);
    backed.backup(ComparedHow::Tracked, Vec::new());
    backed.harness.restart();
    let base = backed.base();
    let plan = coffre_vault::SessionPlan {
        machine: backed.harness.machine,
        bases: vec![base.point],
        deadline: jiff::Timestamp::now(),
        host: String::new(),
        resumes: None,
    };
    let vault = backed.harness.vault.clone();
    let suspects = backed.harness.runtime.block_on(async move {
        let writer = vault.begin(plan).await.unwrap();
        writer.suspects().await.unwrap()
    });
    assert!(suspects.is_none());
}
