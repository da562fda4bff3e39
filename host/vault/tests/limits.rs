//! Huge lengths and sizes, declared by whoever can write to a vault, are refused before memory is taken for them. This whole
//! program may take half a gibibyte and no more, so that taking it would end the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use coffre_vault::testing::fuzz;
use coffre_vault::{
    Credential, Encryption, InitOptions, OpenOptions, ReadData, SessionPlan, Store, StoreConfig, StoreOptions, Vault,
    VerifyPlan,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use url::Url;
use zeroize::Zeroizing;

const MEMORY_BYTES: u64 = 512 << 20;
/// A file of this size takes no room on disk, since all of it is a hole.
const HUGE_BYTES: u64 = 1 << 40;

/// Counts what is mapped and writable, whether it is touched or not: an allocation is refused when it is made.
fn allow_little_memory() {
    let limit = Rlimit {
        current: Some(MEMORY_BYTES),
        maximum: Some(MEMORY_BYTES),
    };
    setrlimit(Resource::Data, limit).expect("a lower limit is always allowed");
    let mut too_much: Vec<u8> = Vec::new();
    assert!(too_much.try_reserve_exact(1 << 30).is_err(), "the limit does not hold");
}

#[test]
fn a_declared_length_takes_no_memory() {
    allow_little_memory();
    for target in fuzz::TARGETS {
        for seed in fuzz::seeds(target.name) {
            // At every place where a length or count might stand, in every width that the format has.
            for at in 0..seed.len().min(600) {
                for huge in [u32::MAX, 1 << 31, (1 << 31) - 1, 1 << 24] {
                    let mut bytes = seed.clone();
                    let end = bytes.len().min(at + 4);
                    bytes[at..end].copy_from_slice(&huge.to_le_bytes()[..end - at]);
                    (target.run)(&bytes);
                }
                // A LEB128 number of 63 bits.
                let mut bytes = seed.clone();
                bytes.splice(at..=at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
                (target.run)(&bytes);
            }
        }
    }
}

#[test]
fn a_frame_that_claims_or_holds_gibibytes_gives_a_chunk_at_most() {
    allow_little_memory();
    let chunk = fuzz::TARGETS
        .iter()
        .find(|target| target.name == "chunk")
        .expect("it is a target");
    // 4 GiB of zeroes in 400 KiB, made in pieces: frames that follow each other are one stream.
    let piece = zstd::bulk::compress(&vec![0; 1 << 20], 19).expect("zeroes compress");
    let bomb: Vec<u8> = piece.iter().copied().cycle().take(piece.len() * 4096).collect();
    // Frame header: magic, a content size of 8 bytes in a single segment, the size; then nothing.
    let mut claim = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    claim.extend_from_slice(&(1_u64 << 60).to_le_bytes());
    claim.extend_from_slice(&[1, 0, 0]);
    // A window of the largest size that the format of zstd has.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 1, 0, 0];
    for body in [&bomb[..], &claim, &window] {
        for plain_bytes in [1, 1000, 1 << 20, (1 << 20) + 1, u32::MAX] {
            let mut input = plain_bytes.to_le_bytes().to_vec();
            input.push(1);
            input.extend_from_slice(body);
            (chunk.run)(&input);
        }
    }
}

fn config(folder: &Path) -> StoreConfig {
    StoreConfig {
        url: Url::from_directory_path(folder).expect("the folder is absolute"),
        options: StoreOptions::default(),
    }
}

fn key() -> Credential {
    Credential::Secret(Zeroizing::new((0..32).collect()))
}

async fn open(folder: &Path, cache: &Path) -> Result<Vault, coffre_vault::OpenError> {
    let options = OpenOptions {
        cache_folder: cache.to_owned(),
        expect_id: None,
        allow_unencrypted: false,
    };
    Vault::open(
        Store::connect(&config(folder)).expect("the folder is there"),
        Some(key()),
        options,
    )
    .await
}

fn objects(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder reads") {
        let path = entry.expect("the folder reads").path();
        if path.is_dir() {
            objects(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[tokio::test]
async fn an_object_of_a_tebibyte_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let vault_folder = folder.path().join("vault");
    let options = InitOptions {
        encryption: Encryption::Encrypted {
            slots: vec![("main".to_owned(), key())],
        },
        recovery_key: false,
        host: String::new(),
    };
    let store = Store::connect(&config(&vault_folder)).expect("an address");
    Vault::init(store, options).await.expect("an empty place");
    let vault = open(&vault_folder, &folder.path().join("cache"))
        .await
        .expect("a sound vault");
    let machine = vault.machine_or_create("web01").await.expect("a sound vault");
    let plan = SessionPlan {
        machine,
        bases: Vec::new(),
        deadline: jiff::Timestamp::now(),
        host: String::new(),
        resumes: None,
    };
    let writer = vault.begin(plan).await.expect("a sound vault");
    let worker = writer.clone();
    let chunks = tokio::task::spawn_blocking(move || worker.put_bytes(b"content"))
        .await
        .expect("no panic")
        .expect("room");
    let attachment = coffre_vault::PointAttachment {
        chunks: chunks.clone(),
        ..Default::default()
    };
    let draft = coffre_vault::PointDraft {
        attachments: vec![attachment],
        ..Default::default()
    };
    writer
        .commit(draft, &folder.path().join("commit"))
        .await
        .expect("a sound vault");

    allow_little_memory();
    let mut all = Vec::new();
    objects(&vault_folder, &mut all);
    assert!(all.len() >= 7, "{all:?}");
    for (number, object) in all.iter().enumerate() {
        let whole = fs::read(object).expect("the object reads");
        File::options()
            .write(true)
            .open(object)
            .and_then(|file| file.set_len(HUGE_BYTES))
            .expect("a file system with files of a tebibyte");
        let cache = folder.path().join(number.to_string());
        let noticed = match open(&vault_folder, &cache).await {
            Err(_) => true,
            Ok(vault) => {
                let plan = VerifyPlan {
                    read: ReadData::All,
                    ..VerifyPlan::default()
                };
                let verified = vault.verify(plan, &|_| {}).await;
                let read = vault.chunks().read(&chunks[0]).await;
                assert!(read.is_err() || *read.expect("it was read") == *b"content");
                verified.is_err() || !verified.expect("it was verified").is_sound()
            }
        };
        let name = object.strip_prefix(&vault_folder).expect("it is in the vault");
        let session = name.starts_with("sessions");
        assert!(noticed || session, "{}", name.display());
        fs::write(object, whole).expect("the object is put back");
    }
}
