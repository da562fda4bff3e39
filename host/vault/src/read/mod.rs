//! Reading chunks back.
//!
//! A pack can leave between looking into the index and reading from it: whoever misses one marks it as gone, looks again
//! (which fetches the index once more), and finds the copy that let the clean-up take the first.

mod blocks;
mod frame;

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::ids::ChunkId;
use crate::index::{self, Found};
use crate::object::PackKey;
use crate::offload::offload;
use crate::pack::{ChunkKind, ChunkShape, Decoder, PackInfo, open_chunk};
use crate::parity::{self, MendedPack};
use crate::seal::Sealer;
use crate::store::StoreError;
use crate::vault::Inner;
use blocks::BlockCache;
pub(crate) use frame::pack_listing;

/// Above this the look-ups of one call leave the runtime's thread: each may read local disk.
const LOCATED_INLINE: usize = 64;
/// Packs whose keys are kept derived; a full one costs 600 bytes. When there are more, all are derived anew.
const PACKS_KEPT: usize = 4096;

/// Why something in the vault could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("chunk {0} is not in the vault")]
    ChunkMissing(ChunkId),
    #[error("pack {0} is not in the vault")]
    PackMissing(String),
    #[error("chunk {id} in pack {pack} is damaged: {what}")]
    ChunkDamaged { id: ChunkId, pack: String, what: String },
    #[error("`{object}` is damaged: {what}")]
    Damaged { object: String, what: String },
    #[error("`{object}` was written by a newer version of Coffre")]
    Newer { object: String },
    #[error("`{object}` is sealed by a newer key than this process has: the vault's keys were rotated")]
    KeyRotated { object: String },
    #[error("use the local index in {}", folder.display())]
    Cache { folder: PathBuf, source: io::Error },
    #[error("read the vault")]
    Store(#[from] StoreError),
}

impl ReadError {
    /// Whether what was asked for is gone or damaged, rather than out of reach for now.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::ChunkMissing(_) | Self::PackMissing(_) | Self::ChunkDamaged { .. } | Self::Damaged { .. } => true,
            Self::Newer { .. } | Self::KeyRotated { .. } | Self::Cache { .. } | Self::Store(_) => false,
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn may_help_to_try_again(&self) -> bool {
        match self {
            Self::Store(error) => error.may_help_to_try_again(),
            Self::KeyRotated { .. } => true,
            _ => false,
        }
    }
}

/// A pack that chunks can be read from.
#[derive(Debug)]
pub struct PackRef {
    pub(crate) info: PackInfo,
    pub(crate) sealer: Sealer,
}

impl PackRef {
    /// Nothing where it is sealed in another way than this vault.
    pub(crate) fn new(vault: &Inner, info: PackInfo) -> Option<Self> {
        let sealer = Sealer::new(&vault.ring, vault.id, &info.key.object(), &info.header()).ok()?;
        Some(Self { info, sealer })
    }

    /// Its name, which sorts as packs were written.
    pub fn name(&self) -> String {
        self.info.key.to_string()
    }

    pub fn size_bytes(&self) -> u64 {
        self.info.size_bytes.into()
    }

    pub fn kind(&self) -> ChunkKind {
        self.info.kind
    }
}

impl PartialEq for PackRef {
    fn eq(&self, other: &Self) -> bool {
        self.info.key == other.info.key
    }
}

impl Eq for PackRef {}

impl PartialOrd for PackRef {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PackRef {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.info.key.cmp(&other.info.key)
    }
}

impl std::hash::Hash for PackRef {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.info.key.hash(state);
    }
}

/// Where a chunk lies.
#[derive(Clone, Debug)]
pub struct Location {
    pub pack: Arc<PackRef>,
    /// Its number in the pack.
    pub ordinal: u32,
    pub offset_bytes: u32,
    /// With its tag.
    pub stored_bytes: u32,
    pub plain_bytes: u32,
    pub compressed: bool,
}

impl Location {
    /// The bytes of the pack that [`ChunkReader::open`] wants.
    pub fn range(&self) -> Range<u64> {
        let start = u64::from(self.offset_bytes);
        start..start + u64::from(self.stored_bytes)
    }
}

/// What all readers of one vault share.
#[derive(Default)]
pub(crate) struct ReaderState {
    packs: Mutex<HashMap<PackKey, Arc<PackRef>>>,
    /// Packs that answered 404. They never come back.
    gone: Mutex<HashSet<PackKey>>,
    /// Packs that are quarantined or gave a damaged chunk: looked into last.
    doubted: Mutex<HashSet<PackKey>>,
    blocks: BlockCache,
    /// The last pack that was read through its parity: what is damaged at one place often is at others.
    mended: tokio::sync::Mutex<Option<Arc<MendedPack>>>,
    /// All of those.
    mended_packs: Mutex<HashSet<PackKey>>,
}

