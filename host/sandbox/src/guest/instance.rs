//! One instance of a component: how it is started, called within a deadline, and told apart when it ends badly.
//!
//! Two clocks bound a call. A running guest looks up every epoch tick, lets others run, and is stopped at the deadline. A
//! guest that waits in a host call consumes no epochs; the wall deadline ends the wait a little later. After a trap, a
//! limit or the deadline the instance is dead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use wasmtime::component::{Component, HasSelf, Linker, ResourceTable};
use wasmtime::{ResourceLimiter, Store, Trap, UpdateDeadline};

use super::bindings::{SnapshotProvider, SnapshotProviderPre};
use super::hook_bindings::{ApplicationHook, ApplicationHookPre};
use super::log::LogBudget;
use crate::broker::Broker;
use crate::engine::SandboxEngine;
use crate::hook::Transcript;
use crate::limits::{DEADLINE_GRACE, INSTANCES, MEMORIES, RESOURCES, TABLE_ELEMENTS, TABLES, TRANSFER_BYTES};

/// What the host knows of one instance.
pub(crate) struct GuestState {
    pub(super) table: ResourceTable,
    pub(super) broker: Arc<Broker>,
    pub(super) around: Around,
    pub(super) log: LogBudget,
    /// The last line that it logged as an error; a panic's message is one.
    pub(super) last_error: Option<String>,
    deadline: Instant,
    ceiling: Ceiling,
}

/// What surrounds the calls of an instance; a provider's have nothing around them.
#[derive(Clone, Default)]
pub(crate) struct Around {
    /// Set for every program that the guest runs, beside what it sets itself.
    pub environment: Vec<(String, String)>,
    /// Keeps what the guest and its programs say.
    pub transcript: Option<Arc<Mutex<Transcript>>>,
}

/// A world of the contract, as the host runs it.
pub(crate) trait GuestWorld: Sized + Send + 'static {
    /// A component that is linked.
    type Linked: Clone + Send + Sync;

    /// Links all interfaces, granted or not.
    fn link(linker: &mut Linker<GuestState>, component: &Component) -> wasmtime::Result<Self::Linked>;

    fn start<'a>(linked: &'a Self::Linked, store: &'a mut Store<GuestState>) -> BoxFuture<'a, wasmtime::Result<Self>>;
}

impl GuestWorld for SnapshotProvider {
    type Linked = SnapshotProviderPre<GuestState>;

    fn link(linker: &mut Linker<GuestState>, component: &Component) -> wasmtime::Result<Self::Linked> {
        Self::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
        SnapshotProviderPre::new(linker.instantiate_pre(component)?)
    }

    fn start<'a>(linked: &'a Self::Linked, store: &'a mut Store<GuestState>) -> BoxFuture<'a, wasmtime::Result<Self>> {
        Box::pin(linked.instantiate_async(store))
    }
}

impl GuestWorld for ApplicationHook {
    type Linked = ApplicationHookPre<GuestState>;

    fn link(linker: &mut Linker<GuestState>, component: &Component) -> wasmtime::Result<Self::Linked> {
        Self::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
        ApplicationHookPre::new(linker.instantiate_pre(component)?)
    }

    fn start<'a>(linked: &'a Self::Linked, store: &'a mut Store<GuestState>) -> BoxFuture<'a, wasmtime::Result<Self>> {
        Box::pin(linked.instantiate_async(store))
    }
}

impl GuestState {
    /// What is left of the call's deadline.
    pub(super) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// Refuses memory past the limit, and remembers that it did: the trap that follows then has a cause.
struct Ceiling {
    memory_bytes: usize,
    /// Of all memories together.
    used_bytes: usize,
    hit: bool,
}

impl ResourceLimiter for Ceiling {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        let wanted = self.used_bytes.saturating_add(desired.saturating_sub(current));
        if wanted > self.memory_bytes {
            self.hit = true;
            return Ok(false);
        }
        self.used_bytes = wanted;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.hit |= desired > TABLE_ELEMENTS;
        Ok(desired <= TABLE_ELEMENTS)
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

/// Why a call did not come back with an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    #[error("did not end within {:.1} s", .0.as_secs_f64())]
    Deadline(Duration),
    #[error("needs more memory than the {} MiB it may have", .0 / (1024 * 1024))]
    Memory(usize),
    #[error("hands over more than {} MiB at once", TRANSFER_BYTES / (1024 * 1024))]
    Transfer,
    #[error("calls itself too deeply")]
    Stack,
    #[error("{0}")]
    Trap(String),
}

/// The deadline passed while the guest was running.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the call's deadline is over")]
struct DeadlineOver;

/// A component, linked once and instantiated as often as needed.
#[derive(Clone)]
pub(crate) struct GuestEngine<W: GuestWorld = SnapshotProvider> {
    /// Keeps the ticker alive for as long as anything may run.
    engine: Arc<SandboxEngine>,
    linked: W::Linked,
    memory_bytes: usize,
}

impl<W: GuestWorld> GuestEngine<W> {
    /// Links the component. The error is a cause.
    pub fn new(engine: Arc<SandboxEngine>, component: &Component, memory_bytes: usize) -> Result<Self, String> {
        let mut linker: Linker<GuestState> = Linker::new(engine.wasmtime());
        let linked = W::link(&mut linker, component).map_err(|error| format!("{error:#}"))?;
        Ok(Self {
            engine,
            linked,
            memory_bytes,
        })
    }

