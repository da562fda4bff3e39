//! Runs what is not trusted: provider plugins as WebAssembly components with grants, and hooks. The only crate that knows
//! wasmtime and rhai; it fills the engine's seams.
//!
//! A call from a guest takes this way: `guest` (bindings of `wit/`) → `broker` (checks the grants, resolves paths to
//! descriptors) → `acts` (does it to the descriptors). What a guest answers comes back through `provider`, which checks
//! it against the grants and against what the host measures itself. `catalog` finds plugins and decides which may run.
//! Broker and acts are to move into a process of their own, so what passes between `guest` and `broker` is plain data.

mod acts;
mod broker;
mod catalog;
mod compiled;
mod component;
mod engine;
mod error;
mod grant;
mod guest;
pub mod hook;
pub mod limits;
mod manifest;
pub mod process;
mod provider;

pub use catalog::{CatalogConfig, Inspection, InstalledPlugin, Listed, NoSecrets, Origin, PluginCatalog, SecretSource};
pub use error::PluginError;
pub use grant::{GrantKind, GrantTable, GrantValue};
pub use limits::Limits;
pub use manifest::{Ask, CONTRACT_VERSION, MANIFEST_SECTION, Manifest, World};
pub use provider::WasmProvider;
