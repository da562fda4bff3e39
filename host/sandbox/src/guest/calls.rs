//! The interfaces that a guest imports, except `storage`. Each call becomes plain data for the broker and is done on a
//! thread that may block; the answer becomes the contract's types again.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wasmtime::Result;
use wasmtime::component::Resource;

use super::bindings::coffre::plugin as wit;
use super::hook_bindings::coffre::plugin as hook_wit;
use super::instance::GuestState;
use super::log::{Verdict, plain_line};
use crate::broker::{Broker, Connection, Failure, FailureKind, LONGEST_SLEEP, Program};
use crate::grant::GrantKind;
use crate::limits::{LOG_LINE_BYTES, OUTPUT_BYTES};

/// A resource whose acts a later version brings: there is never one.
pub enum Never {}

/// A guest's connection to a socket of this host.
pub struct OpenSocket(Arc<Connection>);

impl From<Failure> for wit::types::Failure {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            FailureKind::NotFound => Self::NotFound(failure.text),
            FailureKind::Denied => Self::Denied(failure.text),
            FailureKind::Busy => Self::Busy(failure.text),
            FailureKind::TimedOut => Self::TimedOut(failure.text),
            FailureKind::Unsupported => Self::Unsupported(failure.text),
            FailureKind::Failed => Self::Failed(failure.text),
        }
    }
}

/// What an imported function of the contract answers.
pub(super) type Answer<T> = Result<Result<T, wit::types::Failure>>;

impl GuestState {
    /// Has the broker do something on a thread that may block. The call's deadline ends the waiting, not the act.
    pub(super) fn ask<T, F>(&self, act: F) -> impl Future<Output = Answer<T>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&Broker) -> std::result::Result<T, Failure> + Send + 'static,
    {
        let broker: Arc<Broker> = self.broker.clone();
        async move {
            let done = tokio::task::spawn_blocking(move || act(&broker)).await;
            let done = done.map_err(|error| wasmtime::Error::msg(format!("the host's act failed: {error}")))?;
            Ok(done.map_err(wit::types::Failure::from))
        }
    }
}

impl wit::types::Host for GuestState {}

impl wit::log::Host for GuestState {
    async fn write(&mut self, level: wit::log::Level, message: String) -> Result<()> {
        let Verdict::Write { dropped } = self.log.line(Instant::now()) else {
            return Ok(());
        };
        let plugin = self.broker.plugin();
        if dropped > 0 {
            tracing::warn!(plugin, dropped, "the plugin logs too fast; lines were dropped");
        }
        let message = plain_line(&message, LOG_LINE_BYTES);
        let message = match &self.around.transcript {
            Some(transcript) => {
                let mut transcript = transcript.lock();
                let message = transcript.redact(&message);
                transcript.line(&message);
                message
            }
            None => message,
        };
        match level {
            wit::log::Level::Debug => tracing::debug!(plugin, "{message}"),
            wit::log::Level::Info => tracing::info!(plugin, "{message}"),
            wit::log::Level::Warn => tracing::warn!(plugin, "{message}"),
            wit::log::Level::Error => {
                tracing::error!(plugin, "{message}");
                self.last_error = Some(message);
            }
        }
        Ok(())
    }
}

impl wit::time::Host for GuestState {
    async fn now_ms(&mut self) -> Result<u64> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(since.as_millis().try_into().unwrap_or(u64::MAX))
    }

    async fn left_ms(&mut self) -> Result<u32> {
        Ok(self.left().as_millis().try_into().unwrap_or(u32::MAX))
    }

    async fn sleep(&mut self, ms: u32) -> Result<()> {
        let asked = Duration::from_millis(ms.into()).min(LONGEST_SLEEP);
        tokio::time::sleep(asked.min(self.left())).await;
        Ok(())
    }
}

impl wit::process::Host for GuestState {
    async fn run(
        &mut self,
        command: wit::process::Command,
        input: Vec<u8>,
        max_output_bytes: u32,
        timeout_ms: u32,
    ) -> Answer<wit::process::Output> {
        let mut environment = self.around.environment.clone();
        // What the guest says goes before what surrounds it.
        environment.retain(|(name, _)| !command.environment.iter().any(|(own, _)| own == name));
        environment.extend(command.environment);
        let program = Program {
            program: command.program,
            arguments: command.arguments,
            environment,
            input,
            max_output_bytes: max_output_bytes.min(OUTPUT_BYTES),
            deadline: Instant::now() + Duration::from_millis(timeout_ms.into()).min(self.left()),
        };
        let done = self.ask(move |broker| broker.run(program)).await?;
        if let (Ok(output), Some(transcript)) = (&done, &self.around.transcript) {
            let mut transcript = transcript.lock();
            transcript.command_output(&output.stdout, false);
            transcript.command_output(&output.stderr, false);
        }
        Ok(done.map(|output| wit::process::Output {
            status: output.status,
            stdout: output.stdout,
            stderr: output.stderr,
        }))
    }
}