    /// A fresh instance with a fresh store, for whom `broker` acts.
    pub async fn instantiate(
        &self,
        broker: &Arc<Broker>,
        around: Around,
        at_most: Duration,
    ) -> Result<Instance<W>, CallError> {
        let state = GuestState {
            table: ResourceTable::new(),
            broker: broker.clone(),
            around,
            log: LogBudget::new(Instant::now()),
            last_error: None,
            deadline: Instant::now() + at_most,
            ceiling: Ceiling {
                memory_bytes: self.memory_bytes,
                used_bytes: 0,
                hit: false,
            },
        };
        let mut store = Store::new(self.engine.wasmtime(), state);
        store.limiter(|state| &mut state.ceiling);
        store.set_hostcall_fuel(TRANSFER_BYTES);
        store.data_mut().table.set_max_capacity(RESOURCES);
        store.epoch_deadline_callback(|store| {
            if Instant::now() >= store.data().deadline {
                return Err(DeadlineOver.into());
            }
            Ok(UpdateDeadline::Yield(1))
        });
        store.set_epoch_deadline(1);
        let started = tokio::time::timeout(at_most + DEADLINE_GRACE, W::start(&self.linked, &mut store)).await;
        match started {
            Ok(Ok(bindings)) => Ok(Instance {
                store,
                bindings,
                _engine: self.engine.clone(),
            }),
            Ok(Err(error)) => Err(why(&error, store.data(), at_most)),
            Err(_) => Err(CallError::Deadline(at_most)),
        }
    }
}

/// One that runs.
pub(crate) struct Instance<W: GuestWorld = SnapshotProvider> {
    pub store: Store<GuestState>,
    pub bindings: W,
    _engine: Arc<SandboxEngine>,
}

impl<W: GuestWorld> Instance<W> {
    /// Makes one call. After an error the instance must not be used again.
    pub async fn call<T: Send>(
        &mut self,
        at_most: Duration,
        make: impl for<'a> FnOnce(&'a W, &'a mut Store<GuestState>) -> BoxFuture<'a, wasmtime::Result<T>> + Send,
    ) -> Result<T, CallError> {
        self.store.data_mut().deadline = Instant::now() + at_most;
        self.store.set_epoch_deadline(1);
        let done = tokio::time::timeout(at_most + DEADLINE_GRACE, make(&self.bindings, &mut self.store)).await;
        let state = self.store.data();
        if state.log.dropped() > 0 {
            tracing::warn!(
                plugin = state.broker.plugin(),
                dropped = state.log.dropped(),
                "the plugin logs too fast; lines were dropped"
            );
        }
        match done {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(why(&error, state, at_most)),
            Err(_) => Err(CallError::Deadline(at_most)),
        }
    }
}

fn why(error: &wasmtime::Error, state: &GuestState, at_most: Duration) -> CallError {
    if error.is::<DeadlineOver>() {
        return CallError::Deadline(at_most);
    }
    if state.ceiling.hit {
        return CallError::Memory(state.ceiling.memory_bytes);
    }
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::StackOverflow) {
        return CallError::Stack;
    }
    // wasmtime has no type of its own for this.
    let root = error.root_cause().to_string();
    if root.contains("fuel allocated for hostcalls") {
        return CallError::Transfer;
    }
    let cause = state
        .last_error
        .clone()
        .unwrap_or_else(|| trap.map_or(root, Trap::to_string));
    CallError::Trap(cause)
}
