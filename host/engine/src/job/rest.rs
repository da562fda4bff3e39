//! The time in which applications are at rest: pre hooks in order, the freeze, the snapshot, the thaw, post hooks in reverse at
//! once.
//!
//! Whatever fails in here, `post` runs for every hook whose `pre` was started, before anything else is done. That a hook is
//! about to start is in the journal before it starts, so that a crash in here is made good by the next job. Nothing in
//! here is given up half-way: a cancel is heard between two steps, and every step has a deadline. At a deadline what is frozen
//! is thawed first, then applications are let go, and only then is the snapshot waited for.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coffre_guard::Guard;
use coffre_vault::{HookOutcome, NoteLevel, StepOutcome};
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::base::Base;
use super::error::JobError;
use super::freeze::{self, Asked, ByHook, FreezeRun, InForce};
use super::run::Run;
use super::snapshot::{Known, LoadedHook, context};
use crate::config::OnFailure;
use crate::consistency::{Facts, HookFacts, decide};
use crate::hook::{HookContext, HookFailure, HookFailureKind, PreReport, SnapshotOutcome, SoFar};
use crate::journal::{Event, OwedHook};
use crate::machine::Attachment;
use crate::progress::Phase;
use crate::provider::{Snapshot, SnapshotId, TakeRequest};

/// A runner ends its hook at the timeout by itself; one that has not by then is broken, and is not waited for.
const GRACE: Duration = Duration::from_secs(10);
/// Between two attempts: long enough for what was busy to finish something, short against any hold.
const PAUSE: Duration = Duration::from_millis(200);

/// What the time of rest has brought.
pub(super) struct Rested {
    pub id: SnapshotId,
    pub at: Timestamp,
    pub snapshot: Snapshot,
    /// In the order of their `pre`.
    pub hooks: Vec<HookRun>,
    /// From the first pre to the last post; none without hooks.
    pub held: Option<Duration>,
    /// What we added to that beside the provider's `take`; none without hooks.
    pub overhead: Option<Duration>,
    /// The hold was over before the snapshot was there.
    pub late: bool,
    pub freeze: FreezeRun,
}

/// One hook and what became of it.
pub(super) struct HookRun {
    pub outcome: HookOutcome,
    pub on_failure: OnFailure,
    pub attachments: Vec<Attachment>,
    /// What it held open was gone before the snapshot was there.
    pub lost: bool,
}

impl HookRun {
    pub fn facts(&self) -> HookFacts<'_> {
        let failed = |step: &Option<StepOutcome>| step.as_ref().is_none_or(|step| !step.ok);
        HookFacts {
            name: &self.outcome.name,
            on_failure: self.on_failure,
            at_rest: self.outcome.application_consistent,
            pre_failed: failed(&self.outcome.pre),
            lost: self.lost,
            post_failed: failed(&self.outcome.post),
        }
    }
}

/// Brings applications to rest, takes the snapshot, and lets them go.
pub(super) async fn take_at_rest(run: &mut Run<'_>, known: &Known, base: &Base) -> Result<Rested, JobError> {
    if let Asked::These(mounts) = freeze::asked(run, &known.hooks) {
        freeze::sync(mounts).await;
    }
    let mut hold = Hold {
        hooks: Vec::new(),
        began: Instant::now(),
        deadline: Instant::now() + run.policy.hold_at_most,
        let_go_at: None,
        late: false,
        freeze: FreezeRun::NotAsked,
        by_hooks: Vec::new(),
        guard_gone: Arc::default(),
        moments: Moments::default(),
        first_failure: None,
    };
    let gone = hold.guard_gone.clone();
    let _subscription =
        (run.deps.guard.as_ref()).map(|guard| guard.on_gone(move || gone.store(true, Ordering::SeqCst)));
    let id = SnapshotId(run.id.clone());
    let taken = match hold.bring_to_rest(run, known).await {
        Ok(()) => hold.take(run, known, base, &id).await,
        Err(error) => Err((error, SnapshotOutcome::NotTried)),
    };
    let (outcome, snapshot) = match &taken {
        Ok((_, snapshot)) => (SnapshotOutcome::Taken, Some(snapshot)),
        Err((_, outcome)) => (*outcome, None),
    };
    hold.let_go(run, known, outcome, snapshot).await;
    let freeze = hold.all_frozen();
    let (at, snapshot) = taken.map_err(|(error, _)| error)?;

    let held = hold.let_go_at.map(|at| at - hold.began);
    let overhead = hold.moments.overhead();
    run.record(Event::Taken {
        snapshot: id.clone(),
        consistency: snapshot.consistency,
        held_ms: held.map(|held| held.as_millis() as u64),
        hold_overhead_ms: overhead.map(|overhead| overhead.as_millis() as u64),
    })?;
    if let Some(error) = hold.first_failure {
        return Err(error);
    }
    Ok(Rested {
        id,
        at,
        snapshot,
        hooks: hold.hooks,
        held,
        overhead,
        late: hold.late,
        freeze,
    })
}

