//! Who is told, and how: metrics that are fetched, and channels that are written to.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use url::Url;

use super::model::write_shown;
use crate::news::Topic;
use crate::secret::SecretSource;

/// Where `coffre run` answers Prometheus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MetricsConfig {
    /// On this host alone: names of machines are nobody else's business, and there is no password.
    pub listen: SocketAddr,
}

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotifyConfig {
    pub name: String,
    /// What it is told of; a ping is told of nothing.
    pub on: Vec<Topic>,
    #[serde(flatten)]
    pub way: NotifyWay,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum NotifyWay {
    /// JSON, posted.
    Webhook {
        #[serde(serialize_with = "write_shown")]
        url: Url,
        /// Sent as a bearer's.
        token: Option<SecretSource>,
    },
    Email {
        #[serde(serialize_with = "write_shown")]
        server: Url,
        from: String,
        to: Vec<String>,
        user: Option<String>,
        password: Option<SecretSource>,
    },
    /// A program with its arguments, which reads the JSON of the webhook.
    Command { command: Vec<String> },
    /// Fetched again and again while `coffre run` is alive: whoever waits for it notices when it stays away.
    Ping {
        #[serde(serialize_with = "write_shown")]
        url: Url,
        #[serde(serialize_with = "super::words::write_duration")]
        every: Duration,
    },
}
