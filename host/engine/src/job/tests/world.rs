//! A machine, its provider and its hooks, all fake, with faults on demand.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coffre_guard::{FreezeEnd, FreezeError, Owner, Thawed, ThawedMount};
use coffre_vault::{Encryption, InitOptions, OpenOptions, Point, Store, Vault};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::store::BreakingStore;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::freeze::{Freezer, FrozenMounts};
use crate::hook::{
    HookContext, HookFailure, HookFailureKind, HookFreeze, HookRunner, HookTerms, PostReport, PreReport,
    SnapshotOutcome,
};
use crate::job::{BackupReport, JobDeps, JobError, backup};
use crate::journal::JobRecord;
use crate::machine::{Attachment, Consistency, DiskId, DiskInfo, Extent, Finding, Machine};
use crate::progress::{Cancel, Progress};
use crate::provider::{
    Base, ChangeList, Changes, Description, ProviderError, ProviderErrorKind, ProviderIdentity, Snapshot, SnapshotId,
    SnapshotProvider, Source, TakeRequest, TakenDisk,
};
use crate::restore;
use crate::state::State;

/// What happens at a step; once, unless it is `Always`.
#[derive(Clone, Debug)]
pub enum Fault {
    Fail,
    FailAlways,
    TryAgain,
    Panic,
    /// Never comes back: the test then drops the job, as if the process had been killed there.
    Hang,
    Slow(Duration),
    Cancel(Cancel),
    /// Somebody else takes the job's session for dead.
    Fence,
}

/// How the provider answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Honest,
    /// Hands the bytes out itself.
    Streams,
    /// A byte more than there is.
    Size,
    /// One disk fewer than asked for.
    DiskLeftOut,
    /// Nothing has changed.
    NothingChanged,
    /// Extents that overlap.
    Overlap,
}

type Disks = BTreeMap<String, Vec<u8>>;

pub struct World {
    folder: tempfile::TempDir,
    pub config: String,
    /// Which of the vaults the machine is backed up to.
    pub goes_to: Mutex<&'static str>,
    pub log: Mutex<Vec<String>>,
    pub disks: Mutex<Disks>,
    pub manner: Mutex<Manner>,
    faults: Mutex<HashMap<String, Fault>>,
    /// What the provider still holds.
    pub held: Mutex<BTreeMap<String, Disks>>,
    /// What it could compare with.
    pub kept: Mutex<BTreeMap<String, Disks>>,
    /// The job that last ran a `pre`.
    held_by: Mutex<Option<String>>,
    /// How a freeze that is thawed had ended; none: it cannot be frozen.
    pub freeze_ends: Mutex<Option<FreezeEnd>>,
    /// The provider works from outside the machine.
    pub runs_outside: Mutex<bool>,
    /// Hooks say that their application is at rest.
    pub hooks_declare: Mutex<bool>,
    /// What hook `a` freezes in its `pre`.
    pub hook_freezes: Mutex<Vec<PathBuf>>,
    /// That is thawed by somebody before the snapshot is there.
    pub hook_is_thawed_early: Mutex<bool>,
    /// What the hooks' own files say of freezing.
    pub hooks_want_freeze: Mutex<Option<bool>>,
    pub store: Arc<BreakingStore>,
    hung: Notify,
}

pub const POLICY: &str = "[policy.p]\nhold-at-most = \"5s\"\n";
pub const HOOKS: &str = "[hook.a]\nkind = \"rhai\"\nfile = \"a\"\n[hook.b]\nkind = \"rhai\"\nfile = \"b\"\n";
/// A machine with something to freeze.
pub const FREEZES: &str = "[machine.m]\nprovider = \"fake\"\npolicy = \"p\"\nvault = \"v\"\nfreeze = [\"/srv\"]\n";
pub const MACHINE: &str = "[machine.m]\nprovider = \"fake\"\npolicy = \"p\"\nvault = \"v\"\nhooks = [\"a\", \"b\"]\n";

/// Bytes that do not compress and differ by `seed`.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    reader.fill(&mut bytes);
    bytes
}

impl World {
    pub async fn new() -> Arc<Self> {
        Self::with(&format!("{POLICY}{HOOKS}{MACHINE}")).await
    }

