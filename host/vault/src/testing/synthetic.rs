//! Vaults that nobody has the time or the disks to fill: with a long past, or with very many chunks. Metadata only: records,
//! pieces of the index and nodes of maps are what they would be; packs of data have their size and nothing in it.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::gclog::{Checkpoint, GcRecord, GcWhat, MachineCheckpoint, PackName};
use crate::ids::{ChunkId, MachineNumber, SessionNumber};
use crate::index;
use crate::map::{FANOUT, LeafBuilder, MapRoot, Node, Place, SLOT_BYTES, SLOTS_PER_LEAF, root_level};
use crate::mark;
use crate::object::{self, HEADER_BYTES, ObjectType, PackKey};
use crate::pack::{ChunkKind, Encoder, Entry, PackInfo, PackListing, encode_piece};
use crate::point::{Point, PointDisk, PointDraft, Written};
use crate::read::ReadError;
use crate::register::{PointRecord, Session};
use crate::seal::TAG_BYTES;
use crate::session::{Claim, SessionPlan, SessionWriter, WriteError};
use crate::vault::Vault;

/// What a vault has behind it.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    /// Sessions of one machine, each committed, forgotten and purged.
    pub sessions: u32,
    /// A clean-up took place after so many of them: a record that condemns, and a checkpoint.
    pub sessions_per_clean: u32,
}

/// Writes a past, clean-ups included, of which nothing is left but records. The machine must be there and have no sessions.
///
/// # Panics
/// If the store does not take it.
pub async fn write_past(vault: &Vault, machine: MachineNumber, name: &str, past: Past) {
    let records = vault.inner.records();
    let at = records.now();
    let mut log_end = 0;
    let mut checkpoint = None;
    for number in 0..past.sessions {
        let number = SessionNumber(number);
        let session = Session {
            bases: Vec::new(),
            deadline: at,
            begun_at: at,
            host: "host".to_owned(),
            resumes: None,
        };
        let object = object::session(machine, number);
        let made = records.create(ObjectType::Session, &object, &session).await;
        made.expect("the store takes a session");
        commit(vault, machine, number, name, 0).await;
        for (k, fate) in ["forget", "purge"].into_iter().enumerate() {
            let object = object::fate(machine, number, k as u32);
            let made = records
                .create(ObjectType::Fate, &object, &json!({ "fate": fate, "at": at }))
                .await;
            made.expect("the store takes a fate");
        }
        if (number.0 + 1).is_multiple_of(past.sessions_per_clean) {
            let clean = SessionNumber(number.0 / past.sessions_per_clean);
            let object = object::session(MachineNumber::MAINTENANCE, clean);
            let made = records.create(ObjectType::Session, &object, &session).await;
            made.expect("the store takes the session of a clean-up");
            let condemned = PackKey {
                machine,
                session: number,
                number: 0,
            };
            let decided = |machine, name: &str, decided_below| MachineCheckpoint {
                machine,
                name: name.to_owned(),
                decided_below,
                live: Vec::new(),
            };
            let machines = vec![
                decided(MachineNumber::MAINTENANCE, "", clean.0),
                decided(machine, name, number.0 + 1),
            ];
            let condemn = GcWhat::Condemn {
                packs: vec![PackName(condemned)],
                reason: "dead".to_owned(),
            };
            let sum = GcWhat::Checkpoint(Checkpoint {
                machines,
                ..Checkpoint::default()
            });
            for what in [condemn, sum] {
                let is_checkpoint = matches!(what, GcWhat::Checkpoint(_));
                let record = GcRecord { at, checkpoint, what };
                let made = records
                    .create(ObjectType::GcLog, &object::gclog(log_end), &record)
                    .await;
                made.expect("the store takes a record of the log");
                checkpoint = if is_checkpoint { Some(log_end) } else { checkpoint };
                log_end += 1;
            }
            commit(vault, MachineNumber::MAINTENANCE, clean, "", 0).await;
        }
    }
}

async fn commit(vault: &Vault, machine: MachineNumber, number: SessionNumber, name: &str, index_pieces: u32) {
    let records = vault.inner.records();
    let point = Point {
        machine: name.to_owned(),
        machine_number: machine,
        number,
        committed_at: records.now(),
        written: Written {
            index_pieces,
            ..Written::default()
        },
        ..Point::default()
    };
    let record = PointRecord::Commit { point: Box::new(point) };
    let made = records
        .create(ObjectType::Point, &object::point(machine, number), &record)
        .await;
    made.expect("the store takes a point");
}

