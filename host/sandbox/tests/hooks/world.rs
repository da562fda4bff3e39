//! A machine with one small disk, backed up by a real job into a real vault, with a provider that writes down what it does.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coffre_engine::config::Config;
use coffre_engine::freeze::{Freezer, FrozenMounts, GuardedFreezer};
use coffre_engine::job::{BackupReport, JobDeps, JobError, backup};
use coffre_engine::progress::{Cancel, Progress};
use coffre_engine::{
    Base, Changes, Consistency, Description, DiskId, DiskInfo, Finding, HookFailure, HookRunner, Machine,
    ProviderError, ProviderErrorKind, ProviderIdentity, Snapshot, SnapshotId, SnapshotProvider, Source, SystemClock,
    TakeRequest, TakenDisk,
};
use coffre_guard::{FreezeError, Guard, GuardConfig, Owner, Proof, prove};
use coffre_tests::mount::Scratch;
use coffre_vault::{Encryption, InitOptions, OpenOptions, Point, Store, StoreConfig, StoreOptions, Vault};

use super::guests::{Agent, Sshd};
use super::kinds::Hook;

const DISK_BYTES: u64 = 64 * 1024;

/// What `take` does.
#[derive(Clone, Copy, Debug)]
pub enum Take {
    Works,
    Fails,
    After(Duration),
}