impl wit::process::HostChild for GuestState {
    async fn spawn(&mut self, command: wit::process::Command) -> Answer<Resource<Never>> {
        let failure = self.broker.later_command(
            &command.program,
            &command.arguments,
            "programs that stream (process.child)",
        );
        Ok(Err(failure.into()))
    }

    async fn write(&mut self, child: Resource<Never>, _bytes: Vec<u8>) -> Answer<()> {
        match *self.table.get(&child)? {}
    }

    async fn read(&mut self, child: Resource<Never>, _max_bytes: u32, _timeout_ms: u32) -> Answer<Vec<u8>> {
        match *self.table.get(&child)? {}
    }

    async fn wait(&mut self, child: Resource<Never>, _timeout_ms: u32) -> Answer<i32> {
        match *self.table.get(&child)? {}
    }

    async fn drop(&mut self, child: Resource<Never>) -> Result<()> {
        match self.table.delete(child)? {}
    }
}

impl wit::unix_socket::Host for GuestState {}

impl wit::unix_socket::HostConnection for GuestState {
    async fn connect(&mut self, path: String) -> Answer<Resource<OpenSocket>> {
        match self.ask(move |broker| broker.connect_socket(&path)).await? {
            Ok(connection) => Ok(Ok(self.table.push(OpenSocket(Arc::new(connection)))?)),
            Err(failure) => Ok(Err(failure)),
        }
    }

    async fn send(&mut self, connection: Resource<OpenSocket>, bytes: Vec<u8>) -> Answer<()> {
        let connection = self.table.get(&connection)?.0.clone();
        let deadline = Instant::now() + self.left();
        self.ask(move |_| connection.send(&bytes, deadline)).await
    }

    async fn receive(&mut self, connection: Resource<OpenSocket>, max_bytes: u32, timeout_ms: u32) -> Answer<Vec<u8>> {
        let connection = self.table.get(&connection)?.0.clone();
        let deadline = Instant::now() + Duration::from_millis(timeout_ms.into()).min(self.left());
        self.ask(move |_| connection.receive(max_bytes, deadline)).await
    }

    async fn drop(&mut self, connection: Resource<OpenSocket>) -> Result<()> {
        self.table.delete(connection)?;
        Ok(())
    }
}

impl GuestState {
    fn agent(&self, at: &wit::guest_agent::Agent) -> wit::types::Failure {
        let (wit::guest_agent::Agent::Socket(name) | wit::guest_agent::Agent::Libvirt(name)) = at;
        self.broker.later(GrantKind::GuestAgent, name, "guest agents").into()
    }
}

impl wit::guest_agent::Host for GuestState {
    async fn freeze(
        &mut self,
        at: wit::guest_agent::Agent,
        _mounts: Option<Vec<String>>,
        _at_most_ms: u32,
    ) -> Answer<u32> {
        Ok(Err(self.agent(&at)))
    }

    async fn thaw(&mut self, at: wit::guest_agent::Agent) -> Answer<u32> {
        Ok(Err(self.agent(&at)))
    }
}

impl wit::secret::Host for GuestState {
    async fn get(&mut self, name: String) -> Answer<String> {
        let asked = name.clone();
        let secret = self.ask(move |broker| broker.secret(&asked)).await?;
        if let (Ok(value), Some(transcript)) = (&secret, &self.around.transcript) {
            transcript.lock().hide(&name, value);
        }
        Ok(secret)
    }
}

impl hook_wit::session::Host for GuestState {}

impl hook_wit::session::HostLive for GuestState {
    async fn start(&mut self, _name: String, command: wit::process::Command) -> Answer<Resource<Never>> {
        let failure = self
            .broker
            .later_command(&command.program, &command.arguments, "sessions that stay open");
        Ok(Err(failure.into()))
    }

    async fn resume(&mut self, _name: String) -> Result<Option<Resource<Never>>> {
        // There is none, since none could be started.
        Ok(None)
    }

    async fn write(&mut self, live: Resource<Never>, _bytes: Vec<u8>) -> Answer<()> {
        match *self.table.get(&live)? {}
    }

    async fn read(&mut self, live: Resource<Never>, _max_bytes: u32, _timeout_ms: u32) -> Answer<Vec<u8>> {
        match *self.table.get(&live)? {}
    }

    async fn stop(&mut self, live: Resource<Never>) -> Answer<()> {
        match *self.table.get(&live)? {}
    }

    async fn drop(&mut self, live: Resource<Never>) -> Result<()> {
        match self.table.delete(live)? {}
    }
}