const CHUNKS_PER_PACK: u64 = 256;
/// A tenth of the packs is listed as sessions do it, the rest as a clean-up leaves it: in pieces of 1 MiB.
const PACKS_PER_PIECE: usize = 8;
const PACKS_PER_MERGED_PIECE: usize = 128;
const STORED_BYTES: u32 = SLOT_BYTES as u32 + TAG_BYTES as u32;
const PACK_BYTES: u32 = HEADER_BYTES as u32 + CHUNKS_PER_PACK as u32 * (STORED_BYTES + 28) + 64;

/// The ids of as many chunks as wanted, from one stream of hashes: any of them can be had again.
#[derive(Clone)]
struct Ids(blake3::OutputReader);

impl Ids {
    fn new() -> Self {
        Self(blake3::Hasher::new().update(b"synthetic chunks").finalize_xof())
    }

    fn of(&mut self, chunks: std::ops::Range<u64>) -> Vec<ChunkId> {
        let mut bytes = vec![0; (chunks.end - chunks.start) as usize * ChunkId::LENGTH];
        self.0.set_position(chunks.start * ChunkId::LENGTH as u64);
        self.0.fill(&mut bytes);
        let ids = bytes.chunks_exact(ChunkId::LENGTH);
        ids.map(|id| ChunkId(id.try_into().expect("chunks of this length")))
            .collect()
    }
}

/// Writes one machine with one point, whose one disk has `chunks` chunks of 128 KiB, no two alike, into the local vault in
/// `folder`.
///
/// # Errors
/// If the store or the vault does not take it.
pub async fn write_disk(
    vault: &Vault,
    folder: &Path,
    chunks: u64,
    commit_file: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let machine = vault.machine_or_create("big").await?;
    let plan = SessionPlan {
        machine,
        bases: Vec::new(),
        deadline: Timestamp::now() + SignedDuration::from_hours(24),
        host: "host".to_owned(),
        resumes: None,
    };
    // Both before there is anything that they would fetch.
    let listing = vault.begin(plan.clone()).await?.number();
    let writer = vault.begin(plan).await?;
    let pieces = write_pieces(vault, machine, listing, chunks).await?;
    write_empty_packs(folder, machine, listing, chunks)?;
    commit(vault, machine, listing, "big", pieces).await;
    let (worker, hasher) = (writer.clone(), vault.hasher());
    let size_bytes = chunks * SLOT_BYTES;
    let root = tokio::task::spawn_blocking(move || {
        write_nodes(
            &worker,
            |plain| hasher.id(plain),
            root_level(size_bytes),
            0..chunks,
            &mut Encoder::new(),
        )
    });
    let disk = PointDisk {
        id: "vda".to_owned(),
        size_bytes,
        root: root.await??,
        ..PointDisk::default()
    };
    let draft = PointDraft {
        disks: vec![disk],
        ..PointDraft::default()
    };
    writer.commit(draft, commit_file).await?;
    Ok(())
}

async fn write_pieces(
    vault: &Vault,
    machine: MachineNumber,
    session: SessionNumber,
    chunks: u64,
) -> Result<u32, Box<dyn std::error::Error>> {
    let mut ids = Ids::new();
    let packs = chunks.div_ceil(CHUNKS_PER_PACK) as u32;
    let (mut next, mut piece) = (0, 0);
    while next < packs {
        let at_most = if next < packs / 10 {
            PACKS_PER_PIECE
        } else {
            PACKS_PER_MERGED_PIECE
        } as u32;
        let end = packs.min(next + at_most);
        let listings: Vec<PackListing> = (next..end)
            .map(|number| {
                let first = u64::from(number) * CHUNKS_PER_PACK;
                let entries = ids
                    .of(first..chunks.min(first + CHUNKS_PER_PACK))
                    .into_iter()
                    .map(|id| Entry {
                        id,
                        stored_bytes: STORED_BYTES,
                        plain_bytes: SLOT_BYTES as u32,
                        compressed: false,
                    });
                let info = PackInfo {
                    key: PackKey {
                        machine,
                        session,
                        number,
                    },
                    size_bytes: PACK_BYTES,
                    kind: ChunkKind::Data,
                    cipher: vault.inner.ring.cipher as u8,
                    generation: 0,
                    salt: [0; object::SALT_BYTES],
                };
                PackListing {
                    info,
                    entries: entries.collect(),
                }
            })
            .collect();
        let object = PackKey {
            machine,
            session,
            number: piece,
        }
        .index_object();
        let bytes = vault
            .inner
            .records()
            .seal(ObjectType::Index, &object, &encode_piece(&listings));
        vault.inner.store.create(&object, bytes).await?;
        next = end;
        piece += 1;
    }
    Ok(piece)
}

