//! What Prometheus is told, made anew from the book at each visit: so it has also what backups outside of the service did, and
//! counters go on after a restart.

mod serve;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::Context;
use coffre_engine::book::{Book, Tally};
use coffre_engine::config::Config;
use coffre_engine::status::{Level, MachineStatus};
use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::tell;

pub use serve::serve;

type Labels = Vec<(&'static str, String)>;
type Floats = Family<Labels, Gauge<f64, AtomicU64>>;

/// All metrics in the text format of OpenMetrics.
pub async fn page(config: Arc<Config>) -> anyhow::Result<String> {
    let (book, machines) = tell::look(config).await?;
    let more = move || -> anyhow::Result<String> { text(&machines, &More::read(&book)?, Timestamp::now()) };
    tokio::task::spawn_blocking(more).await.context("looking broke off")?
}

/// What `status` does not have.
#[derive(Default)]
struct More {
    tallies: Vec<Tally>,
    vault_bytes: BTreeMap<String, u64>,
}

impl More {
    fn read(book: &Book) -> anyhow::Result<Self> {
        Ok(Self {
            tallies: book.tallies()?,
            vault_bytes: book.vault_bytes()?,
        })
    }
}

/// Families under their names, as they are filled.
struct Page {
    registry: Registry,
}

impl Page {
    fn gauges(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Floats::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        self.registry.register(name, help, family);
    }

    fn counters(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).inc_by(value);
        }
        self.registry.register(name, help, family);
    }
}

fn text(machines: &[MachineStatus], more: &More, now: Timestamp) -> anyhow::Result<String> {
    let mut page = Page {
        registry: Registry::with_prefix("coffre"),
    };
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    page.gauges("build", "The version that runs", [(version, 1.0)]);
    of_machines(&mut page, machines, now);
    of_last_jobs(&mut page, machines);
    of_tallies(&mut page, &more.tallies);
    let vaults = more.vault_bytes.iter();
    let vaults = vaults.map(|(vault, bytes)| (vec![("vault", vault.clone())], *bytes as f64));
    page.gauges(
        "vault_bytes",
        "Size of a vault's packs at its last clean-up by this host",
        vaults,
    );
    let mut text = String::new();
    encode(&mut text, &page.registry).context("write the metrics")?;
    Ok(text)
}

fn of_machines(page: &mut Page, machines: &[MachineStatus], now: Timestamp) {
    let named = |machine: &MachineStatus| vec![("machine", machine.machine.clone())];
    let placed = |machine: &MachineStatus| vec![("machine", machine.machine.clone()), ("vault", machine.vault.clone())];
    let level = |machine: &MachineStatus| match machine.level {
        Level::Safe => 0.0,
        Level::Warning => 1.0,
        Level::NotSafe => 2.0,
        Level::Unknown => 3.0,
    };
    page.gauges(
        "machine_level",
        "0 safe, 1 warning, 2 not safe, 3 unknown",
        machines.iter().map(|machine| (named(machine), level(machine))),
    );
    let good = || {
        machines
            .iter()
            .filter_map(|machine| Some((machine, machine.last_good.as_ref()?)))
    };
    page.gauges(
        "last_good_point_timestamp_seconds",
        "When the newest good point was taken",
        good().map(|(machine, good)| (named(machine), good.taken_at.as_second() as f64)),
    );
    page.gauges(
        "last_good_point_age_seconds",
        "How old the newest good point is",
        good().map(|(machine, good)| (named(machine), now.duration_since(good.taken_at).as_secs_f64())),
    );
    page.gauges(
        "last_good_point_size_bytes",
        "Size of the disks in the newest good point",
        good().map(|(machine, good)| (named(machine), good.size_bytes as f64)),
    );
    page.gauges(
        "points",
        "Recovery points that are known",
        machines.iter().map(|machine| (placed(machine), machine.points as f64)),
    );
    page.gauges(
        "points_stored_bytes",
        "What these points added to the vault",
        machines
            .iter()
            .map(|machine| (placed(machine), machine.stored_bytes as f64)),
    );
    page.gauges(
        "next_due_timestamp_seconds",
        "When the next backup is due",
        (machines.iter()).filter_map(|machine| Some((named(machine), machine.next_due?.as_second() as f64))),
    );
    page.gauges(
        "running",
        "1 while a job of the machine runs on this host",
        machines
            .iter()
            .map(|machine| (named(machine), f64::from(u8::from(machine.running.is_some())))),
    );
}

fn of_last_jobs(page: &mut Page, machines: &[MachineStatus]) {
    let jobs = || {
        let with_job =
            |machine: &MachineStatus| Some((vec![("machine", machine.machine.clone())], machine.last_job.clone()?));
        machines.iter().filter_map(with_job)
    };
    page.gauges(
        "last_job_duration_seconds",
        "How long the last backup took",
        jobs().filter_map(|(labels, job)| Some((labels, job.ended_at?.duration_since(job.started_at?).as_secs_f64()))),
    );
    page.gauges(
        "last_job_held_seconds",
        "How long the last backup held applications, from the first pre hook to the last post hook",
        jobs().filter_map(|(labels, job)| Some((labels, job.held_ms? as f64 / 1000.0))),
    );
    page.gauges(
        "last_job_frozen_seconds",
        "How long file systems were frozen for the last backup",
        jobs().filter_map(|(labels, job)| Some((labels, job.frozen_ms? as f64 / 1000.0))),
    );
}

fn of_tallies(page: &mut Page, tallies: &[Tally]) {
    let each = |of: fn(&Tally) -> u64| {
        let labels = |tally: &Tally| vec![("machine", tally.machine.clone()), ("outcome", tally.outcome.clone())];
        tallies
            .iter()
            .map(move |tally| (labels(tally), of(tally)))
            .collect::<Vec<_>>()
    };
    page.counters("jobs", "Jobs that have ended", each(|tally| tally.jobs));
    page.counters("jobs_read_bytes", "What they read", each(|tally| tally.read_bytes));
    page.counters(
        "jobs_changed_bytes",
        "What they found changed",
        each(|tally| tally.changed_bytes),
    );
    page.counters(
        "jobs_stored_bytes",
        "What they added to vaults",
        each(|tally| tally.stored_bytes),
    );
    page.counters(
        "jobs_duration_milliseconds",
        "How long they took",
        each(|tally| tally.took_ms),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::status::tests::{machines, now};

    #[test]
    fn metrics_say_what_status_says_and_count_what_was() {
        let tally = Tally {
            machine: "db01".to_owned(),
            outcome: "failed".to_owned(),
            jobs: 3,
            read_bytes: 1,
            changed_bytes: 2,
            stored_bytes: 4,
            took_ms: 5000,
        };
        let more = More {
            tallies: vec![tally],
            vault_bytes: BTreeMap::from([("main".to_owned(), 5 << 30)]),
        };
        let text = text(&machines(), &more, now()).unwrap();
        assert!(text.ends_with("# EOF\n"));
        // Within a family they come in any order.
        let mut lines: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with("coffre_build"))
            .collect();
        lines.sort_unstable();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
