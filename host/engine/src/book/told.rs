//! What channels were told of.

use rusqlite::params;

use super::{Book, BookError};
use crate::news::Told;

impl Book {
    pub fn told(&self, channel: &str) -> Result<Told, BookError> {
        self.read("read what a channel was told", |book| {
            let mut query = book.prepare("SELECT machine, topic, code FROM told WHERE channel = ?1")?;
            let rows = query.query_map([channel], |row| {
                Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
            })?;
            let mut told = Told::new();
            for row in rows {
                let (machine, topic, code) = row?;
                told.entry(machine).or_default().insert((topic, code));
            }
            Ok(told)
        })
    }

    /// Replaces it.
    pub fn write_told(&self, channel: &str, told: &Told) -> Result<(), BookError> {
        self.write("write what a channel was told", |book| {
            book.execute("DELETE FROM told WHERE channel = ?1", [channel])?;
            let mut insert =
                book.prepare("INSERT INTO told (channel, machine, topic, code) VALUES (?1, ?2, ?3, ?4)")?;
            for (machine, troubles) in told {
                for (topic, code) in troubles {
                    insert.execute(params![channel, machine, topic, code])?;
                }
            }
            Ok(())
        })
    }
}
