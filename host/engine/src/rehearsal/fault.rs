//! What goes wrong on purpose. Each fault stands around the real hook or snapshot, which does its work before or after: so
//! what has to be let go is really held.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use tokio::time::sleep;

use crate::hook::{
    HookContext, HookFailure, HookFailureKind, HookFreeze, HookRunner, HookTerms, PostReport, PreReport,
    SnapshotOutcome,
};
use crate::machine::{DiskId, DiskInfo, Finding, Machine};
use crate::provider::{
    Base, Changes, Description, ProviderError, ProviderErrorKind, ProviderIdentity, Snapshot, SnapshotId,
    SnapshotProvider, TakeRequest,
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The hook brings its application to rest and does not come back from it.
    Timeout,
    /// The hook brings its application to rest and then says that it failed.
    FailPre,
    /// The snapshot fails while everything is at rest.
    FailSnapshot,
    /// The hook lets its application go and then says that it failed.
    FailPost,
    /// The program is killed with SIGKILL while everything is at rest.
    KillHost,
    /// What the hook holds open from pre to post is lost before the snapshot.
    LoseSession,
}

impl Fault {
    pub const ALL: [Self; 6] = [
        Self::Timeout,
        Self::FailPre,
        Self::FailSnapshot,
        Self::FailPost,
        Self::KillHost,
        Self::LoseSession,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::FailPre => "fail-pre",
            Self::FailSnapshot => "fail-snapshot",
            Self::FailPost => "fail-post",
            Self::KillHost => "kill-host",
            Self::LoseSession => "lose-session",
        }
    }

    /// What a step says that failed of it.
    pub fn text(self) -> String {
        format!("a fault on purpose: {}", self.as_str())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|fault| fault.as_str() == text);
        found.ok_or_else(|| format!("one of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// A hook that misbehaves after it has done its work.
pub struct FaultyHook {
    pub hook: Arc<dyn HookRunner>,
    pub fault: Fault,
}

impl FaultyHook {
    fn failure(&self, kind: HookFailureKind, output: &str) -> HookFailure {
        HookFailure {
            output: output.to_owned(),
            ..HookFailure::new(kind, self.fault.text())
        }
    }
}

#[async_trait]
impl HookRunner for FaultyHook {
    fn name(&self) -> &str {
        self.hook.name()
    }

    fn kind(&self) -> &str {
        self.hook.kind()
    }

    fn terms(&self) -> HookTerms {
        self.hook.terms()
    }

    fn still_held(&self, job: &str) -> Result<(), HookFailure> {
        self.hook.still_held(job)
    }

    fn frozen(&self, job: &str) -> Vec<HookFreeze> {
        self.hook.frozen(job)
    }

    async fn check(&self, context: &HookContext) -> Result<Vec<Finding>, HookFailure> {
        self.hook.check(context).await
    }

    async fn pre(&self, context: &HookContext) -> Result<PreReport, HookFailure> {
        let began = Instant::now();
        let report = self.hook.pre(context).await?;
        match self.fault {
            Fault::Timeout => {
                sleep(context.timeout.saturating_sub(began.elapsed())).await;
                Err(self.failure(HookFailureKind::TimedOut, &report.output))
            }
            Fault::FailPre => Err(self.failure(HookFailureKind::Failed, &report.output)),
            _ => Ok(report),
        }
    }

    async fn post(
        &self,
        context: &HookContext,
        memory: Option<&str>,
        outcome: SnapshotOutcome,
    ) -> Result<PostReport, HookFailure> {
        let report = self.hook.post(context, memory, outcome).await?;
        match self.fault {
            Fault::FailPost => Err(self.failure(HookFailureKind::Failed, &report.output)),
            _ => Ok(report),
        }
    }
}

/// A provider to whom something happens in the middle of the snapshot.
pub struct FaultyProvider {
    pub provider: Arc<dyn SnapshotProvider>,
    /// What is done while everything is at rest; an error fails the snapshot.
    pub in_take: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

#[async_trait]
impl SnapshotProvider for FaultyProvider {
    fn identity(&self) -> ProviderIdentity {
        self.provider.identity()
    }

    async fn describe(&self) -> Result<Description, ProviderError> {
        self.provider.describe().await
    }

    async fn discover(&self, machine: &Machine) -> Result<Vec<DiskInfo>, ProviderError> {
        self.provider.discover(machine).await
    }

    async fn check(&self, machine: &Machine, disks: &[DiskId]) -> Result<Vec<Finding>, ProviderError> {
        self.provider.check(machine, disks).await
    }

    async fn take(&self, machine: &Machine, request: &TakeRequest) -> Result<Snapshot, ProviderError> {
        (self.in_take)().map_err(|text| ProviderError {
            kind: ProviderErrorKind::Failed,
            text,
            hint: None,
        })?;
        self.provider.take(machine, request).await
    }

    async fn changed(
        &self,
        machine: &Machine,
        id: &SnapshotId,
        disk: &DiskId,
        base: &str,
    ) -> Result<Changes, ProviderError> {
        self.provider.changed(machine, id, disk, base).await
    }

    async fn read(
        &self,
        machine: &Machine,
        id: &SnapshotId,
        disk: &DiskId,
        offset_bytes: u64,
        length_bytes: u32,
    ) -> Result<Vec<u8>, ProviderError> {
        self.provider.read(machine, id, disk, offset_bytes, length_bytes).await
    }

    async fn settle(&self, machine: &Machine, keep: &[Base]) -> Result<(), ProviderError> {
        self.provider.settle(machine, keep).await
    }

    async fn release(&self, machine: &Machine, id: &SnapshotId) -> Result<(), ProviderError> {
        self.provider.release(machine, id).await
    }

    async fn held(&self, machine: &Machine) -> Result<Vec<SnapshotId>, ProviderError> {
        self.provider.held(machine).await
    }
}
