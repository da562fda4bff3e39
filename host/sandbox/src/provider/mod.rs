//! The engine's `SnapshotProvider`, filled by a component.

use std::sync::Arc;

use async_trait::async_trait;
use coffre_engine::{
    Base, Changes, Description, DiskId, DiskInfo, Finding, Machine, ProviderError, ProviderErrorKind, ProviderIdentity,
    Snapshot, SnapshotId, SnapshotProvider, TakeRequest,
};
use wasmtime::component::Component;

use crate::catalog::SecretSource;
use crate::engine::SandboxEngine;
use crate::error::PluginError;
use crate::grant::{GrantTable, Permissions};
use crate::limits::Limits;
use crate::manifest::Manifest;

pub(crate) struct Start {
    pub engine: Arc<SandboxEngine>,
    pub component: Component,
    pub manifest: Manifest,
    pub digest: String,
    pub pinned: bool,
    pub permissions: Permissions,
    pub granted: GrantTable,
    pub limits: Limits,
    pub secrets: Arc<dyn SecretSource>,
}

/// A provider plugin, loaded for one machine.
pub struct WasmProvider {
    identity: ProviderIdentity,
    granted: GrantTable,
}

impl WasmProvider {
    pub(crate) async fn start(start: Start) -> Result<Self, PluginError> {
        let identity = ProviderIdentity {
            name: start.manifest.name.clone(),
            version: start.manifest.version.clone(),
            digest: start.digest,
            pinned: start.pinned,
        };
        Ok(Self {
            identity,
            granted: start.granted,
        })
    }

    /// The grants in force, as written.
    pub fn granted(&self) -> &GrantTable {
        &self.granted
    }
}

fn not_yet<T>() -> Result<T, ProviderError> {
    Err(ProviderError {
        kind: ProviderErrorKind::Unsupported,
        text: "work in progress".to_owned(),
        hint: None,
    })
}

#[async_trait]
impl SnapshotProvider for WasmProvider {
    fn identity(&self) -> ProviderIdentity {
        self.identity.clone()
    }
    async fn describe(&self) -> Result<Description, ProviderError> {
        not_yet()
    }
    async fn discover(&self, _machine: &Machine) -> Result<Vec<DiskInfo>, ProviderError> {
        not_yet()
    }
    async fn check(&self, _machine: &Machine, _disks: &[DiskId]) -> Result<Vec<Finding>, ProviderError> {
        not_yet()
    }
    async fn take(&self, _machine: &Machine, _request: &TakeRequest) -> Result<Snapshot, ProviderError> {
        not_yet()
    }
    async fn changed(
        &self,
        _machine: &Machine,
        _id: &SnapshotId,
        _disk: &DiskId,
        _base: &str,
    ) -> Result<Changes, ProviderError> {
        not_yet()
    }
    async fn read(
        &self,
        _machine: &Machine,
        _id: &SnapshotId,
        _disk: &DiskId,
        _offset_bytes: u64,
        _length_bytes: u32,
    ) -> Result<Vec<u8>, ProviderError> {
        not_yet()
    }
    async fn settle(&self, _machine: &Machine, _keep: &[Base]) -> Result<(), ProviderError> {
        not_yet()
    }
    async fn release(&self, _machine: &Machine, _id: &SnapshotId) -> Result<(), ProviderError> {
        not_yet()
    }
    async fn held(&self, _machine: &Machine) -> Result<Vec<SnapshotId>, ProviderError> {
        not_yet()
    }
}
