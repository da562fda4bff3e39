//! The new keys that a command line names: where they are to be had, and under which label.

use std::path::{Path, PathBuf};

use anyhow::Context;
use coffre_engine::config::{KeyConfig, KeyKind};
use coffre_engine::secret::SecretSource;
use coffre_vault::Credential;

use crate::args::NewKeys;
use crate::exit::Complaint;
use crate::key::{make_file_if_missing, usual_label};
use crate::{screen, wire};

/// A key that shall open a vault.
pub struct NewKey {
    pub label: String,
    pub credential: Credential,
    /// Its file, if it was made just now.
    made: Option<PathBuf>,
}

impl NewKey {
    pub fn files_made(keys: &[Self]) -> Vec<PathBuf> {
        keys.iter().filter_map(|key| key.made.clone()).collect()
    }

    /// After a failure: a key file is never taken away again.
    pub fn say_what_stays(&self) {
        if let Some(path) = &self.made {
            screen::note(&format!(
                "note: the new key file {} stays, for the next try",
                path.display()
            ));
        }
    }
}

/// Gets all of them, before anything is done: what cannot be had is no reason to leave a vault half-way.
pub fn fetch(from: &NewKeys) -> anyhow::Result<Vec<NewKey>> {
    type Parse = fn(&str) -> anyhow::Result<SecretSource>;
    let kinds: [(&[String], KeyKind, Parse); 6] = [
        (&from.new_key_file, KeyKind::Secret, file),
        (&from.new_key_env, KeyKind::Secret, variable),
        (&from.new_key_command, KeyKind::Secret, command),
        (&from.new_passphrase_file, KeyKind::Passphrase, file),
        (&from.new_passphrase_env, KeyKind::Passphrase, variable),
        (&from.new_passphrase_command, KeyKind::Passphrase, command),
    ];
    let mut keys = Vec::new();
    for (words, kind, parse) in kinds {
        for word in words {
            let (label, rest) = split(word);
            let source = parse(rest)?;
            let label = label.unwrap_or(usual_label(kind)).to_owned();
            keys.push(fetch_one(label, KeyConfig { kind, source })?);
        }
    }
    Ok(keys)
}

fn fetch_one(label: String, key: KeyConfig) -> anyhow::Result<NewKey> {
    let doing = || format!("cannot get the new key `{label}`");
    let made = make_file_if_missing(&key).with_context(doing)?;
    let credential = wire::credential(&key).with_context(doing)?;
    credential.check_new().with_context(doing)?;
    Ok(NewKey {
        label,
        credential,
        made,
    })
}

/// `LABEL=SOURCE`. What has a slash before the first `=` is a path, and a source alone.
fn split(word: &str) -> (Option<&str>, &str) {
    match word.split_once('=') {
        Some((label, source)) if !label.contains('/') => (Some(label), source),
        _ => (None, word),
    }
}

fn file(word: &str) -> anyhow::Result<SecretSource> {
    let path =
        std::path::absolute(Path::new(word)).map_err(|_| nothing_named("a file", "--new-key-file laptop=FILE"))?;
    Ok(SecretSource::File(path))
}

fn variable(word: &str) -> anyhow::Result<SecretSource> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if word.is_empty() || !word.bytes().all(is_name) {
        // Not repeated: it may be the secret itself.
        return Err(nothing_named(
            "a variable's name",
            "--new-key-env laptop=COFFRE_NEW_KEY; the secret itself is the variable's value",
        ));
    }
    Ok(SecretSource::Env(word.to_owned()))
}

fn command(word: &str) -> anyhow::Result<SecretSource> {
    let words: Vec<String> = word.split_whitespace().map(str::to_owned).collect();
    if !words.first().is_some_and(|program| program.starts_with('/')) {
        return Err(nothing_named(
            "a program by its whole path",
            "--new-key-command laptop='/usr/bin/pass show coffre'",
        ));
    }
    Ok(SecretSource::Command(words))
}

fn nothing_named(what: &str, example: &str) -> anyhow::Error {
    Complaint::usage(format!("{what} is wanted for the new key"), format!("as in {example}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_stands_before_the_first_equals_sign_unless_that_is_in_a_path() {
        assert_eq!(split("laptop=/etc/a=b.key"), (Some("laptop"), "/etc/a=b.key"));
        assert_eq!(split("/etc/a=b.key"), (None, "/etc/a=b.key"));
        assert_eq!(split("./a=b"), (None, "./a=b"));
        assert_eq!(split("main.key"), (None, "main.key"));
        assert_eq!(split("=x"), (Some(""), "x"));
    }

    #[test]
    fn a_secret_typed_where_its_variable_belongs_is_not_repeated() {
        let error = variable("correct horse battery staple").unwrap_err();
        assert!(!format!("{error:?}").contains("horse"));
    }

    #[test]
    fn a_key_is_had_from_files_variables_and_commands() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("laptop.key");
        let keys = NewKeys {
            new_key_file: vec![format!("laptop={}", file.display())],
            new_passphrase_command: vec!["words=/bin/echo correct horse".to_owned()],
            ..NewKeys::default()
        };
        let keys = fetch(&keys).unwrap();
        assert_eq!(NewKey::files_made(&keys), [file]);
        assert_eq!(keys[1].label, "words");
        assert!(matches!(&keys[1].credential, Credential::Passphrase(text) if text.as_str() == "correct horse"));
    }

    #[test]
    fn a_key_that_anybody_could_guess_is_not_taken() {
        for weak in ["/bin/echo 1234567", "/bin/true"] {
            let keys = NewKeys {
                new_passphrase_command: vec![weak.to_owned()],
                ..NewKeys::default()
            };
            assert!(fetch(&keys).is_err(), "{weak}");
        }
    }
}
