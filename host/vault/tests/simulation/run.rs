//! One seed from its beginning to its end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coffre_vault::testing::{Dice, InPlace, SimWorld};
use coffre_vault::{Encryption, InitOptions, LeftOut, Store, SystemClock, Vault};
use jiff::Timestamp;
use tokio::time::sleep;

use crate::host::{self, Host, credential};
use crate::ledger::Ledger;
use crate::plan::{self, Plan};
use crate::{aftermath, check, cleaner, fates, reader, writer};

/// 2026-01-01.
const START_SECONDS: i64 = 1_767_225_600;
/// Looks at everything while things happen.
const LOOKS: u64 = 7;

/// What became of a seed.
pub struct Outcome {
    pub counts: BTreeMap<&'static str, u64>,
    pub wrong: Option<String>,
    /// Everything that happened.
    pub log: String,
    pub lasted: Duration,
}

/// Where caches lie: in memory if there is a place, since thousands of seeds write them.
fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    }
}

pub fn run(seed: u64, left_out: Option<LeftOut>) -> Outcome {
    let folder = tempfile::Builder::new()
        .prefix("coffre-simulation-")
        .tempdir_in(scratch());
    let folder = folder.expect("a folder for the hosts' caches");
    // Threads would race.
    let _in_place = InPlace::begin();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let plan = Arc::new(Plan::of_seed(seed, left_out));
    runtime.block_on(async {
        let start = Timestamp::from_second(START_SECONDS).expect("a time");
        let world = SimWorld::new(&plan.dice, start, plan.store_skew);
        let ledger = Ledger::new(&world);
        everything(&plan, &ledger, folder.path()).await;
        Outcome {
            counts: ledger.counts(),
            wrong: ledger.take_wrong(),
            log: format!("{plan:#?}\n{}", world.log()),
            lasted: world.elapsed(),
        }
    })
}

async fn everything(plan: &Arc<Plan>, ledger: &Arc<Ledger>, folder: &Path) {
    let init = InitOptions {
        encryption: Encryption::Encrypted {
            slots: vec![("main".to_owned(), credential())],
        },
        recovery_key: false,
        host: "simulation".to_owned(),
    };
    let place = Store::over(ledger.world.calm("init"), "");
    let tuning = host::tuning(Arc::new(SystemClock), plan);
    Vault::init_tuned(place, init, &tuning).await.expect("a vault is made");
    let names = ["ada", "bob", "cyd"];
    let hosts: Vec<Arc<Host>> = plan
        .skews
        .iter()
        .zip(names)
        .map(|(skew, name)| Host::new(name, *skew, plan, ledger, folder.join(name)))
        .collect();
    act(plan, ledger, &hosts, folder).await;
    if ledger.is_wrong() {
        return;
    }
    ledger.world.note(
        "everybody",
        "is dead; what they sent arrives, and then nothing goes wrong any more",
    );
    hosts.iter().for_each(|host| host.kill_all());
    sleep(plan.until_all_has_arrived()).await;
    check::check(plan, ledger, folder, true).await;
    if !ledger.is_wrong() {
        aftermath::aftermath(plan, ledger, folder).await;
    }
}

/// Everybody does what they do, and now and then somebody looks whether all is well.
async fn act(plan: &Arc<Plan>, ledger: &Arc<Ledger>, hosts: &[Arc<Host>], folder: &Path) {
    let mut actors = tokio::task::JoinSet::new();
    for (number, host) in hosts.iter().enumerate() {
        let dice = plan.dice.of(&host.name);
        let machine = if plan.shared_machine {
            "machine-0".to_owned()
        } else {
            format!("machine-{number}")
        };
        actors.spawn(writer::run(Arc::clone(host), machine, dice.of("writer")));
        actors.spawn(fates::run(Arc::clone(host), dice.of("fates")));
        actors.spawn(reader::run(Arc::clone(host), dice.of("reader")));
        if plan.clocks_jump {
            actors.spawn(jump(Arc::clone(host), dice.of("clock")));
        }
    }
    for number in 0..plan.cleaners {
        let host = &hosts[number as usize % hosts.len()];
        actors.spawn(cleaner::run(Arc::clone(host), plan.dice.nth("cleaner", number)));
    }
    let mut dice = plan.dice.of("looks");
    let mut looks = 0;
    let mut next = Box::pin(sleep(Duration::from_secs(1)));
    loop {
        tokio::select! {
            biased;
            ended = actors.join_next() => match ended {
                Some(Ok(())) => {}
                Some(Err(panicked)) => ledger.wrong(format!("somebody panicked: {panicked}")),
                None => return,
            },
            () = &mut next, if looks < LOOKS => {
                looks += 1;
                check::check(plan, ledger, folder, dice.once_in(3)).await;
                next = Box::pin(sleep(dice.duration(Duration::from_secs(1), 4 * plan.longest_rest)));
            }
        }
        if ledger.is_wrong() {
            return;
        }
    }
}

/// A clock that is set anew a few times.
async fn jump(host: Arc<Host>, mut dice: Dice) {
    for _ in 0..dice.within(1..4) {
        crate::host::rest(&mut dice, &host.plan).await;
        let skew = plan::skew(&mut dice);
        host.world.note(&host.name, format!("its clock is set to {skew:#} off"));
        host.clock.set(skew);
    }
}
