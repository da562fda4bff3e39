//! The object store below a vault.

mod config;

use std::sync::Arc;

use object_store::ObjectStore;

pub use config::{SecretText, StoreConfig, StoreOptions};

/// Why the store did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0}")]
    Config(String),
}

/// A prefix in an object store.
#[derive(Clone, Debug)]
pub struct Store {
    _inner: Arc<dyn ObjectStore>,
}

impl Store {
    /// Reaches nothing yet; only what is wrong with the address itself is an error here.
    pub fn connect(_config: &StoreConfig) -> Result<Self, StoreError> {
        unimplemented!()
    }

    /// A vault in a store that the caller made: tests and fault injection.
    pub fn over(_store: Arc<dyn ObjectStore>, _prefix: &str) -> Self {
        unimplemented!()
    }
}
