//! A host: its clock, its cache, and the programs that it runs one after the other or beside each other.

use std::path::PathBuf;
use std::sync::Arc;

use coffre_vault::testing::{Dice, SimStore, SimWorld, Weather};
use coffre_vault::{Clock, Credential, OpenError, OpenOptions, Store, Tuning, Vault};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::ledger::Ledger;
use crate::plan::Plan;

/// Packs of three or four blocks, so that a backup has several.
const PACK_TARGET_BYTES: usize = 4096;
/// More than a session ever fills: waiting for memory would be waiting for a clock that stands still meanwhile.
const PACKS_ALIVE: usize = 4096;
const PACKS_PER_PIECE: usize = 2;

/// What a life does that cleans up.
pub const CLEAN: &str = "clean";

/// A clock that is wrong, and by how much changes.
#[derive(Debug)]
pub struct HostClock {
    world: Arc<SimWorld>,
    skew: Mutex<SignedDuration>,
}

impl HostClock {
    pub fn set(&self, skew: SignedDuration) {
        *self.skew.lock() = skew;
    }
}

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        self.world.now() + *self.skew.lock()
    }
}

pub struct Host {
    pub name: String,
    pub clock: Arc<HostClock>,
    pub plan: Arc<Plan>,
    pub world: Arc<SimWorld>,
    pub ledger: Arc<Ledger>,
    folder: PathBuf,
    lives: Mutex<Vec<Arc<SimStore>>>,
}

impl Host {
    pub fn new(name: &str, skew: SignedDuration, plan: &Arc<Plan>, ledger: &Arc<Ledger>, folder: PathBuf) -> Arc<Self> {
        std::fs::create_dir_all(&folder).expect("the host's folder");
        let clock = HostClock {
            world: Arc::clone(&ledger.world),
            skew: Mutex::new(skew),
        };
        Arc::new(Self {
            name: name.to_owned(),
            clock: Arc::new(clock),
            plan: Arc::clone(plan),
            world: Arc::clone(&ledger.world),
            ledger: Arc::clone(ledger),
            folder,
            lives: Mutex::default(),
        })
    }

    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }

    /// A program that starts here. `mortal`: it may die at any request.
    pub fn life(&self, doing: &str, mortal: bool) -> Arc<SimStore> {
        let mut lives = self.lives.lock();
        let number = lives.len();
        let weather = Weather {
            death: if mortal { self.plan.weather.death } else { 0 },
            stall: match doing {
                CLEAN => self.plan.clean_stall,
                _ => self.plan.weather.stall,
            },
            ..self.plan.weather
        };
        let life = self.world.life(&format!("{} {doing} {number}", self.name), weather);
        lives.push(Arc::clone(&life));
        life
    }

    /// The power fails.
    pub fn kill_all(&self) {
        self.lives.lock().iter().for_each(|life| life.kill());
    }

    /// Opens the vault as a program does that starts.
    pub async fn open(&self, store: &Arc<SimStore>) -> Result<Vault, OpenError> {
        open(
            store,
            self.folder.join("cache"),
            Arc::clone(&self.clock) as Arc<dyn Clock>,
            &self.plan,
        )
        .await
    }

    /// Opens the vault with this host's cache, over a store where nothing goes wrong.
    pub async fn open_calmly(&self) -> Result<Vault, OpenError> {
        self.open(&self.world.calm("calm")).await
    }
}

pub async fn open(
    store: &Arc<SimStore>,
    cache_folder: PathBuf,
    clock: Arc<dyn Clock>,
    plan: &Plan,
) -> Result<Vault, OpenError> {
    let options = OpenOptions {
        cache_folder,
        expect_id: None,
        allow_unencrypted: false,
    };
    let place = Store::over(Arc::clone(store) as Arc<_>, "");
    Vault::open_tuned(place, Some(credential()), options, tuning(clock, plan)).await
}

pub fn tuning(clock: Arc<dyn Clock>, plan: &Plan) -> Tuning {
    Tuning {
        clock,
        pack_target_bytes: Some(PACK_TARGET_BYTES),
        packs_alive: PACKS_ALIVE,
        packs_per_piece: PACKS_PER_PIECE,
        known_key: Some(plan.key()),
        left_out: plan.left_out,
    }
}

pub fn credential() -> Credential {
    Credential::Secret((0..32).collect::<Vec<u8>>().into())
}

/// Does what a program does until it is done or dies; none when it died.
pub async fn until_death<T>(store: &SimStore, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = store.died() => None,
        done = work => Some(done),
    }
}

/// Waits between two things that somebody does.
pub async fn rest(dice: &mut Dice, plan: &Plan) {
    tokio::time::sleep(dice.duration(std::time::Duration::from_millis(200), plan.longest_rest)).await;
}