/// When applications were at rest, and for how much of that the provider was at work.
#[derive(Default)]
struct Moments {
    last_pre_ended: Option<Instant>,
    first_post_began: Option<Instant>,
    taking: Duration,
}

impl Moments {
    /// From the end of the last pre to the start of the first post, without the provider's `take`.
    fn overhead(&self) -> Option<Duration> {
        let (rested, let_go) = self.last_pre_ended.zip(self.first_post_began)?;
        Some(let_go.saturating_duration_since(rested).saturating_sub(self.taking))
    }
}

struct Hold {
    hooks: Vec<HookRun>,
    began: Instant,
    deadline: Instant,
    let_go_at: Option<Instant>,
    /// The hold was over before the snapshot was there.
    late: bool,
    /// Of what we freeze ourselves.
    freeze: FreezeRun,
    by_hooks: Vec<ByHook>,
    guard_gone: Arc<AtomicBool>,
    moments: Moments,
    /// Of a `post` that must not fail.
    first_failure: Option<JobError>,
}

impl Hold {
    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Without a guard nobody would let applications go if this process could not.
    fn is_guarded(&self, run: &Run<'_>) -> Result<(), JobError> {
        let is_gone = run.deps.guard.as_ref().is_some_and(Guard::is_gone);
        if is_gone || self.guard_gone.load(Ordering::SeqCst) {
            return Err(JobError::GuardGone);
        }
        Ok(())
    }

