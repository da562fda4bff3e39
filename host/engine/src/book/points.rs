//! The recovery points that are known here: those of this host's machines, as the vaults had them when they were last read.

use std::collections::BTreeMap;

use coffre_vault::{Fate, Note, NoteLevel, Point};
use jiff::Timestamp;
use rusqlite::{Connection, ToSql, params};
use serde::{Deserialize, Serialize};

use super::{Book, BookError, Sql, from_json, from_micros, to_micros};
use crate::machine::Consistency;

/// What is remembered of a point: what people ask for of many, not what a restore needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnownPoint {
    /// The vault's name in the config.
    pub vault: String,
    pub machine: String,
    pub number: u32,
    /// The snapshot's instant; where the point does not say it, the commit's.
    pub taken_at: Timestamp,
    pub committed_at: Timestamp,
    pub fate: Fate,
    pub forgotten_since: Option<Timestamp>,
    pub pinned: bool,
    pub reached: Consistency,
    pub wanted: Consistency,
    pub reason: String,
    pub held_ms: Option<u64>,
    pub frozen_ms: Option<u64>,
    pub size_bytes: u64,
    pub read_bytes: u64,
    pub changed_bytes: u64,
    pub stored_bytes: u64,
    pub disks: Vec<KnownDisk>,
    /// Warnings and errors.
    pub notes: Vec<Note>,
    pub job: Option<String>,
    pub host: String,
}

/// One disk of a [`KnownPoint`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnownDisk {
    pub id: String,
    pub label: String,
    pub size_bytes: u64,
    pub changed_bytes: u64,
    pub stored_bytes: u64,
    /// As [`coffre_vault::ComparedHow`] is shown.
    pub compared: String,
}

impl KnownPoint {
    pub fn new(vault: &str, point: &Point) -> Self {
        let sum = |of: fn(&coffre_vault::PointDisk) -> u64| point.disks.iter().map(of).sum();
        let serious = |note: &&Note| note.level > NoteLevel::Info;
        Self {
            vault: vault.to_owned(),
            machine: point.machine.clone(),
            number: point.number.0,
            taken_at: point.taken_at.unwrap_or(point.committed_at),
            committed_at: point.committed_at,
            fate: point.fate,
            forgotten_since: point.forgotten_since,
            pinned: point.pin.is_some(),
            reached: point.consistency.reached,
            wanted: point.consistency.wanted,
            reason: point.consistency.reason.clone(),
            held_ms: point.held_ms,
            frozen_ms: point.frozen_ms,
            size_bytes: sum(|disk| disk.size_bytes),
            read_bytes: sum(|disk| disk.read_bytes),
            changed_bytes: sum(|disk| disk.changed_bytes),
            stored_bytes: point.written.stored_bytes,
            disks: (point.disks.iter())
                .map(|disk| KnownDisk {
                    id: disk.id.clone(),
                    label: disk.label.clone(),
                    size_bytes: disk.size_bytes,
                    changed_bytes: disk.changed_bytes,
                    stored_bytes: disk.stored_bytes,
                    compared: disk.compared.how.to_string(),
                })
                .collect(),
            notes: point.notes.iter().filter(serious).cloned().collect(),
            job: point.job.clone(),
            host: point.host.clone(),
        }
    }
}

/// The newest restorable point of a machine in a vault that has reached this much, and all that lie beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    pub vault: String,
    pub machine: String,
    pub reached: Consistency,
    pub number: u32,
    pub taken_at: Timestamp,
    pub size_bytes: u64,
}

/// What a machine has in a vault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shelf {
    /// Points that are kept or can still be undeleted.
    pub points: u64,
    /// What they added to the vault.
    pub stored_bytes: u64,
}

/// A vault's name and a machine's.
type Place = (String, String);

impl Book {
    /// All points of a machine in a vault, just read there. Others that were known of it are gone.
    pub fn write_points(&self, vault: &str, machine: &str, points: &[Point], now: Timestamp) -> Result<(), BookError> {
        let known: Vec<KnownPoint> = (points.iter())
            .filter(|point| point.fate != Fate::Purged)
            .map(|point| KnownPoint::new(vault, point))
            .collect();
        let documents = known.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        self.write("write a machine's points", |book| {
            let numbers = known
                .iter()
                .map(|point| point.number.to_string())
                .collect::<Vec<_>>()
                .join(",");
            let gone = format!("DELETE FROM point WHERE vault = ?1 AND machine = ?2 AND number NOT IN ({numbers})");
            book.execute(&gone, [vault, machine])?;
            for (point, document) in known.iter().zip(&documents) {
                insert(book, point, document)?;
            }
            let scanned = "INSERT OR REPLACE INTO scan (vault, machine, at) VALUES (?1, ?2, ?3)";
            book.execute(scanned, params![vault, machine, to_micros(now)]).map(drop)
        })
    }

    /// One point that was made or changed. It replaces what was known of it.
    pub fn write_point(&self, vault: &str, point: &Point) -> Result<(), BookError> {
        let known = KnownPoint::new(vault, point);
        if known.fate == Fate::Purged {
            return self.drop_point(vault, &known.machine, known.number);
        }
        let document = encode(&known)?;
        self.write("write a point", |book| insert(book, &known, &document))
    }

