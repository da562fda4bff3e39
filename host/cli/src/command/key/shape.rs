//! What `coffre key` prints: tables and JSON.

use std::path::PathBuf;

use coffre_vault::{KeySlot, SlotKind, SlotState};
use jiff::Timestamp;
use serde::Serialize;

use crate::output::{table, time};

#[derive(Serialize)]
pub struct Listed {
    pub vault: String,
    /// The newest one.
    pub generation: u32,
    pub keys: Vec<KeyShape>,
}

#[derive(Serialize)]
pub struct Added {
    pub vault: String,
    pub generation: u32,
    pub added: Vec<KeyShape>,
    pub key_files_made: Vec<PathBuf>,
    pub recovery_key: Option<String>,
    pub recovery_key_file: Option<PathBuf>,
}

#[derive(Serialize)]
pub struct Removed {
    pub vault: String,
    pub removed: KeyShape,
}

#[derive(Serialize)]
pub struct RotatedShape {
    pub vault: String,
    pub generation: u32,
    pub carried: Vec<String>,
    pub dropped: Vec<String>,
    pub key_files_made: Vec<PathBuf>,
    pub recovery_key: Option<String>,
    pub recovery_key_file: Option<PathBuf>,
}

#[derive(Serialize)]
pub struct KeyShape {
    slot: String,
    generation: u32,
    in_use: bool,
    /// `valid`, `foreign`, `unreadable`.
    state: &'static str,
    label: Option<String>,
    kind: Option<&'static str>,
    created_at: Option<Timestamp>,
    /// Why it is unreadable.
    what: Option<String>,
}

impl From<&KeySlot> for KeyShape {
    fn from(slot: &KeySlot) -> Self {
        let mut shape = Self {
            slot: slot.name.clone(),
            generation: slot.generation,
            in_use: slot.in_use,
            state: "valid",
            label: None,
            kind: None,
            created_at: None,
            what: None,
        };
        match &slot.state {
            SlotState::Valid {
                label,
                kind,
                created_at,
            } => {
                shape.label = Some(label.clone());
                shape.kind = Some(kind_word(*kind));
                shape.created_at = Some(*created_at);
            }
            SlotState::Foreign { label } => {
                shape.state = "foreign";
                shape.label = Some(label.clone());
            }
            SlotState::Unreadable { what } => {
                shape.state = "unreadable";
                shape.what = Some(what.clone());
            }
        }
        shape
    }
}

fn kind_word(kind: SlotKind) -> &'static str {
    match kind {
        SlotKind::Key => "key",
        SlotKind::Passphrase => "passphrase",
        SlotKind::RecoveryKey => "recovery-key",
    }
}

pub fn listing(slots: &[KeySlot]) -> String {
    let rows = slots.iter().map(|slot| {
        let (label, kind, created, note) = match &slot.state {
            SlotState::Valid {
                label,
                kind,
                created_at,
            } => {
                let note = if slot.in_use { "opened the vault just now" } else { "" };
                (printable(label), kind_word(*kind), time(*created_at), note.to_owned())
            }
            SlotState::Foreign { label } => (
                printable(label),
                "-",
                "-".to_owned(),
                "opens nothing: a rotation broke off, or somebody put it there".to_owned(),
            ),
            SlotState::Unreadable { what } => ("-".to_owned(), "-", "-".to_owned(), format!("unreadable: {what}")),
        };
        vec![
            label,
            kind.to_owned(),
            slot.generation.to_string(),
            slot.name.clone(),
            created,
            note,
        ]
    });
    table(
        &["LABEL", "KIND", "GENERATION", "SLOT", "CREATED", "NOTE"],
        &[2],
        rows.collect(),
    )
}

/// A planted slot's label may hold anything, also what a terminal obeys.
fn printable(label: &str) -> String {
    label
        .chars()
        .filter(|character| !character.is_control())
        .take(64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_listed_with_what_is_known_of_each() {
        let slot = |name: &str, state| KeySlot {
            name: name.to_owned(),
            generation: 1,
            in_use: name.starts_with('a'),
            state,
        };
        let slots = [
            slot(
                "a000000000000000",
                SlotState::Valid {
                    label: "key".to_owned(),
                    kind: SlotKind::Key,
                    created_at: Timestamp::UNIX_EPOCH,
                },
            ),
            slot(
                "b000000000000000",
                SlotState::Foreign {
                    label: "evil\u{1b}[2J".to_owned(),
                },
            ),
            slot(
                "c000000000000000",
                SlotState::Unreadable {
                    what: "it is cut short".to_owned(),
                },
            ),
        ];
        let shown = listing(&slots).replace(&time(Timestamp::UNIX_EPOCH), "1970-01-01 00:00:00");
        insta::assert_snapshot!(shown, @r"
        LABEL    KIND  GENERATION  SLOT              CREATED              NOTE
        key      key            1  a000000000000000  1970-01-01 00:00:00  opened the vault just now
        evil[2J  -              1  b000000000000000  -                    opens nothing: a rotation broke off, or somebody put it there
        -        -              1  c000000000000000  -                    unreadable: it is cut short
        ");
    }
}
