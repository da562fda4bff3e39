//! The NBD client against the servers that people run: nbdkit, qemu-nbd and qemu-storage-daemon.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coffre_engine::nbd::{NbdError, NbdSource, Socket};
use coffre_engine::{Chain, DiskSource};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 64 * MIB;

/// A server that ends with the test.
struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts a server that will listen on the socket `s` in a folder of its own.
    fn start(program: &str, arguments: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(program)
            .args(arguments(folder.path()))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error} (cargo xtask test installs it)"));
        Self { child, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn open(&self, export: &str, context: Option<&str>) -> Result<NbdSource, NbdError> {
        let socket = once_it_listens(|| UnixStream::connect(self.socket()));
        NbdSource::open(Socket::Unix(socket), export, format!("nbd {export}"), context)
    }
}

fn once_it_listens<T>(connect: impl Fn() -> std::io::Result<T>) -> T {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match connect() {
            Ok(connected) => return connected,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Noise in the second and in the last MiB but one of a sparse file.
fn sparse(path: &Path) -> Vec<u8> {
    let mut wanted = vec![0; SIZE_BYTES as usize];
    for at in [MIB, SIZE_BYTES - 2 * MIB] {
        blake3::Hasher::new()
            .update(&at.to_le_bytes())
            .finalize_xof()
            .fill(&mut wanted[at as usize..(at + MIB) as usize]);
    }
    let file = File::create(path).unwrap();
    file.set_len(SIZE_BYTES).unwrap();
    for at in [MIB, SIZE_BYTES - 2 * MIB] {
        file.write_all_at(&wanted[at as usize..(at + MIB) as usize], at)
            .unwrap();
    }
    wanted
}

/// Several threads at once, each every so many pieces of an odd size, as readers of a backup do.
fn read_whole(source: &Arc<NbdSource>) -> Vec<u8> {
    const PIECE: usize = 768 * 1024;
    const THREADS: usize = 6;
    let size = source.size_bytes() as usize;
    let mut bytes = vec![0xee; size];
    let mut of_threads: Vec<Vec<(u64, &mut [u8])>> = (0..THREADS).map(|_| Vec::new()).collect();
    for (number, piece) in bytes.chunks_mut(PIECE).enumerate() {
        of_threads[number % THREADS].push(((number * PIECE) as u64, piece));
    }
    std::thread::scope(|scope| {
        for pieces in of_threads {
            scope.spawn(move || {
                for (offset, piece) in pieces {
                    source.read_at(offset, piece).unwrap();
                }
            });
        }
    });
    bytes
}

fn data(source: &NbdSource) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(range) = source.next_data(at).unwrap() {
        found.push((range.start, range.end));
        at = range.end;
    }
    found
}

/// The whole disk, and its holes where the server knows them.
fn check(server: &Server, export: &str, wanted: &[u8], knows_holes: bool) {
    let source = Arc::new(server.open(export, None).unwrap());
    assert_eq!(source.size_bytes(), SIZE_BYTES);
    assert!(read_whole(&source) == wanted, "other bytes than the disk's");
    let mut ranges = data(&source);
    if knows_holes {
        // QEMU has probed the first block of a raw file, and calls it data.
        ranges.retain(|range| *range != (0, 4096));
        let last = SIZE_BYTES - 2 * MIB;
        assert_eq!(ranges, [(MIB, 2 * MIB), (last, last + MIB)]);
        assert_eq!(source.next_data(MIB + 4096).unwrap(), Some(MIB + 4096..2 * MIB));
    } else {
        assert_eq!(ranges, [(0, SIZE_BYTES)]);
    }
}

#[test]
fn nbdkit_is_read_by_many_at_once_with_and_without_structured_replies() {
    for (more, knows_holes) in [("", true), ("--no-sr", false)] {
        let mut wanted = Vec::new();
        let server = Server::start("nbdkit", |folder| {
            wanted = sparse(&folder.join("disk"));
            let folder = folder.display();
            words(&format!("-f -r {more} -U {folder}/s file {folder}/disk"))
        });
        check(&server, "", &wanted, knows_holes);
    }
}

#[test]
fn qemu_nbd_is_read_by_many_at_once_over_its_one_connection() {
    for format in ["raw", "qcow2"] {
        let mut wanted = Vec::new();
        let server = Server::start("qemu-nbd", |folder| {
            wanted = sparse(&folder.join("raw"));
            let folder = folder.display();
            let made = Command::new("qemu-img")
                .args(words(&format!(
                    "convert -q -f raw -O {format} {folder}/raw {folder}/disk"
                )))
                .status();
            assert!(made.unwrap().success());
            words(&format!(
                "-r -t --shared=1 -f {format} -x pit -k {folder}/s {folder}/disk"
            ))
        });
        check(&server, "pit", &wanted, true);
        let missing = server.open("other", None).err().unwrap();
        assert_eq!(missing.to_string(), "the server has no export `other`");
    }
}

#[test]
fn a_tcp_server_is_read() {
    // The port that the kernel gives, which is free again a moment later.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let wanted = sparse(&disk);
    let child = Command::new("nbdkit")
        .args(words(&format!("-f -r -i 127.0.0.1 -p {port} file {}", disk.display())))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _server = Server { child, folder };
    let stream = once_it_listens(|| TcpStream::connect(("127.0.0.1", port)));
    let source = NbdSource::open(Socket::Tcp(stream), "", "tcp".to_owned(), None).unwrap();
    assert!(read_whole(&Arc::new(source)) == wanted);
}

#[test]
fn an_error_of_the_disk_is_told_with_its_place_and_others_go_on() {
    let server = Server::start("nbdkit", |folder| {
        fs::write(folder.join("fail"), "").unwrap();
        let folder = folder.display();
        words(&format!(
            "-f -r -U {folder}/s --filter=error memory 64M error-pread-rate=100% error-file={folder}/fail error=EIO"
        ))
    });
    let source = server.open("", None).unwrap();
    let error = source.read_at(8192, &mut [0; 4096]).unwrap_err();
    let text = Chain(&error).to_string();
    assert!(text.contains("4096 bytes at 8192: EIO"), "{text}");
    fs::remove_file(server.folder.path().join("fail")).unwrap();
    source.read_at(8192, &mut [0; 4096]).unwrap();
}

#[test]
fn a_server_that_dies_ends_every_read() {
    let mut server = Server::start("nbdkit", |folder| {
        words(&format!(
            "-f -r -U {}/s --filter=delay memory 64M rdelay=30",
            folder.display()
        ))
    });
    let source = server.open("", None).unwrap();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4u64)
            .map(|number| {
                let source = &source;
                scope.spawn(move || source.read_at(number * MIB, &mut [0; 4096]))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200));
        server.child.kill().unwrap();
        for reader in readers {
            reader.join().unwrap().unwrap_err();
        }
    });
}

