//! Snapshot now, transfer later: waiting, pausing, cancelling and stopping between the two.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use coffre_vault::Pace;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::world::{HOOKS, MACHINE, World};
use crate::clock::SystemClock;
use crate::config::TransferConfig;
use crate::gate::Gate;
use crate::job::{BackupReport, JobDeps, JobError, JobView, backup};
use crate::journal::{JobOutcome, JobRecord};
use crate::pacer::{Caps, Pacer};
use crate::progress::Phase;

struct TestGate {
    passes: Semaphore,
    open: AtomicBool,
    pace: Option<Arc<dyn Pace>>,
}

impl TestGate {
    fn new(passes: usize, open: bool) -> Arc<Self> {
        Arc::new(Self {
            passes: Semaphore::new(passes),
            open: AtomicBool::new(open),
            pace: None,
        })
    }
}

#[async_trait]
impl Gate for TestGate {
    async fn pass(&self) {
        self.passes.acquire().await.unwrap().forget();
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    fn pace(&self) -> Option<Arc<dyn Pace>> {
        self.pace.clone()
    }
}

type Job = JoinHandle<Result<BackupReport, JobError>>;

async fn started(world: &Arc<World>, gate: &Arc<TestGate>) -> (JobDeps, Job) {
    let mut deps = world.deps().await;
    deps.gate = gate.clone();
    let job = tokio::spawn({
        let deps = deps.clone();
        async move { backup(&deps, "m").await }
    });
    (deps, job)
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never was {what}");
}

fn is_paused(deps: &JobDeps) -> bool {
    let step = deps.progress.snapshot().step;
    step.is_some_and(|step| step.starts_with("paused"))
}

fn reads(world: &World) -> usize {
    world.log.lock().iter().filter(|step| step.starts_with("read ")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_waits_with_its_snapshot_until_it_is_let_through() {
    let world = World::new().await;
    let gate = TestGate::new(0, true);
    let (deps, job) = started(&world, &gate).await;
    until("waiting", || deps.progress.phase() == Phase::Queue).await;
    // Applications are let go, and nothing was read.
    assert!(world.log.lock().contains(&"post a".to_owned()));
    assert_eq!((world.held.lock().len(), reads(&world)), (1, 0));
    gate.passes.add_permits(1);
    job.await.unwrap().unwrap();
    world.assert_newest_is_now().await;
    world.assert_nothing_is_owed();
    let record = JobRecord::all(&world.state(), "m").unwrap().pop().unwrap();
    let phases: Vec<Phase> = JobView::of(&record).phases.iter().map(|phase| phase.phase).collect();
    let at = |wanted: Phase| phases.iter().position(|phase| *phase == wanted);
    assert!(
        at(Phase::Post) < at(Phase::Queue) && at(Phase::Queue) < at(Phase::Transfer),
        "{phases:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_cancels_a_job_while_it_waits_and_while_it_transfers() {
    for (passes, phase) in [(0, Phase::Queue), (1, Phase::Transfer)] {
        let world = World::new().await;
        let gate = TestGate::new(passes, false);
        let (deps, job) = started(&world, &gate).await;
        until("there", || deps.progress.phase() == phase).await;
        let id = deps.progress.snapshot().job.unwrap();
        world.state().ask_to_cancel("m", &id).unwrap();
        assert!(matches!(job.await.unwrap(), Err(JobError::Cancelled)), "{phase:?}");
        world.assert_nothing_is_owed();
        assert!(world.points().await.is_empty());
        world.backup().await.unwrap();
        world.assert_newest_is_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_counts_from_the_snapshot_however_long_the_job_waits() {
    let world = World::with(&format!("[policy.p]\ndeadline = \"1s\"\n{HOOKS}{MACHINE}")).await;
    let (_, job) = started(&world, &TestGate::new(0, true)).await;
    assert!(matches!(job.await.unwrap(), Err(JobError::DeadlinePassed(_))));
    world.assert_nothing_is_owed();
    let (_, job) = started(&world, &TestGate::new(1, false)).await;
    assert!(matches!(job.await.unwrap(), Err(JobError::DeadlinePassed(_))));
    world.assert_nothing_is_owed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_whose_window_is_closed_pauses_and_goes_on() {
    let world = World::new().await;
    let gate = TestGate::new(1, false);
    let (deps, job) = started(&world, &gate).await;
    until("paused", || is_paused(&deps)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(reads(&world), 0);
    gate.open.store(true, Ordering::Relaxed);
    job.await.unwrap().unwrap();
    world.assert_newest_is_now().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_stopped_leaves_its_session_to_the_next_one() {
    let world = World::new().await;
    let (deps, job) = started(&world, &TestGate::new(1, false)).await;
    until("paused", || is_paused(&deps)).await;
    deps.cancel.stop();
    assert!(matches!(job.await.unwrap(), Err(JobError::Cancelled)));
    assert!(world.held.lock().is_empty());
    let record = JobRecord::all(&world.state(), "m").unwrap().pop().unwrap();
    assert_eq!(record.ended().unwrap().outcome, JobOutcome::Cancelled);
    let owed = record.owed().session.expect("the session is owed");
    // It is nobody's but the next job's.
    let vault = world.vault().await;
    let undecided = vault.sessions_undecided(owed.machine).await.unwrap();
    assert_eq!(
        undecided.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
        [owed.session]
    );
    world.backup().await.unwrap();
    world.assert_nothing_is_owed();
    world.assert_newest_is_now().await;
    assert!(vault.sessions_undecided(owed.machine).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_a_job_to_end_does_not_wait_for_the_line() {
    let world = World::new().await;
    let nothing_goes = TransferConfig {
        caps: Caps {
            bytes: Some(0),
            requests: None,
        },
        busy: Vec::new(),
    };
    let pacer = Pacer::new(nothing_goes, Arc::new(SystemClock));
    let gate = Arc::new(TestGate {
        passes: Semaphore::new(1),
        open: AtomicBool::new(true),
        pace: Some(pacer.share()),
    });
    let (deps, job) = started(&world, &gate).await;
    until("committing", || deps.progress.phase() == Phase::Commit).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!job.is_finished());
    deps.cancel.cancel();
    // All that it needs was read; so near its end it makes its point.
    let ended = tokio::time::timeout(Duration::from_secs(20), job).await;
    ended.expect("it ends").unwrap().unwrap();
    world.assert_newest_is_now().await;
    world.assert_nothing_is_owed();
}
