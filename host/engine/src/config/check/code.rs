//! The tables of what runs: hooks and plugins, and what each is granted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;

use super::{Checker, Result, json, settings};
use crate::config::error::suggest;
use crate::config::model::{GrantTable, HookConfig, HookKind, OnFailure, PluginConfig, SshConfig};
use crate::config::raw;
use crate::config::words::{self, HOOK_GRANTS, PLUGIN_GRANTS};

/// For one attempt of one of pre and post, where the config says nothing.
const HOOK_TIMEOUT: Duration = Duration::from_secs(20);

impl Checker<'_> {
    pub(super) fn hook(
        &self,
        name: String,
        raw: raw::Hook,
        span: Range<usize>,
        scripts: &Path,
        ssh: &BTreeMap<String, SshConfig>,
    ) -> Result<HookConfig> {
        let kind = self.required(raw.kind.clone(), "kind", "\"rhai\"", span.clone())?;
        let kinds = [HookKind::Rhai, HookKind::Wasm, HookKind::Exec, HookKind::Azure].map(|kind| (kind.as_str(), kind));
        let hook_kind = self.one_of(&kind, "a kind of hook", &kinds)?;
        self.refuse_keys_of_other_kinds(hook_kind, &raw)?;
        let file = self.required(raw.file, "file", "\"postgres.rhai\"", span)?;
        let failures = [
            ("fail", OnFailure::Fail),
            ("downgrade", OnFailure::Downgrade),
            ("warn", OnFailure::Warn),
        ];
        let on = raw
            .on
            .as_ref()
            .map(|on| self.place(on, hook_kind, &file, ssh))
            .transpose()?;
        let retries = raw.retries.map_or(Ok(0), |retries| match *retries.get_ref() {
            few @ 0..=10 => Ok(few),
            _ => Err(self.wrong(retries.span(), "`retries` is at most 10", None)),
        });
        Ok(HookConfig {
            name,
            kind: hook_kind,
            file: scripts.join(file.get_ref()),
            args: raw.args.map(Spanned::into_inner).unwrap_or_default(),
            application: raw.application.is_some_and(Spanned::into_inner),
            on,
            timeout: raw.timeout.map_or(Ok(HOOK_TIMEOUT), |word| {
                self.word(&word, |text| words::duration_within(text, "`timeout`", "10ms", "10m"))
            })?,
            retries: retries?,
            on_failure: raw.on_failure.map_or(Ok(OnFailure::Downgrade), |word| {
                self.one_of(&word, "a thing to do on failure", &failures)
            })?,
            settings: settings(raw.settings),
            grant: self.grants(
                raw.grant.map(Spanned::into_inner).unwrap_or_default(),
                HOOK_GRANTS,
                "hook",
            )?,
        })
    }

    /// Who writes a key believes that it does something.
    fn refuse_keys_of_other_kinds(&self, kind: HookKind, raw: &raw::Hook) -> Result<()> {
        let only_exec = [
            ("args", raw.args.as_ref().map(Spanned::span)),
            ("application", raw.application.as_ref().map(Spanned::span)),
        ];
        let not_azure = [
            ("timeout", raw.timeout.as_ref().map(Spanned::span)),
            ("retries", raw.retries.as_ref().map(Spanned::span)),
            ("on-failure", raw.on_failure.as_ref().map(Spanned::span)),
            ("settings", raw.settings.as_ref().map(Spanned::span)),
            ("grant", raw.grant.as_ref().map(Spanned::span)),
        ];
        let written = |keys: &[(&'static str, Option<Range<usize>>)]| {
            let mut keys = keys.iter();
            keys.find_map(|(key, span)| Some((*key, span.clone()?)))
        };
        if kind != HookKind::Exec
            && let Some((key, span)) = written(&only_exec)
        {
            let hint = match kind {
                HookKind::Azure => "an azure hook has its parameters in its file",
                _ => "hooks of this kind are told by `settings`, and declare application consistency themselves",
            };
            let message = format!(
                "`{key}` is for hooks of the kind exec, and this one is {}",
                kind.as_str()
            );
            return Err(self.wrong(span, message, Some(hint.to_owned())));
        }
        if kind == HookKind::Azure
            && let Some((key, span)) = written(&not_azure)
        {
            let hint = match key {
                "timeout" => "its file has timeoutInSeconds",
                "retries" => "its file has preScriptNoOfRetries and postScriptNoOfRetries",
                "on-failure" => "its file has continueBackupOnFailure",
                "settings" => "its file has preScriptParams and postScriptParams",
                _ => "its scripts may do what the user who runs Coffre may",
            };
            let message = format!("`{key}` is not for hooks of the kind azure");
            return Err(self.wrong(span, message, Some(hint.to_owned())));
        }
        Ok(())
    }

    pub fn plugin(&self, name: String, raw: raw::Plugin) -> Result<PluginConfig> {
        let sha256 = raw.sha256.map(|digest| {
            let text = digest.get_ref().to_ascii_lowercase();
            if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Ok(text);
            }
            let hint = "64 hex digits, as `coffre plugin inspect FILE` shows them".to_owned();
            Err(self.wrong(digest.span(), "not a sha256", Some(hint)))
        });
        Ok(PluginConfig {
            name,
            file: self.optional_path(&raw.file)?,
            sha256: sha256.transpose()?,
            dev: raw.dev.unwrap_or(false),
            grant: raw
                .grant
                .map(|grant| self.grants(grant, PLUGIN_GRANTS, "plugin"))
                .transpose()?,
        })
    }

    fn grants(&self, raw: raw::Grants, known: &[&str], what: &str) -> Result<GrantTable> {
        let mut grants = BTreeMap::new();
        for (name, value) in raw {
            if !known.contains(&name.get_ref().as_str()) {
                let hint = suggest(name.get_ref(), known.iter().copied());
                return Err(self.wrong(
                    name.span(),
                    format!("`{}` is nothing that a {what} can be granted", name.get_ref()),
                    hint,
                ));
            }
            words::grant_holes(value.get_ref()).map_err(|(message, hint)| self.wrong(value.span(), message, hint))?;
            grants.insert(name.into_inner(), json(value.into_inner()));
        }
        Ok(GrantTable(grants))
    }
}
