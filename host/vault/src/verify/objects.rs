//! Looking at the vault's small objects: the pieces of the index, and with all data also every record and the `format`
//! object. Some of them nobody needs to restore with this host; the next one starts with them.

use std::collections::HashSet;
use std::pin::pin;

use futures::TryStreamExt;

use super::damage::Findings;
use crate::fate;
use crate::gclog::GcLog;
use crate::ids::{MachineNumber, SessionNumber, parse_key};
use crate::object::{self, ObjectType, PackKey};
use crate::point::{Fate, Point};
use crate::read::ReadError;
use crate::record::RECORD_LIMIT_BYTES;
use crate::register::{self, Decision};
use crate::store::StoreError;
use crate::vault::Vault;
use crate::vault::format::{FORMAT_LIMIT_BYTES, Format};

/// Pieces that cannot be read, unless a repair has put others in their place.
pub(super) async fn check_pieces(
    vault: &Vault,
    log: &GcLog,
    unreadable: Vec<ReadError>,
    findings: &mut Findings,
) -> Result<(), ReadError> {
    if unreadable.is_empty() {
        return Ok(());
    }
    let superseded = superseded(vault, log).await?;
    for error in unreadable {
        match &error {
            ReadError::Damaged { object, .. } if superseded.contains(object) => {}
            _ => findings.add_unread(error)?,
        }
    }
    Ok(())
}

/// Damaged pieces of the index whose packs other pieces list, as committed maintenance says.
pub(crate) async fn superseded(vault: &Vault, log: &GcLog) -> Result<HashSet<String>, ReadError> {
    // Those that a clean-up has replaced and not deleted yet are missed by nobody either.
    let mut all: HashSet<String> = log.replaced().map(|piece| piece.index_object()).collect();
    let mut decisions = pin!(log.stream_decisions(vault.inner.records(), MachineNumber::MAINTENANCE));
    while let Some((_, decision)) = decisions.try_next().await? {
        if let Ok(Decision::Committed(point)) = decision {
            all.extend(point.content.supersedes);
        }
    }
    Ok(all)
}

/// The machines' own records. One that is damaged costs no point: every point says whose it is.
pub(super) async fn check_machines(
    vault: &Vault,
    machines: &[(MachineNumber, String)],
    findings: &mut Findings,
) -> Result<(), ReadError> {
    for (machine, name) in machines {
        if *machine == MachineNumber::MAINTENANCE {
            continue;
        }
        let (object, what) = match register::machine_record(vault.inner.records(), *machine).await {
            Ok(Some(_)) => continue,
            Ok(None) => {
                let what = "it is not there, although what came after it is";
                (object::machine(*machine), what.to_owned())
            }
            Err(ReadError::Damaged { object, what }) => (object, what),
            Err(error) => return Err(error),
        };
        let nameless = *name == register::unnamed(*machine);
        let known = match nameless {
            true => "no point says whose it is".to_owned(),
            false => format!("it is known to be `{name}`, and nothing of it is lost"),
        };
        findings.add(&object, &format!("{what} ({known})"), None);
    }
    Ok(())
}

/// The pieces that a point counts and that are not there.
pub(super) async fn missing_pieces(vault: &Vault, point: &Point) -> Result<Vec<String>, ReadError> {
    let mut missing = Vec::new();
    for number in 0..point.written.index_pieces {
        let piece = PackKey {
            machine: point.machine_number,
            session: point.number,
            number,
        };
        let object = piece.index_object();
        if !vault.inner.index.knows_piece(&piece) && vault.inner.store.size(&object).await?.is_none() {
            missing.push(object);
        }
    }
    Ok(missing)
}

/// What this host has read when it opened the vault may have rotted since.
pub(super) async fn check_format(vault: &Vault, findings: &mut Findings) -> Result<(), ReadError> {
    let what = match vault.inner.store.get(object::FORMAT, FORMAT_LIMIT_BYTES).await {
        Ok(Some(bytes)) => match Format::decode(&bytes) {
            Ok(read) if read.is_proven_by(&vault.inner.ring) => return Ok(()),
            Ok(_) => "its MAC is wrong".to_owned(),
            Err(error) => error.to_string(),
        },
        Ok(None) => "it is not there".to_owned(),
        Err(StoreError::TooLarge { found_bytes, .. }) => format!("it has {found_bytes} bytes"),
        Err(error) => return Err(error.into()),
    };
    findings.add(object::FORMAT, &what, None);
    Ok(())
}

/// Opens every record that a listing shows, also those that no point needs: whoever cleans up reads them.
pub(super) async fn check_records(vault: &Vault, findings: &mut Findings) -> Result<(), ReadError> {
    let folders = [
        ("machines", ObjectType::Machine),
        ("sessions", ObjectType::Session),
        ("points", ObjectType::Point),
        ("fates", ObjectType::Fate),
        ("gclog", ObjectType::GcLog),
    ];
    for (folder, object_type) in folders {
        for listed in vault.inner.store.list(folder).await? {
            let object = listed.object;
            let bytes = match vault.inner.store.get(&object, RECORD_LIMIT_BYTES).await {
                Ok(Some(bytes)) => bytes,
                // Listings may be stale.
                Ok(None) => continue,
                Err(StoreError::TooLarge { .. }) => {
                    findings.add(&object, "it is too large for a record", None);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            match vault.inner.records().open(object_type, &object, &bytes) {
                Ok(_) => {}
                Err(error) if error.is_damage() && is_of_purged_point(vault, &object).await => {}
                Err(error) => findings.add_unread(error)?,
            }
        }
    }
    Ok(())
}

/// Nobody needs to know what such a point was, so its record may be what it likes.
async fn is_of_purged_point(vault: &Vault, object: &str) -> bool {
    let name = object.strip_prefix("points/").and_then(|name| name.split_once('/'));
    let numbers = name.and_then(|(machine, number)| Some((parse_key(machine)?, parse_key(number)?)));
    let Some((machine, number)) = numbers else {
        return false;
    };
    let fate = fate::read(vault.inner.records(), MachineNumber(machine), SessionNumber(number)).await;
    fate.is_ok_and(|register| register.fate == Fate::Purged)
}
