//! `coffre undelete`, `coffre pin` and `coffre unpin`: one change to what becomes of one point.

use anyhow::Context;
use coffre_engine::config::Config;
use coffre_vault::{Fate, FateChange, MachineNumber, SessionNumber};
use serde::Serialize;

use super::points::{machine_in, vault_of};
use crate::args::{Global, PinArgs, PointName, UndeleteArgs, UnpinArgs};
use crate::book;
use crate::exit::Exit;
use crate::output::Output;
use crate::shape::PinShape;
use crate::wire::{self, NamedVault};

#[derive(Serialize)]
struct Document {
    vault: String,
    machine: String,
    point: u32,
    /// False: it was so already.
    changed: bool,
    /// As it is now; null where that could not be read.
    fate: Option<Fate>,
    pinned: Option<PinShape>,
}

pub async fn undelete(args: &UndeleteArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let found = find(&args.point, args.vault.as_deref(), global).await?;
    let change = (found.vault.vault.undelete(found.machine, found.number).await)
        .with_context(|| format!("cannot undelete {}", found.name))?;
    let said = match change {
        FateChange::Now => "is kept again",
        FateChange::Already => "was not forgotten",
    };
    found.tell(change, said, output).await
}

pub async fn pin(args: &PinArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let found = find(&args.point, args.vault.as_deref(), global).await?;
    let reason = args.reason.as_deref();
    let change = (found.vault.vault.pin(found.machine, found.number, reason).await)
        .with_context(|| format!("cannot pin {}", found.name))?;
    let said = match change {
        FateChange::Now => "is pinned: no policy forgets it",
        FateChange::Already => "was pinned already",
    };
    found.tell(change, said, output).await
}

pub async fn unpin(args: &UnpinArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let found = find(&args.point, args.vault.as_deref(), global).await?;
    let change = (found.vault.vault.unpin(found.machine, found.number).await)
        .with_context(|| format!("cannot unpin {}", found.name))?;
    let said = match change {
        FateChange::Now => "is not pinned any more",
        FateChange::Already => "was not pinned",
    };
    found.tell(change, said, output).await
}

/// A point by its name, which may or may not be there.
struct Found {
    config: Config,
    vault: NamedVault,
    machine: MachineNumber,
    number: SessionNumber,
    name: String,
}

async fn find(point: &PointName, vault: Option<&str>, global: &Global) -> anyhow::Result<Found> {
    let config = wire::config(global)?;
    let vault = match vault {
        Some(vault) => config.vault(vault)?.name.clone(),
        None => vault_of(&config, &point.machine)?,
    };
    let vault = wire::open_vault(&config, &vault).await?;
    let machine = machine_in(&vault, &point.machine).await?;
    Ok(Found {
        config,
        vault,
        machine,
        number: SessionNumber(point.point),
        name: format!("{}@{}", point.machine, point.point),
    })
}

impl Found {
    async fn tell(&self, change: FateChange, said: &str, output: &Output) -> anyhow::Result<Exit> {
        output.line(format!("{} {said}", self.name))?;
        // The change is made; that the point itself is damaged is for others to say.
        let point = self.vault.vault.point(self.machine, self.number).await.ok().flatten();
        let machine = self.name.rsplit_once('@').map_or("", |(machine, _)| machine);
        if let Some(point) = &point {
            book::tell(&self.config, "the change", |book| {
                book.write_point(&self.vault.name, point)
            });
        }
        output.document(&Document {
            vault: self.vault.name.clone(),
            machine: machine.to_owned(),
            point: self.number.0,
            changed: change == FateChange::Now,
            fate: point.as_ref().map(|point| point.fate),
            pinned: point.and_then(|point| point.pin.as_ref().map(PinShape::new)),
        })?;
        Ok(Exit::Done)
    }
}
