//! Reads a `VMSnapshotScriptPluginConfig.json`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use coffre_engine::config::OnFailure;
use coffre_engine::{HookFailure, HookTerms};
use serde_json::{Map, Value};

use super::named;
use crate::hook::failure;
use crate::hook::trust::{self, Readers, TrustError};

const NOT_FOUND: &str = "FailedPrepostPluginConfigNotFound";
const PERMISSION: &str = "FailedPrepostPluginConfigPermissionError";
const PARSING: &str = "FailedPrepostPluginConfigParsing";

/// The framework's own: where the file says nothing, and the most that it lets a script have.
const TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_AT_MOST: Duration = Duration::from_secs(1800);

/// Keys that the framework knows.
const KNOWN: &[&str] = &[
    "pluginName",
    "appName",
    "preScriptLocation",
    "postScriptLocation",
    "preScriptParams",
    "postScriptParams",
    "preScriptNoOfRetries",
    "postScriptNoOfRetries",
    "timeoutInSeconds",
    "continueBackupOnFailure",
    "fsFreezeEnabled",
    // How often the framework looks whether a script has ended; here that is known at once.
    "ScriptsExecutionPollTimeSeconds",
];

/// One of the two scripts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Script {
    pub location: PathBuf,
    pub parameters: Vec<String>,
    pub retries: u32,
}

/// What the file says, with the framework's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PluginFile {
    pub pre: Script,
    pub post: Script,
    pub timeout: Duration,
    pub goes_on: bool,
    pub freeze: bool,
    /// Keys that mean nothing.
    pub unknown: Vec<String>,
}

impl PluginFile {
    /// The file may be read by its owner alone, who is root or the user who runs this.
    pub fn read(path: &Path) -> Result<Self, HookFailure> {
        let (_, text) = trust::read(path, Readers::OwnerAlone).map_err(|error| {
            let code = match &error {
                TrustError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => NOT_FOUND,
                TrustError::NotAFile { .. } => NOT_FOUND,
                TrustError::NotText { .. } | TrustError::TooLarge { .. } => PARSING,
                _ => PERMISSION,
            };
            named(failure::invalid(error.to_string(), error.hint()), code)
        })?;
        Self::parse(&text).map_err(|cause| {
            let text = format!("{}: {cause}", path.display());
            named(failure::invalid(text, None), PARSING)
        })
    }

    /// The error is a cause.
    fn parse(text: &str) -> Result<Self, String> {
        let table: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let script = |which: &str| -> Result<Script, String> {
            let location = format!("{which}ScriptLocation");
            let found = table.get(&location).and_then(Value::as_str);
            let found = found.ok_or_else(|| format!("{location} is missing, or not a text"))?;
            Ok(Script {
                location: absolute(found),
                parameters: parameters(&table, &format!("{which}ScriptParams"))?,
                retries: number(&table, &format!("{which}ScriptNoOfRetries"))?,
            })
        };
        Ok(Self {
            pre: script("pre")?,
            post: script("post")?,
            timeout: timeout(&table)?,
            goes_on: truth(&table, "continueBackupOnFailure")?,
            freeze: truth(&table, "fsFreezeEnabled")?,
            unknown: table
                .keys()
                .filter(|key| !KNOWN.contains(&key.as_str()))
                .cloned()
                .collect(),
        })
    }

    pub fn terms(&self) -> HookTerms {
        // Without frozen file systems a point whose scripts failed would be worth nothing that was promised.
        let goes_on = self.goes_on && self.freeze;
        HookTerms {
            timeout: Some(self.timeout),
            retries: Some(self.pre.retries),
            post_retries: self.post.retries,
            on_failure: Some(if goes_on { OnFailure::Downgrade } else { OnFailure::Fail }),
            wants_freeze: Some(self.freeze),
        }
    }
}

/// A script that is not named by an absolute path is looked for in `/`, where the framework's agent runs.
fn absolute(location: &str) -> PathBuf {
    Path::new("/").join(location)
}

/// Texts as they are, the empty one too; numbers and truths as the framework's language writes them.
fn parameters(table: &Map<String, Value>, key: &str) -> Result<Vec<String>, String> {
    let Some(value) = table.get(key) else {
        return Ok(Vec::new());
    };
    let list = value.as_array().ok_or_else(|| format!("{key} is not a list"))?;
    list.iter()
        .map(|value| match value {
            Value::String(text) if text.contains('\0') => Err(format!("{key} holds a zero byte")),
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(true) => Ok("True".to_owned()),
            Value::Bool(false) => Ok("False".to_owned()),
            other => Err(format!("{key} holds {other}, which is no argument")),
        })
        .collect()
}

