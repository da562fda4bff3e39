//! What a start costs when a vault is old: `cargo xtask bench sessions`.
//!
//! The vault is in memory and counts its requests, so the numbers are what a store would be asked, and the seconds what this
//! program takes beside.

// The output of this program is for the person at the terminal who started it.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use coffre_vault::testing::FaultStore;
use coffre_vault::testing::synthetic::{self, Past};
use coffre_vault::{
    ChunkKind, CleanPlan, Encoder, Encryption, InitOptions, OpenOptions, PointDraft, SessionPlan, Store, Vault,
};
use jiff::{SignedDuration, Timestamp};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const MACHINE: &str = "web01";
/// Points that live, whatever the past.
const LIVE: u32 = 20;
/// One clean-up a week of daily backups.
const SESSIONS_PER_CLEAN: u32 = 7;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: sessions FOLDER SESSIONS …")?;
    println!("{:>10}  {:34} {:>9} {:>9}", "sessions", "step", "requests", "seconds");
    for sessions in arguments {
        let folder = Path::new(&folder).join(&sessions);
        std::fs::create_dir_all(&folder)?;
        let result = measure(sessions.parse()?, &folder).await;
        std::fs::remove_dir_all(&folder)?;
        result?;
    }
    Ok(())
}

async fn measure(sessions: u32, folder: &Path) -> Result<()> {
    let store = FaultStore::in_memory();
    let options = InitOptions {
        encryption: Encryption::None,
        recovery_key: false,
        host: String::new(),
    };
    Vault::init(Store::over(store.clone(), ""), options).await?;
    let vault = open(&store, &folder.join("writer")).await?;
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

    let mut since = Instant::now();
    let mut note = |step: &str| {
        let requests = store.seen().len();
        println!(
            "{sessions:>10}  {step:34} {requests:>9} {:>9.3}",
            since.elapsed().as_secs_f64()
        );
        store.forget_seen();
        since = Instant::now();
    };
    store.forget_seen();
    for host in ["a new host", "the same host again"] {
        let vault = open(&store, &folder.join("host")).await?;
        note(&format!("{host}: open"));
        back_up(&vault, LIVE + host.len() as u32, folder).await?;
        note(&format!("{host}: back up one chunk"));
        vault.points(machine).await?;
        note(&format!("{host}: list points"));
        vault.clean(&CleanPlan::default(), &|_| {}).await?;
        note(&format!("{host}: clean"));
    }
    Ok(())
}

async fn open(store: &Arc<FaultStore>, cache_folder: &Path) -> Result<Vault> {
    let options = OpenOptions {
        cache_folder: cache_folder.to_owned(),
        expect_id: None,
        allow_unencrypted: true,
    };
    Ok(Vault::open(Store::over(store.clone(), ""), None, options).await?)
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
