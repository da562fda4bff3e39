//! A provider that takes no snapshot: hooks are tried with it where nothing but them is to be touched.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;

use crate::machine::{Consistency, DiskId, DiskInfo, Finding, Machine};
use crate::provider::{
    Base, Changes, Description, ProviderError, ProviderErrorKind, ProviderIdentity, Snapshot, SnapshotId,
    SnapshotProvider, Source, TakeRequest, TakenDisk,
};

/// What a disk that is not there has: one block of zeroes.
const DISK_BYTES: u64 = 4096;

/// Disks of zeroes, and a snapshot that takes as long as it is told.
#[derive(Clone, Debug)]
pub struct PretendedProvider {
    pub disks: Vec<DiskId>,
    pub takes: Duration,
}

fn unasked(what: &str) -> ProviderError {
    ProviderError {
        kind: ProviderErrorKind::Failed,
        text: format!("a pretended snapshot was asked {what}"),
        hint: None,
    }
}

#[async_trait]
impl SnapshotProvider for PretendedProvider {
    fn identity(&self) -> ProviderIdentity {
        ProviderIdentity {
            name: "pretended".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            digest: String::new(),
            pinned: true,
        }
    }

    async fn describe(&self) -> Result<Description, ProviderError> {
        Ok(Description {
            name: "pretended".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            best_consistency: Consistency::Crash,
            one_instant: true,
            tracks_changes: false,
            runs_outside: false,
            settings_schema: "{}".to_owned(),
        })
    }

    async fn discover(&self, _: &Machine) -> Result<Vec<DiskInfo>, ProviderError> {
        let disk = |id: &DiskId| DiskInfo {
            id: id.clone(),
            size_bytes: DISK_BYTES,
            label: None,
        };
        Ok(self.disks.iter().map(disk).collect())
    }

    async fn check(&self, _: &Machine, _: &[DiskId]) -> Result<Vec<Finding>, ProviderError> {
        Ok(Vec::new())
    }

    async fn take(&self, _: &Machine, request: &TakeRequest) -> Result<Snapshot, ProviderError> {
        sleep(self.takes).await;
        let disk = |id: &DiskId| TakenDisk {
            id: id.clone(),
            size_bytes: DISK_BYTES,
            source: Source::Stream,
            token: None,
        };
        Ok(Snapshot {
            consistency: Consistency::Crash,
            consistency_reason: "the snapshot was only pretended".to_owned(),
            one_instant: true,
            disks: request.disks.iter().map(disk).collect(),
            frozen_ms: None,
            attachments: Vec::new(),
        })
    }

    async fn changed(&self, _: &Machine, _: &SnapshotId, _: &DiskId, _: &str) -> Result<Changes, ProviderError> {
        Err(unasked("what has changed"))
    }

    async fn read(
        &self,
        _: &Machine,
        _: &SnapshotId,
        _: &DiskId,
        offset_bytes: u64,
        length_bytes: u32,
    ) -> Result<Vec<u8>, ProviderError> {
        if offset_bytes + u64::from(length_bytes) > DISK_BYTES {
            return Err(unasked("for bytes behind its end"));
        }
        Ok(vec![0; length_bytes as usize])
    }

    async fn settle(&self, _: &Machine, _: &[Base]) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn release(&self, _: &Machine, _: &SnapshotId) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn held(&self, _: &Machine) -> Result<Vec<SnapshotId>, ProviderError> {
        Ok(Vec::new())
    }
}