    /// A world whose config says `config` beside its folders and vault.
    pub async fn with(config: &str) -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "{config}\n[coffre]\nstate = \"state\"\ncache = \"cache\"\n[vault.v]\nurl = \"vault\"\nencryption = \"none\"\n\
             [vault.w]\nurl = \"other\"\nencryption = \"none\"\n"
        );
        let mut disks = Disks::new();
        disks.insert("one".to_owned(), noise(1, 600_000));
        disks.insert("two".to_owned(), noise(2, 3 << 20));
        let store = Arc::new(BreakingStore::default());
        let options = InitOptions {
            encryption: Encryption::None,
            recovery_key: false,
            host: "test".to_owned(),
        };
        for vault in ["v", "w"] {
            Vault::init(Store::over(store.clone(), vault), options.clone())
                .await
                .unwrap();
        }
        Arc::new(Self {
            folder,
            config,
            goes_to: Mutex::new("v"),
            log: Mutex::default(),
            disks: Mutex::new(disks),
            manner: Mutex::new(Manner::Honest),
            faults: Mutex::default(),
            held: Mutex::default(),
            kept: Mutex::default(),
            held_by: Mutex::default(),
            freeze_ends: Mutex::new(Some(FreezeEnd::Held)),
            runs_outside: Mutex::default(),
            hooks_declare: Mutex::new(true),
            hook_freezes: Mutex::default(),
            hook_is_thawed_early: Mutex::default(),
            hooks_want_freeze: Mutex::default(),
            store,
            hung: Notify::new(),
        })
    }

    pub fn fault(&self, step: &str, fault: Fault) {
        self.faults.lock().insert(step.to_owned(), fault);
    }

    /// Everything that was asked since the last time.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock())
    }

    pub fn state(&self) -> State {
        State::new(&self.folder.path().join("state"))
    }

    pub async fn vault(&self) -> Vault {
        self.open("cache").await
    }

    async fn open(&self, cache: &str) -> Vault {
        let goes_to = *self.goes_to.lock();
        let options = OpenOptions {
            cache_folder: self.folder.path().join(cache),
            expect_id: None,
            allow_unencrypted: true,
        };
        Vault::open(Store::over(self.store.clone(), goes_to), None, options)
            .await
            .unwrap()
    }

    /// All that a process would set up before a backup.
    pub async fn deps(self: &Arc<Self>) -> JobDeps {
        let config = self
            .config
            .replace("vault = \"v\"", &format!("vault = \"{}\"", self.goes_to.lock()));
        let config = Config::parse(&self.folder.path().join("coffre.toml"), &config);
        let hook = |name: &str| -> Arc<dyn HookRunner> {
            Arc::new(FakeHook {
                name: name.to_owned(),
                world: self.clone(),
            })
        };
        JobDeps {
            config: Arc::new(config.unwrap_or_else(|error| panic!("{error}"))),
            provider: Arc::new(FakeProvider(self.clone())),
            // Not in the order of the config.
            hooks: vec![hook("b"), hook("a")],
            vault: self.vault().await,
            guard: None,
            freezer: Arc::new(FakeFreezer(self.clone())),
            clock: Arc::new(SystemClock),
            progress: Progress::new(),
            cancel: Cancel::new(),
            gate: Arc::new(crate::OpenGate::default()),
            host: "test".to_owned(),
            notes: Vec::new(),
        }
    }

    pub async fn backup(self: &Arc<Self>) -> Result<BackupReport, JobError> {
        backup(&self.deps().await, "m").await
    }

    /// Runs a backup up to where it hangs, and drops it there.
    pub async fn killed(self: &Arc<Self>) {
        let deps = self.deps().await;
        tokio::select! {
            result = backup(&deps, "m") => panic!("it was to hang: {result:?}"),
            () = self.hung.notified() => {}
            () = self.store.reached.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("it never got there: {:?}", self.log.lock()),
        }
        self.store.give_up();
    }

    pub async fn points(&self) -> Vec<Point> {
        let vault = self.vault().await;
        match vault.machine("m").await.unwrap() {
            Some(machine) => vault.points(machine).await.unwrap(),
            None => Vec::new(),
        }
    }

    /// The bytes of a point's disk, restored.
    pub async fn restored(&self, point: &Point, disk: &str) -> Vec<u8> {
        let vault = self.vault().await;
        let found = point
            .disks
            .iter()
            .find(|found| found.id == disk)
            .expect("the point has the disk");
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        let path = folder.path().join("disk");
        let plan = restore::RestorePlan {
            vault,
            disks: vec![restore::DiskRestore {
                id: DiskId(disk.to_owned()),
                size_bytes: found.size_bytes,
                root: found.root,
                target: restore::Target::open(&path, found.size_bytes, restore::Overwrite::Refuse).unwrap(),
                counters: Arc::default(),
            }],
            skip_damaged: false,
            cancel: Arc::default(),
        };
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || restore::run(plan, &runtime))
            .await
            .unwrap()
            .unwrap();
        std::fs::read(path).unwrap()
    }

    /// The newest point has every byte of every disk as it is now.
    pub async fn assert_newest_is_now(&self) {
        let point = self.points().await.pop().expect("a point");
        let disks = self.disks.lock().clone();
        assert_eq!(point.disks.len(), disks.len());
        for (id, bytes) in disks {
            assert!(
                self.restored(&point, &id).await == bytes,
                "disk {id} of point {}",
                point.number
            );
        }
    }

    /// Nothing is held, and no job owes anything.
    pub fn assert_nothing_is_owed(&self) {
        assert!(
            self.held.lock().is_empty(),
            "snapshots are held: {:?}",
            self.held.lock().keys()
        );
        for job in JobRecord::all(&self.state(), "m").unwrap() {
            assert!(job.owed().is_nothing(), "{} owes {:?}", job.id, job.owed());
            assert!(job.ended().is_some(), "{} has not ended", job.id);
            assert!(!job.running);
        }
    }

    /// Aborts every undecided session, as a cleaner on another host does.
    async fn fence(&self) {
        let vault = self.open("elsewhere").await;
        let machine = vault.machine("m").await.unwrap().expect("the machine is there");
        for (number, _) in vault.sessions_undecided(machine).await.unwrap() {
            vault.abort(machine, number, "it seemed dead").await.unwrap();
        }
    }

    async fn step(&self, step: &str) -> Result<(), Fault> {
        self.log.lock().push(step.to_owned());
        let fault = {
            let mut faults = self.faults.lock();
            match faults.get(step) {
                Some(Fault::FailAlways) => Some(Fault::Fail),
                _ => faults.remove(step),
            }
        };
        match fault {
            None => Ok(()),
            Some(Fault::Panic) => panic!("a fault at {step}"),
            Some(Fault::Hang) => {
                self.hung.notify_one();
                std::future::pending().await
            }
            Some(Fault::Slow(time)) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Some(Fault::Cancel(cancel)) => {
                cancel.cancel();
                Ok(())
            }
            Some(Fault::Fence) => {
                self.fence().await;
                Ok(())
            }
            Some(fault) => Err(fault),
        }
    }
}

