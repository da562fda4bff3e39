//! The engine's `SnapshotProvider`, filled by a component.
//!
//! One instance serves a job's calls one after the other; each listing of changes and each `read` has an instance of its
//! own, so that disks do not wait for each other. An instance that trapped or hit a limit is dropped and the next call
//! starts a new one, which the contract allows at any time. Every answer is checked (`answer`) before it goes on.

mod answer;
mod changes;
pub(crate) mod words;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coffre_engine::{
    Base, Changes, Description, DiskId, DiskInfo, Finding, Machine, ProviderError, ProviderErrorKind, ProviderIdentity,
    Snapshot, SnapshotId, SnapshotProvider, Source, TakeRequest, TakenDisk,
};
use coffre_guard::{Guard, Owner};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use wasmtime::Store;
use wasmtime::component::Component;

use crate::broker::{Broker, FailureKind};
use crate::catalog::SecretSource;
use crate::engine::SandboxEngine;
use crate::error::PluginError;
use crate::grant::{GrantTable, Permissions};
use crate::guest::bindings;
use crate::guest::bindings::coffre::plugin::types as wit;
use crate::guest::bindings::exports::coffre::plugin::provider as exported;
use crate::guest::{Around, CallError, GuestEngine, Instance};
use crate::limits::{Limits, READ_BYTES};
use crate::manifest::Manifest;
use answer::Checker;

/// What a provider is made of.
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
    pub guard: Option<Guard>,
}

/// A provider plugin, loaded for one machine.
pub struct WasmProvider {
    identity: ProviderIdentity,
    granted: GrantTable,
    limits: Limits,
    description: Description,
    guests: GuestEngine,
    broker: Arc<Broker>,
    /// The job's instance; none before the first call and after it died.
    instance: tokio::sync::Mutex<Option<Instance>>,
    /// What was taken, so that later answers can be checked against it.
    taken: Mutex<HashMap<(SnapshotId, DiskId), Taken>>,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    size_bytes: u64,
    has_nbd_context: bool,
}

type Answered<T> = Result<T, wit::Failure>;

impl WasmProvider {
    /// Links the component and asks it what it is.
    pub(crate) async fn start(start: Start) -> Result<Self, PluginError> {
        let Start {
            engine,
            component,
            manifest,
            digest,
            pinned,
            permissions,
            granted,
            limits,
            secrets,
            guard,
        } = start;
        let name = manifest.name.clone();
        let failed = |cause: String| PluginError::Start {
            name: name.clone(),
            cause,
        };
        // A plugin does not know which job it works for; its messages name it itself.
        let guard = guard.map(|guard| (guard, Owner::default()));
        let broker = Arc::new(Broker::new(permissions, secrets, guard));
        let guests =
            GuestEngine::<bindings::SnapshotProvider>::new(engine, &component, limits.memory_bytes).map_err(failed)?;
        let at_most = limits.look_deadline;
        let mut instance = guests
            .instantiate(&broker, Around::default(), at_most)
            .await
            .map_err(|error| failed(format!("starting it {error}")))?;
        let described = instance
            .call(at_most, |guest, store| {
                Box::pin(guest.coffre_plugin_provider().call_describe(store))
            })
            .await
            .map_err(|error| failed(format!("`describe` {error}")))?;
        let checker = Checker {
            plugin: &name,
            call: "describe",
        };
        let description = checker.description(described).map_err(|error| failed(error.text))?;
        if description.name != name {
            return Err(failed(format!("it calls itself `{}`", description.name)));
        }
        let identity = ProviderIdentity {
            name,
            version: manifest.version,
            digest,
            pinned,
        };
        Ok(Self {
            identity,
            granted,
            limits,
            description,
            guests,
            broker,
            instance: tokio::sync::Mutex::new(Some(instance)),
            taken: Mutex::new(HashMap::new()),
        })
    }

    /// The grants in force, as written.
    pub fn granted(&self) -> &GrantTable {
        &self.granted
    }

    /// Where its snapshots may come to lie: what must take writes while anything is frozen.
    pub fn writes_below(&self) -> Vec<PathBuf> {
        self.broker.writes_below()
    }

    fn checker<'a>(&'a self, call: &'a str) -> Checker<'a> {
        Checker {
            plugin: &self.identity.name,
            call,
        }
    }

