//! A plugin that loops, eats, lies and reaches out: each ends in one clear error, and the next call works.

use std::path::Path;
use std::time::{Duration, Instant};

use coffre_engine::nbd::{NbdError, NbdSource};
use coffre_engine::{
    Changes, DiskId, DiskSource, ProviderError, ProviderErrorKind, SnapshotId, SnapshotProvider, Source,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{load, machine, request};

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("root.img"), vec![7; 65_536]).expect("an image");
    folder
}

fn settings(folder: &Path, behaviour: &str) -> Value {
    json!({ "images": folder, "behaviour": behaviour })
}

async fn discover(behaviour: &str) -> Result<Vec<coffre_engine::DiskInfo>, ProviderError> {
    let folder = folder();
    let settings = settings(folder.path(), behaviour);
    let provider = load("hostile", &settings).await.expect("it loads");
    let found = provider.discover(&machine(&settings)).await;
    // Whatever happened, the next call is served by a fresh instance.
    let honest = json!({ "images": folder.path() });
    let again = provider
        .discover(&machine(&honest))
        .await
        .expect("a call after a bad one works");
    assert_eq!(again[0].size_bytes, 65_536);
    found
}

async fn fails(behaviour: &str) -> ProviderError {
    match discover(behaviour).await {
        Ok(found) => panic!("{behaviour} was not noticed: {found:?}"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_guest_that_loops_is_stopped_at_the_deadline() {
    let started = Instant::now();
    let error = fails("loop").await;
    assert_eq!(error.kind, ProviderErrorKind::Limit);
    assert!(error.text.contains("did not end within 1.0 s"), "{}", error.text);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_guest_that_sleeps_in_the_host_is_stopped_too() {
    assert_eq!(fails("sleep").await.kind, ProviderErrorKind::Limit);
}

#[tokio::test]
async fn a_guest_that_eats_memory_hits_its_ceiling() {
    let error = fails("eat").await;
    assert_eq!(error.kind, ProviderErrorKind::Limit);
    assert!(error.text.contains("64 MiB"), "{}", error.text);
}

#[tokio::test]
async fn a_guest_that_recurses_or_panics_is_told_apart() {
    // Rust's own stack lies in linear memory, so running out of it is an access out of bounds as often as an overflow.
    let error = fails("dive").await;
    assert!(
        matches!(error.kind, ProviderErrorKind::Limit | ProviderErrorKind::Trapped),
        "{error:?}"
    );
    let error = fails("panic").await;
    assert_eq!(error.kind, ProviderErrorKind::Trapped);
    assert!(error.text.contains("no mood for disks"), "{}", error.text);
}

#[tokio::test]
async fn a_flood_of_lines_and_a_long_line_do_no_harm() {
    let started = Instant::now();
    // The flood may or may not end in time; what counts is that it is bounded.
    let _ = discover("flood").await;
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(discover("long-line").await.expect("a long line is cut").len(), 1);
    assert_eq!(fails("huge-log").await.kind, ProviderErrorKind::Limit);
}

#[tokio::test]
async fn disks_that_cannot_be_are_refused() {
    for behaviour in ["many-disks", "same-disk-twice", "odd-id", "huge-disk"] {
        let error = fails(behaviour).await;
        assert_eq!(error.kind, ProviderErrorKind::BadAnswer, "{behaviour}: {}", error.text);
        assert!(error.hint.is_some());
    }
}

#[tokio::test]
async fn a_guests_text_cannot_steer_a_terminal() {
    let error = fails("escapes").await;
    assert!(!error.text.chars().any(char::is_control), "{:?}", error.text);
}

#[tokio::test]
async fn a_finding_about_a_disk_that_nobody_asked_about_is_refused() {
    let folder = folder();
    let settings = settings(folder.path(), "finding-elsewhere");
    let provider = load("hostile", &settings).await.expect("it loads");
    let error = provider
        .check(&machine(&settings), &[DiskId("root".to_owned())])
        .await
        .expect_err("refused");
    assert_eq!(error.kind, ProviderErrorKind::BadAnswer);
}

async fn take(behaviour: &str, path: &str) -> Result<coffre_engine::Snapshot, ProviderError> {
    let folder = folder();
    let outside = folder.path().join("link.img");
    std::os::unix::fs::symlink("/etc/passwd", &outside).expect("a link");
    let path = path.replace("IMAGES", &folder.path().display().to_string());
    let settings = json!({ "images": folder.path(), "behaviour": behaviour, "path": path });
    let provider = load("hostile", &settings).await.expect("it loads");
    provider.take(&machine(&settings), &request("job-1", &["root"])).await
}

#[tokio::test]
async fn an_honest_snapshot_passes() {
    let taken = take("", "").await.expect("a snapshot");
    assert_eq!((taken.disks.len(), taken.disks[0].size_bytes), (1, 65_536));
}

#[tokio::test]
async fn a_returned_path_or_address_outside_the_grants_is_refused() {
    // The manifest asks for /etc/**, and this catalog grants all that is asked, so only other places are outside here;
    // what is asked and not granted is tested beside.
    for path in [
        "/root/x",
        "/proc/self/environ",
        "IMAGES/../x",
        "IMAGES/link.img",
        "relative",
    ] {
        let error = take("take-elsewhere", path).await.expect_err("refused");
        assert_eq!(error.kind, ProviderErrorKind::Denied, "{path}: {}", error.text);
    }
    let error = take("take-elsewhere", "IMAGES").await.expect_err("a folder is no disk");
    assert_eq!(error.kind, ProviderErrorKind::BadAnswer, "{}", error.text);
    for uri in ["nbd://10.0.0.1/x", "nbd+unix:///x?socket=/run/x.sock"] {
        let error = take("take-nbd", uri).await.expect_err("refused");
        assert_eq!(error.kind, ProviderErrorKind::Denied, "{uri}: {}", error.text);
    }
    assert_eq!(
        take("take-nbd", "http://x/").await.expect_err("refused").kind,
        ProviderErrorKind::BadAnswer
    );
}

#[tokio::test]
async fn an_nbd_server_in_the_grants_is_connected_to_by_the_host() {
    let folder = folder();
    let (image, socket) = (folder.path().join("root.img"), folder.path().join("nbd.sock"));
    let uri = format!("nbd+unix:///a%20name?socket={}", socket.display());
    let settings = json!({ "images": folder.path(), "behaviour": "take-nbd", "path": uri });
    let provider = load("hostile", &settings).await.expect("it loads");
    let taken = async || provider.take(&machine(&settings), &request("job-1", &["root"])).await;
    let error = taken().await.expect_err("nobody listens");
    assert!(error.text.contains("it is not there"), "{}", error.text);
    std::fs::write(&socket, "").expect("a file");
    let error = taken().await.expect_err("no socket");
    assert!(error.text.contains("is no socket"), "{}", error.text);
    std::fs::remove_file(&socket).expect("gone");

    let mut server = std::process::Command::new("nbdkit")
        .args(["-f", "-r", "-U"])
        .args([&socket, Path::new("file"), &image])
        .spawn()
        .expect("nbdkit, which cargo xtask test installs");
    let until = Instant::now() + Duration::from_secs(20);
    let snapshot = loop {
        match taken().await {
            Ok(snapshot) => break snapshot,
            Err(error) => assert!(Instant::now() < until, "{}", error.text),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let Some(Source::Nbd { socket, export, .. }) = snapshot.disks.into_iter().next().map(|disk| disk.source) else {
        panic!("an NBD export was offered");
    };
    assert_eq!(export, "a name");
    let opened = tokio::task::spawn_blocking(move || {
        let source = NbdSource::open(socket, "", "the export".to_owned(), None)?;
        let mut bytes = vec![0; 65_536];
        source.read_at(0, &mut bytes).expect("it reads");
        Ok::<_, NbdError>((source.size_bytes(), bytes))
    });
    let (size_bytes, bytes) = opened.await.expect("no panic").expect("it opens");
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    assert!(size_bytes == 65_536 && bytes.iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn what_is_asked_and_not_granted_stays_denied() {
    let folder = folder();
    let mut config = crate::config();
    let mut installed = crate::pinned("hostile", &crate::component("plugins-test", "hostile"), None);
    installed.sha256 = config.shipped_digests.get("hostile").cloned();
    installed.grant = Some([("disk-read".to_owned(), json!(["${settings.images}/**", "/root/**"]))].into());
    config.installed.push(installed);
    let catalog = coffre_sandbox::PluginCatalog::new(config);
    for (path, cause) in [("/etc/passwd", "has no grant for"), ("/root/x", "does not ask for it")] {
        let settings = json!({ "images": folder.path(), "behaviour": "take-elsewhere", "path": path });
        let provider = catalog
            .load_provider("hostile", &settings, crate::limits())
            .await
            .expect("it loads");
        let error = provider
            .take(&machine(&settings), &request("job-1", &["root"]))
            .await
            .expect_err("refused");
        assert_eq!(error.kind, ProviderErrorKind::Denied);
        assert!(error.text.contains(cause), "{}", error.text);
    }
}

#[tokio::test]
async fn snapshots_that_cannot_be_are_refused() {
    for behaviour in [
        "take-larger",
        "take-unasked",
        "take-twice",
        "take-nothing",
        "take-best",
        "take-no-reason",
        "take-long-token",
        "take-odd-token",
        "take-large-attachment",
        "take-odd-attachment",
    ] {
        let error = take(behaviour, "").await.expect_err(behaviour);
        assert_eq!(error.kind, ProviderErrorKind::BadAnswer, "{behaviour}: {}", error.text);
    }
    assert_eq!(
        take("take-loop", "").await.expect_err("stopped").kind,
        ProviderErrorKind::Limit
    );
}

/// Takes a snapshot and lists what changed; the number of extents, or the error.
async fn list(behaviour: &str) -> Result<usize, ProviderError> {
    let folder = folder();
    let settings = settings(folder.path(), behaviour);
    let provider = load("hostile", &settings).await.expect("it loads");
    let machine = machine(&settings);
    provider
        .take(&machine, &request("job-1", &["root"]))
        .await
        .expect("a snapshot");
    let (id, disk) = (SnapshotId("job-1".to_owned()), DiskId("root".to_owned()));
    match provider.changed(&machine, &id, &disk, "job-0").await? {
        Changes::Listed(mut list) => {
            let mut count = 0;
            loop {
                match list.next().await {
                    Ok(step) if step.is_empty() => return Ok(count),
                    Ok(step) => count += step.len(),
                    Err(error) => {
                        let again = list
                            .next()
                            .await
                            .expect_err("a broken listing never looks like an ended one");
                        assert_eq!(again.kind, error.kind);
                        return Err(error);
                    }
                }
            }
        }
        _ => panic!("not a list"),
    }
}

#[tokio::test]
async fn listings_that_cannot_be_are_refused() {
    for behaviour in [
        "list-overlap",
        "list-unsorted",
        "list-empty-extent",
        "list-past-end",
        "list-overflow",
        "list-back",
        "list-too-many",
        "changed-context",
    ] {
        let error = list(behaviour).await.expect_err(behaviour);
        assert_eq!(error.kind, ProviderErrorKind::BadAnswer, "{behaviour}: {}", error.text);
    }
    for behaviour in ["list-gigantic", "list-loop"] {
        let error = list(behaviour).await.expect_err(behaviour);
        assert_eq!(error.kind, ProviderErrorKind::Limit, "{behaviour}: {}", error.text);
    }
    for behaviour in ["list-panic", "changed-panic"] {
        let error = list(behaviour).await.expect_err(behaviour);
        assert_eq!(error.kind, ProviderErrorKind::Trapped, "{behaviour}: {}", error.text);
    }
    assert_eq!(
        list("changed-fail").await.expect_err("said no").kind,
        ProviderErrorKind::Unavailable
    );
    assert_eq!(list("list-honest").await.expect("an honest list"), 3);
}

#[tokio::test]
async fn ids_of_held_snapshots_and_lengths_of_reads_are_checked() {
    let folder = folder();
    for behaviour in ["held-odd", "held-many", "read-short"] {
        let settings = settings(folder.path(), behaviour);
        let provider = load("hostile", &settings).await.expect("it loads");
        let machine = machine(&settings);
        let error = if behaviour == "read-short" {
            let (id, disk) = (SnapshotId("job-1".to_owned()), DiskId("root".to_owned()));
            provider.read(&machine, &id, &disk, 0, 4096).await.expect_err(behaviour)
        } else {
            provider.held(&machine).await.expect_err(behaviour)
        };
        assert_eq!(error.kind, ProviderErrorKind::BadAnswer, "{behaviour}: {}", error.text);
    }
}

/// What a probe of the host's functions said, or the failure's kind and text.
async fn probe(folder: &Path, behaviour: &str, path: &str) -> Result<String, (ProviderErrorKind, String)> {
    let settings = json!({ "images": folder, "behaviour": behaviour, "path": path });
    let provider = load("hostile", &settings).await.expect("it loads");
    let found = provider
        .discover(&machine(&settings))
        .await
        .map_err(|error| (error.kind, error.text))?;
    Ok(found[0].label.clone().unwrap_or_default())
}

#[tokio::test]
async fn host_functions_stay_within_the_grants() {
    let folder = folder();
    let inside = |name: &str| folder.path().join(name).display().to_string();
    std::os::unix::fs::symlink("/etc", folder.path().join("way-out")).expect("a link");
    let (here, denied) = (folder.path(), ProviderErrorKind::Denied);

    assert!(
        probe(here, "probe-stat", &inside("root.img"))
            .await
            .is_ok_and(|said| said.starts_with("65536 bytes"))
    );
    for path in [
        inside("way-out/passwd"),
        inside("../x"),
        "/root".to_owned(),
        "/proc/self/mem".to_owned(),
    ] {
        let (kind, text) = probe(here, "probe-stat", &path).await.expect_err("refused");
        assert_eq!(kind, denied, "{path}: {text}");
    }
    assert_eq!(
        probe(here, "probe-list", &inside("way-out"))
            .await
            .expect_err("refused")
            .0,
        denied
    );
    let (kind, text) = probe(here, "probe-remove", &inside("root.img"))
        .await
        .expect_err("refused");
    assert_eq!(kind, denied);
    assert!(text.contains("storage-write"), "{text}");
    for behaviour in ["probe-create", "probe-link"] {
        assert_eq!(probe(here, behaviour, "/root/x").await.expect_err("refused").0, denied);
    }
    assert_eq!(
        probe(here, "probe-create", &inside(".coffre")).await,
        Ok("made".to_owned())
    );
    assert_eq!(
        probe(here, "probe-create", &inside(".coffre")).await,
        Ok("made".to_owned()),
        "there already"
    );
    std::os::unix::fs::symlink("/etc", folder.path().join(".coffre/out")).expect("a link");
    assert_eq!(
        probe(here, "probe-create", &inside(".coffre/out/x"))
            .await
            .expect_err("refused")
            .0,
        denied
    );
    assert_eq!(
        probe(here, "probe-remove", &inside(".coffre/out")).await,
        Ok("removed".to_owned()),
        "the link itself"
    );
    assert!(Path::new("/etc/passwd").exists());
    assert_eq!(
        probe(here, "probe-remove", &inside(".coffre/gone/x")).await,
        Ok("removed".to_owned())
    );

    assert_eq!(probe(here, "probe-secret", "allowed").await, Ok("hush".to_owned()));
    assert_eq!(
        probe(here, "probe-secret", "other").await.expect_err("refused").0,
        denied
    );
    assert_eq!(probe(here, "probe-echo", "hello").await, Ok("hello".to_owned()));
    assert_eq!(probe(here, "probe-echo", "-n").await.expect_err("refused").0, denied);
    assert_eq!(probe(here, "probe-shell", "id").await.expect_err("refused").0, denied);
    assert_eq!(
        probe(here, "probe-child", "").await.expect_err("later").0,
        ProviderErrorKind::Unsupported
    );
    for behaviour in ["probe-socket", "probe-agent", "probe-freeze"] {
        assert_eq!(
            probe(here, behaviour, "/run/x").await.expect_err("refused").0,
            denied,
            "{behaviour}"
        );
    }
}

#[tokio::test]
async fn use_is_seen_while_a_file_is_open_for_writing() {
    let folder = folder();
    let path = folder.path().join("root.img");
    let text = path.display().to_string();
    let said = probe(folder.path(), "probe-use", &text).await.expect("an answer");
    assert!(said.starts_with("UsageState::Unused"), "{said}");
    let reader = std::fs::File::open(&path).expect("open");
    let said = probe(folder.path(), "probe-use", &text).await.expect("an answer");
    assert!(said.starts_with("UsageState::Unused"), "reading is no use: {said}");
    drop(reader);
    let writer = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
    let said = probe(folder.path(), "probe-use", &text).await.expect("an answer");
    assert!(said.starts_with("UsageState::InUse"), "{said}");
    assert!(said.contains(&format!("pid {}", std::process::id())), "{said}");
    drop(writer);
}
