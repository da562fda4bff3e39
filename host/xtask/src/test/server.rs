//! The servers that the tests talk to: S3, S3 over TLS and Azure Blob, on loopback, on ports that were free.
//!
//! Every server is started through `setpriv --pdeathsig`, so the kernel ends it when xtask dies in whatever way
//! (Ctrl-C, kill -9), and is stopped by its own process id on every other way out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::tools::{self, Tools};
use crate::command::{self, say};
use crate::workspace::Workspace;

/// Waits for a server and makes the bucket or container. Python is there anyway, with TLS and signatures.
const PREPARE: &str = include_str!("prepare.py");
/// An S3 server that enforces policies.
const ROLES: &str = include_str!("roles.py");
/// A signature that lets its bearer do less than the account's key does.
const AZURE_SAS: &str = include_str!("azure_sas.py");
/// What each role may do on Azure Blob, as docs/permissions.md says.
const AZURE_ROLES: [(&str, &str); 3] = [
    ("COFFRE_TEST_AZURE_SAS_BACKUP", "rcl"),
    ("COFFRE_TEST_AZURE_SAS_RESTORE", "rl"),
    ("COFFRE_TEST_AZURE_SAS_CLEANER", "rcdl"),
];
/// How long a server may take to answer its first request on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long a server may take to end when asked; then it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The bucket and the container that are there when the tests begin. Each test uses a prefix of its own below it.
pub const BUCKET: &str = "coffre-test";

#[derive(Debug)]
pub struct Servers {
    folder: PathBuf,
    environment: BTreeMap<&'static str, String>,
    running: Vec<Server>,
}

impl Servers {
    pub fn start(workspace: &Workspace) -> Result<Self> {
        let tools = tools::get(workspace)?;
        let policies = workspace.root.join("docs/permissions");
        // One folder a run, so that two runs at once do not take each other's certificates.
        let folder = workspace.made("test-servers").join(std::process::id().to_string());
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let mut servers = Self {
            folder,
            environment: BTreeMap::new(),
            running: Vec::new(),
        };
        servers.start_all(&tools)?;
        servers.start_roles(&tools, &policies)?;
        servers.start_overwriting(&tools)?;
        Ok(servers)
    }

    fn start_all(&mut self, tools: &Tools) -> Result<()> {
        let ca = make_certificates(&self.folder.join("tls"))?;
        let [s3, s3_tls, azure] = free_ports()?;

        self.launch(
            "s3",
            &tools.ministack,
            &[],
            &[("BIND_HOST", "127.0.0.1".into()), ("GATEWAY_PORT", s3.to_string())],
        )?;

        let (certificate, key) = (self.folder.join("tls/server.pem"), self.folder.join("tls/server.key"));
        let arguments = [
            "-H",
            "127.0.0.1",
            "-p",
            &s3_tls.to_string(),
            "-c",
            &text(&certificate)?,
            "-k",
            &text(&key)?,
        ]
        .map(str::to_owned);
        self.launch("s3-tls", &tools.moto, &arguments, &[])?;

        let azurite = text(&tools.azurite)?;
        let arguments = [
            azurite.as_str(),
            "--blobHost",
            "127.0.0.1",
            "--blobPort",
            &azure.to_string(),
            "--inMemoryPersistence",
            // Without it a long test's idle connection is cut under a batch of deletes.
            "--blobKeepAliveTimeout",
            "120",
            "--silent",
            "--disableTelemetry",
        ]
        .map(str::to_owned);
        self.launch("azure", &tools.node, &arguments, &[])?;

        let urls = [
            ("s3", format!("http://127.0.0.1:{s3}")),
            ("s3-tls", format!("https://localhost:{s3_tls}")),
            ("azure", format!("http://127.0.0.1:{azure}")),
        ];
        for (name, url) in &urls {
            self.prepare(tools, name, url, &ca)?;
        }
        let [(_, s3), (_, s3_tls), (_, azure)] = urls;
        say("Servers", format!("S3 {s3}, S3 over TLS {s3_tls}, Azure Blob {azure}"));
        self.environment.insert("COFFRE_TEST_S3", s3);
        self.environment.insert("COFFRE_TEST_S3_TLS", s3_tls);
        self.environment.insert("COFFRE_TEST_S3_CA", text(&ca)?);
        self.environment.insert("COFFRE_TEST_AZURE", azure);
        Ok(())
    }

    /// The roles of docs/permissions.md: an S3 server that enforces their policies, and signatures for Azure Blob.
    fn start_roles(&mut self, tools: &Tools, policies: &Path) -> Result<()> {
        let [port] = free_ports()?;
        let keys = self.folder.join("roles.json");
        let arguments = ["-c", ROLES, &port.to_string(), &text(policies)?, BUCKET, &text(&keys)?].map(str::to_owned);
        self.launch("s3-roles", &tools.python, &arguments, &[])?;
        let started = Instant::now();
        while !keys.exists() {
            if !self.all_run() || started.elapsed() > READY_LIMIT {
                bail!("the s3-roles server does not come up; see {}", self.folder.display());
            }
            thread::sleep(Duration::from_millis(50));
        }
        self.environment
            .insert("COFFRE_TEST_S3_ROLES", format!("http://127.0.0.1:{port}"));
        self.environment.insert("COFFRE_TEST_S3_ROLES_KEYS", text(&keys)?);
        for (name, permissions) in AZURE_ROLES {
            let mut sign = Command::new(&tools.python);
            let token = command::output(sign.args(["-c", AZURE_SAS, BUCKET, permissions]))?;
            self.environment.insert(name, token.trim().to_owned());
        }
        Ok(())
    }