/// Freezes nothing, and says so in the log.
struct FakeFreezer(Arc<World>);

struct FakeFrozen {
    world: Arc<World>,
    began: std::time::Instant,
}

impl Freezer for FakeFreezer {
    fn look(&self, _: &[PathBuf]) -> Result<(), FreezeError> {
        Ok(())
    }

    fn freeze(
        &self,
        _: &Owner,
        mounts: &[PathBuf],
        _: std::time::Instant,
    ) -> Result<Box<dyn FrozenMounts>, FreezeError> {
        self.0.log.lock().push("freeze".to_owned());
        if self.0.freeze_ends.lock().is_none() {
            return Err(FreezeError::Busy(mounts[0].clone()));
        }
        Ok(Box::new(FakeFrozen {
            world: self.0.clone(),
            began: std::time::Instant::now(),
        }))
    }
}

impl FrozenMounts for FakeFrozen {
    fn holds(&self) -> bool {
        true
    }

    fn thaw(self: Box<Self>) -> Thawed {
        self.world.log.lock().push("thaw".to_owned());
        Thawed {
            held: self.began.elapsed(),
            mounts: vec![ThawedMount {
                mount: "/srv".into(),
                end: self.world.freeze_ends.lock().clone().expect("it was frozen"),
            }],
        }
    }
}

