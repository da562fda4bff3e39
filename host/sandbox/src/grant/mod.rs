//! What a plugin may touch: what its manifest asks for *and* the operator grants, both filled in from the machine's
//! settings. Deny by default: what no pattern on both sides covers is refused.

mod command;
mod path;
mod settings;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};
use serde_json::Value;

pub(crate) use command::CommandPattern;
pub(crate) use path::{PathPattern, Place, components};
pub(crate) use settings::fill_in;

use crate::manifest::Ask;

/// The kinds of things that can be granted to a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrantKind {
    /// Files, devices and folders that may be looked at, and read into recovery points.
    DiskRead,
    /// Folders and files that may be created, cloned and removed.
    StorageWrite,
    /// NBD exports that the host may read: a socket's path or `host:port`.
    Nbd,
    /// Programs with their arguments.
    Process,
    UnixSocket,
    GuestAgent,
    /// Secrets by name.
    Secret,
    /// Mount points that may be frozen.
    Freeze,
}

impl GrantKind {
    const ALL: [(Self, &'static str); 8] = [
        (Self::DiskRead, "disk-read"),
        (Self::StorageWrite, "storage-write"),
        (Self::Nbd, "nbd"),
        (Self::Process, "process"),
        (Self::UnixSocket, "unix-socket"),
        (Self::GuestAgent, "guest-agent"),
        (Self::Secret, "secret"),
        (Self::Freeze, "freeze"),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, word)| *word == name).map(|(kind, _)| *kind)
    }

    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or("", |(_, word)| word)
    }
}

impl fmt::Display for GrantKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// One granted or asked thing as it was written, holes and all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantValue {
    Text(String),
    Command(Vec<String>),
}

impl Serialize for GrantValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => text.serialize(serializer),
            Self::Command(words) => words.serialize(serializer),
        }
    }
}

impl fmt::Display for GrantValue {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(out, "{text:?}"),
            Self::Command(words) => write!(out, "{words:?}"),
        }
    }
}

/// Grants as the operator wrote them, or a manifest's asks in the same shape.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct GrantTable(pub BTreeMap<GrantKind, Vec<GrantValue>>);

/// A grant that cannot be understood: its name, and the cause as a clause.
pub(crate) type Wrong = (String, String);

impl GrantTable {
    /// Reads the `grant` table of the configuration.
    pub(crate) fn from_config(table: &BTreeMap<String, Value>) -> Result<Self, Wrong> {
        let mut found = Self::default();
        for (name, value) in table {
            let wrong = |cause: String| (name.clone(), cause);
            let Some(kind) = GrantKind::named(name) else {
                let words: Vec<_> = GrantKind::ALL.iter().map(|(_, word)| *word).collect();
                return Err(wrong(format!("there is no such grant; there are {}", words.join(", "))));
            };
            let values = value.as_array().ok_or_else(|| wrong("it must be a list".to_owned()))?;
            for value in values {
                let value = GrantValue::read(kind, value).map_err(wrong)?;
                value.check(kind).map_err(wrong)?;
                found.0.entry(kind).or_default().push(value);
            }
        }
        Ok(found)
    }

    /// What a manifest asks for. Kinds that this version does not know are left out: they stay denied.
    pub(crate) fn from_asks(asks: &[Ask]) -> Result<Self, Wrong> {
        let mut found = Self::default();
        for ask in asks {
            if let Some(kind) = GrantKind::named(&ask.kind) {
                let wrong = |cause| (ask.kind.clone(), cause);
                let value = GrantValue::read(kind, &ask.value).map_err(wrong)?;
                value.check(kind).map_err(wrong)?;
                found.0.entry(kind).or_default().push(value);
            }
        }
        Ok(found)
    }

    fn filled_in(&self, settings: &Value) -> Result<FilledIn, Wrong> {
        let mut filled = FilledIn::default();
        for (kind, values) in &self.0 {
            for value in values {
                filled
                    .add(*kind, value, settings)
                    .map_err(|cause| (kind.to_string(), cause))?;
            }
        }
        Ok(filled)
    }
}

impl GrantValue {
    fn read(kind: GrantKind, value: &Value) -> Result<Self, String> {
        match (kind, value) {
            (GrantKind::Process, Value::Array(words)) => {
                let words = words
                    .iter()
                    .map(|word| word.as_str().map(str::to_owned))
                    .collect::<Option<Vec<_>>>();
                words
                    .map(Self::Command)
                    .ok_or_else(|| format!("{value} is not a list of texts"))
            }
            (GrantKind::Process, _) => Err(format!(
                "{value} must be a list: the program and a pattern for each argument"
            )),
            (_, Value::String(text)) => Ok(Self::Text(text.clone())),
            (_, _) => Err(format!("{value} must be a text")),
        }
    }

    /// Finds mistakes that do not depend on the settings.
    fn check(&self, kind: GrantKind) -> Result<(), String> {
        FilledIn::default().add(kind, self, &Value::Null)
    }
}

/// One side, with the settings filled in.
#[derive(Clone, Debug, Default)]
struct FilledIn {
    paths: BTreeMap<GrantKind, Vec<PathPattern>>,
    /// Names, and `host:port`.
    words: BTreeMap<GrantKind, Vec<String>>,
    commands: Vec<CommandPattern>,
}

