//! Looking at packs, or reading them whole.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};

use super::VerifyProgress;
use super::damage::Findings;
use crate::gclog::Broken;
use crate::ids::ChunkId;
use crate::object::PackKey;
use crate::offload::offload;
use crate::pack::{PACK_LIMIT_BYTES, PackDamage, check_chunks, read_pack};
use crate::parity;
use crate::read::ReadError;
use crate::store::StoreError;
use crate::vault::{Inner, Vault};

const LOOKED_AT_ONCE: usize = 16;
/// Packs in memory at once: 64 MiB as this version writes them.
const READ_AT_ONCE: usize = 2;

/// What is wrong with one pack.
enum Bad {
    Missing,
    Size {
        found_bytes: u64,
        wanted_bytes: u64,
    },
    /// Its header or directory. Chunks may be readable all the same, by what the index says.
    Frame(String),
    Chunks {
        damaged: HashSet<ChunkId>,
        of: usize,
        first: String,
    },
}

/// The packs that are not as they should be.
#[derive(Default)]
pub(super) struct BadPacks {
    packs: BTreeMap<PackKey, Bad>,
    /// Those that were, and how many blocks their parity has put right.
    mended: Vec<(PackKey, u64)>,
}

impl BadPacks {
    /// Packs of which somebody has said that they are damaged.
    pub(super) fn doubted(packs: impl Iterator<Item = PackKey>) -> Self {
        let quarantined = || Bad::Frame("it is quarantined".to_owned());
        Self {
            packs: packs.map(|pack| (pack, quarantined())).collect(),
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    pub(super) fn extend(&mut self, more: Self) {
        self.packs.extend(more.packs);
        self.mended.extend(more.mended);
    }

    pub(super) fn mended(&self) -> &[(PackKey, u64)] {
        &self.mended
    }

    /// What writers are to know.
    pub(super) fn broken(&self) -> Broken {
        let partly = (self.packs.iter())
            .filter(|(_, bad)| matches!(bad, Bad::Chunks { damaged, of, .. } if damaged.len() < *of))
            .map(|(key, _)| *key);
        Broken {
            packs: self.packs.keys().copied().collect(),
            partly: partly.collect(),
            chunks_lost: 0,
        }
    }

    /// Whether a chunk that lies in this pack must be read to know whether it is whole.
    pub(super) fn puts_in_doubt(&self, pack: &PackKey, id: &ChunkId) -> bool {
        match self.packs.get(pack) {
            None => false,
            Some(Bad::Chunks { damaged, .. }) => damaged.contains(id),
            Some(Bad::Missing | Bad::Size { .. } | Bad::Frame(_)) => true,
        }
    }

    /// A pack that is not there and touches nothing is no damage: all that anybody needs of it lies elsewhere as well. A
    /// session that was fenced long ago may have listed it when it was gone.
    pub(super) fn describe(&self, findings: &mut Findings) {
        for (key, bad) in &self.packs {
            if matches!(bad, Bad::Missing) && !findings.names(&key.object()) {
                continue;
            }
            let what = match bad {
                Bad::Missing => "it is not there".to_owned(),
                Bad::Size {
                    found_bytes,
                    wanted_bytes,
                } => format!("it has {found_bytes} bytes instead of {wanted_bytes}"),
                Bad::Frame(what) => format!("{what} (what the index lists in it can still be read)"),
                Bad::Chunks { damaged, of, first } if damaged.len() == 1 => {
                    format!("1 of {of} chunks is damaged: {first}")
                }
                Bad::Chunks { damaged, of, first } => {
                    format!("{} of {of} chunks are damaged, the first: {first}", damaged.len())
                }
            };
            findings.describe(&key.object(), what);
        }
    }
}

/// Looks whether packs are there at their size.
pub(super) async fn look(
    vault: &Vault,
    packs: impl Iterator<Item = PackKey>,
    state: &mut VerifyProgress,
    progress: &(dyn Fn(VerifyProgress) + Sync),
) -> Result<BadPacks, ReadError> {
    let results = stream::iter(packs)
        .map(|key| async move { (key, look_at(&vault.inner, key).await.map(|(read, bad)| (read, bad, 0))) })
        .buffer_unordered(LOOKED_AT_ONCE);
    gather(results, state, progress).await
}

/// Reads packs and opens every chunk in them. What is damaged and has a parity that mends it, is put right if `mends`.
pub(super) async fn read(
    vault: &Vault,
    packs: impl Iterator<Item = PackKey>,
    mends: bool,
    state: &mut VerifyProgress,
    progress: &(dyn Fn(VerifyProgress) + Sync),
) -> Result<BadPacks, ReadError> {
    let results = stream::iter(packs)
        .map(|key| async move { (key, read_and_mend(&vault.inner, key, mends).await) })
        .buffer_unordered(READ_AT_ONCE);
    gather(results, state, progress).await
}

type Looked = Result<(u64, Option<Bad>), ReadError>;

/// Bytes read, what is wrong, and how many blocks were and are not any more.
type Checked = Result<(u64, Option<Bad>, u64), ReadError>;

async fn gather(
    mut results: impl Stream<Item = (PackKey, Checked)> + Unpin,
    state: &mut VerifyProgress,
    progress: &(dyn Fn(VerifyProgress) + Sync),
) -> Result<BadPacks, ReadError> {
    let mut bad = BadPacks::default();
    while let Some((key, result)) = results.next().await {
        let (read_bytes, found, mended_blocks) = result?;
        bad.packs.extend(found.map(|found| (key, found)));
        if mended_blocks > 0 {
            bad.mended.push((key, mended_blocks));
        }
        state.packs_done += 1;
        state.read_bytes += read_bytes;
        state.damage_found += u64::from(bad.packs.contains_key(&key));
        progress(*state);
    }
    Ok(bad)
}

fn wanted_size(vault: &Inner, key: &PackKey) -> Result<u64, ReadError> {
    let failed = |source| ReadError::Cache {
        folder: vault.index.folder().to_owned(),
        source,
    };
    Ok(vault
        .index
        .pack(key)
        .map_err(failed)?
        .map_or(0, |info| u64::from(info.size_bytes)))
}

async fn look_at(vault: &Arc<Inner>, key: PackKey) -> Looked {
    let wanted_bytes = wanted_size(vault, &key)?;
    let bad = match vault.store.size(&key.object()).await? {
        None => Some(Bad::Missing),
        Some(found_bytes) if found_bytes != wanted_bytes => Some(Bad::Size {
            found_bytes,
            wanted_bytes,
        }),
        Some(_) => None,
    };
    Ok((0, bad))
}

async fn read_and_mend(vault: &Arc<Inner>, key: PackKey, mends: bool) -> Checked {
    let looked = read_one(vault, key).await;
    let may_be_mended = match &looked {
        Ok((_, Some(bad))) => !matches!(bad, Bad::Missing),
        Ok((_, None)) => false,
        Err(ReadError::Store(error)) => error.is_of_a_disk(),
        Err(_) => false,
    };
    if may_be_mended
        && mends
        && let Some(pack) = parity::mended(vault, key).await
    {
        let (worker, bytes) = (Arc::clone(vault), pack.bytes.clone());
        let size = wanted_size(vault, &key)?;
        let checked = offload(move || check_bytes(&worker, key, &bytes).is_none()).await;
        // The seals have the last word, also on what a parity says.
        if checked.unwrap_or(false) && pack.bytes.len() as u64 == size {
            match parity::put_back(vault, &pack).await {
                Ok(()) => return Ok((size, None, pack.blocks().max(1))),
                Err(error) => {
                    tracing::warn!(pack = %key, %error, "a damaged pack could not be put right by its parity")
                }
            }
        }
    }
    looked.map(|(read, bad)| (read, bad, 0))
}

async fn read_one(vault: &Arc<Inner>, key: PackKey) -> Looked {
    let wanted_bytes = wanted_size(vault, &key)?;
    let bytes = match vault.store.get(&key.object(), PACK_LIMIT_BYTES).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok((0, Some(Bad::Missing))),
        Err(StoreError::TooLarge { found_bytes, .. }) => {
            return Ok((
                0,
                Some(Bad::Size {
                    found_bytes,
                    wanted_bytes,
                }),
            ));
        }
        Err(error) => return Err(error.into()),
    };
    let found_bytes = bytes.len() as u64;
    if found_bytes != wanted_bytes {
        return Ok((
            found_bytes,
            Some(Bad::Size {
                found_bytes,
                wanted_bytes,
            }),
        ));
    }
    let vault = Arc::clone(vault);
    let checked = offload(move || check_bytes(&vault, key, &bytes)).await;
    let bad = checked.unwrap_or_else(|panicked| Some(Bad::Frame(format!("checking it failed: {panicked}"))));
    Ok((found_bytes, bad))
}

fn check_bytes(vault: &Inner, key: PackKey, bytes: &[u8]) -> Option<Bad> {
    let (listing, sealer) = match read_pack(bytes, &vault.ring, vault.id, key) {
        Ok(read) => read,
        Err(damage) => return Some(Bad::Frame(damage.to_string())),
    };
    let damage = check_chunks(bytes, &listing.entries, &sealer, &vault.hasher());
    let first = damage.first()?.to_string();
    let damaged = damage.iter().filter_map(|damage| match damage {
        PackDamage::Chunk { id, .. } => Some(*id),
        PackDamage::Header(_) | PackDamage::Directory(_) => None,
    });
    Some(Bad::Chunks {
        damaged: damaged.collect(),
        of: listing.entries.len(),
        first,
    })
}