pub struct FakeProvider(Arc<World>);

impl FakeProvider {
    async fn step(&self, step: &str) -> Result<(), ProviderError> {
        self.0.step(step).await.map_err(|_| ProviderError {
            kind: ProviderErrorKind::Failed,
            text: format!("a fault at {step}"),
            hint: Some("mend the test".to_owned()),
        })
    }
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
            tracks_changes: true,
            runs_outside: *self.0.runs_outside.lock(),
            settings_schema: "{}".to_owned(),
        })
    }

    async fn discover(&self, _: &Machine) -> Result<Vec<DiskInfo>, ProviderError> {
        self.step("discover").await?;
        let disks = self.0.disks.lock();
        let info = |(id, bytes): (&String, &Vec<u8>)| DiskInfo {
            id: DiskId(id.clone()),
            size_bytes: bytes.len() as u64,
            label: Some(format!("disk {id}")),
        };
        Ok(disks.iter().map(info).collect())
    }

    async fn check(&self, _: &Machine, _: &[DiskId]) -> Result<Vec<Finding>, ProviderError> {
        self.step("check").await?;
        Ok(Vec::new())
    }

    async fn take(&self, _: &Machine, request: &TakeRequest) -> Result<Snapshot, ProviderError> {
        // The snapshot comes to be even when the answer is lost.
        let disks = self.0.disks.lock().clone();
        self.0.held.lock().insert(request.id.0.clone(), disks.clone());
        self.0.kept.lock().insert(request.id.0.clone(), disks.clone());
        self.step("take").await?;
        let manner = *self.0.manner.lock();
        let mut taken = Vec::new();
        for id in request.disks.iter().skip(usize::from(manner == Manner::DiskLeftOut)) {
            let bytes = &disks[&id.0];
            let mut file = tempfile::tempfile_in(self.0.folder.path()).unwrap();
            file.write_all(bytes).unwrap();
            taken.push(TakenDisk {
                id: id.clone(),
                size_bytes: bytes.len() as u64 + u64::from(manner == Manner::Size),
                source: if manner == Manner::Streams {
                    Source::Stream
                } else {
                    Source::File {
                        file,
                        path: id.0.clone(),
                    }
                },
                token: Some(request.id.0.clone()),
            });
        }
        Ok(Snapshot {
            consistency: Consistency::Crash,
            consistency_reason: "a fake".to_owned(),
            one_instant: true,
            disks: taken,
            frozen_ms: None,
            attachments: vec![Attachment {
                name: "machine.xml".to_owned(),
                media_type: "text/xml".to_owned(),
                content: b"<machine/>".to_vec(),
            }],
        })
    }

    async fn changed(&self, _: &Machine, id: &SnapshotId, disk: &DiskId, base: &str) -> Result<Changes, ProviderError> {
        self.step(&format!("changed {disk}")).await?;
        let kept = self.0.kept.lock();
        let (Some(before), Some(now)) = (kept.get(base), kept.get(&id.0)) else {
            return Ok(Changes::CannotTell("the base is gone".to_owned()));
        };
        let (Some(before), Some(now)) = (before.get(&disk.0), now.get(&disk.0)) else {
            return Ok(Changes::CannotTell("the disk is gone".to_owned()));
        };
        let extent = |offset: usize, length: usize| Extent {
            offset_bytes: offset as u64,
            length_bytes: length as u64,
        };
        let extents = match *self.0.manner.lock() {
            Manner::NothingChanged => Vec::new(),
            Manner::Overlap => vec![extent(0, 8192), extent(4096, 8192)],
            _ => {
                let pages = now.chunks(4096).enumerate();
                let differs = pages.filter(|(page, bytes)| before.chunks(4096).nth(*page) != Some(*bytes));
                differs.map(|(page, bytes)| extent(page * 4096, bytes.len())).collect()
            }
        };
        Ok(Changes::Listed(Box::new(Listed(Some(extents)))))
    }

    async fn read(
        &self,
        _: &Machine,
        id: &SnapshotId,
        disk: &DiskId,
        offset_bytes: u64,
        length_bytes: u32,
    ) -> Result<Vec<u8>, ProviderError> {
        // The first read only measures.
        if offset_bytes < 1 << 20 && length_bytes > 1 {
            self.step(&format!("read {disk}")).await?;
        }
        let held = self.0.held.lock();
        let start = offset_bytes as usize;
        Ok(held[&id.0][&disk.0][start..start + length_bytes as usize].to_vec())
    }

    async fn settle(&self, _: &Machine, keep: &[Base]) -> Result<(), ProviderError> {
        let tokens: Vec<&str> = keep.iter().map(|base| base.token.as_str()).collect();
        self.step("settle").await?;
        let held: Vec<String> = self.0.held.lock().keys().cloned().collect();
        self.0
            .kept
            .lock()
            .retain(|token, _| tokens.contains(&token.as_str()) || held.contains(token));
        Ok(())
    }

    async fn release(&self, _: &Machine, id: &SnapshotId) -> Result<(), ProviderError> {
        self.step("release").await?;
        self.0.held.lock().remove(&id.0);
        Ok(())
    }

    async fn held(&self, _: &Machine) -> Result<Vec<SnapshotId>, ProviderError> {
        Ok(self.0.held.lock().keys().cloned().map(SnapshotId).collect())
    }
}

