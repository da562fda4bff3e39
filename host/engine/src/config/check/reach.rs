//! Where hooks run: on this host, or in the machine, and how that is reached.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;

use super::{Checker, Result};
use crate::config::error::suggest;
use crate::config::model::{HookKind, HookPlace, SshConfig};
use crate::config::raw;

const SSH_PORT: u32 = 22;
const SSH: &str = "ssh:";

impl Checker<'_> {
    /// What a hook's `on` says. Only a program can run elsewhere: the other kinds are run by us, here.
    pub(super) fn place(
        &self,
        on: &Spanned<String>,
        kind: HookKind,
        file: &Spanned<String>,
        ssh: &BTreeMap<String, SshConfig>,
    ) -> Result<HookPlace> {
        let place = match on.get_ref().strip_prefix(SSH) {
            Some(name) if ssh.contains_key(name) => HookPlace::Ssh(name.to_owned()),
            Some(name) if !name.is_empty() => {
                let hint = match ssh.is_empty() {
                    true => Some(format!(
                        "the config says of no host how it is reached: add a [ssh.{name}] table"
                    )),
                    false => suggest(name, ssh.keys().map(String::as_str)),
                };
                return Err(self.wrong(on.span(), format!("there is no [ssh.{name}] table"), hint));
            }
            _ => {
                let places = [("host", false), ("agent", true), ("ssh:NAME", false)];
                match self.one_of(on, "a place", &places)? {
                    true => HookPlace::Agent,
                    false => HookPlace::Host,
                }
            }
        };
        if place == HookPlace::Host {
            return Ok(place);
        }
        if kind != HookKind::Exec {
            let message = format!(
                "a hook of the kind {} runs on this host; in the machine programs can run",
                kind.as_str()
            );
            let hint = "use kind = \"exec\", whose file is a program in the machine".to_owned();
            return Err(self.wrong(on.span(), message, Some(hint)));
        }
        if !file.get_ref().starts_with('/') {
            let message = "a program in the machine is named by its absolute path there";
            return Err(self.wrong(file.span(), message, None));
        }
        Ok(place)
    }

    pub(super) fn ssh(&self, name: String, raw: raw::Ssh, span: Range<usize>) -> Result<SshConfig> {
        let address = self.required(raw.address, "address", "\"web01.example.org\"", span.clone())?;
        let user = self.required(raw.user, "user", "\"root\"", span.clone())?;
        let key = self.required(raw.key, "key", "\"/etc/coffre/web01_ed25519\"", span.clone())?;
        let host_key = self.required(raw.host_key, "host-key", "\"ssh-ed25519 AAAA…\"", span)?;
        // They become words of a command line.
        self.plain(&address, "an address", ":.-_%")?;
        self.plain(&user, "a user", ".-_@\\")?;
        let port = match raw.port {
            None => SSH_PORT as u16,
            Some(port) => u16::try_from(*port.get_ref())
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| self.wrong(port.span(), "a port is at least 1 and at most 65535", None))?,
        };
        Ok(SshConfig {
            name,
            port,
            key: self.path(&key)?,
            host_key: self.host_key(&host_key)?,
            address: address.into_inner(),
            user: user.into_inner(),
        })
    }

    fn plain(&self, word: &Spanned<String>, what: &str, beside: &str) -> Result<()> {
        let text = word.get_ref();
        let right = |character: char| character.is_ascii_alphanumeric() || beside.contains(character);
        if !text.is_empty() && !text.starts_with('-') && text.chars().all(right) {
            return Ok(());
        }
        Err(self.wrong(word.span(), format!("`{text}` is not {what}"), None))
    }

    /// The type and the key, without what people write after them.
    fn host_key(&self, word: &Spanned<String>) -> Result<String> {
        let mut words = word.get_ref().split_ascii_whitespace();
        let is_key = |key: &str| {
            // The first bytes of every key say how long its type is.
            key.starts_with("AAAA")
                && key
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
        };
        match (words.next(), words.next()) {
            (Some(kind), Some(key)) if is_key(key) && !is_key(kind) => Ok(format!("{kind} {key}")),
            _ => {
                let hint = "the machine's /etc/ssh/ssh_host_ed25519_key.pub has it, as in \"ssh-ed25519 AAAA…\"";
                Err(self.wrong(word.span(), "not the public key of a host", Some(hint.to_owned())))
            }
        }
    }
}
