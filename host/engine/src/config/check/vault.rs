//! A vault's table: its address, what opens it, and how its store is reached.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use coffre_vault::Parity;
use toml::Spanned;
use url::Url;

use super::{Checker, Result};
use crate::config::model::{KeyConfig, KeyKind, StoreSettings, VaultConfig};
use crate::config::{raw, words};
use crate::secret::SecretSource;

/// Long enough to come back from a holiday and find out what somebody forgot.
const UNDELETE_FOR: Duration = Duration::from_secs(14 * 24 * 3600);
/// Less would make a slip final before anybody has looked at the next morning's mail.
const UNDELETE_LEAST: &str = "1d";
const UNDELETE_MOST: &str = "3650d";

impl Checker<'_> {
    pub(super) fn vault(&self, name: String, raw: raw::Vault, span: Range<usize>) -> Result<VaultConfig> {
        let url = self.required(raw.url, "url", "\"s3://bucket/prefix\"", span.clone())?;
        let unencrypted = raw.encryption.as_ref();
        let unencrypted = unencrypted.map(|word| self.one_of(word, "an encryption", &[("none", true), ("on", false)]));
        let key = match (raw.key, unencrypted.transpose()?.unwrap_or(false)) {
            (Some(key), false) => Some(self.key(key)?),
            (None, true) => None,
            (Some(key), true) => {
                return Err(self.wrong(key.span(), "a vault with `encryption = \"none\"` has no key", None));
            }
            (None, false) => {
                let hint = "add a line like: key = { file = \"/etc/coffre/main.key\" }; `encryption = \"none\"` does \
                            without, and then everybody who can read the store can read the disks";
                return Err(self.wrong(span, format!("vault `{name}` has no `key`"), Some(hint.to_owned())));
            }
        };
        let text = |word: raw::Word| word.map(Spanned::into_inner);
        let endpoint = raw.endpoint.map(|word| {
            Url::parse(word.get_ref())
                .map_err(|error| self.wrong(word.span(), format!("`{}` is not a URL: {error}", word.get_ref()), None))
        });
        if let (Some(_), Some(token)) = (&raw.account_key, &raw.sas_token) {
            let hint =
                "a shared access signature is used instead of the account's key, which may do everything".to_owned();
            let what = "`account-key` and `sas-token` are two ways of the same";
            return Err(self.wrong(token.span(), what.to_owned(), Some(hint)));
        }
        let source = |source: Option<Spanned<raw::Source>>| source.map(|source| self.source(source)).transpose();
        let undelete_for = match &raw.undelete_for {
            Some(word) => self.word(word, |text| {
                words::duration_within(text, "`undelete-for`", UNDELETE_LEAST, UNDELETE_MOST)
            })?,
            None => UNDELETE_FOR,
        };
        let place = self.vault_url(&url)?;
        let parity = match &raw.parity {
            Some(word) if place.scheme() != "file" => {
                let hint = "a bucket or container lies on many disks already, which mend each other".to_owned();
                return Err(self.wrong(word.span(), "`parity` is for vaults in a local folder", Some(hint)));
            }
            Some(word) => Some(self.word(word, |text| {
                text.parse::<Parity>().map_err(|error| (error.to_string(), None))
            })?),
            None => None,
        };
        Ok(VaultConfig {
            url: place,
            key,
            undelete_for,
            store: StoreSettings {
                endpoint: endpoint.transpose()?,
                region: text(raw.region),
                allow_http: raw.allow_http.unwrap_or(false),
                ca_file: self.optional_path(&raw.ca_file)?,
                account: text(raw.account),
                emulator: raw.emulator.unwrap_or(false),
                access_key_id: source(raw.access_key_id)?,
                secret_access_key: source(raw.secret_access_key)?,
                account_key: source(raw.account_key)?,
                sas_token: source(raw.sas_token)?,
                parity,
            },
            name,
        })
    }

    fn vault_url(&self, word: &Spanned<String>) -> Result<Url> {
        let text = word.get_ref();
        let forms = "as in \"s3://bucket/prefix\", \"az://container/prefix\", \"file:///folder\", or a folder's path";
        let wrong = |why: String| self.wrong(word.span(), why, Some(forms.to_owned()));
        if !text.contains("://") {
            let path = self.path(word)?;
            return Url::from_file_path(&path).map_err(|()| wrong(format!("`{text}` is not a folder's path")));
        }
        let url = Url::parse(text).map_err(|error| wrong(format!("`{text}` is not a URL: {error}")))?;
        match url.scheme() {
            "s3" | "az" if url.host_str().is_none_or(str::is_empty) => {
                Err(wrong(format!("`{text}` names no bucket or container")))
            }
            "file" if url.host_str().is_some() => Err(wrong(format!("`{text}` has two slashes where three are meant"))),
            "s3" | "az" | "file" => {
                if url.password().is_some() || !url.username().is_empty() {
                    let hint = "say `access-key-id = { env = … }` instead".to_owned();
                    return Err(self.wrong(word.span(), "credentials do not belong into a URL", Some(hint)));
                }
                Ok(url)
            }
            other => Err(wrong(format!("`{other}` is not a kind of store"))),
        }
    }

    fn key(&self, key: Spanned<raw::Key>) -> Result<KeyConfig> {
        let span = key.span();
        let key = key.into_inner();
        let secret = [(key.file, key.env, key.command, KeyKind::Secret)];
        let typed = [(
            key.passphrase_file,
            key.passphrase_env,
            key.passphrase_command,
            KeyKind::Passphrase,
        )];
        let recovery = [(key.recovery_key_file, None, None, KeyKind::RecoveryKey)];
        let mut found = Vec::new();
        for (file, env, command, kind) in secret.into_iter().chain(typed).chain(recovery) {
            for source in self.sources(file, env, command)? {
                found.push(KeyConfig { kind, source });
            }
        }
        let hint =
            "exactly one of file, env, command, passphrase-file, passphrase-env, passphrase-command, recovery-key-file";
        self.exactly_one(found, span, "a key", hint)
    }

    pub(super) fn source(&self, source: Spanned<raw::Source>) -> Result<SecretSource> {
        let span = source.span();
        let source = source.into_inner();
        let found = self.sources(source.file, source.env, source.command)?;
        self.exactly_one(found, span, "a secret", "exactly one of file, env, command")
    }

    fn exactly_one<T>(&self, mut found: Vec<T>, span: Range<usize>, what: &str, hint: &str) -> Result<T> {
        match found.pop() {
            Some(one) if found.is_empty() => Ok(one),
            Some(_) => Err(self.wrong(
                span,
                format!("{what} has one source, here are several"),
                Some(hint.to_owned()),
            )),
            None => Err(self.wrong(span, format!("{what} needs a source"), Some(hint.to_owned()))),
        }
    }

    fn sources(
        &self,
        file: raw::Word,
        env: raw::Word,
        command: Option<Spanned<Vec<String>>>,
    ) -> Result<Vec<SecretSource>> {
        let mut found = Vec::new();
        if let Some(file) = self.optional_path(&file)? {
            found.push(SecretSource::File(file));
        }
        if let Some(env) = env {
            if env.get_ref().is_empty() || env.get_ref().contains(['=', '\0']) {
                return Err(self.wrong(env.span(), "not the name of an environment variable", None));
            }
            found.push(SecretSource::Env(env.into_inner()));
        }
        if let Some(command) = command {
            let absolute = command
                .get_ref()
                .first()
                .is_some_and(|program| Path::new(program).is_absolute());
            if !absolute {
                let hint = "as in command = [\"/usr/bin/pass\", \"show\", \"coffre\"]; there is no shell";
                let message = "a command starts with a program's absolute path";
                return Err(self.wrong(command.span(), message, Some(hint.to_owned())));
            }
            found.push(SecretSource::Command(command.into_inner()));
        }
        Ok(found)
    }
}
