//! Plugins as the sandbox runs them: the ones that ship, and one that means harm. Needs built components: `cargo xtask
//! plugins`.

mod bench;
mod conformance;
mod hostile;
mod image;
mod mounted;
mod reflink;
mod refused;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use coffre_engine::{Machine, OsFamily, Snapshot, SnapshotId, SnapshotProvider, TakeRequest};
use coffre_sandbox::{CatalogConfig, InstalledPlugin, Limits, PluginCatalog, PluginError, SecretSource, WasmProvider};
use serde_json::{Value, json};

/// The build's folder.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("tmp lies in the target folder")
        .to_owned()
}

/// A built component.
fn component(folder: &str, name: &str) -> PathBuf {
    let file = target().join(folder).join(name).with_extension("wasm");
    assert!(
        file.is_file(),
        "{} is not built: run `cargo xtask plugins`",
        file.display()
    );
    file
}

fn digests(folder: &str) -> BTreeMap<String, String> {
    let file = target().join(folder).join("digests.json");
    let text =
        std::fs::read(&file).unwrap_or_else(|_| panic!("{} is not there: run `cargo xtask plugins`", file.display()));
    serde_json::from_slice(&text).expect("xtask writes JSON")
}

struct OneSecret;

impl SecretSource for OneSecret {
    fn get(&self, name: &str) -> Result<Option<String>, String> {
        Ok((name == "allowed").then(|| "hush".to_owned()))
    }
}

fn config() -> CatalogConfig {
    let mut shipped_digests = digests("plugins");
    shipped_digests.extend(digests("plugins-test"));
    CatalogConfig {
        guard: None,
        installed: Vec::new(),
        folders: vec![target().join("plugins"), target().join("plugins-test")],
        shipped_digests,
        cache: target().join("tmp").join("compiled-plugins"),
        secrets: Arc::new(OneSecret),
    }
}

/// One for all tests, so that a debug build compiles each component once.
static CATALOG: LazyLock<PluginCatalog> = LazyLock::new(|| PluginCatalog::new(config()));

/// Short enough for tests, long enough for a busy machine.
fn limits() -> Limits {
    let second = Duration::from_secs(1);
    Limits {
        memory_bytes: 64 * 1024 * 1024,
        look_deadline: second,
        take_deadline: second,
        work_deadline: second,
    }
}

async fn load(name: &str, settings: &Value) -> Result<Arc<WasmProvider>, PluginError> {
    CATALOG.load_provider(name, settings, limits()).await
}

fn machine(settings: &Value) -> Machine {
    Machine {
        name: "web01".to_owned(),
        os: OsFamily::Linux,
        settings: settings.clone(),
    }
}

fn request(id: &str, disks: &[&str]) -> TakeRequest {
    TakeRequest {
        id: SnapshotId(id.to_owned()),
        disks: disks
            .iter()
            .map(|disk| coffre_engine::DiskId((*disk).to_owned()))
            .collect(),
        bases: Vec::new(),
        freeze_at_most_ms: None,
    }
}

async fn take(provider: &WasmProvider, settings: &Value, id: &str, disks: &[&str]) -> Snapshot {
    provider
        .take(&machine(settings), &request(id, disks))
        .await
        .expect("a snapshot")
}

fn settings_for(folder: &Path) -> Value {
    json!({ "images": folder })
}

fn pinned(name: &str, file: &Path, sha256: Option<&str>) -> InstalledPlugin {
    InstalledPlugin {
        name: name.to_owned(),
        file: Some(file.to_owned()),
        sha256: sha256.map(str::to_owned),
        ..InstalledPlugin::default()
    }
}
