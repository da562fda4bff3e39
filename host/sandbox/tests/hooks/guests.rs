//! What stands for a machine that is reached from outside: the QEMU guest agent and an sshd, both on this host, on loopback
//! and below a test's own folder. Programs in the "machine" are then files of this host.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What no test may ask of an agent: here the machine is this host.
const NEVER: &str = "guest-shutdown,guest-suspend-disk,guest-suspend-ram,guest-suspend-hybrid,guest-set-user-password,\
                     guest-set-time,guest-fsfreeze-freeze,guest-fsfreeze-freeze-list,guest-fsfreeze-thaw,guest-set-vcpus,guest-set-memory-blocks";
const START_WITHIN: Duration = Duration::from_secs(20);

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(path: &str, package: &str) -> Command {
    assert!(
        Path::new(path).exists(),
        "{path} is not there\nhint: `cargo xtask test` installs it, or `apt-get install {package}`"
    );
    Command::new(path)
}

fn start(command: &mut Command, log: &Path, is_up: impl Fn() -> bool) -> Server {
    let to = fs::File::create(log).unwrap();
    let child = command
        .stdin(Stdio::null())
        .stdout(to.try_clone().unwrap())
        .stderr(to)
        .spawn()
        .unwrap();
    let mut server = Server(child);
    let give_up = Instant::now() + START_WITHIN;
    while !is_up() {
        let ended = server.0.try_wait().unwrap();
        assert!(
            ended.is_none() && Instant::now() < give_up,
            "{command:?} {ended:?}: {}",
            fs::read_to_string(log).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    server
}

/// A guest agent.
pub struct Agent {
    pub socket: PathBuf,
    _server: Server,
}

impl Agent {
    pub fn start(folder: &Path) -> Self {
        Self::start_without(folder, "")
    }

    /// One that may not do this either.
    pub fn start_without(folder: &Path, blocked: &str) -> Self {
        let socket = folder.join("agent.sock");
        let mut command = program("/usr/sbin/qemu-ga", "qemu-guest-agent");
        command.args(["-m", "unix-listen", "-b", &format!("{NEVER}{blocked}"), "-p"]);
        command
            .arg(&socket)
            .arg("-t")
            .arg(folder)
            .arg("-f")
            .arg(folder.join("agent.pid"));
        let server = start(&mut command, &folder.join("agent.log"), || socket.exists());
        Self {
            socket,
            _server: server,
        }
    }
}

/// An sshd that lets one key in.
pub struct Sshd {
    pub port: u16,
    pub host_key: String,
    /// The file of the private key.
    pub key: PathBuf,
    _server: Server,
}

impl Sshd {
    pub fn start(folder: &Path) -> Self {
        let folder = folder.join("ssh");
        fs::create_dir(&folder).unwrap();
        for name in ["host", "key"] {
            make_key(&folder.join(name));
        }
        fs::copy(folder.join("key.pub"), folder.join("authorized")).unwrap();
        // Where sshd locks its unprivileged half in.
        fs::create_dir_all("/run/sshd").unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nPidFile none\nUsePAM no\n\
             StrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n",
            folder.display()
        );
        fs::write(folder.join("config"), config).unwrap();
        let mut command = program("/usr/sbin/sshd", "openssh-server");
        command.args(["-D", "-e", "-f"]).arg(folder.join("config"));
        let is_up = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        let server = start(&mut command, &folder.join("log"), is_up);
        Self {
            port,
            host_key: fs::read_to_string(folder.join("host.pub")).unwrap(),
            key: folder.join("key"),
            _server: server,
        }
    }

    /// Its table in the configuration.
    pub fn table(&self, name: &str) -> String {
        self.table_with(name, &self.host_key)
    }

    pub fn table_with(&self, name: &str, host_key: &str) -> String {
        format!(
            "[ssh.{name}]\naddress = \"127.0.0.1\"\nport = {}\nuser = \"root\"\nkey = {:?}\nhost-key = {:?}\n",
            self.port,
            self.key,
            host_key.trim()
        )
    }
}

/// A fresh pair of keys; the public half.
pub fn make_key(path: &Path) -> String {
    let made = program("/usr/bin/ssh-keygen", "openssh-client")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(path)
        .status()
        .unwrap();
    assert!(made.success());
    fs::read_to_string(path.with_extension("pub")).unwrap()
}