    async fn bring_to_rest(&mut self, run: &mut Run<'_>, known: &Known) -> Result<(), JobError> {
        run.enter(Phase::Pre)?;
        for hook in &known.hooks {
            run.go_on()?;
            self.is_guarded(run)?;
            let name = &hook.config.name;
            let mut outcome = HookOutcome {
                name: name.clone(),
                kind: hook.runner.kind().to_owned(),
                ..HookOutcome::default()
            };
            if self.left().is_zero() {
                // Never started, so its post never runs.
                let failure = out_of_time(run.policy.hold_at_most);
                outcome.pre = Some(step(&Err(&failure), 0, Duration::ZERO, ""));
                self.push(hook, outcome);
                self.failed(run, hook, "pre", failure)?;
                continue;
            }
            run.deps.progress.step(name);
            run.record(Event::HookStarting { hook: name.clone() })?;
            let began = Instant::now();
            let (result, attempts) = self.attempts(run, hook).await;
            self.moments.last_pre_ended = Some(Instant::now());
            let said = result.as_ref().map(|report| report.output.as_str()).unwrap_or_default();
            let pre = step(&result.as_ref().map(drop), attempts, began.elapsed(), said);
            outcome.application_consistent = result.as_ref().is_ok_and(|report| report.application_consistent);
            outcome.pre = Some(pre.clone());
            self.push(hook, outcome);
            run.record(Event::HookPre {
                hook: name.clone(),
                outcome: pre,
                memory: result.as_ref().ok().and_then(|report| report.memory.clone()),
            })?;
            if let Err(failure) = result {
                self.failed(run, hook, "pre", failure)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, hook: &LoadedHook, outcome: HookOutcome) {
        self.hooks.push(HookRun {
            outcome,
            on_failure: hook.config.on_failure,
            attachments: Vec::new(),
            lost: false,
        });
    }

    /// Tries `pre` as often as it may be tried within the hold.
    async fn attempts(&self, run: &Run<'_>, hook: &LoadedHook) -> (Result<PreReport, HookFailure>, u32) {
        let mut attempt = 1;
        loop {
            let limit = hook.config.timeout.min(self.left());
            let context = HookContext {
                attempt,
                timeout: limit,
                hold_left: self.left(),
                ..context(run, &run.disks, hook)
            };
            let result = match timeout(limit + GRACE, hook.runner.pre(&context)).await {
                Ok(result) => result,
                Err(_) => Err(not_ended(limit)),
            };
            let Err(failure) = &result else {
                return (result, attempt);
            };
            let attempts = attempts_at_most(failure.kind, hook.config.retries);
            if attempt >= attempts || self.left() <= PAUSE || run.deps.cancel.is_cancelled() {
                return (result, attempt);
            }
            sleep(PAUSE).await;
            attempt += 1;
        }
    }

    /// What a failed step means for the backup.
    fn failed(
        &mut self,
        run: &mut Run<'_>,
        hook: &LoadedHook,
        step: &'static str,
        source: HookFailure,
    ) -> Result<(), JobError> {
        let name = hook.config.name.clone();
        if hook.config.on_failure == OnFailure::Fail {
            let hook = name;
            let source = Box::new(source);
            return Err(JobError::Hook { hook, step, source });
        }
        run.say_quietly(
            NoteLevel::Warning,
            "hook-failed",
            format!("{step} of hook {name} failed: {source}{}", hinted(&source)),
        );
        Ok(())
    }

    /// Takes the snapshot. At the end of the freeze file systems are thawed, and at the end of the hold applications are let
    /// go, even if it is not there yet.
    async fn take(
        &mut self,
        run: &mut Run<'_>,
        known: &Known,
        base: &Base,
        id: &SnapshotId,
    ) -> Result<(Timestamp, Snapshot), (JobError, SnapshotOutcome)> {
        let not_tried = |error| (error, SnapshotOutcome::NotTried);
        run.enter(Phase::Snapshot).map_err(not_tried)?;
        run.record(Event::Taking { snapshot: id.clone() })
            .map_err(|error| not_tried(error.into()))?;
        let mut in_force = self.freeze(run, known).await;
        if let Err(error) = self.is_guarded(run) {
            self.thaw(run, &mut in_force, false).await;
            return Err(not_tried(error));
        }
        let request = TakeRequest {
            id: id.clone(),
            disks: known.ids(),
            bases: base.tokens(),
            freeze_at_most_ms: u32::try_from(self.left().as_millis()).ok(),
        };
        let at = run.deps.clock.now();
        let provider = run.deps.provider.clone();
        let machine = run.machine.clone();
        let began = Instant::now();
        let mut take = provider.take(&machine, &request);
        let answer = loop {
            let Some(next) = self.next_deadline(in_force.as_ref()) else {
                break take.await;
            };
            if let Ok(answer) = timeout_at(next, &mut take).await {
                break answer;
            }
            if in_force.as_ref().is_some_and(|freeze| freeze.ends <= next) {
                self.thaw(run, &mut in_force, false).await;
            }
            if self.is_over() {
                self.let_go(run, known, SnapshotOutcome::Failed, None).await;
                self.late = true;
            }
        };
        self.moments.taking = began.elapsed();
        self.thaw(run, &mut in_force, answer.is_ok()).await;
        if answer.is_ok() && !self.late {
            self.look_for_losses(run, known);
        }
        self.look_for_thaws(run, known);
        let failed = run.provider_failed("take a snapshot");
        let snapshot = answer.map_err(|error| (failed(error), SnapshotOutcome::Failed))?;
        self.is_guarded(run).map_err(|error| (error, SnapshotOutcome::Failed))?;
        Ok((at, snapshot))
    }

    /// Whether applications that are held must be let go.
    fn is_over(&self) -> bool {
        !self.hooks.is_empty() && !self.late && self.left().is_zero()
    }

    /// The next moment at which something must be let go.
    fn next_deadline(&self, in_force: Option<&InForce>) -> Option<Instant> {
        let hold = (!self.hooks.is_empty() && !self.late).then_some(self.deadline);
        let freeze = in_force.map(|freeze| freeze.ends);
        hold.into_iter().chain(freeze).min()
    }

    /// Freezes what is to be frozen. Applications are let go at the end of the hold though it is not done yet.
    async fn freeze(&mut self, run: &mut Run<'_>, known: &Known) -> Option<InForce> {
        let mut mounts = match freeze::asked(run, &known.hooks) {
            Asked::These(mounts) => mounts,
            Asked::Nothing => return None,
            Asked::Refused(why) => {
                self.freeze = why;
                return None;
            }
        };
        self.by_hooks = freeze::by_hooks(run, &known.hooks, &mounts);
        mounts.retain(|mount| !self.by_hooks.iter().any(|by| by.freeze.mount == *mount));
        if mounts.is_empty() {
            return None;
        }
        let ends = self.deadline.min(Instant::now() + run.policy.freeze_at_most);
        let freezing = freeze::begin(run, mounts, ends);
        let mut freezing = pin!(freezing);
        let frozen = if self.hooks.is_empty() {
            freezing.as_mut().await
        } else {
            match timeout_at(self.deadline, freezing.as_mut()).await {
                Ok(frozen) => frozen,
                Err(_) => {
                    self.let_go(run, known, SnapshotOutcome::Failed, None).await;
                    self.late = true;
                    freezing.await
                }
            }
        };
        match freeze::begun(run, frozen, ends) {
            Ok(in_force) => Some(in_force),
            Err(not) => {
                self.freeze = not;
                None
            }
        }
    }

    async fn thaw(&mut self, run: &mut Run<'_>, in_force: &mut Option<InForce>, in_time: bool) {
        if let Some(in_force) = in_force.take() {
            self.freeze = freeze::thaw(run, in_force, in_time).await;
        }
    }

    /// Asks hooks whether what they have frozen is frozen still, and says so if not.
    fn look_for_thaws(&mut self, run: &mut Run<'_>, known: &Known) {
        let asked: Vec<PathBuf> = self.by_hooks.iter().map(|by| by.freeze.mount.clone()).collect();
        let still = freeze::by_hooks(run, &known.hooks, &asked);
        for by in &mut self.by_hooks {
            by.broke = self.late || !still.iter().any(|still| still.freeze.mount == by.freeze.mount);
            if by.broke {
                let text = format!(
                    "{}, which hook {} froze, was thawed before the snapshot was there",
                    by.freeze.mount.display(),
                    by.hook
                );
                run.say_quietly(NoteLevel::Warning, "thawed-early", text);
            }
        }
    }

    /// Our own freezes and those of hooks, as far as is known by now.
    fn all_frozen(&self) -> FreezeRun {
        self.freeze.clone().with(&self.by_hooks, |hook| {
            let of = self.hooks.iter().find(|of| of.outcome.name == hook);
            of.and_then(|of| of.outcome.post.as_ref()).is_some_and(|post| !post.ok)
        })
    }

    /// Asks hooks whether what they hold open has held until now.
    fn look_for_losses(&mut self, run: &mut Run<'_>, known: &Known) {
        for hook in &known.hooks {
            let Err(failure) = hook.runner.still_held(&run.id) else {
                continue;
            };
            let name = &hook.config.name;
            if let Some(of) = self.hooks.iter_mut().find(|of| of.outcome.name == *name) {
                of.lost = true;
                of.outcome.application_consistent = false;
            }
            if let Err(error) = self.failed(run, hook, "hold", failure) {
                self.first_failure.get_or_insert(error);
            }
        }
    }

    /// Runs `post` for every hook whose `pre` was started, last first. Nothing stops this, and it happens once.
    async fn let_go(
        &mut self,
        run: &mut Run<'_>,
        known: &Known,
        outcome: SnapshotOutcome,
        snapshot: Option<&Snapshot>,
    ) {
        if run.journal.owed().hooks.is_empty() {
            return;
        }
        run.enter_quietly(Phase::Post);
        for owed in run.journal.owed().hooks.clone().into_iter().rev() {
            let Some(hook) = known.hooks.iter().find(|hook| hook.config.name == owed.name) else {
                continue;
            };
            let context = HookContext {
                so_far: self.so_far(run, snapshot),
                ..context(run, &run.disks, hook)
            };
            self.moments.first_post_began.get_or_insert_with(Instant::now);
            let ended = post(run, hook, &context, &owed, outcome, Some(self.deadline)).await;
            if let Some(failure) = ended.failure
                && let Err(error) = self.failed(run, hook, "post", failure)
            {
                self.first_failure.get_or_insert(error);
            }
            if let Some(of) = self.hooks.iter_mut().find(|of| of.outcome.name == owed.name) {
                of.outcome.post = Some(ended.outcome);
                of.attachments = ended.attachments;
            }
        }
        self.let_go_at = Some(Instant::now());
    }

    /// What a `post` is told: it and those that come after it are taken to succeed.
    fn so_far(&self, run: &Run<'_>, snapshot: Option<&Snapshot>) -> SoFar {
        let held = self.began.elapsed();
        let hooks = self.hooks.iter().map(|hook| HookFacts {
            post_failed: hook.outcome.post.as_ref().is_some_and(|post| !post.ok),
            ..hook.facts()
        });
        let hooks: Vec<_> = hooks.collect();
        let freeze = self.all_frozen();
        let worth = |snapshot: &Snapshot| {
            decide(&Facts {
                provider: snapshot.consistency,
                provider_reason: &snapshot.consistency_reason,
                hooks: &hooks,
                held,
                hold_at_most: run.policy.hold_at_most,
                snapshot_late: false,
                freeze: freeze.fact(),
            })
        };
        let by_provider = snapshot
            .and_then(|snapshot| snapshot.frozen_ms)
            .map(|ms| Duration::from_millis(ms.into()));
        SoFar {
            consistency: snapshot.map(|snapshot| worth(snapshot).reached),
            held: Some(held),
            frozen: by_provider.or_else(|| freeze.frozen()),
        }
    }
}

/// What to do about a failure, behind what it says.
pub(super) fn hinted(failure: &HookFailure) -> String {
    let hint = failure.hint.as_ref();
    hint.map_or_else(String::new, |hint| format!("; hint: {hint}"))
}

/// How often a step is run in all, if it goes on failing like this.
fn attempts_at_most(failure: HookFailureKind, retries: u32) -> u32 {
    match failure {
        HookFailureKind::Failed | HookFailureKind::TimedOut => 1 + retries,
        // The hook itself asks for another try.
        HookFailureKind::TryAgain => 1 + retries.max(1),
        HookFailureKind::Denied | HookFailureKind::Limit | HookFailureKind::Invalid => 1,
    }
}

/// How a `post` ended.
pub(super) struct Ended {
    pub outcome: StepOutcome,
    pub attachments: Vec<Attachment>,
    pub failure: Option<HookFailure>,
}

/// Runs one `post` and writes down that it was run. It is always given one try; another only where the hook asks for it,
/// and not after `no_retry_after`: by then other hooks' applications have waited long enough.
pub(super) async fn post(
    run: &mut Run<'_>,
    hook: &LoadedHook,
    context: &HookContext,
    owed: &OwedHook,
    snapshot: SnapshotOutcome,
    no_retry_after: Option<Instant>,
) -> Ended {
    run.deps.progress.step(&hook.config.name);
    let began = Instant::now();
    let mut attempt = 1;
    let result = loop {
        let context = HookContext {
            attempt,
            ..context.clone()
        };
        let called = hook.runner.post(&context, owed.memory.as_deref(), snapshot);
        let result = match timeout(hook.config.timeout + GRACE, called).await {
            Ok(result) => result,
            Err(_) => Err(not_ended(hook.config.timeout)),
        };
        let Err(failure) = &result else { break result };
        let too_late = no_retry_after.is_some_and(|end| Instant::now() + PAUSE >= end);
        if too_late || attempt >= attempts_at_most(failure.kind, hook.terms.post_retries) {
            break result;
        }
        sleep(PAUSE).await;
        attempt += 1;
    };
    let said = result.as_ref().map(|report| report.output.as_str()).unwrap_or_default();
    let outcome = step(&result.as_ref().map(drop), attempt, began.elapsed(), said);
    run.record_quietly(Event::HookEnded {
        hook: owed.name.clone(),
        outcome: outcome.clone(),
    });
    let (attachments, failure) = match result {
        Ok(report) => (report.attachments, None),
        Err(failure) => (Vec::new(), Some(failure)),
    };
    Ended {
        outcome,
        attachments,
        failure,
    }
}

fn step(result: &Result<(), &HookFailure>, attempts: u32, took: Duration, said: &str) -> StepOutcome {
    let failure = result.err();
    StepOutcome {
        ok: failure.is_none(),
        attempts,
        duration_ms: took.as_millis() as u64,
        error: failure.map(ToString::to_string),
        code: failure.map(|failure| failure.code().to_owned()),
        output: failure.map_or(said, |failure| &failure.output).to_owned(),
    }
}

fn not_ended(limit: Duration) -> HookFailure {
    let text = format!(
        "it did not end within {} s, and its runner did not end it",
        limit.as_secs_f64()
    );
    HookFailure::new(HookFailureKind::TimedOut, text)
}

fn out_of_time(hold_at_most: Duration) -> HookFailure {
    let text = format!(
        "it was not started: the hold of {} s was over",
        hold_at_most.as_secs_f64()
    );
    HookFailure {
        hint: Some("give earlier hooks shorter timeouts, or the policy a longer `hold-at-most`".to_owned()),
        ..HookFailure::new(HookFailureKind::TimedOut, text)
    }
}
