//! Hooks as the job runs them: one file per kind of behaviour.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coffre_engine::{
    Consistency, DiskId, HookContext, HookFailure, HookRunner, Machine, OsFamily, PreReport, SnapshotOutcome,
};
use serde_json::json;

use super::{HookSpec, load};

mod api;
mod bounds;
mod contract;
mod definitions;
mod held;
mod messages;
mod shipped;
mod undo;

/// A folder of scripts that belongs to a test.
struct Scripts {
    folder: tempfile::TempDir,
    spec: HookSpec,
}

impl Scripts {
    /// A folder with one script, the hook.
    fn with(content: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let spec = HookSpec::script(folder.path().join("hook.rhai"), folder.path());
        let scripts = Self { folder, spec };
        scripts.write("hook.rhai", content);
        scripts
    }

    fn granted(mut self, commands: &[&[&str]]) -> Self {
        self.spec.commands = commands
            .iter()
            .map(|words| words.iter().map(|word| (*word).to_owned()).collect())
            .collect();
        self
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn load(&self) -> Result<Arc<dyn HookRunner>, HookFailure> {
        load("db", &self.spec)
    }

    async fn pre(&self) -> Result<PreReport, HookFailure> {
        self.load()?.pre(&context(20_000)).await
    }

    /// A message without the folder's name, which is another each time.
    fn said(&self, failure: &HookFailure) -> String {
        let hint = failure
            .hint
            .as_ref()
            .map(|hint| format!("\nhint: {hint}"))
            .unwrap_or_default();
        format!("{:?}: {}{hint}", failure.kind, failure.text)
            .replace(&self.folder.path().display().to_string(), "/scripts")
    }
}

fn context(timeout_ms: u64) -> HookContext {
    HookContext {
        machine: Machine {
            name: "web01".to_owned(),
            os: OsFamily::Linux,
            settings: json!({ "images": "/var/lib/vm/web01", "echo": "/bin/echo" }),
        },
        disks: vec![DiskId("vda".to_owned()), DiskId("vdb".to_owned())],
        job: "job-7".to_owned(),
        policy: Some("daily".to_owned()),
        wanted: Consistency::Application,
        attempt: 1,
        timeout: Duration::from_millis(timeout_ms),
        guard: None,
        hold_at_most: Duration::from_secs(60),
        freezer: None,
        hold_left: Duration::from_secs(60),
    }
}

const SHELL: &[&str] = &["/bin/sh", "-c", "{text}"];

fn is_alive(pid_file: &Path) -> bool {
    let pid = fs::read_to_string(pid_file).expect("the script wrote its number");
    fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
}

/// What the shipped scripts are tested with.
async fn post(hook: &Arc<dyn HookRunner>, memory: Option<&str>) -> coffre_engine::PostReport {
    hook.post(&context(20_000), memory, SnapshotOutcome::Taken)
        .await
        .unwrap()
}
