//! Which nodes of maps were walked and found well, so that what points share is walked once: a bit for each record of the index,
//! which is merged into one sorted run first.

use std::io;

use crate::ids::ChunkId;
use crate::index::{self, CompactIndex};
use crate::mark::Bits;
use crate::read::ReadError;
use crate::vault::Vault;

/// The nodes that are well, by their numbers in the index as it was when the walk began.
pub(super) struct Walked {
    index: CompactIndex,
    well: Bits,
}

impl Walked {
    pub(super) async fn none(vault: &Vault) -> Result<Self, ReadError> {
        let index = index::blocking(&vault.inner, |vault| vault.index.compact()).await?;
        Ok(Self {
            well: Bits::new(index.records()),
            index,
        })
    }

    /// The node's number. One that the index did not list has none, and is walked as often as it is met.
    pub(super) fn number(&self, id: &ChunkId) -> Result<Option<u64>, ReadError> {
        let found = self.index.find(id).map_err(|source| self.failed(source))?;
        Ok(found.map(|(number, _)| number))
    }

    pub(super) fn is_well(&self, number: Option<u64>) -> bool {
        number.is_some_and(|number| self.well.get(number))
    }

    pub(super) fn set_well(&mut self, number: Option<u64>) {
        if let Some(number) = number {
            self.well.set(number);
        }
    }

    fn failed(&self, source: io::Error) -> ReadError {
        ReadError::Cache {
            folder: self.index.folder().to_owned(),
            source,
        }
    }
}