/// Files of the packs' sizes, which take no space.
fn write_empty_packs(
    folder: &Path,
    machine: MachineNumber,
    session: SessionNumber,
    chunks: u64,
) -> Result<(), std::io::Error> {
    for number in 0..chunks.div_ceil(CHUNKS_PER_PACK) as u32 {
        let key = PackKey {
            machine,
            session,
            number,
        };
        let path = folder.join(key.object());
        if number == 0 {
            std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
        }
        std::fs::File::create(path)?.set_len(PACK_BYTES.into())?;
    }
    Ok(())
}

/// The node of this level that covers these chunks, from the disk's first on.
fn write_nodes(
    writer: &SessionWriter,
    id_of: impl Fn(&[u8]) -> ChunkId + Copy,
    level: u8,
    chunks: std::ops::Range<u64>,
    encoder: &mut Encoder,
) -> Result<Option<MapRoot>, WriteError> {
    if chunks.is_empty() {
        return Ok(None);
    }
    let plain = if level == 0 {
        let mut leaf = LeafBuilder::new();
        for id in Ids::new().of(chunks) {
            leaf.push(SLOT_BYTES as u32, Place::Chunk { id, offset_bytes: 0 });
        }
        let rest = SLOTS_PER_LEAF as u32 * SLOT_BYTES as u32 - leaf.end_bytes();
        leaf.push(rest, Place::Zero);
        leaf.finish().encode()
    } else {
        let mut node = Node::new(level);
        let span = SLOTS_PER_LEAF * (FANOUT as u64).pow(u32::from(level) - 1);
        for position in 0..FANOUT {
            let start = chunks.start + position as u64 * span;
            let below = start.min(chunks.end)..chunks.end.min(start + span);
            if let Some(child) = write_nodes(writer, id_of, level - 1, below, encoder)? {
                node.set(position, child.id);
            }
        }
        node.encode()
    };
    let id = id_of(&plain);
    writer.put(ChunkKind::Node, id, &plain, encoder)?;
    Ok(Some(MapRoot { level, id }))
}

/// Brings the local index up to date.
///
/// # Errors
/// As reading the vault has them.
pub async fn sync_index(vault: &Vault) -> Result<(), ReadError> {
    index::sync(&vault.inner).await.map(drop)
}

/// Begins a session as a backup does, and asks it for chunks all over a vault of `chunks`, each of which is there.
///
/// # Errors
/// As writing has them, or if a chunk is not found.
pub async fn claim_some(vault: &Vault, chunks: u64, asked: u64) -> Result<(), Box<dyn std::error::Error>> {
    let machine = vault.machine("big").await?.ok_or("the machine is there")?;
    let plan = SessionPlan {
        machine,
        bases: Vec::new(),
        deadline: Timestamp::now() + SignedDuration::from_hours(24),
        host: "host".to_owned(),
        resumes: None,
    };
    let writer = vault.begin(plan).await?;
    let worker = writer.clone();
    let claimed = tokio::task::spawn_blocking(move || {
        let mut ids = Ids::new();
        let step = (chunks / asked).max(1);
        for at in (0..chunks).step_by(step as usize) {
            for id in ids.of(at..at + 1) {
                if worker.claim(&id)? != Claim::Known {
                    return Ok(Some(id));
                }
            }
        }
        Ok::<_, WriteError>(None)
    });
    if let Some(id) = claimed.await?? {
        return Err(format!("chunk {id} is there and was not found").into());
    }
    writer.abort("it only asked").await?;
    Ok(())
}

/// What a mark has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MarkedChunks {
    pub packs: u64,
    pub chunks: u64,
    pub live_chunks: u64,
}

/// Surveys, marks, and counts by pack, as a clean-up does.
///
/// # Errors
/// As reading the vault has them.
pub async fn mark_all(vault: &Vault) -> Result<MarkedChunks, ReadError> {
    let log = vault.inner.log().await?;
    let survey = mark::survey(&vault.inner, &log).await?;
    let marked = mark::mark(&vault.inner, &survey.roots(), &|_| {}).await?;
    index::blocking(&vault.inner, move |_| {
        let mut sum = MarkedChunks::default();
        for (_, known) in marked.pack_uses(&|_| false)?.iter() {
            sum.packs += 1;
            sum.chunks += u64::from(known.chunks);
            sum.live_chunks += u64::from(known.live_chunks);
        }
        Ok(sum)
    })
    .await
}
