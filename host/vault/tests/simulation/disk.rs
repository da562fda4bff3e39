//! What the simulated machines have on their disks: a few small blocks, far apart, so that a handful of them makes several
//! leaves. A block's bytes follow from a number, so that what a point must hold is known without keeping it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use coffre_vault::map::{
    LEAF_BYTES, Leaf, LeafBuilder, MapError, MapReader, MapRoot, MapWriter, NodeSource, Place, SLOT_BYTES,
};
use coffre_vault::testing::Dice;
use coffre_vault::{
    ChunkHasher, ChunkId, ChunkKind, ChunkReader, Claim, Encoder, ReadError, SessionWriter, WriteError,
};
use parking_lot::Mutex;

pub const LEAVES: u64 = 4;
const BLOCKS_PER_LEAF: u32 = 5;
/// Two sectors, so that gathered chunks have offsets.
const BLOCK_BYTES: usize = 1024;
/// Blocks that one gathered chunk holds at most.
const GATHERED: usize = 3;
pub const SIZE_BYTES: u64 = LEAVES * LEAF_BYTES;

/// Where a machine writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Places {
    /// All over its disk, and half of that is its own.
    Many,
    /// In a handful of places, and nothing that others do not write as well: what was dead comes back.
    Few,
}

/// A disk at one instant: which block holds the bytes of which number. What is not named is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    blocks: BTreeMap<(u64, u32), u64>,
}

impl Disk {
    /// The disk some time later. Numbers below `shared` are of content that other machines have as well.
    pub fn changed(&self, dice: &mut Dice, shared: u64, places: Places) -> Self {
        let mut changed = self.clone();
        let (leaves, blocks) = match places {
            Places::Many => (LEAVES, BLOCKS_PER_LEAF),
            Places::Few => (2, 2),
        };
        let most = if self.blocks.is_empty() { 14 } else { 6 };
        for _ in 0..dice.within(1..most) {
            let at = (dice.within(0..leaves), dice.within(0..u64::from(blocks)) as u32);
            match (dice.within(0..8), places) {
                (0, _) => changed.blocks.remove(&at),
                (1..4, _) | (_, Places::Few) => changed.blocks.insert(at, dice.within(0..shared)),
                _ => changed.blocks.insert(at, shared + dice.number() / 2),
            };
        }
        changed
    }

    fn block(&self, leaf: u64, block: u32) -> Option<u64> {
        self.blocks.get(&(leaf, block)).copied()
    }

    fn leaf_is_as_in(&self, other: &Self, leaf: u64) -> bool {
        (0..BLOCKS_PER_LEAF).all(|block| self.block(leaf, block) == other.block(leaf, block))
    }
}

pub fn bytes(number: u64, length: usize) -> Vec<u8> {
    let mut dice = Dice::new(number);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&dice.number().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Why a disk could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteDiskError {
    #[error("write a chunk")]
    Write(#[from] WriteError),
    #[error("follow the base's map")]
    Map(#[from] MapError),
}

/// The disk that a new one is a change of.
pub struct Base {
    pub disk: Disk,
    pub root: Option<MapRoot>,
    pub reader: ChunkReader,
}

/// The time that goes by between two chunks.
pub struct Pauses {
    pub dice: Dice,
    pub longest: Duration,
}

impl Pauses {
    async fn next(&mut self) {
        tokio::time::sleep(self.dice.duration(Duration::from_millis(1), self.longest)).await;
    }
}

/// Writes a disk as the engine does: what is as in the base is taken over unasked, the rest is claimed, and put where it is
/// new. `gather` puts several changed blocks into one chunk.
pub async fn write(
    writer: &SessionWriter,
    hasher: ChunkHasher,
    base: Option<Base>,
    disk: &Disk,
    gather: bool,
    pauses: &mut Pauses,
) -> Result<Option<MapRoot>, WriteDiskError> {
    let (old, root, reader) = match base {
        Some(base) => (base.disk, base.root, Some(base.reader)),
        None => (Disk::default(), None, None),
    };
    let mut base = match reader {
        Some(reader) => Some(MapReader::new(reader, root)?),
        None => None,
    };
    let encoder = Mutex::new(Encoder::new());
    let put = |kind, plain: &[u8]| -> Result<ChunkId, WriteDiskError> {
        let id = hasher.id(plain);
        if writer.claim(&id)? == Claim::New {
            writer.put(kind, id, plain, &mut encoder.lock())?;
        }
        Ok(id)
    };
    let mut map = MapWriter::new(SIZE_BYTES, |node: Vec<u8>| put(ChunkKind::Node, &node));
    for leaf in 0..LEAVES {
        if base.is_some() && disk.leaf_is_as_in(&old, leaf) {
            continue;
        }
        let old_leaf = match &mut base {
            Some(base) => {
                map.copy_until(base, leaf).await?;
                base.leaf(leaf).await?
            }
            None => None,
        };
        let changed: Vec<u32> = (0..BLOCKS_PER_LEAF)
            .filter(|block| {
                let now = disk.block(leaf, *block);
                now.is_some() && (old_leaf.is_none() || now != old.block(leaf, *block))
            })
            .collect();
        let mut places = HashMap::new();
        for blocks in changed.chunks(if gather { GATHERED } else { 1 }) {
            let numbers = blocks.iter().filter_map(|block| disk.block(leaf, *block));
            let plain: Vec<u8> = numbers.flat_map(|number| bytes(number, BLOCK_BYTES)).collect();
            let id = put(ChunkKind::Data, &plain)?;
            for (position, block) in blocks.iter().enumerate() {
                let offset_bytes = (position * BLOCK_BYTES) as u32;
                places.insert(*block, Place::Chunk { id, offset_bytes });
            }
            pauses.next().await;
        }
        let new = leaf_of(disk, leaf, &places, old_leaf.as_ref());
        let id = match new.is_zero() {
            true => None,
            false => Some(put(ChunkKind::Node, &new.encode())?),
        };
        map.push_leaf(leaf, id)?;
        pauses.next().await;
    }
    if let Some(base) = &mut base {
        map.copy_until(base, LEAVES).await?;
    }
    map.finish()
}

fn leaf_of(disk: &Disk, leaf: u64, places: &HashMap<u32, Place>, old: Option<&Leaf>) -> Leaf {
    let mut builder = LeafBuilder::new();
    for block in 0..BLOCKS_PER_LEAF {
        let end = (block + 1) * SLOT_BYTES as u32;
        match (disk.block(leaf, block), places.get(&block), old) {
            (None, _, _) => builder.push(SLOT_BYTES as u32, Place::Zero),
            (Some(_), Some(place), _) => {
                builder.push(BLOCK_BYTES as u32, *place);
                builder.push(SLOT_BYTES as u32 - BLOCK_BYTES as u32, Place::Zero);
            }
            (Some(_), None, Some(old)) => builder.push_from(old, end),
            (Some(_), None, None) => unreachable!("without an old leaf every block has a place"),
        }
    }
    builder.finish()
}

/// Why a disk is not what it was.
#[derive(Debug)]
pub enum Wrong {
    Read(ReadError),
    Map(MapError),
    /// Other bytes, or bytes where none belong. Nothing is worse.
    Content(String),
}

impl Wrong {
    /// Whether the vault says that something is gone or damaged, rather than that it cannot be reached.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Read(error) => error.is_damage(),
            Self::Map(error) => is_damage(error),
            Self::Content(_) => true,
        }
    }
}

pub fn is_damage(error: &MapError) -> bool {
    match error {
        MapError::Read { source, .. } => source.is_damage(),
        MapError::Node { .. } | MapError::Root(_) => true,
    }
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(error) => write!(f, "{error}"),
            Self::Map(MapError::Read { id, source }) => write!(f, "node {id}: {source}"),
            Self::Map(error) => write!(f, "{error}"),
            Self::Content(what) => f.write_str(what),
        }
    }
}

