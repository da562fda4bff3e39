//! A door before a real server: passes every request on, writes it down, and at a chosen one kills the program that sent it,
//! or takes the answer away.
//!
//! Requests are counted as they arrive, one connection each, so that what was sent is known to the request. The program is
//! killed through a descriptor of its process, which no other process can come to have.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::strike::{Blow, Operation, Strike, Struck};

/// More than a pack may have, which is the largest thing that is sent.
const BODY_LIMIT_BYTES: usize = 80 << 20;

/// Loopback in front of one server. Its thread ends when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    closed: Arc<AtomicBool>,
}

struct Shared {
    server: SocketAddr,
    /// What stands before a vault's objects in every request's path.
    prefix: String,
    round: Mutex<Round>,
}

/// One run of the program.
#[derive(Default)]
struct Round {
    strikes: Vec<(Strike, u32)>,
    program: Option<Arc<OwnedFd>>,
    operations: Vec<Operation>,
    struck: u32,
}

impl Proxy {
    /// In front of the server at `url`, for the vault whose objects lie below `prefix` (`bucket/folder`).
    pub fn before(url: &str, prefix: &str) -> Self {
        let server = url.strip_prefix("http://").expect("a server without TLS");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server: server.parse().expect("an address and a port"),
            prefix: format!("{prefix}/"),
            round: Mutex::default(),
        });
        let closed = Arc::new(AtomicBool::new(false));
        let (share, close) = (Arc::clone(&shared), Arc::clone(&closed));
        thread::spawn(move || {
            for client in listener.incoming() {
                if close.load(Ordering::Acquire) {
                    return;
                }
                let shared = Arc::clone(&share);
                if let Ok(client) = client {
                    // What breaks between client and server breaks for the client too: it sees its connection closed.
                    thread::spawn(move || drop(shared.serve(&client)));
                }
            }
        });
        Self {
            address,
            shared,
            closed,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Runs the program, which reaches its store through this door, and strikes.
    pub fn run(&self, mut command: Command, strikes: &[Strike]) -> Struck {
        let mut round = self.shared.round();
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // No request is served before the program is known: this holds the lock.
        let pid = Pid::from_child(&child);
        *round = Round {
            strikes: strikes.iter().map(|strike| (strike.clone(), 0)).collect(),
            program: Some(Arc::new(pidfd_open(pid, PidfdFlags::empty()).unwrap())),
            ..Round::default()
        };
        drop(round);
        let output = child.wait_with_output().unwrap();
        let round = std::mem::take(&mut *self.shared.round());
        Struck::of(output, round.operations, round.struck)
    }

    /// Takes an object away, as a fault of the server would. Only where signatures are not checked.
    pub fn lose(&self, object: &str) {
        let Shared { server, prefix, .. } = &*self.shared;
        let head = format!("DELETE /{prefix}{object} HTTP/1.1\r\nhost: {server}\r\nconnection: close\r\n\r\n");
        let mut server = self.shared.connect().unwrap();
        server.write_all(head.as_bytes()).unwrap();
        let answer = answer_of(server).unwrap();
        assert!(
            answer.starts_with(b"HTTP/1.1 204"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

/// A request as it came.
struct Request {
    /// First line and headers, without the empty line, and with the connection to be closed after the answer.
    head: String,
    body: Vec<u8>,
    operation: Operation,
}

impl Shared {
    fn round(&self) -> MutexGuard<'_, Round> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request of one connection. The program is told to use another one for the next.
    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        let Some(request) = self.receive(client)? else {
            return Ok(());
        };
        let (blow, program) = self.count(&request.operation);
        let kill = || kill(program.as_deref());
        match blow {
            None => pass_back(client, self.send(&request)?),
            Some(Blow::KillBefore | Blow::Fail(_)) => kill(),
            Some(Blow::KillMidway) => {
                let half = request.body.len() / 2;
                let mut server = self.connect()?;
                server.write_all(request.head.as_bytes())?;
                server.write_all(&request.body[..half])?;
                kill()?;
                server.shutdown(Shutdown::Both)
            }
            Some(Blow::KillAfter) => {
                answer_of(self.send(&request)?)?;
                kill()
            }
            Some(Blow::CutAfter) => answer_of(self.send(&request)?).map(drop),
            Some(Blow::UnavailableAfter) => {
                answer_of(self.send(&request)?)?;
                let body = "<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";
                answer(client, "503 Slow Down", body)
            }
            Some(Blow::ConflictBefore) => {
                let body = "<Error><Code>ConditionalRequestConflict</Code><Message>A conflicting conditional operation is \
                            currently in progress against this resource.</Message></Error>";
                answer(client, "409 Conflict", body)
            }
        }
    }

    /// Writes the operation down and says what shall become of it.
    fn count(&self, operation: &Operation) -> (Option<Blow>, Option<Arc<OwnedFd>>) {
        let mut round = self.round();
        let Round {
            strikes,
            program,
            operations,
            struck,
        } = &mut *round;
        operations.push(operation.clone());
        let mut blow = None;
        for (strike, matched) in strikes.iter_mut().filter(|(strike, _)| strike.concerns(operation)) {
            *matched += 1;
            if *matched == strike.nth {
                *struck += 1;
                blow = Some(strike.blow);
            }
        }
        (blow, program.clone())
    }

    fn connect(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.server)
    }

    fn send(&self, request: &Request) -> io::Result<TcpStream> {
        let mut server = self.connect()?;
        server.write_all(request.head.as_bytes())?;
        server.write_all(&request.body)?;
        Ok(server)
    }

    /// Nothing where the client has closed the connection.
    fn receive(&self, client: &TcpStream) -> io::Result<Option<Request>> {
        let mut client = BufReader::new(client);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if client.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            if line == "\r\n" {
                break;
            }
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            let value = line.split_once(':').map_or("", |(_, value)| value.trim());
            match name.as_str() {
                "content-length" => length = value.parse().map_err(io::Error::other)?,
                "transfer-encoding" => return Err(io::Error::other("a body without a length")),
                "connection" => continue,
                _ => {}
            }
            head.push_str(&line);
        }
        head.push_str("connection: close\r\n\r\n");
        assert!(length <= BODY_LIMIT_BYTES, "a body of {length} bytes");
        let mut body = vec![0; length];
        client.read_exact(&mut body)?;
        let mut operation = self.operation(head.lines().next().unwrap_or_default(), &body);
        if operation.verb == "PUT" && !head.to_ascii_lowercase().contains("\r\nif-none-match: *\r\n") {
            operation.verb = "REPLACE".to_owned();
        }
        Ok(Some(Request { head, body, operation }))
    }

    /// What a request is for, by its first line. A batch of Azure's is a delete, whose object stands in its body.
    fn operation(&self, line: &str, body: &[u8]) -> Operation {
        let mut words = line.split(' ');
        let (verb, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: HashMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let (verb, name) = match (verb, query.get("comp")) {
            ("GET", _) if query.contains_key("list-type") || query.get("comp") == Some(&"list") => {
                let prefix = query.get("prefix").copied().unwrap_or_default();
                // What stands before a listing's prefix is the bucket alone.
                let bucket = self.prefix.split('/').next().unwrap_or_default();
                ("LIST", format!("{bucket}/{}", prefix.replace("%2F", "/")))
            }
            ("POST", Some(&"batch")) => {
                let body = String::from_utf8_lossy(body);
                let delete = body.lines().find_map(|line| line.strip_prefix("DELETE "));
                let target = delete.and_then(|rest| rest.split([' ', '?']).next());
                ("DELETE", target.unwrap_or_default().to_owned())
            }
            (verb, _) => (verb, path.to_owned()),
        };
        let object = name.split_once(&self.prefix).map_or("", |(_, object)| object);
        Operation {
            verb: verb.to_owned(),
            object: object.to_owned(),
        }
    }
}

/// The program is dead when this returns. Nothing else can have its descriptor.
fn kill(program: Option<&OwnedFd>) -> io::Result<()> {
    let program = program.ok_or_else(|| io::Error::other("no program is running"))?;
    pidfd_send_signal(program, Signal::KILL)?;
    poll(&mut [PollFd::new(program, PollFlags::IN)], None)?;
    Ok(())
}

/// All that a server has to say; it closes the connection behind it.
fn answer_of(mut server: TcpStream) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}

fn pass_back(mut client: &TcpStream, server: TcpStream) -> io::Result<()> {
    client.write_all(&answer_of(server)?)
}

fn answer(mut client: &TcpStream, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/xml\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    client.write_all(head.as_bytes())?;
    client.write_all(body.as_bytes())
}