    /// One call in the job's instance.
    async fn call<T: Send>(
        &self,
        call: &'static str,
        at_most: Duration,
        make: impl for<'a> FnOnce(
            &'a exported::Guest,
            &'a mut Store<crate::guest::GuestState>,
        ) -> BoxFuture<'a, wasmtime::Result<Answered<T>>>
        + Send,
    ) -> Result<T, ProviderError> {
        let mut slot = self.instance.lock().await;
        // Taken out for the call: when the caller gives up in the middle, the instance is gone with it.
        let mut instance = match slot.take() {
            Some(instance) => instance,
            None => self
                .guests
                .instantiate(&self.broker, Around::default(), at_most)
                .await
                .map_err(|error| self.died(call, error))?,
        };
        let answered = instance
            .call(at_most, |guest, store| make(guest.coffre_plugin_provider(), store))
            .await;
        let answered = answered.map_err(|error| self.died(call, error))?;
        *slot = Some(instance);
        answered.map_err(|failure| self.failed(call, failure))
    }

    /// The guest is gone.
    fn died(&self, call: &str, error: CallError) -> ProviderError {
        words::died(&self.identity.name, call, &error)
    }

    /// The guest said no.
    fn failed(&self, call: &str, failure: wit::Failure) -> ProviderError {
        words::provider_error(&self.identity.name, call, failure)
    }

    /// Opens and measures what the provider says is to be read.
    async fn source(&self, disk: &exported::TakenDisk) -> Result<Source, ProviderError> {
        let checker = self.checker("take");
        let broker = self.broker.clone();
        let refused = |failure: crate::broker::Failure| ProviderError {
            kind: match failure.kind {
                FailureKind::Denied => ProviderErrorKind::Denied,
                _ => ProviderErrorKind::BadAnswer,
            },
            text: format!(
                "the plugin `{}` names a source for disk {} that is refused: {}",
                self.identity.name, disk.id, failure.text
            ),
            hint: Some(format!(
                "what a plugin answers is bound by its grants; `coffre plugin inspect {}` shows them",
                self.identity.name
            )),
        };
        let lost = |error: tokio::task::JoinError| checker.bad(format!("its source could not be opened: {error}"));
        match &disk.source {
            exported::Source::Path(path) => {
                let asked = path.clone();
                let opened = tokio::task::spawn_blocking(move || broker.open_disk(&asked))
                    .await
                    .map_err(lost)?;
                let opened = opened.map_err(refused)?;
                if opened.size_bytes != disk.size_bytes {
                    return Err(checker.bad(format!(
                        "it says that disk {} has {} bytes, but {path} has {}",
                        disk.id, disk.size_bytes, opened.size_bytes
                    )));
                }
                Ok(Source::File {
                    file: opened.file,
                    path: path.clone(),
                })
            }
            exported::Source::Nbd(export) => {
                let (uri, changed_context) = (export.uri.clone(), export.changed_context.clone());
                if changed_context
                    .as_ref()
                    .is_some_and(|context| !answer::is_plain(context, 512))
                {
                    return Err(checker.bad(format!("the metadata context of disk {} is no name", disk.id)));
                }
                let asked = uri.clone();
                let (socket, name) = tokio::task::spawn_blocking(move || broker.open_nbd(&asked))
                    .await
                    .map_err(lost)?
                    .map_err(refused)?;
                Ok(Source::Nbd {
                    socket,
                    export: name,
                    uri,
                    changed_context,
                })
            }
            exported::Source::Stream => Ok(Source::Stream),
        }
    }

    fn remembered(&self, id: &SnapshotId, disk: &DiskId) -> Option<Taken> {
        self.taken.lock().get(&(id.clone(), disk.clone())).copied()
    }
}

#[async_trait]
impl SnapshotProvider for WasmProvider {
    fn identity(&self) -> ProviderIdentity {
        self.identity.clone()
    }

    async fn describe(&self) -> Result<Description, ProviderError> {
        Ok(self.description.clone())
    }

    async fn discover(&self, machine: &Machine) -> Result<Vec<DiskInfo>, ProviderError> {
        let machine = words::machine(machine);
        let found = self
            .call("discover", self.limits.look_deadline, |guest, store| {
                Box::pin(async move { guest.call_discover(store, &machine).await })
            })
            .await?;
        self.checker("discover").disks(found)
    }

    async fn check(&self, machine: &Machine, disks: &[DiskId]) -> Result<Vec<Finding>, ProviderError> {
        let (machine, asked) = (words::machine(machine), words::ids(disks));
        let found = self
            .call("check", self.limits.look_deadline, |guest, store| {
                Box::pin(async move { guest.call_check(store, &machine, &asked).await })
            })
            .await?;
        self.checker("check").findings(found, disks)
    }