impl FilledIn {
    fn add(&mut self, kind: GrantKind, value: &GrantValue, settings: &Value) -> Result<(), String> {
        match (kind, value) {
            (
                GrantKind::DiskRead | GrantKind::StorageWrite | GrantKind::UnixSocket | GrantKind::Freeze,
                GrantValue::Text(text),
            ) => {
                self.paths
                    .entry(kind)
                    .or_default()
                    .extend(PathPattern::fill_in(text, settings)?);
            }
            (GrantKind::Nbd | GrantKind::GuestAgent, GrantValue::Text(text)) => {
                for text in settings::fill_in(text, settings)? {
                    if text.starts_with('/') {
                        self.paths
                            .entry(kind)
                            .or_default()
                            .extend(PathPattern::fill_in(&text, settings)?);
                    } else {
                        self.words.entry(kind).or_default().push(text);
                    }
                }
            }
            (GrantKind::Secret, GrantValue::Text(text)) => {
                self.words
                    .entry(kind)
                    .or_default()
                    .extend(settings::fill_in(text, settings)?);
            }
            (GrantKind::Process, GrantValue::Command(words)) => {
                self.commands.extend(CommandPattern::fill_in(words, settings)?);
            }
            (_, value) => return Err(format!("{value} has the wrong shape")),
        }
        Ok(())
    }

    fn place(&self, kind: GrantKind, path: &[&str]) -> Option<Place> {
        self.paths
            .get(&kind)
            .into_iter()
            .flatten()
            .find_map(|pattern| pattern.place(path))
    }
}

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No path that could ever be granted: relative, or with `.`, `..`, an empty part or a zero byte.
    NoPath(String),
    NotGranted {
        kind: GrantKind,
        what: String,
    },
    /// The manifest does not ask for it, so no grant helps.
    NotAsked {
        kind: GrantKind,
        what: String,
    },
}

impl Refusal {
    /// For the operator: what was refused, and the grant that would allow it.
    pub fn text(&self, plugin: &str) -> String {
        match self {
            Self::NoPath(path) => {
                format!(
                    "{:?} is no path that a plugin may use: absolute, without `.`, `..` and empty parts",
                    path
                )
            }
            Self::NotGranted { kind, what } => {
                format!(
                    "the plugin `{plugin}` has no grant for {what}; [plugin.{plugin}.grant] {kind} = [{what}] would allow it"
                )
            }
            Self::NotAsked { kind, what } => {
                format!("the plugin `{plugin}` may not have {kind} {what}: its manifest does not ask for it")
            }
        }
    }
}

/// What one plugin may do for one machine.
#[derive(Clone, Debug)]
pub(crate) struct Permissions {
    pub plugin: String,
    asked: FilledIn,
    granted: FilledIn,
}

impl Permissions {
    /// The paths and folders that are granted for this kind.
    pub fn patterns(&self, kind: GrantKind) -> Vec<PathBuf> {
        let granted = self.granted.paths.get(&kind).into_iter().flatten();
        granted.map(PathPattern::stem).collect()
    }

    pub fn new(plugin: &str, asked: &GrantTable, granted: &GrantTable, settings: &Value) -> Result<Self, Wrong> {
        Ok(Self {
            plugin: plugin.to_owned(),
            asked: asked.filled_in(settings)?,
            granted: granted.filled_in(settings)?,
        })
    }

    /// Where to resolve `path`, if both sides cover it.
    pub fn path(&self, kind: GrantKind, path: &str) -> Result<Place, Refusal> {
        let parts = components(path).ok_or_else(|| Refusal::NoPath(path.chars().take(200).collect()))?;
        let what = format!("{path:?}");
        if self.asked.place(kind, &parts).is_none() {
            return Err(Refusal::NotAsked { kind, what });
        }
        let place = self.granted.place(kind, &parts);
        place.ok_or(Refusal::NotGranted { kind, what })
    }

    /// A name, or an address.
    pub fn word(&self, kind: GrantKind, word: &str) -> Result<(), Refusal> {
        let covers = |side: &FilledIn| {
            side.words
                .get(&kind)
                .into_iter()
                .flatten()
                .any(|granted| granted == word)
        };
        let what = format!("{word:?}");
        match (covers(&self.asked), covers(&self.granted)) {
            (true, true) => Ok(()),
            (false, _) => Err(Refusal::NotAsked { kind, what }),
            (true, false) => Err(Refusal::NotGranted { kind, what }),
        }
    }

    /// A program with its arguments.
    pub fn command(&self, program: &str, arguments: &[String]) -> Result<(), Refusal> {
        let covers = |side: &FilledIn| side.commands.iter().any(|pattern| pattern.covers(program, arguments));
        let kind = GrantKind::Process;
        let words: Vec<&str> = std::iter::once(program)
            .chain(arguments.iter().map(String::as_str))
            .collect();
        let what = format!("{words:?}");
        match (covers(&self.asked), covers(&self.granted)) {
            (true, true) => Ok(()),
            (false, _) => Err(Refusal::NotAsked { kind, what }),
            (true, false) => Err(Refusal::NotGranted { kind, what }),
        }
    }
}