/// A monitor of QEMU's, spoken to over standard input and output.
struct Daemon {
    server: Server,
    answers: BufReader<std::process::ChildStdout>,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("qemu-storage-daemon")
            .args(words("--chardev stdio,id=q --monitor chardev=q"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("qemu-storage-daemon: {error} (cargo xtask test installs it)"));
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut daemon = Self {
            server: Server { child, folder },
            answers,
        };
        daemon.answer();
        daemon.run("qmp_capabilities", json!({}));
        daemon
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    fn run(&mut self, command: &str, arguments: Value) -> Value {
        let asked = json!({ "execute": command, "arguments": arguments });
        let stdin = self.server.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{asked}").unwrap();
        loop {
            let answer = self.answer();
            if answer.get("event").is_none() {
                assert!(answer.get("return").is_some(), "{command}: {answer}");
                return answer["return"].clone();
            }
        }
    }
}

/// Writes through the export `live`, as a guest does.
fn write(socket: &Path, offset: u64, length: u64) {
    let command = format!("write -P 0x5a {offset} {length}");
    let uri = format!("nbd+unix:///live?socket={}", socket.display());
    let output = Command::new("qemu-io")
        .args(["-f", "raw", "-c", &command, &uri])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn what_a_bitmap_of_qemus_has_is_listed() {
    let mut daemon = Daemon::start();
    let folder = daemon.server.folder.path().to_owned();
    let disk = folder.join("disk");
    sparse(&disk);
    let socket = daemon.server.socket();
    let file = json!({ "driver": "file", "filename": disk });
    daemon.run(
        "blockdev-add",
        json!({ "driver": "raw", "node-name": "disk0", "file": file }),
    );
    let bitmap = json!({ "node": "disk0", "name": "b0", "granularity": 65536 });
    daemon.run("block-dirty-bitmap-add", bitmap);
    let address = json!({ "type": "unix", "data": { "path": socket } });
    daemon.run("nbd-server-start", json!({ "addr": address }));
    let live = json!({ "id": "live", "type": "nbd", "node-name": "disk0", "name": "live", "writable": true });
    daemon.run("block-export-add", live);
    // Dirty pieces far apart, more than one answer's worth of clean ones between them, and two side by side.
    write(&socket, 0, 4096);
    write(&socket, 65536, 4096);
    write(&socket, 40 * MIB + 5, 70_000);
    write(&socket, SIZE_BYTES - 512, 512);
    let pit = json!({
        "id": "pit", "type": "nbd", "node-name": "disk0", "name": "pit", "writable": false,
        "bitmaps": [{ "node": "disk0", "name": "b0" }],
    });
    daemon.run("block-export-add", pit);

    let source = Arc::new(daemon.server.open("pit", Some("qemu:dirty-bitmap:b0")).unwrap());
    let mut list = source.changes().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut found = Vec::new();
    loop {
        let extents = runtime.block_on(list.next()).unwrap();
        if extents.is_empty() {
            break;
        }
        found.extend(extents.iter().map(|extent| (extent.offset_bytes, extent.length_bytes)));
    }
    let wanted = [(0, 131_072), (40 * MIB, 131_072), (SIZE_BYTES - 65536, 65536)];
    assert_eq!(found, wanted);
    let mut there = vec![0; SIZE_BYTES as usize];
    File::open(&disk).unwrap().read_exact(&mut there).unwrap();
    assert!(read_whole(&source) == there);

    let missing = daemon.server.open("pit", Some("qemu:dirty-bitmap:b1")).err().unwrap();
    assert!(missing.to_string().contains("`qemu:dirty-bitmap:b1`"), "{missing}");
    assert!(
        daemon
            .server
            .open("pit", None)
            .is_ok_and(|source| Arc::new(source).changes().is_none())
    );
}