pub struct World {
    folder: tempfile::TempDir,
    take: Take,
    /// The policy's.
    hold_at_most: &'static str,
    /// What the machine names under `freeze`; the provider then looks whether it takes writes.
    freeze: Option<PathBuf>,
    /// Started when a hook is to run there.
    agent: OnceLock<Agent>,
    sshd: OnceLock<Sshd>,
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // As mktemp makes it; some umasks are wider.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        fs::write(folder.path().join("disk"), vec![7; DISK_BYTES as usize]).unwrap();
        Self {
            folder,
            take: Take::Works,
            hold_at_most: "60s",
            freeze: None,
            agent: OnceLock::new(),
            sshd: OnceLock::new(),
        }
    }

    pub fn agent(&self) -> &Agent {
        self.agent.get_or_init(|| Agent::start(self.folder.path()))
    }

    pub fn sshd(&self) -> &Sshd {
        self.sshd.get_or_init(|| Sshd::start(self.folder.path()))
    }

    pub fn taking(self, take: Take) -> Self {
        Self { take, ..self }
    }

    pub fn holding_at_most(self, hold_at_most: &'static str) -> Self {
        Self { hold_at_most, ..self }
    }

    /// With a guard, and a file system to freeze.
    pub fn freezing(self, scratch: &Scratch) -> Self {
        Self {
            freeze: Some(scratch.freezable()),
            ..self
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file with these rights.
    pub fn write(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Where hooks and the provider write down what they do, a line for each.
    pub fn log_file(&self) -> PathBuf {
        self.path("log")
    }

    pub fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.log_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn config(&self, hooks: &[Hook]) -> Config {
        let names: Vec<&str> = hooks.iter().map(|hook| hook.name).collect();
        let tables: String = hooks.iter().map(|hook| hook.table(self)).collect();
        self.config_with(&names, &tables)
    }

    fn config_with(&self, names: &[&str], tables: &str) -> Config {
        let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        let freeze = self.freeze.as_ref().map(|mount| format!("freeze = [{mount:?}]\n"));
        let agent = tables
            .contains("on = \"agent\"")
            .then(|| format!("agent = {:?}\n", self.agent().socket));
        let ssh = tables.contains("on = \"ssh:m\"").then(|| self.sshd().table("m"));
        let text = format!(
            "[coffre]\nstate = \"state\"\nrun = \"run\"\ncache = \"cache\"\nscripts = \"scripts\"\n[vault.v]\nurl = \
             \"vault\"\nencryption = \"none\"\n[policy.p]\nhold-at-most = \"{}\"\n[machine.m]\nprovider = \"fake\"\npolicy \
             = \"p\"\nhooks = [{}]\n{}{}{}{tables}",
            self.hold_at_most,
            names.join(", "),
            freeze.unwrap_or_default(),
            agent.unwrap_or_default(),
            ssh.unwrap_or_default(),
        );
        let config = Config::parse(&self.path("coffre.toml"), &text);
        config.unwrap_or_else(|error| panic!("{error}\nin\n{text}"))
    }

    pub async fn load(&self, hook: &Hook) -> Result<Arc<dyn HookRunner>, HookFailure> {
        let config = self.config(std::slice::from_ref(hook));
        super::kinds::load(&config, hook.name).await
    }

    /// Backs the machine up with these hooks.
    pub async fn backup(&self, hooks: &[Hook]) -> Result<BackupReport, JobError> {
        let names: Vec<&str> = hooks.iter().map(|hook| hook.name).collect();
        let tables: String = hooks.iter().map(|hook| hook.table(self)).collect();
        self.backup_with(&names, &tables).await
    }

    /// As [`Self::backup`], with the hooks' tables as they stand in the configuration.
    pub async fn backup_with(&self, names: &[&str], tables: &str) -> Result<BackupReport, JobError> {
        let config = Arc::new(self.config_with(names, tables));
        let mut loaded = Vec::new();
        for name in names {
            let hook = super::kinds::load(&config, name).await;
            loaded.push(hook.unwrap_or_else(|failure| panic!("{failure:?}")));
        }
        let guard = self.freeze.is_some().then(|| self.guard());
        let freezer: Arc<dyn Freezer> = match &guard {
            Some(guard) => Arc::new(GuardedFreezer::new(guard.clone(), &config, [])),
            None => Arc::new(NothingToFreeze),
        };
        let deps = JobDeps {
            provider: Arc::new(FakeProvider {
                disk: self.path("disk"),
                log: self.log_file(),
                take: self.take,
                looks_at: self.freeze.clone(),
            }),
            config,
            hooks: loaded,
            vault: self.vault().await,
            guard,
            freezer,
            clock: Arc::new(SystemClock),
            progress: Progress::new(),
            cancel: Cancel::new(),
            gate: Arc::new(coffre_engine::OpenGate::default()),
            host: "test".to_owned(),
            notes: Vec::new(),
        };
        backup(&deps, "m").await
    }

    /// As [`Self::backup`], where it makes a point.
    pub async fn point(&self, hooks: &[Hook]) -> Point {
        self.backup(hooks)
            .await
            .unwrap_or_else(|error| panic!("{error:?}"))
            .point
    }

    fn guard(&self) -> Guard {
        Guard::new(GuardConfig {
            program: guard_program(),
            run: self.path("run"),
            state: self.path("state"),
        })
    }

    async fn vault(&self) -> Vault {
        let store = || {
            let url = url::Url::from_directory_path(self.path("vault")).unwrap();
            Store::connect(&StoreConfig {
                url,
                options: StoreOptions::default(),
            })
            .unwrap()
        };
        if !self.path("vault").exists() {
            fs::create_dir(self.path("vault")).unwrap();
            let options = InitOptions {
                encryption: Encryption::None,
                recovery_key: false,
                host: "test".to_owned(),
            };
            Vault::init(store(), options).await.unwrap();
        }
        let options = OpenOptions {
            cache_folder: self.path("cache"),
            expect_id: None,
            allow_unencrypted: true,
        };
        Vault::open(store(), None, options).await.unwrap()
    }
}

/// Whether the process whose number stands in a file still runs.
pub fn is_alive(pid_file: &Path) -> bool {
    let pid = fs::read_to_string(pid_file).expect("the hook wrote its number");
    fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
}

/// `coffre-guard` as it is built beside the tests.
fn guard_program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // target/debug/deps/hooks-…
    let program = test.ancestors().nth(2).unwrap().join("coffre-guard");
    assert!(
        program.exists(),
        "{} is not there\nhint: `cargo xtask test` builds it, or `cargo build --workspace --bins`",
        program.display()
    );
    program
}

/// Whether a write to this file system ends.
pub fn takes_writes(mount: &Path) -> bool {
    /// On a busy machine; one that waits for a thaw is not waited for longer.
    const WITHIN: Duration = Duration::from_secs(1);
    match prove(&guard_program(), mount, WITHIN) {
        Proof::Writes { .. } => true,
        Proof::Blocked { .. } => false,
        other => panic!("{other:?}"),
    }
}

struct FakeProvider {
    disk: PathBuf,
    log: PathBuf,
    take: Take,
    /// A file system of which it says whether it took writes.
    looks_at: Option<PathBuf>,
}

#[async_trait]
impl SnapshotProvider for FakeProvider {
    fn identity(&self) -> ProviderIdentity {
        ProviderIdentity {
            name: "fake".to_owned(),
            version: "1".to_owned(),
            digest: "00".to_owned(),
            pinned: true,
        }
    }

    async fn describe(&self) -> Result<Description, ProviderError> {
        Ok(Description {
            name: "fake".to_owned(),
            version: "1".to_owned(),
            best_consistency: Consistency::Crash,
            one_instant: true,
            tracks_changes: false,
            runs_outside: false,
            settings_schema: "{}".to_owned(),
        })
    }

    async fn discover(&self, _: &Machine) -> Result<Vec<DiskInfo>, ProviderError> {
        Ok(vec![DiskInfo {
            id: DiskId("vda".to_owned()),
            size_bytes: DISK_BYTES,
            label: None,
        }])
    }

    async fn check(&self, _: &Machine, _: &[DiskId]) -> Result<Vec<Finding>, ProviderError> {
        Ok(Vec::new())
    }

    async fn take(&self, _: &Machine, _: &TakeRequest) -> Result<Snapshot, ProviderError> {
        let mut log = File::options().create(true).append(true).open(&self.log).unwrap();
        writeln!(log, "take").unwrap();
        if let Some(mount) = &self.looks_at {
            let about = if takes_writes(mount) {
                "takes writes"
            } else {
                "is frozen"
            };
            writeln!(log, "{about}").unwrap();
        }
        match self.take {
            Take::Works => {}
            Take::Fails => {
                return Err(ProviderError {
                    kind: ProviderErrorKind::Failed,
                    text: "no snapshot today".to_owned(),
                    hint: None,
                });
            }
            Take::After(time) => tokio::time::sleep(time).await,
        }
        Ok(Snapshot {
            consistency: Consistency::Crash,
            consistency_reason: "a fake".to_owned(),
            one_instant: true,
            disks: vec![TakenDisk {
                id: DiskId("vda".to_owned()),
                size_bytes: DISK_BYTES,
                source: Source::File {
                    file: File::open(&self.disk).unwrap(),
                    path: self.disk.display().to_string(),
                },
                token: None,
            }],
            frozen_ms: Some(40),
            attachments: Vec::new(),
        })
    }

    async fn changed(&self, _: &Machine, _: &SnapshotId, _: &DiskId, _: &str) -> Result<Changes, ProviderError> {
        Ok(Changes::CannotTell("it is a fake".to_owned()))
    }

    async fn read(&self, _: &Machine, _: &SnapshotId, _: &DiskId, _: u64, _: u32) -> Result<Vec<u8>, ProviderError> {
        unreachable!("its disk is a file")
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

/// For machines whose configuration names nothing to freeze.
struct NothingToFreeze;

impl Freezer for NothingToFreeze {
    fn look(&self, mounts: &[PathBuf]) -> Result<(), FreezeError> {
        panic!("nothing was to be frozen, and {mounts:?} are");
    }

    fn freeze(&self, _: &Owner, mounts: &[PathBuf], _: Instant) -> Result<Box<dyn FrozenMounts>, FreezeError> {
        panic!("nothing was to be frozen, and {mounts:?} are");
    }
}