impl ReaderState {
    /// Packs that answered 404.
    pub(crate) fn gone(&self) -> Vec<PackKey> {
        self.gone.lock().iter().copied().collect()
    }

    /// Packs that were read through their parity.
    pub(crate) fn mended(&self) -> Vec<PackKey> {
        self.mended_packs.lock().iter().copied().collect()
    }

    pub(crate) fn doubt(&self, packs: impl IntoIterator<Item = PackKey>) {
        self.doubted.lock().extend(packs);
    }
}

/// Finds, fetches and opens chunks. Clones share a small cache.
#[derive(Clone)]
pub struct ChunkReader {
    vault: Arc<Inner>,
}

impl std::fmt::Debug for ChunkReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChunkReader({})", self.vault.id)
    }
}

impl ChunkReader {
    pub(crate) fn new(vault: Arc<Inner>) -> Self {
        Self { vault }
    }

    /// Where each of the chunks lies, in the order asked. After [`ReadError::PackMissing`] from a fetch, asking again
    /// gives another place, if there is one.
    pub async fn locate(&self, ids: &[ChunkId]) -> Result<Vec<Location>, ReadError> {
        let mut tries = 0;
        loop {
            let found = self.look_up(ids).await?;
            let missing = ids.iter().zip(&found).find(|(_, places)| places.is_empty());
            match (missing, tries) {
                (None, _) => {
                    return Ok(found
                        .into_iter()
                        .filter_map(|places| places.into_iter().next())
                        .collect());
                }
                (Some(_), 0) => {
                    index::sync(&self.vault).await?;
                }
                // Not listed is not missing: points count their pieces.
                (Some(_), 1) => index::load_counted(&self.vault).await?,
                (Some((id, _)), _) => return Err(ReadError::ChunkMissing(*id)),
            }
            tries += 1;
        }
    }

