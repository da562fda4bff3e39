//! How a message gets out: posted, mailed, or given to a program.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use coffre_engine::config::{NotifyConfig, NotifyWay};
use coffre_engine::secret::SecretSource;
use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::Credentials;
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use url::Url;

use super::Message;

/// Who does not answer in this time is out of order.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of what a program says when it fails, for the log.
const SAID_AT_MOST: usize = 500;

pub struct Sender {
    client: reqwest::Client,
}

impl Sender {
    pub fn new() -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .timeout(PATIENCE)
            .user_agent(concat!("coffre/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("set up the HTTP client")?;
        Ok(Self { client })
    }

    pub async fn send(&self, channel: &NotifyConfig, message: &Message) -> anyhow::Result<()> {
        let sent = async {
            match &channel.way {
                NotifyWay::Webhook { url, token } => self.post(url, token.as_ref(), message).await,
                NotifyWay::Ping { url, .. } => answered(self.client.get(url.clone()).send().await),
                NotifyWay::Command { command } => run(command, message).await,
                NotifyWay::Email {
                    server,
                    from,
                    to,
                    user,
                    password,
                } => {
                    let login = match (user, password) {
                        (Some(user), Some(password)) => Some(Credentials::new(user.clone(), text(password)?)),
                        _ => None,
                    };
                    mail(server, login, from, to, message).await
                }
            }
        };
        let sent = tokio::time::timeout(PATIENCE, sent).await;
        let sent = sent.unwrap_or_else(|_| bail!("no answer within {} s", PATIENCE.as_secs()));
        sent.with_context(|| format!("cannot tell channel `{}`", channel.name))
    }

    async fn post(&self, url: &Url, token: Option<&SecretSource>, message: &Message) -> anyhow::Result<()> {
        let body = serde_json::to_vec(message).context("write the message as JSON")?;
        let mut request = self
            .client
            .post(url.clone())
            .header("content-type", "application/json")
            .body(body);
        if let Some(token) = token {
            request = request.bearer_auth(text(token)?);
        }
        answered(request.send().await)
    }
}

fn text(secret: &SecretSource) -> anyhow::Result<String> {
    Ok(secret.resolve_text()?.as_str().trim_end().to_owned())
}

/// The address stays out of messages: it often is a secret by itself.
fn answered(answer: reqwest::Result<reqwest::Response>) -> anyhow::Result<()> {
    let answer = answer.map_err(reqwest::Error::without_url)?;
    if !answer.status().is_success() {
        bail!("the answer was {}", answer.status());
    }
    Ok(())
}

async fn mail(
    server: &Url,
    login: Option<Credentials>,
    from: &str,
    to: &[String],
    message: &Message,
) -> anyhow::Result<()> {
    let mailbox = |text: &str| {
        text.parse::<Mailbox>()
            .with_context(|| format!("`{text}` is no mail address"))
    };
    let mut builder = lettre::Message::builder()
        .from(mailbox(from)?)
        .subject(message.subject.as_str());
    for one in to {
        builder = builder.to(mailbox(one)?);
    }
    let mail = builder.body(message.text.clone()).context("write the mail")?;
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::from_url(server.as_str())
        .context("reach the mail server")?
        .timeout(Some(PATIENCE));
    if let Some(login) = login {
        transport = transport.credentials(login);
    }
    transport
        .build::<Tokio1Executor>()
        .send(mail)
        .await
        .context("send the mail")?;
    Ok(())
}

async fn run(command: &[String], message: &Message) -> anyhow::Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(Path::new("/"))
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .env("COFFRE_HOST", &message.host)
        .env("COFFRE_SUBJECT", &message.subject)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // One that is waited for in vain is ended.
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().context("it has an input")?;
    let body = serde_json::to_vec(message).context("write the message as JSON")?;
    // A program need not read all of it.
    let written = stdin.write_all(&body).await;
    drop(stdin);
    let output = child
        .wait_with_output()
        .await
        .with_context(|| format!("wait for {program}"))?;
    if !output.status.success() {
        let said: String = String::from_utf8_lossy(&output.stderr)
            .chars()
            .take(SAID_AT_MOST)
            .collect();
        bail!("{program} ended with {}: {}", output.status, said.trim());
    }
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).with_context(|| format!("write to {program}"))
        }
        _ => Ok(()),
    }
}
