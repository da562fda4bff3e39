//! Objects one by one, beside the protocol: writing what a clean-up would, opening what lies at a name.

use crate::fate::FateRecord;
use crate::gclog::{Checkpoint, Condemned, GcRecord, GcWhat, MachineCheckpoint, PackName};
use crate::ids::{MachineNumber, SessionNumber};
use crate::object::{self, FORMAT, KEYS, ObjectType, PackKey};
use crate::pack::{check_chunks, decode_piece, read_pack};
use crate::register::{MachineRecord, PointRecord, Session};
use crate::vault::Vault;
use crate::vault::format::Format;

/// A log of four records: one of each kind and one after the checkpoint. They condemn and quarantine packs that there are
/// not.
///
/// # Panics
/// If the vault does not take them.
pub async fn write_log(vault: &Vault, machine: MachineNumber) {
    let records = vault.inner.records();
    let at = records.now();
    let pack = |number| {
        PackName(PackKey {
            machine: MachineNumber::MAINTENANCE,
            session: SessionNumber(0),
            number,
        })
    };
    let condemn = |number| GcWhat::Condemn {
        packs: vec![pack(number)],
        reason: "dead".to_owned(),
    };
    let quarantine = GcWhat::Quarantine {
        packs: vec![pack(1)],
        partly: vec![pack(1)],
        chunks_lost: 2,
        reason: "damaged".to_owned(),
    };
    let checkpoint = GcWhat::Checkpoint(Checkpoint {
        machines: vec![MachineCheckpoint {
            machine,
            name: String::new(),
            decided_below: 1,
            live: vec![SessionNumber(0)],
        }],
        condemned: vec![Condemned {
            since: 0,
            packs: vec![pack(0)],
            waits_for: vec![(machine, SessionNumber(0))],
        }],
        quarantined: vec![pack(1)],
        replaced: Vec::new(),
    });
    for (number, what) in (0..).zip([condemn(0), quarantine, checkpoint, condemn(2)]) {
        let checkpoint = (number > 2).then_some(2);
        let record = GcRecord { at, checkpoint, what };
        let object = object::gclog(number);
        records
            .create(ObjectType::GcLog, &object, &record)
            .await
            .expect("the log is empty");
    }
}

/// The packs that a piece of the index lists, as in `packs/<name>`; none where it cannot be read.
pub fn packs_of_piece(vault: &Vault, object: &str, bytes: &[u8]) -> Vec<String> {
    let body = vault.inner.records().open(ObjectType::Index, object, bytes).ok();
    let listings = body.and_then(|body| decode_piece(&body).ok()).unwrap_or_default();
    listings.iter().map(|listing| listing.info.key.to_string()).collect()
}

/// Whether these bytes are whole and belong at this name, by every check that a reader makes who needs all of them. Slots
/// are opened by their own credentials and not here.
pub fn open_object(vault: &Vault, object: &str, bytes: &[u8]) -> Result<(), String> {
    let records = vault.inner.records();
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let json = |object_type| match object_type {
        ObjectType::Machine => records.open_json::<MachineRecord>(object_type, object, bytes).map(drop),
        ObjectType::Session => records.open_json::<Session>(object_type, object, bytes).map(drop),
        ObjectType::Point => records.open_json::<PointRecord>(object_type, object, bytes).map(drop),
        ObjectType::Fate => records.open_json::<FateRecord>(object_type, object, bytes).map(drop),
        _ => records.open_json::<GcRecord>(object_type, object, bytes).map(drop),
    };
    let object_type = match object.split('/').next().unwrap_or_default() {
        FORMAT => {
            let read = Format::decode(bytes).map_err(|error| told(&error))?;
            return match read.is_proven_by(&vault.inner.ring) {
                true => Ok(()),
                false => Err("its MAC is wrong".to_owned()),
            };
        }
        KEYS => return Err("a slot".to_owned()),
        "packs" => {
            let key = PackKey::parse(object.trim_start_matches("packs/")).ok_or("no pack's name")?;
            let read = read_pack(bytes, &vault.inner.ring, vault.id(), key);
            let (listing, sealer) = read.map_err(|error| told(&error))?;
            let damage = check_chunks(bytes, &listing.entries, &sealer, &vault.hasher());
            return damage.first().map_or(Ok(()), |damage| Err(told(damage)));
        }
        "index" => {
            let body = records
                .open(ObjectType::Index, object, bytes)
                .map_err(|error| told(&error))?;
            return decode_piece(&body).map(drop).map_err(|error| told(&error));
        }
        "machines" => ObjectType::Machine,
        "sessions" => ObjectType::Session,
        "points" => ObjectType::Point,
        "fates" => ObjectType::Fate,
        "gclog" => ObjectType::GcLog,
        other => return Err(format!("`{other}` is no folder of a vault")),
    };
    json(object_type).map_err(|error| told(&error))
}
