//! `coffre key list|add|remove|rotate VAULT`.

mod new;
mod shape;

use anyhow::Context;
use coffre_engine::config::KeyKind;
use coffre_vault::{KeySlot, KeysError, RecoveryKey, Rotation};

use crate::args::{AddKeyArgs, Global, KeyCommand, RemoveKeyArgs, RotateKeyArgs};
use crate::exit::Exit;
use crate::key::{RecoveryFile, usual_label};
use crate::output::{Output, count};
use crate::{screen, stop, wire};
use new::NewKey;
use shape::{Added, KeyShape, Listed, Removed, RotatedShape, listing};

const REVOKES_NOTHING: &str = "Whoever had this key may have kept what it opened. To shut them out of what is written from \
                               now on: coffre key rotate";

pub async fn run(command: &KeyCommand, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    match command {
        KeyCommand::List { vault, all } => stop::or_dropped(list(vault, *all, global, output)).await,
        // Each is one create or delete at the end of its preparations: nothing is gained by dropping it half-way.
        KeyCommand::Add(args) => add(args, global, output).await,
        KeyCommand::Remove(args) => remove(args, global, output).await,
        KeyCommand::Rotate(args) => rotate(args, global, output).await,
    }
}

async fn list(vault: &str, all: bool, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let keys = wire::open_keys(&config, vault).await?;
    let doing = || format!("cannot list the keys of vault `{vault}`");
    let mut slots = keys.list().await.with_context(doing)?;
    let older = if keys.generation() > 0 && (all || output.json) {
        keys.list_older().await.with_context(doing)?
    } else {
        Vec::new()
    };
    if all {
        slots.extend(older.iter().cloned());
    }
    output.result(listing(&slots))?;
    match keys.generation() {
        0 => {}
        newest if all => output.line(format!("generation {newest} is the newest"))?,
        newest => output.line(format!("generation {newest}; --all shows the older ones too"))?,
    }
    if !all {
        slots.extend(older);
    }
    output.document(&Listed {
        vault: vault.to_owned(),
        generation: keys.generation(),
        keys: slots.iter().map(KeyShape::from).collect(),
    })?;
    Ok(Exit::Done)
}

async fn add(args: &AddKeyArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let new = new::fetch(&args.new)?;
    let keys = wire::open_keys(&config, &args.vault).await?;
    let doing = |label: &str| format!("cannot add key `{label}` to vault `{}`", args.vault);
    let mut document = Added {
        vault: args.vault.clone(),
        generation: keys.generation(),
        added: Vec::new(),
        key_files_made: NewKey::files_made(&new),
        recovery_key: None,
        recovery_key_file: None,
    };
    for key in &new {
        let added = keys.add(&key.label, &key.credential).await;
        let slot = added
            .inspect_err(|_| key.say_what_stays())
            .with_context(|| doing(&key.label))?;
        said_added(&slot, &args.vault, output)?;
        document.added.push(KeyShape::from(&slot));
    }
    if args.recovery_key || args.recovery_key_file.is_some() {
        let taken = keys.list().await.with_context(|| doing("recovery"))?;
        let label = free_label(|label| taken.iter().any(|slot| slot.label() == Some(label)));
        let recovery = Recovery::make(args.recovery_key_file.as_deref())?;
        let slot = match keys.add(&label, &recovery.key.credential()).await {
            Ok(slot) => slot,
            Err(error) => {
                recovery.discard();
                return Err(error).with_context(|| doing(&label));
            }
        };
        said_added(&slot, &args.vault, output)?;
        document.added.push(KeyShape::from(&slot));
        (document.recovery_key, document.recovery_key_file) = recovery.hand_over(output)?;
    }
    output.document(&document)?;
    Ok(Exit::Done)
}

fn said_added(slot: &KeySlot, vault: &str, output: &Output) -> anyhow::Result<()> {
    let label = slot.label().unwrap_or_default();
    output.line(format!("Key `{label}` opens vault `{vault}` (slot {})", slot.name))
}

async fn remove(args: &RemoveKeyArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let mut keys = wire::open_keys(&config, &args.vault).await?;
    let removed = keys.remove(&args.key, args.force).await;
    let removed = removed.with_context(|| format!("cannot remove key `{}` of vault `{}`", args.key, args.vault))?;
    let name = removed.label().unwrap_or(&removed.name);
    output.line(format!("Removed key `{name}` of vault `{}`", args.vault))?;
    if removed.label().is_some() && removed.generation == keys.generation() {
        output.line(REVOKES_NOTHING)?;
    }
    output.document(&Removed {
        vault: args.vault.clone(),
        removed: KeyShape::from(&removed),
    })?;
    Ok(Exit::Done)
}

