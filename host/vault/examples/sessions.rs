//! What a start and a clean-up cost when a vault is old: `cargo xtask bench sessions`.
//!
//! First the vault is in memory and counts what it is asked for: requests, and objects that listings show. Then the same vault
//! lies in a local folder, and a process of its own tells the seconds and the memory that it takes. What lives is the same
//! whatever the age; a vault that costs more when it is older fails.

// The output of this program is for the person at the terminal who started it.
#![allow(clippy::print_stdout)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use coffre_vault::testing::FaultStore;
use coffre_vault::testing::synthetic::{self, Past};
use coffre_vault::{
    ChunkKind, CleanPlan, Encoder, Encryption, InitOptions, OpenOptions, PointDraft, SessionPlan, Store, StoreConfig,
    StoreOptions, Vault,
};
use jiff::{SignedDuration, Timestamp};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MACHINE: &str = "web01";
/// Points that live, whatever the past.
const LIVE: u32 = 20;
/// One clean-up a week of daily backups.
const SESSIONS_PER_CLEAN: u32 = 7;
/// Steps are done twice, by a host that is new and then by the same again.
const HOSTS: [&str; 2] = ["new", "same again"];
const STEPS: [&str; 4] = ["open", "back up one chunk", "list points", "clean"];

/// A new host finds the end of the clean-up log by doubling and halving: so many requests more for each doubling of the age.
const NEW_HOST_REQUESTS_PER_DOUBLING: f64 = 2.0;
/// Of so many rounds the fastest counts, since other programs may run beside this one.
const ROUNDS: usize = 3;
/// A local vault has one folder for each register, whose names are read however many they are: a millisecond for some thousands.
const SECONDS_MORE_LIMIT: f64 = 0.25;
const PEAK_RATIO_LIMIT: f64 = 1.1;

/// What one step was asked for by one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    requests: usize,
    listed: usize,
}

struct Cost {
    sessions: u32,
    /// By host, then by step.
    asked: Vec<Asked>,
    seconds: Vec<f64>,
    peak_bytes: u64,
}

fn main() -> Result<()> {
    coffre_vault::keep_few_heaps();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match text.as_slice() {
        ["step", folder] => runtime.block_on(in_folder(Path::new(folder))),
        [folder, ages @ ..] => {
            let mut costs = Vec::new();
            for age in ages {
                let folder = Path::new(folder).join(age);
                if folder.exists() {
                    fs::remove_dir_all(&folder)?;
                }
                fs::create_dir_all(&folder)?;
                let cost = runtime.block_on(measure(age.parse()?, &folder));
                fs::remove_dir_all(&folder)?;
                costs.push(cost?);
            }
            compare(&costs)
        }
        [] => Err("usage: sessions FOLDER SESSIONS …".into()),
    }
}

async fn measure(sessions: u32, folder: &Path) -> Result<Cost> {
    let store = FaultStore::in_memory();
    let over = || Store::over(store.clone(), "");
    init(over()).await?;
    let vault = open(over(), &folder.join("writer")).await?;
    let machine = vault.machine_or_create(MACHINE).await?;
    let past = Past {
        sessions,
        sessions_per_clean: SESSIONS_PER_CLEAN,
    };
    synthetic::write_past(&vault, machine, MACHINE, past).await;
    for number in 0..LIVE {
        back_up(&vault, number, folder).await?;
    }
    drop(vault);
    copy(&store, &folder.join("vault")).await?;

    let mut asked = Vec::new();
    let mut note = || {
        let requests = store.seen().len();
        let listed = store.listed();
        store.forget_seen();
        asked.push(Asked { requests, listed });
    };
    store.forget_seen();
    for host in HOSTS {
        steps(over, host, folder, &mut note).await?;
    }
    let (mut seconds, mut peak_bytes) = timed(folder)?;
    for _ in 1..ROUNDS {
        let (again, peak) = timed(folder)?;
        seconds
            .iter_mut()
            .zip(again)
            .for_each(|(known, new)| *known = known.min(new));
        peak_bytes = peak_bytes.min(peak);
    }
    let cost = Cost {
        sessions,
        asked,
        seconds,
        peak_bytes,
    };
    print(&cost);
    Ok(cost)
}

/// Everything that is measured, in the order of [`STEPS`].
async fn steps(over: impl Fn() -> Store, host: &str, folder: &Path, mut note: impl FnMut()) -> Result<()> {
    let vault = open(over(), &folder.join("host")).await?;
    note();
    back_up(&vault, LIVE + host.len() as u32, folder).await?;
    note();
    let machine = vault.machine(MACHINE).await?.ok_or("the machine is there")?;
    let points = vault.points(machine).await?;
    if points.len() < LIVE as usize {
        return Err(format!("{} points", points.len()).into());
    }
    note();
    vault.clean(&CleanPlan::default(), &|_| {}).await?;
    note();
    Ok(())
}

/// The vault as files, on disk before anything is timed: a put is, too, and would wait for all of them.
async fn copy(store: &FaultStore, folder: &Path) -> Result<()> {
    for name in store.names("").await {
        let path = folder.join(&name);
        let parent = path.parent().ok_or("objects lie in folders")?;
        if !parent.exists() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, store.bytes(&name).await)?;
    }
    let synced = Command::new("sync").arg("-f").arg(folder).status()?;
    if synced.success() {
        Ok(())
    } else {
        Err("sync failed".into())
    }
}

