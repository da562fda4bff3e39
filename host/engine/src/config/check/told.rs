//! The tables of who is told: `[metrics]` and `[notify.NAME]`.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use url::Url;

use super::{Checker, Result};
use crate::config::raw;
use crate::config::told::{MetricsConfig, NotifyConfig, NotifyWay};
use crate::config::words;
use crate::news::Topic;

/// Often enough to be missed within an hour, seldom enough for anybody's server.
const PING_EVERY: Duration = Duration::from_secs(5 * 60);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Webhook,
    Email,
    Command,
    Ping,
}

const KINDS: [(&str, Kind); 4] = [
    ("webhook", Kind::Webhook),
    ("email", Kind::Email),
    ("command", Kind::Command),
    ("ping", Kind::Ping),
];

impl Checker<'_> {
    pub(super) fn metrics(&self, raw: Spanned<raw::Metrics>) -> Result<MetricsConfig> {
        let span = raw.span();
        let listen = self.required(raw.into_inner().listen, "listen", "\"127.0.0.1:9646\"", span)?;
        let address = self.word(&listen, |text| {
            text.parse::<SocketAddr>().map_err(|_| {
                let hint = "an address and a port, as in \"127.0.0.1:9646\" or \"[::1]:9646\"";
                (format!("`{text}` is no address to listen at"), Some(hint.to_owned()))
            })
        })?;
        if !address.ip().is_loopback() {
            let hint = "listen at 127.0.0.1 or [::1], and let a proxy that asks for a password pass it on";
            let message = format!(
                "{} can be reached from elsewhere, and metrics have no password",
                address.ip()
            );
            return Err(self.wrong(listen.span(), message, Some(hint.to_owned())));
        }
        Ok(MetricsConfig { listen: address })
    }

    pub(super) fn notify(&self, name: String, raw: raw::Notify, span: Range<usize>) -> Result<NotifyConfig> {
        let kind = self.required(raw.kind.clone(), "kind", "\"webhook\"", span.clone())?;
        let kind = self.one_of(&kind, "a kind of channel", &KINDS)?;
        self.refuse_keys_of_other_channels(kind, &raw)?;
        let on = match &raw.on {
            None => Topic::ALL.to_vec(),
            Some(words) => {
                let topics = Topic::ALL.map(|topic| (topic.as_str(), topic));
                let read = words
                    .iter()
                    .map(|word| self.one_of(word, "something to be told of", &topics));
                read.collect::<Result<Vec<_>>>()?
            }
        };
        let way = match kind {
            Kind::Webhook => NotifyWay::Webhook {
                url: self.web(self.required(raw.url, "url", "\"https://example.org/hook\"", span)?)?,
                token: raw.token.map(|source| self.source(source)).transpose()?,
            },
            Kind::Ping => NotifyWay::Ping {
                url: self.web(self.required(raw.url, "url", "\"https://example.org/ping\"", span)?)?,
                every: raw.every.map_or(Ok(PING_EVERY), |word| {
                    self.word(&word, |text| words::duration_within(text, "`every`", "1s", "24h"))
                })?,
            },
            Kind::Command => NotifyWay::Command {
                command: self.command(raw.command, span)?,
            },
            Kind::Email => self.email(raw, span)?,
        };
        let on = if kind == Kind::Ping { Vec::new() } else { on };
        Ok(NotifyConfig { name, on, way })
    }

    fn email(&self, raw: raw::Notify, span: Range<usize>) -> Result<NotifyWay> {
        let word = self.required(raw.server, "server", "\"smtps://mail.example.org\"", span.clone())?;
        let example =
            "as in \"smtps://mail.example.org\", or \"smtp://mail.example.org:587?tls=required\" for STARTTLS";
        let wrong = |text: &str| self.wrong(word.span(), text, Some(example.to_owned()));
        let server = Url::parse(word.get_ref()).map_err(|_| wrong("this is no mail server"))?;
        if !matches!(server.scheme(), "smtp" | "smtps") || server.host_str().is_none() {
            return Err(wrong("this is no mail server"));
        }
        if !server.username().is_empty() || server.password().is_some() {
            let hint = "user and password have keys of their own, so that nothing shows them";
            return Err(self.wrong(word.span(), "no credentials in here", Some(hint.to_owned())));
        }
        let open = server.scheme() == "smtp"
            && !server
                .query_pairs()
                .any(|(key, value)| key == "tls" && value == "required");
        if open && let Some(password) = &raw.password {
            let message = "the password would travel as it is".to_owned();
            return Err(self.wrong(password.span(), message, Some(example.to_owned())));
        }
        let from = self.required(raw.from, "from", "\"coffre@example.org\"", span.clone())?;
        self.mailbox(&from)?;
        let to = raw.to.filter(|to| !to.is_empty()).ok_or_else(|| {
            let hint = "add a line like: to = [\"ops@example.org\"]";
            self.wrong(span, "`to` is missing here", Some(hint.to_owned()))
        })?;
        to.iter().try_for_each(|to| self.mailbox(to))?;
        Ok(NotifyWay::Email {
            server,
            from: from.into_inner(),
            to: to.into_iter().map(Spanned::into_inner).collect(),
            user: raw.user.map(Spanned::into_inner),
            password: raw.password.map(|source| self.source(source)).transpose()?,
        })
    }

    /// Roughly; the mail library reads it for good.
    fn mailbox(&self, word: &Spanned<String>) -> Result<()> {
        match word.get_ref().rsplit_once('@') {
            Some((name, host)) if !name.is_empty() && !host.is_empty() && !word.get_ref().contains(['\n', '\r']) => {
                Ok(())
            }
            _ => Err(self.wrong(word.span(), format!("`{}` is no mail address", word.get_ref()), None)),
        }
    }

    fn web(&self, word: Spanned<String>) -> Result<Url> {
        match Url::parse(word.get_ref()) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url),
            _ => {
                let hint = "as in https://example.org/hook";
                Err(self.wrong(word.span(), "this is no address of the web", Some(hint.to_owned())))
            }
        }
    }

    fn command(&self, words: Option<Spanned<Vec<String>>>, span: Range<usize>) -> Result<Vec<String>> {
        let example = "add a line like: command = [\"/usr/local/bin/page-me\", \"coffre\"]".to_owned();
        let Some(words) = words else {
            return Err(self.wrong(span, "`command` is missing here", Some(example)));
        };
        match words.get_ref().first() {
            Some(program) if Path::new(program).is_absolute() => Ok(words.into_inner()),
            _ => Err(self.wrong(
                words.span(),
                "a command begins with a program's whole path",
                Some(example),
            )),
        }
    }

    /// Who writes a key believes that it does something.
    fn refuse_keys_of_other_channels(&self, kind: Kind, raw: &raw::Notify) -> Result<()> {
        use Kind::{Command, Email, Ping, Webhook};
        let span = |word: &raw::Word| word.as_ref().map(Spanned::span);
        let first = |words: &Option<Vec<Spanned<String>>>| {
            words.as_ref().map(|words| words.first().map_or(0..0, Spanned::span))
        };
        type Key<'a> = (&'static str, Option<Range<usize>>, &'a [Kind]);
        let keys: [Key<'_>; 10] = [
            ("on", first(&raw.on), &[Webhook, Email, Command]),
            ("url", span(&raw.url), &[Webhook, Ping]),
            ("token", raw.token.as_ref().map(Spanned::span), &[Webhook]),
            ("server", span(&raw.server), &[Email]),
            ("from", span(&raw.from), &[Email]),
            ("to", first(&raw.to), &[Email]),
            ("user", span(&raw.user), &[Email]),
            ("password", raw.password.as_ref().map(Spanned::span), &[Email]),
            ("command", raw.command.as_ref().map(Spanned::span), &[Command]),
            ("every", span(&raw.every), &[Ping]),
        ];
        for (key, span, kinds) in keys {
            if let Some(span) = span
                && !kinds.contains(&kind)
            {
                let of: Vec<&str> = KINDS
                    .iter()
                    .filter(|(_, one)| kinds.contains(one))
                    .map(|(name, _)| *name)
                    .collect();
                let message = format!("`{key}` is for channels of the kind {}", of.join(" or "));
                return Err(self.wrong(span, message, None));
            }
        }
        Ok(())
    }
}
