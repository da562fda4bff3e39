//! A running listing of what changed: an instance of its own that lives as long as the listing.

use std::time::Duration;

use async_trait::async_trait;
use coffre_engine::{ChangeList, Extent, ProviderError};
use wasmtime::component::ResourceAny;

use super::answer::Checker;
use super::words;
use crate::guest::Instance;

pub(super) struct WasmChangeList {
    plugin: String,
    /// None once the listing ended, well or badly.
    instance: Option<Instance>,
    list: ResourceAny,
    size_bytes: Option<u64>,
    /// The end of the last extent that was listed.
    listed_to_bytes: u64,
    step_at_most: Duration,
}

impl WasmChangeList {
    pub fn new(
        plugin: String,
        instance: Instance,
        list: ResourceAny,
        size_bytes: Option<u64>,
        step_at_most: Duration,
    ) -> Self {
        Self {
            plugin,
            instance: Some(instance),
            list,
            size_bytes,
            listed_to_bytes: 0,
            step_at_most,
        }
    }
}

#[async_trait]
impl ChangeList for WasmChangeList {
    async fn next(&mut self) -> Result<Vec<Extent>, ProviderError> {
        let call = "changed, next";
        let Some(mut instance) = self.instance.take() else {
            return Ok(Vec::new());
        };
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
        let extents = match answered {
            Ok(Ok(extents)) => extents,
            Ok(Err(failure)) => return Err(words::provider_error(plugin, call, failure)),
            Err(error) => return Err(words::died(plugin, call, &error)),
        };
        let checker = Checker { plugin, call };
        let (extents, end_bytes) = checker.extents(&extents, self.listed_to_bytes, self.size_bytes)?;
        self.listed_to_bytes = end_bytes;
        // The end is the instance's end as well; the resource goes with its store.
        if !extents.is_empty() {
            self.instance = Some(instance);
        }
        Ok(extents)
    }
}