/// Runs the steps in a process of its own: seconds by host and step, and the peak of its memory.
fn timed(folder: &Path) -> Result<(Vec<f64>, u64)> {
    fs::remove_dir_all(folder.join("host"))?;
    let output = Command::new(std::env::current_exe()?)
        .arg("step")
        .arg(folder)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err("the steps in a folder failed".into());
    }
    let text = String::from_utf8(output.stdout)?;
    let mut numbers = text.split_whitespace();
    let peak = numbers.next().ok_or("no peak")?.parse()?;
    let seconds = numbers.map(str::parse).collect::<std::result::Result<_, _>>()?;
    Ok((seconds, peak))
}

async fn in_folder(folder: &Path) -> Result<()> {
    let place = folder.join("vault");
    let url = url::Url::from_directory_path(&place).map_err(|()| "an absolute folder is wanted")?;
    let store = Store::connect(&StoreConfig {
        url,
        options: StoreOptions::default(),
    })?;
    let mut seconds = Vec::new();
    let mut since = Instant::now();
    let mut note = || {
        seconds.push(since.elapsed().as_secs_f64().to_string());
        since = Instant::now();
    };
    for host in HOSTS {
        steps(|| store.clone(), host, folder, &mut note).await?;
    }
    println!("{} {}", peak_bytes()?, seconds.join(" "));
    Ok(())
}

fn print(cost: &Cost) {
    println!(
        "{:>9}  {:10}  {:18} {:>9} {:>9} {:>9}",
        "sessions", "host", "step", "requests", "listed", "seconds"
    );
    let names = HOSTS.iter().flat_map(|host| STEPS.map(|step| (host, step)));
    for (((host, step), asked), seconds) in names.zip(&cost.asked).zip(&cost.seconds) {
        println!(
            "{:>9}  {host:10}  {step:18} {:>9} {:>9} {seconds:>9.3}",
            cost.sessions, asked.requests, asked.listed
        );
    }
    println!(
        "{:>9}  peak of both hosts' steps in one process: {:.1} MiB",
        cost.sessions,
        cost.peak_bytes as f64 / f64::from(1 << 20)
    );
}

/// Each age against the first.
fn compare(costs: &[Cost]) -> Result<()> {
    let mut failed = Vec::new();
    let Some((young, older)) = costs.split_first() else {
        return Err("no ages".into());
    };
    for old in older {
        let doublings = (f64::from(old.sessions) / f64::from(young.sessions)).log2().ceil();
        let names = HOSTS.iter().flat_map(|host| STEPS.map(|step| (*host, step)));
        for (at, (host, step)) in names.enumerate() {
            let name = format!("{}, {host} host: {step}", old.sessions);
            let more = if host == HOSTS[0] {
                (NEW_HOST_REQUESTS_PER_DOUBLING * doublings) as usize
            } else {
                0
            };
            let (before, now) = (young.asked[at], old.asked[at]);
            if now.requests > before.requests + more || now.listed > before.listed {
                failed.push(format!("{name} asks for {now:?} instead of {before:?}"));
            }
            let (before, now) = (young.seconds[at], old.seconds[at]);
            if now > before + SECONDS_MORE_LIMIT {
                failed.push(format!("{name} takes {now:.3} s instead of {before:.3} s"));
            }
        }
        let ratio = old.peak_bytes as f64 / young.peak_bytes as f64;
        println!(
            "{} sessions take {ratio:.3} times the memory of {}",
            old.sessions, young.sessions
        );
        if ratio > PEAK_RATIO_LIMIT {
            failed.push(format!("{}: {ratio:.3} times the memory", old.sessions));
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(failed.join("; ").into())
    }
}

async fn init(store: Store) -> Result<()> {
    let options = InitOptions {
        encryption: Encryption::None,
        recovery_key: false,
        host: String::new(),
    };
    Vault::init(store, options).await?;
    Ok(())
}

async fn open(store: Store, cache_folder: &Path) -> Result<Vault> {
    let options = OpenOptions {
        cache_folder: cache_folder.to_owned(),
        expect_id: None,
        allow_unencrypted: true,
    };
    Ok(Vault::open(store, None, options).await?)
}

async fn back_up(vault: &Vault, number: u32, folder: &Path) -> Result<()> {
    let machine = vault.machine(MACHINE).await?.ok_or("the machine is there")?;
    let plan = SessionPlan {
        machine,
        bases: Vec::new(),
        deadline: Timestamp::now() + SignedDuration::from_hours(1),
        host: "host".to_owned(),
        resumes: None,
    };
    let writer = vault.begin(plan).await?;
    let (worker, content) = (writer.clone(), number.to_le_bytes().repeat(1024));
    let id = vault.hasher().id(&content);
    tokio::task::spawn_blocking(move || worker.put(ChunkKind::Data, id, &content, &mut Encoder::new())).await??;
    writer.commit(PointDraft::default(), &folder.join("commit")).await?;
    Ok(())
}

fn peak_bytes() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("the kernel tells no peak")?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}