    /// A point that is purged.
    pub fn drop_point(&self, vault: &str, machine: &str, number: u32) -> Result<(), BookError> {
        self.write("drop a point", |book| {
            let gone = "DELETE FROM point WHERE vault = ?1 AND machine = ?2 AND number = ?3";
            book.execute(gone, params![vault, machine, number]).map(drop)
        })
    }

    /// All points of a machine in a vault that are known, oldest first.
    pub fn points(&self, vault: &str, machine: &str) -> Result<Vec<KnownPoint>, BookError> {
        self.read("read a machine's points", |book| {
            let query = "SELECT document FROM point WHERE vault = ?1 AND machine = ?2 ORDER BY number";
            documents(book, query, params![vault, machine])
        })
    }

    /// When all of a machine's points were last read in a vault; none: never, so that what is known may be a part.
    pub fn scans(&self) -> Result<BTreeMap<Place, Timestamp>, BookError> {
        self.read("read when points were last read", |book| {
            let mut query = book.prepare("SELECT vault, machine, at FROM scan")?;
            let rows = query.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), from_micros(2, row.get(2)?)?)))?;
            rows.collect()
        })
    }

    /// How large a vault's packs are together, as a clean-up has just counted them.
    pub fn write_vault(&self, vault: &str, bytes: u64, at: Timestamp) -> Result<(), BookError> {
        self.write("write a vault's size", |book| {
            let command = "INSERT OR REPLACE INTO vault (name, bytes, at) VALUES (?1, ?2, ?3)";
            book.execute(command, params![vault, clipped(bytes), to_micros(at)])
                .map(drop)
        })
    }

    /// The size of each vault at its last clean-up by this host.
    pub fn vault_bytes(&self) -> Result<BTreeMap<String, u64>, BookError> {
        self.read("read the vaults' sizes", |book| {
            let mut query = book.prepare("SELECT name, bytes FROM vault")?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
    }

    /// The newest restorable point of each machine, vault and worth.
    pub fn newest(&self) -> Result<Vec<Newest>, BookError> {
        self.read("read the newest points", |book| {
            // SQLite takes the other columns from the row that has the maximum.
            let mut query = book.prepare(
                "SELECT vault, machine, reached, number, max(taken), size FROM point WHERE kept = 1
                 GROUP BY vault, machine, reached",
            )?;
            let rows = query.query_map([], |row| {
                Ok(Newest {
                    vault: row.get(0)?,
                    machine: row.get(1)?,
                    reached: worth(row.get(2)?)?,
                    number: row.get(3)?,
                    taken_at: from_micros(4, row.get(4)?)?,
                    size_bytes: row.get(5)?,
                })
            })?;
            rows.collect()
        })
    }

    /// What each machine has in each vault.
    pub fn shelves(&self) -> Result<BTreeMap<Place, Shelf>, BookError> {
        self.read("count points", |book| {
            let mut query =
                book.prepare("SELECT vault, machine, count(*), sum(stored) FROM point GROUP BY vault, machine")?;
            let rows = query.query_map([], |row| {
                let shelf = Shelf {
                    points: row.get(2)?,
                    stored_bytes: row.get(3)?,
                };
                Ok(((row.get(0)?, row.get(1)?), shelf))
            })?;
            rows.collect()
        })
    }
}

fn insert(book: &Connection, point: &KnownPoint, document: &str) -> Sql<()> {
    let command = "INSERT INTO point (vault, machine, number, taken, kept, reached, size, stored, document)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                   ON CONFLICT DO UPDATE SET (taken, kept, reached, size, stored, document) = (?4, ?5, ?6, ?7, ?8, ?9)
                   WHERE document <> ?9";
    let values = params![
        point.vault,
        point.machine,
        point.number,
        to_micros(point.taken_at),
        i64::from(matches!(point.fate, Fate::Kept | Fate::Unknown)),
        number(point.reached),
        clipped(point.size_bytes),
        clipped(point.stored_bytes),
        document,
    ];
    book.execute(command, values).map(drop)
}

fn documents(book: &Connection, query: &str, values: &[&dyn ToSql]) -> Sql<Vec<KnownPoint>> {
    let mut query = book.prepare(query)?;
    let rows = query.query_map(values, |row| {
        let text: String = row.get(0)?;
        from_json(0, &text)
    })?;
    rows.collect()
}

fn encode(point: &KnownPoint) -> Result<String, BookError> {
    let what = "a point";
    serde_json::to_string(point).map_err(|source| BookError::Encode { what, source })
}

/// SQLite's integers have a sign; more than 8 EiB is damage, not a disk.
fn clipped(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn number(reached: Consistency) -> i64 {
    match reached {
        Consistency::Crash => 0,
        Consistency::FileSystem => 1,
        Consistency::Application => 2,
    }
}

fn worth(number: i64) -> Sql<Consistency> {
    match number {
        0 => Ok(Consistency::Crash),
        1 => Ok(Consistency::FileSystem),
        2 => Ok(Consistency::Application),
        other => Err(rusqlite::Error::IntegralValueOutOfRange(2, other)),
    }
}