    async fn take(&self, machine: &Machine, request: &TakeRequest) -> Result<Snapshot, ProviderError> {
        let (machine, asked) = (words::machine(machine), words::request(request));
        let taken = self
            .call("take", self.limits.take_deadline, |guest, store| {
                Box::pin(async move { guest.call_take(store, &machine, &asked).await })
            })
            .await?;
        let checker = self.checker("take");
        checker.snapshot(&taken, request, &self.description)?;
        let mut disks = Vec::with_capacity(taken.disks.len());
        for disk in &taken.disks {
            let source = self.source(disk).await?;
            let has_nbd_context = matches!(
                &source,
                Source::Nbd {
                    changed_context: Some(_),
                    ..
                }
            );
            let id = DiskId(disk.id.clone());
            let known = Taken {
                size_bytes: disk.size_bytes,
                has_nbd_context,
            };
            self.taken.lock().insert((request.id.clone(), id.clone()), known);
            disks.push(TakenDisk {
                id,
                size_bytes: disk.size_bytes,
                source,
                token: disk.token.clone(),
            });
        }
        Ok(Snapshot {
            consistency: words::consistency(taken.consistency),
            consistency_reason: taken.reason.trim().to_owned(),
            one_instant: taken.one_instant,
            disks,
            frozen_ms: taken.frozen_ms,
            attachments: taken.attachments.into_iter().map(words::attachment).collect(),
        })
    }

    async fn changed(
        &self,
        machine: &Machine,
        id: &SnapshotId,
        disk: &DiskId,
        base: &str,
    ) -> Result<Changes, ProviderError> {
        let call = "changed";
        let at_most = self.limits.work_deadline;
        let known = self.remembered(id, disk);
        let mut instance = self
            .guests
            .instantiate(&self.broker, Around::default(), at_most)
            .await
            .map_err(|error| self.died(call, error))?;
        let (machine, asked) = (words::machine(machine), (id.0.clone(), disk.0.clone(), base.to_owned()));
        let answered = instance
            .call(at_most, |guest, store| {
                Box::pin(async move {
                    guest
                        .coffre_plugin_provider()
                        .call_changed(store, &machine, &asked.0, &asked.1, &asked.2)
                        .await
                })
            })
            .await;
        let changes = answered
            .map_err(|error| self.died(call, error))?
            .map_err(|failure| self.failed(call, failure))?;
        match changes {
            exported::Changes::Listed(list) => {
                let size_bytes = known.map(|known| known.size_bytes);
                let plugin = self.identity.name.clone();
                Ok(Changes::Listed(Box::new(changes::WasmChangeList::new(
                    plugin, instance, list, size_bytes, at_most,
                ))))
            }
            exported::Changes::InNbdContext if known.is_some_and(|known| !known.has_nbd_context) => Err(self
                .checker(call)
                .bad(format!("disk {disk} has no NBD metadata context to look into"))),
            exported::Changes::InNbdContext => Ok(Changes::InNbdContext),
            exported::Changes::CannotTell(why) => Ok(Changes::CannotTell(answer::text(&why))),
        }
    }

    async fn read(
        &self,
        machine: &Machine,
        id: &SnapshotId,
        disk: &DiskId,
        offset_bytes: u64,
        length_bytes: u32,
    ) -> Result<Vec<u8>, ProviderError> {
        let call = "read";
        let length_bytes = length_bytes.min(READ_BYTES);
        let at_most = self.limits.work_deadline;
        let mut instance = self
            .guests
            .instantiate(&self.broker, Around::default(), at_most)
            .await
            .map_err(|error| self.died(call, error))?;
        let (machine, asked) = (words::machine(machine), (id.0.clone(), disk.0.clone()));
        let answered = instance
            .call(at_most, |guest, store| {
                Box::pin(async move {
                    let guest = guest.coffre_plugin_provider();
                    guest
                        .call_read(store, &machine, &asked.0, &asked.1, offset_bytes, length_bytes)
                        .await
                })
            })
            .await;
        let bytes = answered
            .map_err(|error| self.died(call, error))?
            .map_err(|failure| self.failed(call, failure))?;
        if bytes.len() != length_bytes as usize {
            let text = format!(
                "{} bytes of disk {disk} were asked for at {offset_bytes}, and it gave {}",
                length_bytes,
                bytes.len()
            );
            return Err(self.checker(call).bad(text));
        }
        Ok(bytes)
    }

    async fn settle(&self, machine: &Machine, keep: &[Base]) -> Result<(), ProviderError> {
        let (machine, keep) = (words::machine(machine), words::bases(keep));
        self.call("settle", self.limits.work_deadline, |guest, store| {
            Box::pin(async move { guest.call_settle(store, &machine, &keep).await })
        })
        .await
    }

    async fn release(&self, machine: &Machine, id: &SnapshotId) -> Result<(), ProviderError> {
        let (machine, asked) = (words::machine(machine), id.0.clone());
        self.call("release", self.limits.work_deadline, |guest, store| {
            Box::pin(async move { guest.call_release(store, &machine, &asked).await })
        })
        .await?;
        self.taken.lock().retain(|(taken, _), _| taken != id);
        Ok(())
    }

    async fn held(&self, machine: &Machine) -> Result<Vec<SnapshotId>, ProviderError> {
        let machine = words::machine(machine);
        let found = self
            .call("held", self.limits.look_deadline, |guest, store| {
                Box::pin(async move { guest.call_held(store, &machine).await })
            })
            .await?;
        self.checker("held").held(found)
    }
}
