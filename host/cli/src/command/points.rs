//! `coffre points [MACHINE]`.

use coffre_engine::config::{Config, VaultConfig};
use coffre_vault::{Fate, MachineNumber, Pin, Point};
use serde::Serialize;

use crate::args::{Global, PointsArgs};
use crate::book;
use crate::exit::{Complaint, Exit};
use crate::output::{Output, count, size, span, table, time};
use crate::shape::{PointShape, undelete_until};
use crate::wire::{self, NamedVault};

#[derive(Serialize)]
struct Document {
    points: Vec<PointShape>,
}

pub async fn run(args: &PointsArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    let mut found: Vec<(&VaultConfig, Point)> = Vec::new();
    for name in vaults(&config, args)? {
        let settings = config.vault(&name)?;
        let vault = wire::open_vault(&config, &name).await?;
        for (machine, points) in points(&vault, args.machine.as_deref()).await? {
            // Reading may be all that the caller may do; the book then stays as it is.
            if config.machine(&machine).is_ok_and(|known| known.vault == name) {
                book::points(&config, &name, &machine, &points);
            }
            found.extend(points.into_iter().map(|point| (settings, point)));
        }
    }
    if found.is_empty() {
        match &args.machine {
            Some(machine) => output.line(format!("{machine} has no recovery points"))?,
            None => output.line("there are no recovery points")?,
        }
    } else {
        output.result(listing(&found, config.vaults.len() > 1))?;
        if output.verbose > 0 {
            for (_, point) in &found {
                output.result(details(point))?;
            }
        }
    }
    let points = found
        .iter()
        .map(|(vault, point)| PointShape {
            undelete_until: undelete_until(point, vault),
            ..PointShape::new(&vault.name, point)
        })
        .collect();
    output.document(&Document { points })?;
    Ok(Exit::Done)
}

/// Where to look: the vault that was named, the machine's, or all.
fn vaults(config: &Config, args: &PointsArgs) -> anyhow::Result<Vec<String>> {
    if let Some(vault) = &args.vault {
        return Ok(vec![config.vault(vault)?.name.clone()]);
    }
    match &args.machine {
        None => Ok(config.vaults.keys().cloned().collect()),
        Some(machine) => Ok(vec![vault_of(config, machine)?]),
    }
}

/// The vault of a machine that may be gone from the configuration, as it is after a disaster on a new host.
pub fn vault_of(config: &Config, machine: &str) -> anyhow::Result<String> {
    match (config.machine(machine), config.vaults.len()) {
        (Ok(machine), _) => Ok(machine.vault.clone()),
        (Err(_), 1) => Ok(config.vaults.keys().next().cloned().unwrap_or_default()),
        (Err(unknown), _) => {
            let hint = "--vault VAULT says where to look for a machine that the configuration does not have";
            let complaint = Complaint::usage(unknown.to_string(), hint);
            Err(anyhow::Error::new(unknown).context(complaint))
        }
    }
}

/// The machine's number in a vault.
pub async fn machine_in(vault: &NamedVault, machine: &str) -> anyhow::Result<MachineNumber> {
    vault.vault.machine(machine).await?.ok_or_else(|| {
        let hint = format!(
            "`coffre points --vault {}` lists the machines and points it has",
            vault.name
        );
        Complaint::usage(format!("vault `{}` has no machine `{machine}`", vault.name), hint).into()
    })
}

async fn points(vault: &NamedVault, machine: Option<&str>) -> anyhow::Result<Vec<(String, Vec<Point>)>> {
    let mut found = Vec::new();
    for (number, name) in vault.vault.machines().await? {
        if machine.is_none_or(|wanted| wanted == name) {
            found.push((name, vault.vault.points(number).await?));
        }
    }
    Ok(found)
}

fn listing(found: &[(&VaultConfig, Point)], several_vaults: bool) -> String {
    let mut headers = vec![
        "MACHINE",
        "POINT",
        "TAKEN",
        "CONSISTENCY",
        "DISKS",
        "SIZE",
        "CHANGED",
        "STORED",
        "NOTES",
    ];
    if several_vaults {
        headers.push("VAULT");
    }
    let rows = found.iter().map(|(vault, point)| {
        let shape = PointShape::new(&vault.name, point);
        let fate = fate(point, vault);
        let serious = point
            .notes
            .iter()
            .filter(|note| note.level != coffre_vault::NoteLevel::Info)
            .count();
        let warnings = if serious > 0 {
            count(serious, "warning")
        } else {
            String::new()
        };
        let notes = [fate, warnings]
            .into_iter()
            .filter(|note| !note.is_empty())
            .collect::<Vec<_>>()
            .join(", ");
        let mut row = vec![
            point.machine.clone(),
            point.number.to_string(),
            time(point.taken_at.unwrap_or(point.committed_at)),
            shape.consistency,
            point.disks.len().to_string(),
            size(shape.size_bytes),
            size(shape.changed_bytes),
            size(shape.stored_bytes),
            notes,
        ];
        if several_vaults {
            row.push(vault.name.clone());
        }
        row
    });
    table(&headers, &[1, 4, 5, 6, 7], rows.collect())
}

/// What became of a point, in a few words; nothing of one that is just kept.
fn fate(point: &Point, vault: &VaultConfig) -> String {
    match (point.fate, &point.pin) {
        (Fate::Kept, None) => String::new(),
        (Fate::Kept, Some(Pin { reason: None, .. })) => "pinned".to_owned(),
        (
            Fate::Kept,
            Some(Pin {
                reason: Some(reason), ..
            }),
        ) => format!("pinned: {reason}"),
        (Fate::Forgotten, _) => match undelete_until(point, vault) {
            Some(until) => format!("forgotten, undelete until {}", time(until)),
            None => "forgotten".to_owned(),
        },
        (Fate::Purged, _) => "purged".to_owned(),
        (Fate::Unknown, _) => "fate unknown".to_owned(),
    }
}

/// What `-v` adds: disks, hooks and notes of one point.
pub fn details(point: &Point) -> String {
    let mut text = format!("\n{}@{}: {}", point.machine, point.number, point.consistency.reached);
    if !point.consistency.reason.is_empty() {
        text.push_str(&format!(" ({})", point.consistency.reason));
    }
    text.push('\n');
    for disk in &point.disks {
        text.push_str(&format!(
            "  disk {}: {}, changed {}, stored {}; compared by {}: {}\n",
            disk.id,
            size(disk.size_bytes),
            size(disk.changed_bytes),
            size(disk.stored_bytes),
            disk.compared.how,
            disk.compared.why,
        ));
    }
    for hook in &point.hooks {
        for (step, outcome) in [("pre", &hook.pre), ("post", &hook.post)] {
            if let Some(outcome) = outcome {
                let took = span(std::time::Duration::from_millis(outcome.duration_ms));
                let result = match &outcome.error {
                    None => "done".to_owned(),
                    Some(error) => format!("failed: {error}"),
                };
                text.push_str(&format!("  hook {} {step}: {result} in {took}\n", hook.name));
            }
        }
    }
    for note in &point.notes {
        let disk = note.disk.as_ref().map(|disk| format!("{disk}: ")).unwrap_or_default();
        text.push_str(&format!(
            "  {}: {disk}{}\n",
            format!("{:?}", note.level).to_lowercase(),
            note.text
        ));
    }
    text
}
