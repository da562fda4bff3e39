//! How fast transfers may go: `[transfer]`, which all jobs of this host share.

use jiff::Timestamp;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::pacer::Caps;
use crate::schedule::Window;

/// What may go at the same time, by the time of day.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TransferConfig {
    #[serde(flatten)]
    pub caps: Caps,
    /// The first one that is open counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub busy: Vec<Busy>,
}

/// Times at which others need the line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Busy {
    pub at: Window,
    #[serde(flatten)]
    pub caps: Caps,
}

impl TransferConfig {
    /// What may go at this time.
    pub fn caps(&self, now: Timestamp) -> Caps {
        let busy = self.busy.iter().find(|busy| busy.at.contains(now));
        busy.map_or(self.caps, |busy| Caps {
            bytes: busy.caps.bytes.or(self.caps.bytes),
            requests: busy.caps.requests.or(self.caps.requests),
        })
    }

    /// Whether requests are ever counted.
    pub fn caps_requests(&self) -> bool {
        let busy = self.busy.iter().map(|busy| busy.caps);
        busy.chain([self.caps]).any(|caps| caps.requests.is_some())
    }
}

impl Serialize for Caps {
    /// As the configuration writes it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(bytes) = self.bytes {
            map.serialize_entry("bandwidth", &shown_bandwidth(bytes))?;
        }
        if let Some(requests) = self.requests {
            map.serialize_entry("requests", &requests)?;
        }
        map.end()
    }
}

const UNITS: &[(&str, u64)] = &[
    ("GiB/s", 1 << 30),
    ("MiB/s", 1 << 20),
    ("KiB/s", 1 << 10),
    ("GB/s", 1_000_000_000),
    ("MB/s", 1_000_000),
    ("kB/s", 1_000),
    ("Gbit/s", 125_000_000),
    ("Mbit/s", 125_000),
    ("kbit/s", 125),
    ("B/s", 1),
];

/// `20MiB/s`, `100Mbit/s`, or `0` for nothing at all.
pub(super) fn bandwidth(text: &str) -> Result<u64, super::words::Wrong> {
    let wrong = || {
        let hint = "as in \"20MiB/s\", \"100Mbit/s\", or \"0\" for nothing at all";
        (format!("`{text}` is not a bandwidth"), Some(hint.to_owned()))
    };
    if text == "0" {
        return Ok(0);
    }
    let digits = text
        .find(|character: char| !character.is_ascii_digit())
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let factor = UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim_start())
        .ok_or_else(wrong)?
        .1;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(factor).ok_or_else(wrong)?;
    // Slower than that, one pack takes half an hour, and a store's connection half a day of patience.
    const LEAST: u64 = 16 * 1024;
    if bytes < LEAST {
        return Err((format!("a bandwidth is 0 or at least 16KiB/s, not {text}"), None));
    }
    Ok(bytes)
}

fn shown_bandwidth(bytes: u64) -> String {
    let unit = UNITS
        .iter()
        .find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
    match unit {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_read_in_every_unit_and_shown_again() {
        for (text, bytes) in [
            ("0", 0),
            ("20MiB/s", 20 << 20),
            ("100Mbit/s", 12_500_000),
            ("5 MB/s", 5_000_000),
            ("64KiB/s", 65536),
        ] {
            let read = bandwidth(text).unwrap_or_else(|(wrong, _)| panic!("{wrong}"));
            assert_eq!(read, bytes, "{text}");
            assert_eq!(bandwidth(&shown_bandwidth(read)).ok(), Some(bytes), "{text}");
        }
        for wrong in [
            "",
            "20",
            "MiB/s",
            "-1MiB/s",
            "1KiB/s",
            "20 MiB",
            "99999999999999999GiB/s",
        ] {
            assert!(bandwidth(wrong).is_err(), "{wrong}");
        }
    }
}
