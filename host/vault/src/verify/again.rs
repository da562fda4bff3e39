//! What a host has in memory or in its cache may have rotted in the vault since it was read: the `format` object, pieces of
//! the index, sessions. Nothing here is needed to restore with this host; the next one starts with them.

use super::damage::Findings;
use crate::object::{self, ObjectType, PackKey};
use crate::pack::decode_piece;
use crate::point::Point;
use crate::read::ReadError;
use crate::record::RECORD_LIMIT_BYTES;
use crate::register::Session;
use crate::store::StoreError;
use crate::vault::Vault;
use crate::vault::format::{FORMAT_LIMIT_BYTES, Format};

pub(super) async fn read_again(vault: &Vault, points: &[Point], findings: &mut Findings) -> Result<(), ReadError> {
    format(vault, findings).await?;
    for point in points {
        for number in 0..point.written.index_pieces {
            let piece = PackKey {
                machine: point.machine_number,
                session: point.number,
                number,
            };
            if let Err(error) = piece_of_index(vault, piece).await {
                findings.add_unread(error)?;
            }
        }
        let object = object::session(point.machine_number, point.number);
        let records = vault.inner.records();
        match records.get::<Session>(ObjectType::Session, &object).await {
            Ok(Some(_)) => {}
            Ok(None) => findings.add(&object, "it is not there", None),
            Err(error) => findings.add_unread(error)?,
        }
    }
    Ok(())
}

async fn format(vault: &Vault, findings: &mut Findings) -> Result<(), ReadError> {
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

async fn piece_of_index(vault: &Vault, piece: PackKey) -> Result<(), ReadError> {
    let object = piece.index_object();
    let damaged = |what: String| ReadError::Damaged {
        object: object.clone(),
        what,
    };
    let bytes = match vault.inner.store.get(&object, RECORD_LIMIT_BYTES).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(damaged("it is not there".to_owned())),
        Err(StoreError::TooLarge { found_bytes, .. }) => return Err(damaged(format!("it has {found_bytes} bytes"))),
        Err(error) => return Err(error.into()),
    };
    let body = vault.inner.records().open(ObjectType::Index, &object, &bytes)?;
    decode_piece(&body)
        .map(drop)
        .map_err(|error| damaged(error.to_string()))
}