/// Reads chunks, each of them once.
#[derive(Clone)]
pub struct Reading {
    reader: ChunkReader,
    read: Arc<Mutex<HashMap<ChunkId, Bytes>>>,
}

impl Reading {
    pub fn new(reader: ChunkReader) -> Self {
        Self {
            reader,
            read: Arc::default(),
        }
    }

    pub async fn chunk(&self, id: &ChunkId) -> Result<Bytes, ReadError> {
        if let Some(known) = self.read.lock().get(id) {
            return Ok(known.clone());
        }
        let bytes = self.reader.read(id).await?;
        self.read.lock().insert(*id, bytes.clone());
        Ok(bytes)
    }

    /// The packs that the chunks read so far may lie in.
    pub async fn packs(&self) -> Result<std::collections::BTreeSet<String>, ReadError> {
        let ids: Vec<ChunkId> = self.read.lock().keys().copied().collect();
        let places = self.reader.locate(&ids).await?;
        Ok(places.into_iter().map(|place| place.pack.name()).collect())
    }
}

#[async_trait]
impl NodeSource for Reading {
    async fn node(&self, id: &ChunkId) -> Result<Bytes, ReadError> {
        self.chunk(id).await
    }
}

/// Restores a disk and compares every byte.
pub async fn compare(reading: &Reading, root: Option<MapRoot>, disk: &Disk) -> Result<(), Wrong> {
    let mut map = MapReader::new(reading.clone(), root).map_err(Wrong::Map)?;
    let mut missing = disk.blocks.clone();
    let mut from = 0;
    while let Some((leaf, id)) = map.next_leaf(from).await.map_err(Wrong::Map)? {
        for extent in map.leaf_of(id).await.map_err(Wrong::Map)?.extents() {
            let Place::Chunk { id, offset_bytes } = extent.place else {
                continue;
            };
            let block = extent.start_bytes / SLOT_BYTES as u32;
            let Some(number) = missing.remove(&(leaf, block)) else {
                return Err(Wrong::Content(format!(
                    "leaf {leaf} has bytes at block {block}, which is zero"
                )));
            };
            let chunk = reading.chunk(&id).await.map_err(Wrong::Read)?;
            let found = chunk
                .get(offset_bytes as usize..)
                .and_then(|rest| rest.get(..BLOCK_BYTES));
            if found != Some(&bytes(number, BLOCK_BYTES)) || extent.length_bytes as usize != BLOCK_BYTES {
                return Err(Wrong::Content(format!("leaf {leaf}, block {block} has other bytes")));
            }
        }
        from = leaf + 1;
    }
    match missing.keys().next() {
        Some((leaf, block)) => Err(Wrong::Content(format!("leaf {leaf}, block {block} is zero"))),
        None => Ok(()),
    }
}