fn number(table: &Map<String, Value>, key: &str) -> Result<u32, String> {
    let Some(value) = table.get(key) else { return Ok(0) };
    let number = value.as_u64().ok_or_else(|| format!("{key} is not a whole number"))?;
    // The first attempt must still be countable beside them.
    Ok(u32::try_from(number).unwrap_or(u32::MAX).min(u32::MAX - 1))
}

fn truth(table: &Map<String, Value>, key: &str) -> Result<bool, String> {
    let Some(value) = table.get(key) else { return Ok(true) };
    value
        .as_bool()
        .ok_or_else(|| format!("{key} is neither true nor false"))
}

fn timeout(table: &Map<String, Value>) -> Result<Duration, String> {
    let key = "timeoutInSeconds";
    let Some(value) = table.get(key) else {
        return Ok(TIMEOUT);
    };
    let seconds = value.as_f64().filter(|seconds| *seconds > 0.0);
    let seconds = seconds.ok_or_else(|| format!("{key} is not a number of seconds"))?;
    Ok(Duration::from_secs_f64(seconds.min(TIMEOUT_AT_MOST.as_secs_f64())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str) -> Result<PluginFile, String> {
        PluginFile::parse(&format!(
            "{{\"preScriptLocation\": \"/opt/pre.sh\", \"postScriptLocation\": \"/opt/post.sh\"{more}}}"
        ))
    }

    #[test]
    fn what_is_left_out_is_as_the_framework_has_it() {
        let file = read("").unwrap();
        assert_eq!(file.pre.location, Path::new("/opt/pre.sh"));
        assert_eq!((file.pre.retries, file.post.retries), (0, 0));
        assert!(file.pre.parameters.is_empty());
        let terms = HookTerms {
            timeout: Some(Duration::from_secs(10)),
            retries: Some(0),
            post_retries: 0,
            on_failure: Some(OnFailure::Downgrade),
            wants_freeze: Some(true),
        };
        assert_eq!(file.terms(), terms);
    }

    #[test]
    fn the_template_that_the_framework_hands_out_is_read_as_it_is() {
        let template = r#"{
            "pluginName" : "ScriptRunner",
            "preScriptLocation" : "", "postScriptLocation" : "",
            "preScriptParams" : ["", ""], "postScriptParams" : ["", ""],
            "preScriptNoOfRetries" : 0, "postScriptNoOfRetries" : 0,
            "timeoutInSeconds" : 30, "continueBackupOnFailure" : true, "fsFreezeEnabled" : true,
            "ScriptsExecutionPollTimeSeconds" : 3
        }"#;
        let file = PluginFile::parse(template).unwrap();
        assert_eq!(file.pre.parameters, ["", ""], "empty parameters are parameters");
        assert_eq!(file.timeout, Duration::from_secs(30));
        assert!(file.unknown.is_empty());
    }

    #[test]
    fn a_failed_script_fails_the_backup_where_the_file_says_so_or_nothing_is_frozen() {
        for (goes_on, freeze, wanted) in [
            (true, true, OnFailure::Downgrade),
            (false, true, OnFailure::Fail),
            (true, false, OnFailure::Fail),
            (false, false, OnFailure::Fail),
        ] {
            let file = read(&format!(
                ", \"continueBackupOnFailure\": {goes_on}, \"fsFreezeEnabled\": {freeze}"
            ))
            .unwrap();
            assert_eq!(file.terms().on_failure, Some(wanted), "{goes_on} {freeze}");
            assert_eq!(file.terms().wants_freeze, Some(freeze));
        }
    }

    #[test]
    fn parameters_are_texts_however_they_are_written() {
        let file = read(", \"preScriptParams\": [\"a b\", \"\", 3, true, \"$(reboot)\"]").unwrap();
        assert_eq!(file.pre.parameters, ["a b", "", "3", "True", "$(reboot)"]);
        assert_eq!(
            read(", \"timeoutInSeconds\": 7200").unwrap().timeout,
            Duration::from_secs(1800)
        );
        assert_eq!(read(", \"colour\": 1").unwrap().unknown, ["colour"]);
    }

    #[test]
    fn what_cannot_be_meant_is_not_guessed() {
        for wrong in [
            ", \"timeoutInSeconds\": 0",
            ", \"timeoutInSeconds\": \"30\"",
            ", \"preScriptNoOfRetries\": -1",
            ", \"postScriptNoOfRetries\": 1.5",
            ", \"preScriptParams\": \"a b\"",
            ", \"preScriptParams\": [null]",
            ", \"continueBackupOnFailure\": \"true\"",
            ",",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(PluginFile::parse("{\"preScriptLocation\": \"/opt/pre.sh\"}").is_err());
        assert!(PluginFile::parse("[]").is_err());
    }
}
