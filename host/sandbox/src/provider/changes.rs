//! A running listing of what changed: an instance of its own that lives as long as the listing.

use std::time::Duration;

use async_trait::async_trait;
use coffre_engine::{ChangeList, Extent, ProviderError, ProviderErrorKind};
use wasmtime::component::ResourceAny;

use super::answer::Checker;
use super::words;
use crate::guest::Instance;

/// A listing that broke must never look like one that ended: what it did not list would count as unchanged.
enum State {
    Running(Box<Instance>),
    Ended,
    Broken(ProviderError),
}

pub(super) struct WasmChangeList {
    plugin: String,
    state: State,
    list: ResourceAny,
    size_bytes: Option<u64>,
    /// The end of the last extent that was listed.
    listed_to_bytes: u64,
    step_at_most: Duration,
}

const CALL: &str = "changed, next";

impl WasmChangeList {
    pub fn new(
        plugin: String,
        instance: Instance,
        list: ResourceAny,
        size_bytes: Option<u64>,
        step_at_most: Duration,
    ) -> Self {
        let state = State::Running(Box::new(instance));
        Self {
            plugin,
            state,
            list,
            size_bytes,
            listed_to_bytes: 0,
            step_at_most,
        }
    }

    /// One step in the guest, checked. The instance comes back with it.
    async fn step(&mut self, mut instance: Box<Instance>) -> Result<(Vec<Extent>, Box<Instance>), ProviderError> {
        let list = self.list;
        let answered = instance
            .call(self.step_at_most, |guest, store| {
                Box::pin(async move {
                    guest
                        .coffre_plugin_provider()
                        .change_list()
                        .call_next(store, list)
                        .await
                })
            })
            .await;
        let plugin = self.plugin.as_str();
        let extents = answered
            .map_err(|error| words::died(plugin, CALL, &error))?
            .map_err(|failure| words::provider_error(plugin, CALL, failure))?;
        let checker = Checker { plugin, call: CALL };
        let (extents, end_bytes) = checker.extents(&extents, self.listed_to_bytes, self.size_bytes)?;
        self.listed_to_bytes = end_bytes;
        Ok((extents, instance))
    }
}

#[async_trait]
impl ChangeList for WasmChangeList {
    async fn next(&mut self) -> Result<Vec<Extent>, ProviderError> {
        // What stays if the caller gives up in the middle of a step.
        let given_up = State::Broken(ProviderError {
            kind: ProviderErrorKind::Failed,
            text: format!("the listing of `{}` was given up in the middle", self.plugin),
            hint: None,
        });
        let instance = match std::mem::replace(&mut self.state, given_up) {
            State::Running(instance) => instance,
            State::Ended => {
                self.state = State::Ended;
                return Ok(Vec::new());
            }
            State::Broken(error) => {
                self.state = State::Broken(error.clone());
                return Err(error);
            }
        };
        match self.step(instance).await {
            Ok((extents, instance)) => {
                // The end is the instance's end as well; the resource goes with its store.
                let ended = extents.is_empty();
                self.state = if ended { State::Ended } else { State::Running(instance) };
                Ok(extents)
            }
            Err(error) => {
                self.state = State::Broken(error.clone());
                Err(error)
            }
        }
    }
}
