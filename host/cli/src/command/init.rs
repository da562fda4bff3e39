//! `coffre init VAULT`.

use std::path::PathBuf;

use anyhow::Context;
use coffre_engine::config::{Config, KeyKind};
use coffre_engine::state::State;
use coffre_vault::{Encryption, InitOptions, Initialized, Vault};
use serde::Serialize;

use crate::args::{Global, InitArgs};
use crate::exit::{Complaint, Exit};
use crate::key::{self, RecoveryFile};
use crate::output::Output;
use crate::{screen, wire};

#[derive(Serialize)]
struct Document {
    vault: String,
    url: String,
    id: String,
    encrypted: bool,
    /// A key file that was made just now.
    key_file_made: Option<PathBuf>,
    /// The recovery key itself, unless it went into a file.
    recovery_key: Option<String>,
    recovery_key_file: Option<PathBuf>,
}

/// Key file, vault, pin, recovery key, in this order: each is of no harm without the next.
///
/// Off a terminal the recovery key goes to stdout like every result. Refusing would be no safer: whoever scripts this
/// decides where stdout goes, and a vault made without its recovery key being kept is the commonest total loss. It never
/// goes to stderr, where logs are.
pub async fn run(args: &InitArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let settings = config.vault(&args.vault)?;
    let store = wire::store(settings)?;
    let mut key_file_made = None;
    let encryption = match &settings.key {
        None => Encryption::None,
        Some(key) if key.kind == KeyKind::RecoveryKey => {
            let hint = "a new vault needs a key of its own, such as key = { file = \"/etc/coffre/main.key\" }";
            return Err(Complaint::config("a vault cannot be made with a recovery key", hint).into());
        }
        Some(key) => {
            key_file_made = key::make_file_if_missing(key)?;
            let credential =
                wire::credential(key).with_context(|| format!("cannot get the key of vault `{}`", args.vault))?;
            credential
                .check_new()
                .with_context(|| format!("vault `{}` cannot be made with this key", args.vault))?;
            Encryption::Encrypted {
                slots: vec![(key::usual_label(key.kind).to_owned(), credential)],
            }
        }
    };
    let encrypted = settings.key.is_some();
    if args.recovery_key_file.is_some() && !encrypted {
        let hint = "leave --recovery-key-file out; everybody who can read this vault's store can read its disks";
        return Err(Complaint::usage("a vault that is not encrypted has no recovery key", hint).into());
    }
    let file = args.recovery_key_file.as_deref().map(RecoveryFile::make).transpose()?;
    let options = InitOptions {
        encryption,
        recovery_key: encrypted,
        host: wire::host(),
    };
    let made = Vault::init(store, options).await;
    let made = match made {
        Ok(made) => made,
        Err(error) => {
            if let Some(file) = file {
                file.discard();
            }
            if let Some(path) = &key_file_made {
                screen::note(&format!(
                    "note: the new key file {} stays, for the next try",
                    path.display()
                ));
            }
            return Err(error).with_context(|| format!("cannot make vault `{}` at {}", args.vault, settings.url));
        }
    };
    let document = Document {
        vault: args.vault.clone(),
        url: settings.url.to_string(),
        id: made.id.to_string(),
        encrypted,
        key_file_made,
        recovery_key: None,
        recovery_key_file: None,
    };
    hand_over(&config, made, file, document, output)
}

/// The vault stands: from here on the recovery key is shown whatever else fails.
fn hand_over(
    config: &Config,
    made: Initialized,
    file: Option<RecoveryFile>,
    mut document: Document,
    output: &Output,
) -> anyhow::Result<Exit> {
    if let Some(key) = &made.recovery_key {
        match file.map(|mut file| file.write(key).map(|()| file.path().to_owned())) {
            Some(Ok(path)) => document.recovery_key_file = Some(path),
            Some(Err(error)) => {
                screen::note(&format!(
                    "warning: the recovery key's file cannot be written ({error}); here it is instead"
                ));
                document.recovery_key = Some(key.to_string());
            }
            None => document.recovery_key = Some(key.to_string()),
        }
    }
    output.line(format!("Made vault `{}` at {}", document.vault, document.url))?;
    output.line(format!("  id            {}", document.id))?;
    output.line(format!(
        "  encryption    {}",
        if document.encrypted {
            "on"
        } else {
            "NONE, as the configuration says"
        }
    ))?;
    if let Some(path) = &document.key_file_made {
        output.line(format!("  key file      {} (made just now)", path.display()))?;
    }
    match (&document.recovery_key, &document.recovery_key_file) {
        (Some(key), _) => output.result(format!(
            "\n  recovery key  {key}\n\nIt opens the vault when this machine and its key file are gone. It is not shown again and not kept\n\
             anywhere: write it down now, and keep it away from this machine.\n"
        ))?,
        (None, Some(path)) => {
            output.line(format!("  recovery key  in {}: move it away from this machine", path.display()))?;
        }
        (None, None) => {}
    }
    output.document(&document)?;
    State::new(&config.coffre.state)
        .pin_vault(&document.vault, made.id)
        .context("the vault is made, but this host could not pin its id")?;
    Ok(Exit::Done)
}
