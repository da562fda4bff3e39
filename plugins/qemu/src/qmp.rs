//! QEMU's monitor: one JSON object a line in both directions.

use coffre_plugin_sdk::unix_socket::Connection;
use coffre_plugin_sdk::{Failure, time};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A monitor greets at once. One that has a client already, as libvirt is of the machines it manages, says nothing.
const GREETING_MS: u32 = 2_000;
/// Commands are answered in milliseconds; those that take longer are jobs.
const ANSWER_MS: u32 = 20_000;
/// How often a job is looked at, and how long.
const LOOK_EVERY_MS: u32 = 5;
const JOB_MS: u64 = 30_000;
const RECEIVE_BYTES: u32 = 64 * 1024;
/// The nodes of a machine with many disks and long chains.
const LINE_BYTES: usize = 8 * 1024 * 1024;

pub struct Monitor {
    socket: Connection,
    received: Vec<u8>,
}

impl Monitor {
    pub fn connect(path: &str) -> Result<Self, Failure> {
        let mut monitor = Self {
            socket: Connection::connect(path)?,
            received: Vec::new(),
        };
        match monitor.line(GREETING_MS) {
            Ok(greeting) if greeting.get("QMP").is_some() => {}
            Ok(_) => return Err(Failure::Failed(format!("{path} is not QEMU's monitor (QMP)"))),
            Err(Failure::TimedOut(_)) => {
                return Err(Failure::Busy(format!(
                    "the monitor at {path} does not greet, so somebody else is using it; a monitor takes one client. For a \
                     machine that libvirt manages, give QEMU a second monitor: -qmp unix:PATH,server=on,wait=off"
                )));
            }
            Err(failure) => return Err(failure),
        }
        monitor.run::<Value>("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Runs a command, and gives what it returns.
    pub fn run<T: DeserializeOwned>(&mut self, command: &str, arguments: Value) -> Result<T, Failure> {
        self.try_run(command, arguments)?
            .map_err(|error| Failure::Failed(format!("QEMU refused {command}: {error}")))
    }

    /// The same, with QEMU's refusal told apart.
    pub fn try_run<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<Result<T, String>, Failure> {
        let asked = json!({ "execute": command, "arguments": arguments });
        self.socket.send(format!("{asked}\n").as_bytes())?;
        loop {
            let mut answer = self.line(ANSWER_MS)?;
            if let Some(error) = answer.get("error") {
                let text = error
                    .get("desc")
                    .and_then(Value::as_str)
                    .unwrap_or("it does not say why");
                return Ok(Err(text.to_owned()));
            }
            // Beside answers there are events, which nobody here waits for.
            if let Some(value) = answer.get_mut("return") {
                let value = serde_json::from_value(value.take());
                return value.map(Ok).map_err(|error| {
                    Failure::Failed(format!("QEMU answered {command} with what is not understood: {error}"))
                });
            }
        }
    }

    /// Looks until `done` says so.
    pub fn wait(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let until = time::now_ms() + JOB_MS;
        while !done(self)? {
            if time::now_ms() > until {
                return Err(Failure::TimedOut(format!(
                    "QEMU did not {what} within {} s",
                    JOB_MS / 1000
                )));
            }
            time::sleep(LOOK_EVERY_MS);
        }
        Ok(())
    }

    fn line(&mut self, timeout_ms: u32) -> Result<Value, Failure> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map_err(|error| Failure::Failed(format!("QEMU's monitor said what is no JSON: {error}")));
            }
            if self.received.len() > LINE_BYTES {
                return Err(Failure::Failed("QEMU's monitor said a line without end".to_owned()));
            }
            let more = self.socket.receive(RECEIVE_BYTES, timeout_ms)?;
            if more.is_empty() {
                return Err(Failure::Unavailable("QEMU closed its monitor".to_owned()));
            }
            self.received.extend(more);
        }
    }
}