    /// Every place of each chunk as far as the local index knows, the best one first.
    pub(crate) async fn look_up(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>, ReadError> {
        if ids.len() <= LOCATED_INLINE {
            return look_up(&self.vault, ids);
        }
        let (vault, ids) = (Arc::clone(&self.vault), ids.to_vec());
        offload(move || look_up(&vault, &ids)).await.unwrap_or_else(|panicked| {
            let folder = self.vault.index.folder().to_owned();
            Err(ReadError::Cache {
                folder,
                source: io::Error::other(panicked),
            })
        })
    }

    /// Which pack has left the vault with a chunk that has no other place; nothing where no piece of the index lists it at all.
    pub(crate) fn gone_with(&self, id: &ChunkId) -> Result<Option<PackKey>, ReadError> {
        let failed = |source| ReadError::Cache {
            folder: self.vault.index.folder().to_owned(),
            source,
        };
        let listed = self.vault.index.candidates(id).map_err(failed)?;
        Ok(listed.first().map(|found| found.pack))
    }

    /// A byte range of a pack, as one request.
    pub async fn fetch(&self, pack: &PackRef, range: Range<u64>) -> Result<Bytes, ReadError> {
        let object = pack.info.key.object();
        let wanted = range.end - range.start;
        let end = range.end;
        let answer = match self.vault.store.get_range(&object, range).await {
            // With parity, a sector that is lost is damage like any other, and looked for elsewhere.
            Err(error) if error.is_of_a_disk() && self.has_parity(pack).await => {
                return Err(ReadError::Damaged {
                    object,
                    what: format!("a part of it cannot be read: {error}"),
                });
            }
            // Some stores answer 416 where a range begins behind the end; then it is the pack that is wrong, not the way to it.
            Err(error @ StoreError::Failed { .. }) => match self.vault.store.size(&object).await {
                Ok(Some(size_bytes)) if size_bytes < end => Some(Bytes::new()),
                _ => return Err(error.into()),
            },
            other => other?,
        };
        match answer {
            Some(bytes) if bytes.len() as u64 == wanted => Ok(bytes),
            Some(_) => Err(ReadError::Damaged {
                object,
                what: "it is cut short".to_owned(),
            }),
            None => {
                self.vault.reading.gone.lock().insert(pack.info.key);
                Err(ReadError::PackMissing(pack.name()))
            }
        }
    }

    /// Opens, decompresses and hashes again what lay at `location`. Pure computing: call it off the runtime.
    /// `out` is replaced, and empty after an error.
    pub fn open(
        &self,
        id: &ChunkId,
        location: &Location,
        sealed: &[u8],
        decoder: &mut Decoder,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        let shape = ChunkShape {
            ordinal: location.ordinal,
            stored_bytes: location.stored_bytes,
            plain_bytes: location.plain_bytes,
            compressed: location.compressed,
        };
        open_chunk(
            &location.pack.sealer,
            &self.vault.hasher(),
            id,
            shape,
            sealed,
            decoder,
            out,
        )
        .map_err(|error| {
            out.clear();
            ReadError::ChunkDamaged {
                id: *id,
                pack: location.pack.name(),
                what: error.to_string(),
            }
        })
    }

    /// One chunk, through a small cache of pack blocks, so that neighbours cost one request. Where a chunk lies in several
    /// packs, a damaged copy is passed over.
    pub async fn read(&self, id: &ChunkId) -> Result<Bytes, ReadError> {
        // Finds it, or says that it is nowhere.
        self.locate(std::slice::from_ref(id)).await?;
        match self.read_known(id).await {
            Err(ReadError::PackMissing(_)) => {
                self.locate(std::slice::from_ref(id)).await?;
                self.read_known(id).await
            }
            other => other,
        }
    }

    /// From whatever copy the local index knows of.
    pub(crate) async fn read_known(&self, id: &ChunkId) -> Result<Bytes, ReadError> {
        let mut error = ReadError::ChunkMissing(*id);
        let places: Vec<Location> = self
            .look_up(std::slice::from_ref(id))
            .await?
            .into_iter()
            .flatten()
            .collect();
        for location in &places {
            match self.read_at(id, location).await {
                Ok(bytes) => return Ok(bytes),
                Err(other) if other.is_damage() => {
                    self.vault.reading.doubt([location.pack.info.key]);
                    error = other;
                }
                Err(other) => return Err(other),
            }
        }
        for location in &places {
            if let Some(bytes) = self.read_mended(id, location).await {
                return Ok(bytes);
            }
        }
        Err(error)
    }

    async fn has_parity(&self, pack: &PackRef) -> bool {
        let looked = self.vault.store.size(&pack.info.key.parity_object()).await;
        self.vault.store.folder().is_some() && looked.is_ok_and(|size| size.is_some())
    }

    /// From the pack as its parity says that it was, if it says so.
    async fn read_mended(&self, id: &ChunkId, location: &Location) -> Option<Bytes> {
        let key = location.pack.info.key;
        let mut last = self.vault.reading.mended.lock().await;
        let pack = match last.as_ref().filter(|pack| pack.key == key) {
            Some(pack) => Arc::clone(pack),
            None => {
                let pack = Arc::new(parity::mended(&self.vault, key).await?);
                self.vault.reading.mended_packs.lock().insert(key);
                Arc::clone(last.insert(pack))
            }
        };
        let range = location.range();
        let sealed = pack.bytes.get(range.start as usize..range.end as usize)?;
        let mut plain = Vec::new();
        let opened = self.open(id, location, sealed, &mut Decoder::new(), &mut plain);
        opened.is_ok().then(|| plain.into())
    }

    async fn read_at(&self, id: &ChunkId, location: &Location) -> Result<Bytes, ReadError> {
        let sealed = self
            .vault
            .reading
            .blocks
            .read(self, &location.pack, location.range())
            .await?;
        let mut plain = Vec::new();
        self.open(id, location, &sealed, &mut Decoder::new(), &mut plain)?;
        Ok(plain.into())
    }
}

fn look_up(vault: &Inner, ids: &[ChunkId]) -> Result<Vec<Vec<Location>>, ReadError> {
    ids.iter()
        .map(|id| {
            let failed = |source| ReadError::Cache {
                folder: vault.index.folder().to_owned(),
                source,
            };
            let mut places = Vec::new();
            for found in vault.index.candidates(id).map_err(failed)? {
                if vault.reading.gone.lock().contains(&found.pack) {
                    continue;
                }
                places.extend(location(vault, &found).map_err(failed)?);
            }
            if places.len() > 1 {
                let doubted = vault.reading.doubted.lock();
                // The index gives them with those in condemned packs last, which stays so among the others.
                places.sort_by_key(|place| doubted.contains(&place.pack.info.key));
            }
            Ok(places)
        })
        .collect()
}

/// What reading from a place needs, unless the index does not know its pack.
pub(crate) fn location(vault: &Inner, found: &Found) -> io::Result<Option<Location>> {
    Ok(pack_ref(vault, found)?.map(|pack| Location {
        pack,
        ordinal: found.shape.ordinal,
        offset_bytes: found.offset_bytes,
        stored_bytes: found.shape.stored_bytes,
        plain_bytes: found.shape.plain_bytes,
        compressed: found.shape.compressed,
    }))
}

fn pack_ref(vault: &Inner, found: &Found) -> io::Result<Option<Arc<PackRef>>> {
    if let Some(known) = vault.reading.packs.lock().get(&found.pack) {
        return Ok(Some(Arc::clone(known)));
    }
    let Some(info) = vault.index.pack(&found.pack)? else {
        return Ok(None);
    };
    let Some(made) = PackRef::new(vault, info) else {
        tracing::warn!(pack = %found.pack, "the index names a pack that is sealed in another way than this vault");
        return Ok(None);
    };
    let made = Arc::new(made);
    let mut packs = vault.reading.packs.lock();
    if packs.len() >= PACKS_KEPT {
        packs.clear();
    }
    packs.insert(found.pack, Arc::clone(&made));
    Ok(Some(made))
}
