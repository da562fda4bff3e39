//! From the configuration to parts that work: stores, credentials, open vaults.

use std::sync::Arc;

use anyhow::Context;
use coffre_engine::Chain;
use coffre_engine::config::{Config, KeyConfig, KeyKind, VaultConfig};
use coffre_engine::secret::SecretSource;
use coffre_engine::state::{State, StateError};
use coffre_guard::{Guard, GuardConfig};
use coffre_vault::{
    Credential, OpenError, OpenOptions, Pace, RecoveryKey, SecretText, Store, StoreConfig, StoreOptions, Vault,
    VaultId, VaultKeys,
};
use zeroize::Zeroizing;

use crate::args::Global;
use crate::exit::{Complaint, Exit};

/// The configuration that the command line and the environment name.
pub fn config(global: &Global) -> anyhow::Result<Config> {
    let path = Config::find(global.config.as_deref())?;
    Ok(Config::load(&path)?)
}

/// The guard of this process; nothing runs before something is owed to it.
pub fn guard(config: &Config) -> Guard {
    Guard::new(GuardConfig {
        program: coffre_guard::program_beside(),
        run: config.coffre.run.clone(),
        state: config.coffre.state.clone(),
    })
}

/// An open vault under its name in the configuration.
#[derive(Clone, Debug)]
pub struct NamedVault {
    pub name: String,
    pub vault: Vault,
}

/// Opens a vault, and pins its id at the first time.
pub async fn open_vault(config: &Config, name: &str) -> anyhow::Result<NamedVault> {
    open_vault_paced(config, name, None).await
}

/// The same, where requests to its store ask first whether they may go.
pub async fn open_vault_paced(config: &Config, name: &str, pace: Option<Arc<dyn Pace>>) -> anyhow::Result<NamedVault> {
    let mut way = WayIn::find(config, name)?;
    if let Some(pace) = pace {
        way.store = way.store.paced(pace);
    }
    let options = OpenOptions {
        cache_folder: config.coffre.cache.clone(),
        expect_id: way.pinned,
        allow_unencrypted: way.settings.key.is_none(),
    };
    let opened = Vault::open(way.store.clone(), way.credential.clone(), options).await;
    let vault = way.judge(opened)?;
    let seen = way.seen_generation(vault.id())?;
    way.judge(vault.refuse_older_than(seen))?;
    way.remember(vault.id(), seen, vault.key_generation());
    Ok(NamedVault {
        name: name.to_owned(),
        vault,
    })
}

/// Opens a vault for its keys.
pub async fn open_keys(config: &Config, name: &str) -> anyhow::Result<VaultKeys> {
    let way = WayIn::find(config, name)?;
    let Some(credential) = way.credential.clone() else {
        let hint = "it is sealed with no key at all: everybody who can read its store can read its disks";
        return Err(Complaint::usage(format!("vault `{name}` is not encrypted, so it has no keys"), hint).into());
    };
    let opened = VaultKeys::open(way.store.clone(), credential, way.pinned).await;
    let keys = way.judge(opened)?;
    let seen = way.seen_generation(keys.vault())?;
    way.judge(keys.refuse_older_than(seen))?;
    way.remember(keys.vault(), seen, keys.generation());
    Ok(keys)
}

/// After a rotation by this host: from now on an older generation is refused here.
pub fn see_generation(config: &Config, name: &str, keys: &VaultKeys, generation: u32) {
    let state = State::new(&config.coffre.state);
    if let Err(error) = state.see_generation(name, keys.vault(), generation) {
        tracing::warn!(
            "generation {generation} of vault `{name}` is not pinned on this host: {}",
            Chain(&error)
        );
    }
}

/// What opening a vault takes.
struct WayIn<'a> {
    name: &'a str,
    settings: &'a VaultConfig,
    store: Store,
    credential: Option<Credential>,
    state: State,
    pinned: Option<VaultId>,
}

impl<'a> WayIn<'a> {
    fn find(config: &'a Config, name: &'a str) -> anyhow::Result<Self> {
        let settings = config.vault(name)?;
        let store = store(settings).with_context(|| format!("cannot open vault `{name}` at {}", settings.url))?;
        let key = settings.key.as_ref();
        let credential = key
            .map(credential)
            .transpose()
            .with_context(|| format!("cannot get the key of vault `{name}`"))?;
        let state = State::new(&config.coffre.state);
        let pinned = state.pinned_vault(name)?;
        Ok(Self {
            name,
            settings,
            store,
            credential,
            state,
            pinned,
        })
    }

    fn judge<T>(&self, opened: Result<T, OpenError>) -> anyhow::Result<T> {
        let doing = || format!("cannot open vault `{}` at {}", self.name, self.settings.url);
        match opened {
            Err(error @ OpenError::IdChanged { .. }) => {
                let hint = format!(
                    "somebody put another vault there, or the url changed; if that was you, remove {}",
                    self.state.vault_pin(self.name).display()
                );
                Err(error).context(Complaint {
                    exit: Some(Exit::Denied),
                    text: doing(),
                    hint: Some(hint),
                })
            }
            opened => opened.with_context(doing),
        }
    }

    fn seen_generation(&self, id: VaultId) -> anyhow::Result<u32> {
        Ok(self.state.seen_generation(self.name, id)?)
    }

    /// Reading works without a pin (a restore by somebody who may not write the state folder), so this only warns.
    fn remember(&self, id: VaultId, seen: u32, generation: u32) {
        let pin = || {
            if self.pinned.is_none() {
                self.state.pin_vault(self.name, id)?;
            }
            if generation > seen {
                self.state.see_generation(self.name, id, generation)?;
            }
            Ok::<_, StateError>(())
        };
        if let Err(error) = pin() {
            tracing::warn!("vault `{}` is not pinned on this host: {}", self.name, Chain(&error));
        }
    }
}

pub fn store(settings: &VaultConfig) -> anyhow::Result<Store> {
    let from = &settings.store;
    let secret = |source: &Option<SecretSource>| -> anyhow::Result<Option<SecretText>> {
        let Some(source) = source else {
            return Ok(None);
        };
        Ok(Some(SecretText::new(source.resolve_text()?.as_str())))
    };
    let options = StoreOptions {
        endpoint: from
            .endpoint
            .as_ref()
            .map(|url| url.as_str().trim_end_matches('/').to_owned()),
        region: from.region.clone(),
        allow_http: from.allow_http,
        ca_file: from.ca_file.clone(),
        access_key_id: secret(&from.access_key_id)?,
        secret_access_key: secret(&from.secret_access_key)?,
        session_token: None,
        account: from.account.clone(),
        account_key: secret(&from.account_key)?,
        sas_token: secret(&from.sas_token)?,
        emulator: from.emulator,
        parity: from.parity,
    };
    let config = StoreConfig {
        url: settings.url.clone(),
        options,
    };
    Ok(Store::connect(&config)?)
}

pub fn credential(key: &KeyConfig) -> anyhow::Result<Credential> {
    Ok(match key.kind {
        KeyKind::Secret => Credential::Secret(Zeroizing::new(key.source.resolve()?.bytes().to_vec())),
        KeyKind::Passphrase => Credential::Passphrase(key.source.resolve_text()?),
        KeyKind::RecoveryKey => {
            let text = key.source.resolve_text()?;
            let key: RecoveryKey = text.trim().parse().with_context(|| format!("in {}", key.source))?;
            key.credential()
        }
    })
}

/// What this host calls itself, for records that people read.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