async fn rotate(args: &RotateKeyArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let new = new::fetch(&args.new)?;
    let mut keys = wire::open_keys(&config, &args.vault).await?;
    let mut rotation = Rotation {
        keys: new
            .iter()
            .map(|key| (key.label.clone(), key.credential.clone()))
            .collect(),
        drop_others: args.drop_others,
        host: wire::host(),
    };
    let mut recovery = None;
    if !args.no_recovery_key {
        let made = Recovery::make(args.recovery_key_file.as_deref())?;
        let label =
            free_label(|label| label == keys.label_in_use() || rotation.keys.iter().any(|(new, _)| new == label));
        rotation.keys.push((label, made.key.credential()));
        recovery = Some(made);
    }
    let rotated = match keys.rotate(&rotation).await {
        Ok(rotated) => rotated,
        Err(error) => {
            new.iter().for_each(NewKey::say_what_stays);
            match recovery {
                // It may have happened, and then this is the recovery key.
                Some(recovery) if matches!(error, KeysError::Unknown { .. }) => recovery.say_that_it_stays(),
                Some(recovery) => recovery.discard(),
                None => {}
            }
            return Err(error).with_context(|| format!("cannot rotate the keys of vault `{}`", args.vault));
        }
    };
    wire::see_generation(&config, &args.vault, &keys, rotated.generation);
    output.line(format!(
        "Vault `{}` has a new key, generation {}. It opens with: {}",
        args.vault,
        rotated.generation,
        rotated.carried.join(", ")
    ))?;
    if !rotated.dropped.is_empty() {
        output.line(format!("Left behind: {}", rotated.dropped.join(", ")))?;
    }
    if !rotated.added_meanwhile.is_empty() {
        screen::note(&format!(
            "warning: {} left behind that somebody added just now: {}; add it again",
            count(rotated.added_meanwhile.len(), "key"),
            rotated.added_meanwhile.join(", ")
        ));
    }
    let (recovery_key, recovery_key_file) = match recovery {
        Some(recovery) => recovery.hand_over(output)?,
        None => (None, None),
    };
    output.line("What was written before stays sealed with the old key; sessions that run now still use it.")?;
    output.document(&RotatedShape {
        vault: args.vault.clone(),
        generation: rotated.generation,
        carried: rotated.carried,
        dropped: rotated.dropped,
        key_files_made: NewKey::files_made(&new),
        recovery_key,
        recovery_key_file,
    })?;
    Ok(Exit::Done)
}

/// `recovery`, or the first such label with a number that nobody has.
fn free_label(is_taken: impl Fn(&str) -> bool) -> String {
    let usual = usual_label(KeyKind::RecoveryKey);
    let mut label = usual.to_owned();
    let mut number = 2;
    while is_taken(&label) {
        label = format!("{usual} {number}");
        number += 1;
    }
    label
}

/// A new recovery key, and its file, which holds it before the vault knows it: a crash between the two leaves a file that
/// opens nothing, and never a vault whose recovery key nobody has.
struct Recovery {
    key: RecoveryKey,
    file: Option<RecoveryFile>,
}

impl Recovery {
    fn make(path: Option<&std::path::Path>) -> anyhow::Result<Self> {
        let key = RecoveryKey::generate();
        let mut file = path.map(RecoveryFile::make).transpose()?;
        if let Some(file) = &mut file
            && let Err(error) = file.write(&key)
        {
            let doing = format!("cannot write the recovery key into {}", file.path().display());
            return Err(error).context(doing);
        }
        Ok(Self { key, file })
    }

    fn discard(self) {
        if let Some(file) = self.file {
            file.discard();
        }
    }

    fn say_that_it_stays(&self) {
        if let Some(file) = &self.file {
            screen::note(&format!(
                "note: {} stays: if the keys were rotated after all, it is the recovery key",
                file.path().display()
            ));
        }
    }

    /// Shows the key, or says where it is; returns what belongs into the document.
    fn hand_over(self, output: &Output) -> anyhow::Result<(Option<String>, Option<std::path::PathBuf>)> {
        match self.file {
            Some(file) => {
                let path = file.path().to_owned();
                output.line(format!(
                    "Recovery key in {}: move it away from this machine",
                    path.display()
                ))?;
                Ok((None, Some(path)))
            }
            None => {
                output.result(format!(
                    "\n  recovery key  {}\n\nIt is not shown again and not kept anywhere: write it down now, and keep it away \
                     from this machine.\n",
                    self.key
                ))?;
                Ok((Some(self.key.to_string()), None))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovery_key_gets_a_label_that_is_free() {
        assert_eq!(free_label(|_| false), "recovery");
        assert_eq!(free_label(|label| label == "recovery"), "recovery 2");
        assert_eq!(
            free_label(|label| ["recovery", "recovery 2"].contains(&label)),
            "recovery 3"
        );
    }
}