struct Listed(Option<Vec<Extent>>);

#[async_trait]
impl ChangeList for Listed {
    async fn next(&mut self) -> Result<Vec<Extent>, ProviderError> {
        Ok(self.0.take().unwrap_or_default())
    }
}

struct FakeHook {
    name: String,
    world: Arc<World>,
}

impl FakeHook {
    async fn step(&self, step: &str) -> Result<(), HookFailure> {
        self.world
            .step(&format!("{step} {}", self.name))
            .await
            .map_err(|fault| {
                let kind = match fault {
                    Fault::TryAgain => HookFailureKind::TryAgain,
                    _ => HookFailureKind::Failed,
                };
                HookFailure::new(kind, "a fault")
            })
    }
}

#[async_trait]
impl HookRunner for FakeHook {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &str {
        "rhai"
    }

    async fn check(&self, _: &HookContext) -> Result<Vec<Finding>, HookFailure> {
        self.step("hook-check").await?;
        Ok(Vec::new())
    }

    fn terms(&self) -> HookTerms {
        HookTerms {
            wants_freeze: *self.world.hooks_want_freeze.lock(),
            ..HookTerms::default()
        }
    }

    fn frozen(&self, _: &str) -> Vec<HookFreeze> {
        let is_taken = self.world.log.lock().iter().any(|line| line == "take");
        if self.name != "a" || (is_taken && *self.world.hook_is_thawed_early.lock()) {
            return Vec::new();
        }
        let freeze = |mount: &PathBuf| HookFreeze {
            mount: mount.clone(),
            since: std::time::Instant::now(),
        };
        self.world.hook_freezes.lock().iter().map(freeze).collect()
    }

    fn still_held(&self, job: &str) -> Result<(), HookFailure> {
        assert_eq!(self.world.held_by.lock().as_deref(), Some(job));
        if self
            .world
            .faults
            .lock()
            .remove(&format!("hold {}", self.name))
            .is_none()
        {
            return Ok(());
        }
        Err(HookFailure::new(HookFailureKind::Failed, "its session ended"))
    }

    async fn pre(&self, context: &HookContext) -> Result<PreReport, HookFailure> {
        *self.world.held_by.lock() = Some(context.job.clone());
        self.step("pre").await?;
        Ok(PreReport {
            application_consistent: *self.world.hooks_declare.lock(),
            memory: Some(format!("memory of {}", self.name)),
            output: format!("{} rests", self.name),
        })
    }

    async fn post(
        &self,
        context: &HookContext,
        memory: Option<&str>,
        outcome: SnapshotOutcome,
    ) -> Result<PostReport, HookFailure> {
        if let Some(memory) = memory {
            assert_eq!(memory, format!("memory of {}", self.name));
        }
        // After a crash too it hears of the job that held it.
        assert_eq!(context.disks.len(), self.world.disks.lock().len());
        assert_eq!(self.world.held_by.lock().as_deref(), Some(context.job.as_str()));
        self.step("post").await?;
        self.world.log.lock().push(format!("{} heard {outcome:?}", self.name));
        Ok(PostReport::default())
    }
}
