//! The small languages inside the configuration's strings: durations, schedules, disk patterns, grants.

use std::fmt;
use std::time::Duration;

use serde::Serializer;

use crate::schedule::{Schedule, Window};

/// What can be granted to a plugin; each is explained by `coffre plugin inspect` for the plugins that ask for it.
pub const PLUGIN_GRANTS: &[&str] = &[
    "disk-read",
    "freeze",
    "guest-agent",
    "nbd",
    "process",
    "secret",
    "storage-write",
    "unix-socket",
];

/// What can be granted to a hook; which of it means something depends on the hook's kind. See docs/hooks.md.
pub const HOOK_GRANTS: &[&str] = &["disk-read", "freeze", "process", "secret", "service", "storage-write"];

/// What is wrong with a word, and what to do about it.
pub(in crate::config) type Wrong = (String, Option<String>);

const UNITS: &[(&str, u64)] = &[
    ("ms", 1),
    ("s", 1000),
    ("m", 60 * 1000),
    ("h", 3600 * 1000),
    ("d", 24 * 3600 * 1000),
];

/// A duration of the command line's, in the words of the configuration; else what is wrong with it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    duration(text).map_err(|(wrong, hint)| match hint {
        Some(hint) => format!("{wrong}: {hint}"),
        None => wrong,
    })
}

/// `500ms`, `20s`, `1h30m`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    let wrong = || {
        (
            format!("`{text}` is not a duration"),
            Some("a number with a unit, as in \"500ms\", \"20s\", \"5m\", \"24h\" or \"7d\"".to_owned()),
        )
    };
    let mut rest = text.trim();
    let mut total_ms = 0_u64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|character: char| !character.is_ascii_digit())
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|character: char| !character.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let (unit, after) = tail.split_at(letters);
        let factor = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let part_ms = number.checked_mul(factor).ok_or_else(wrong)?;
        total_ms = total_ms.checked_add(part_ms).ok_or_else(wrong)?;
        rest = after.trim_start();
    }
    Ok(Duration::from_millis(total_ms))
}

/// As `duration`, within bounds that `what` has for a reason.
pub(super) fn duration_within(text: &str, what: &str, least: &str, most: &str) -> Result<Duration, Wrong> {
    let found = duration(text)?;
    if found < duration(least)? || found > duration(most)? {
        return Err((
            format!("{what} is at least {least} and at most {most}, not {text}"),
            None,
        ));
    }
    Ok(found)
}

/// As configurations are shown.
pub(super) fn write_duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&shown_duration(*value))
}

/// A duration as the configuration writes it, in the largest unit that divides it.
pub fn shown_duration(value: Duration) -> String {
    let total_ms = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    let (unit, factor) = UNITS
        .iter()
        .rev()
        .find(|(_, factor)| total_ms != 0 && total_ms.is_multiple_of(*factor))
        .unwrap_or(&UNITS[1]);
    format!("{}{unit}", total_ms / factor)
}

/// When backups are due.
pub(super) fn schedule(text: &str) -> Result<Schedule, Wrong> {
    Schedule::parse(text).map_err(|error| (error.to_string(), error.hint()))
}

/// When something may go, or others need the line.
pub(super) fn window(text: &str) -> Result<Window, Wrong> {
    Window::parse(text).map_err(|error| (error.to_string(), error.hint()))
}

/// A disk's id, or several: `*` stands for any run of characters, `?` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names exactly one disk.
    pub fn is_plain(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    pub fn matches(&self, id: &str) -> bool {
        let pattern: Vec<char> = self.0.chars().collect();
        let id: Vec<char> = id.chars().collect();
        // Where to go on from when what follows the last star does not fit: one character later.
        let (mut at, mut from, mut star) = (0, 0, None);
        while from < id.len() {
            if at < pattern.len() && pattern[at] == '*' {
                star = Some((at, from));
                at += 1;
            } else if at < pattern.len() && (pattern[at] == '?' || pattern[at] == id[from]) {
                at += 1;
                from += 1;
            } else if let Some((star_at, star_from)) = star {
                star = Some((star_at, star_from + 1));
                at = star_at + 1;
                from = star_from + 1;
            } else {
                return false;
            }
        }
        pattern[at..].iter().all(|rest| *rest == '*')
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl serde::Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Holes in a grant name the machine's settings and nothing else, so that a typo does not become a literal path.
pub(super) fn grant_holes(value: &toml::Value) -> Result<(), Wrong> {
    match value {
        toml::Value::Array(values) => values.iter().try_for_each(grant_holes),
        toml::Value::Table(table) => table.iter().try_for_each(|(_, value)| grant_holes(value)),
        toml::Value::String(text) => {
            let mut rest = text.as_str();
            while let Some(start) = rest.find("${") {
                let Some(length) = rest[start..].find('}') else {
                    return Err((format!("`{}` is not closed", &rest[start..]), None));
                };
                let hole = &rest[start + 2..start + length];
                if hole.strip_prefix("settings.").is_none_or(str::is_empty) {
                    return Err((
                        format!("`${{{hole}}}` cannot be filled in"),
                        Some("only `${settings.NAME}`, a setting of the machine, can stand in a grant".to_owned()),
                    ));
                }
                rest = &rest[start + length..];
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_in_every_unit() {
        let ms = |text| duration(text).map(|found| found.as_millis()).ok();
        assert_eq!(ms("500ms"), Some(500));
        assert_eq!(ms("20s"), Some(20_000));
        assert_eq!(ms("1h30m"), Some(5_400_000));
        assert_eq!(ms("7d"), Some(7 * 86_400_000));
        for wrong in [
            "",
            "20",
            "s",
            "20 lightyears",
            "-3s",
            "1.5h",
            "99999999999999999999s",
            "99999999999999999d",
        ] {
            assert_eq!(ms(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn patterns_match_whole_ids() {
        let matches = |pattern: &str, id: &str| Pattern::new(pattern).matches(id);
        assert!(matches("swap", "swap"));
        assert!(!matches("swap", "swap1"));
        assert!(matches("swap*", "swap1"));
        assert!(matches("*.raw", "a.b.raw"));
        assert!(matches("vd?", "vda"));
        assert!(!matches("vd?", "vd"));
        assert!(matches("*", ""));
        assert!(matches("a*b*c", "aXbYbZc"));
        assert!(!matches("a*b*c", "aXbYbZ"));
    }

    proptest! {
        #[test]
        fn a_pattern_without_wildcards_matches_itself_alone(id in "[a-z0-9.]{0,12}", other in "[a-z0-9.]{0,12}") {
            prop_assert!(Pattern::new(&id).matches(&id));
            prop_assert_eq!(Pattern::new(&id).matches(&other), id == other);
        }

        #[test]
        fn no_text_breaks_the_readers(text in ".{0,40}") {
            let _ = duration(&text);
            let _ = schedule(&text);
            let _ = window(&text);
            let _ = grant_holes(&toml::Value::String(text));
        }
    }
}