    /// An S3 server that no vault may be made on.
    fn start_overwriting(&mut self, tools: &Tools) -> Result<()> {
        let [port] = free_ports()?;
        let program = text(&tools.s3rver)?;
        let objects = text(&self.folder.join("s3-overwriting"))?;
        let arguments = [
            program.as_str(),
            "--directory",
            &objects,
            "--address",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--no-vhost-buckets",
            "--allow-mismatched-signatures",
            "--silent",
            "--configure-bucket",
            BUCKET,
        ]
        .map(str::to_owned);
        self.launch("s3-overwriting", &tools.node, &arguments, &[])?;
        let url = format!("http://127.0.0.1:{port}");
        self.prepare(tools, "s3-overwriting", &url, Path::new(""))?;
        self.environment.insert("COFFRE_TEST_S3_OVERWRITING", url);
        Ok(())
    }

    fn launch(
        &mut self,
        name: &'static str,
        program: &Path,
        arguments: &[String],
        env: &[(&str, String)],
    ) -> Result<()> {
        let log = self.folder.join(name).with_extension("log");
        let out = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let both = out
            .try_clone()
            .with_context(|| format!("use {} twice", log.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(program).args(arguments);
        command.envs(env.iter().map(|(name, value)| (name, value)));
        command
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(both);
        let child = command
            .spawn()
            .with_context(|| format!("start {}", command::line(&command)))?;
        self.running.push(Server {
            name,
            child: Mutex::new(child),
            log,
        });
        Ok(())
    }

    fn prepare(&self, tools: &Tools, name: &str, url: &str, ca: &Path) -> Result<()> {
        let server = self
            .running
            .iter()
            .find(|server| server.name == name)
            .context("a server that was started")?;
        let started = Instant::now();
        loop {
            // In short waits, so that a server which has ended is noticed.
            let mut prepare = Command::new(&tools.python);
            prepare.args(["-c", PREPARE, name, url, BUCKET]).arg(ca).arg("2");
            let Err(error) = command::output(&mut prepare) else {
                return Ok(());
            };
            let runs = server.runs();
            if runs && started.elapsed() < READY_LIMIT {
                continue;
            }
            let said = fs::read_to_string(&server.log).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let last = &lines[lines.len().saturating_sub(10)..];
            let state = if runs { "runs, but does not answer" } else { "has ended" };
            let why = error.to_string().lines().last().unwrap_or_default().to_owned();
            bail!("the {name} server {state}: {why}\nits last words:\n{}", last.join("\n"));
        }
    }

    /// What the tests read to find the servers.
    pub fn environment(&self) -> &BTreeMap<&'static str, String> {
        &self.environment
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn all_run(&self) -> bool {
        self.running.iter().all(Server::runs)
    }

    /// Stops all of them and removes what they left. On every other way out, dropping stops them too.
    pub fn stop(mut self) -> Result<()> {
        let ended: Vec<_> = self
            .running
            .iter()
            .filter(|server| !server.runs())
            .map(|server| server.name)
            .collect();
        self.running.clear();
        if !ended.is_empty() {
            bail!(
                "{} ended before the tests did; see {}",
                ended.join(", "),
                self.folder.display()
            );
        }
        fs::remove_dir_all(&self.folder).with_context(|| format!("remove {}", self.folder.display()))
    }
}

#[derive(Debug)]
struct Server {
    name: &'static str,
    child: Mutex<Child>,
    log: PathBuf,
}

impl Server {
    fn runs(&self) -> bool {
        self.child
            .lock()
            .is_ok_and(|mut child| matches!(child.try_wait(), Ok(None)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Ok(child) = self.child.get_mut() else { return };
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        // Asked first, by its own id; `Child` alone can only kill.
        let _ = command::output(Command::new("kill").arg(child.id().to_string()));
        let asked = Instant::now();
        while asked.elapsed() < STOP_LIMIT {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Ports that were free a moment ago. They are held together, so they differ.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
        *port = listener.local_addr().context("read the port")?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// A certificate authority and a server's certificate signed by it: a self-signed one is refused by rustls.
fn make_certificates(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        command::output(command.current_dir(folder).args(arguments.split(' '))).map(drop)
    };
    openssl("ecparam -name prime256v1 -genkey -noout -out ca.key")?;
    openssl("req -x509 -new -key ca.key -sha256 -days 30 -subj /CN=coffre-test-ca -out ca.pem")?;
    openssl("ecparam -name prime256v1 -genkey -noout -out server.key")?;
    openssl("req -new -key server.key -subj /CN=localhost -out server.csr")?;
    let extensions =
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n";
    fs::write(folder.join("server.ext"), extensions).context("write server.ext")?;
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -sha256 -days 30 -extfile server.ext -out server.pem",
    )?;
    Ok(folder.join("ca.pem"))
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
