//! Plugins that do not run: missing, wrong pin, garbage, wrong world, not permitted; each its own error with a hint.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use coffre_sandbox::{InstalledPlugin, MANIFEST_SECTION, Origin, PluginCatalog, PluginError, World};
use serde_json::json;
use wasm_encoder::{
    Component, ComponentExportKind, ComponentExportSection, ComponentInstanceSection, CustomSection, Module,
};

use crate::{component, config, limits, pinned};

async fn refusal(installed: Vec<InstalledPlugin>, name: &str) -> PluginError {
    let catalog = PluginCatalog::new(coffre_sandbox::CatalogConfig { installed, ..config() });
    let error = catalog
        .load_provider(name, &json!({ "images": "/none" }), limits())
        .await
        .err();
    let error = error.unwrap_or_else(|| panic!("{name} was loaded"));
    assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{error} has no hint");
    error
}

async fn refusal_of(bytes: &[u8]) -> PluginError {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("odd.wasm");
    std::fs::write(&file, bytes).expect("a file");
    refusal(
        vec![InstalledPlugin {
            dev: true,
            ..pinned("odd", &file, None)
        }],
        "odd",
    )
    .await
}

/// A component that exports an empty instance under each name.
fn exporting(names: &[&str], manifest: Option<&str>) -> Vec<u8> {
    let mut component = Component::new();
    let mut exports = ComponentExportSection::new();
    for (index, name) in names.iter().enumerate() {
        let mut instances = ComponentInstanceSection::new();
        let nothing: [(&str, ComponentExportKind, u32); 0] = [];
        instances.export_items(nothing);
        component.section(&instances);
        exports.export(*name, ComponentExportKind::Instance, index as u32, None);
    }
    component.section(&exports);
    if let Some(manifest) = manifest {
        component.section(&CustomSection {
            name: MANIFEST_SECTION.into(),
            data: manifest.as_bytes().into(),
        });
    }
    component.finish()
}

#[tokio::test]
async fn a_missing_plugin_is_named_with_the_nearest_one() {
    let error = refusal(Vec::new(), "refling").await;
    assert!(
        matches!(&error, PluginError::Missing { near: Some(near), .. } if near == "reflink"),
        "{error}"
    );
    assert!(matches!(
        refusal(Vec::new(), "../image").await,
        PluginError::Missing { .. }
    ));
    let gone = pinned("gone", Path::new("/nowhere/gone.wasm"), None);
    assert!(matches!(refusal(vec![gone], "gone").await, PluginError::Read { .. }));
}

#[tokio::test]
async fn a_wrong_pin_is_refused_even_for_a_plugin_that_ships() {
    let file = component("plugins", "image");
    for plugin in [
        pinned("image", &file, Some(&"0".repeat(64))),
        InstalledPlugin {
            file: None,
            ..pinned("image", &file, Some("00"))
        },
    ] {
        let error = refusal(vec![plugin], "image").await;
        assert!(matches!(error, PluginError::WrongPin { .. }), "{error}");
    }
    // A file in the folder that is not the one that ships.
    let folder = tempfile::tempdir().expect("a folder");
    let mut bytes = std::fs::read(&file).expect("a component");
    bytes.extend([0, 2, 1, b'x']);
    std::fs::write(folder.path().join("image.wasm"), bytes).expect("a file");
    let catalog = PluginCatalog::new(coffre_sandbox::CatalogConfig {
        folders: vec![folder.path().to_owned()],
        ..config()
    });
    let error = catalog
        .load_provider("image", &json!({}), limits())
        .await
        .err()
        .expect("refused");
    assert!(matches!(error, PluginError::WrongPin { .. }), "{error}");
}

#[tokio::test]
async fn a_plugin_without_a_pin_runs_only_for_development() {
    let hostile = component("plugins-test", "hostile");
    let mut config = config();
    config.shipped_digests.remove("hostile");
    let error = PluginCatalog::new(config.clone())
        .load_provider("hostile", &json!({}), limits())
        .await
        .err();
    assert!(matches!(error, Some(PluginError::NotPinned { .. })), "{error:?}");
    config.installed.push(InstalledPlugin {
        dev: true,
        ..pinned("hostile", &hostile, None)
    });
    let catalog = PluginCatalog::new(config);
    let provider = catalog
        .load_provider("hostile", &json!({}), limits())
        .await
        .expect("it loads");
    assert!(!coffre_engine::SnapshotProvider::identity(&*provider).pinned);
    assert!(provider.granted().0.is_empty(), "nothing is granted to a stranger");
}

#[tokio::test]
async fn garbage_and_cut_files_are_told() {
    let whole = std::fs::read(component("plugins", "image")).expect("a component");
    for bytes in [
        &b""[..],
        b"#!/bin/sh\n",
        b"\0asm",
        &whole[..whole.len() / 2],
        &whole[..9],
    ] {
        let error = refusal_of(bytes).await;
        assert!(
            matches!(error, PluginError::Garbage { .. }),
            "{} bytes: {error}",
            bytes.len()
        );
    }
    // Every 997th byte flipped: refused one way or the other, and never a panic.
    for position in (8..whole.len()).step_by(997).take(60) {
        let mut bytes = whole.clone();
        bytes[position] ^= 0x5A;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &bytes).expect("a file");
        let _ = PluginCatalog::new(config()).inspect(&file.path().display().to_string());
    }
}

#[tokio::test]
async fn modules_and_components_of_other_worlds_are_told() {
    let error = refusal_of(&Module::new().finish()).await;
    assert!(matches!(error, PluginError::NotAComponent { .. }), "{error}");
    let error = refusal_of(&exporting(&[], None)).await;
    assert!(matches!(error, PluginError::WrongWorld { .. }), "{error}");
    let error = refusal_of(&exporting(&["coffre:plugin/hook@0.1.0"], None)).await;
    assert!(
        matches!(&error, PluginError::WrongWorld { wanted: World::SnapshotProvider, found, .. } if found == "application-hook"),
        "{error}"
    );
    let error = refusal_of(&exporting(&["wasi:cli/run@0.2.0"], None)).await;
    assert!(error.to_string().contains("wasi:cli/run"), "{error}");
    let error = refusal_of(&exporting(&["coffre:plugin/provider@0.9.0"], None)).await;
    assert!(matches!(error, PluginError::WrongContract { .. }), "{error}");
}

#[tokio::test]
async fn a_manifest_must_be_there_and_fit() {
    let provider = &["coffre:plugin/provider@0.1.0"];
    let manifest = |world: &str, name: &str| {
        json!({ "name": name, "version": "1", "world": world, "contract": "0.1.0" }).to_string()
    };
    for (manifest, said) in [
        (None, "no section"),
        (Some("{".to_owned()), "EOF"),
        (Some(manifest("application-hook", "odd")), "application-hook"),
        (Some(manifest("snapshot-provider", "Odd\u{7}")), "no plugin's name"),
        (
            Some(manifest("snapshot-provider", "other")),
            "it says that it is `other`",
        ),
    ] {
        let error = refusal_of(&exporting(provider, manifest.as_deref())).await;
        assert!(matches!(error, PluginError::BadManifest { .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    // All there, but the interface is empty.
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("odd.wasm");
    std::fs::write(&file, exporting(provider, Some(&manifest("snapshot-provider", "odd")))).expect("a file");
    let config = coffre_sandbox::CatalogConfig {
        installed: vec![InstalledPlugin {
            dev: true,
            ..pinned("odd", &file, None)
        }],
        ..config()
    };
    let error = PluginCatalog::new(config)
        .load_provider("odd", &json!({}), limits())
        .await
        .err()
        .expect("refused");
    assert!(matches!(error, PluginError::Start { .. }), "{error}");
}

#[tokio::test]
async fn a_grant_that_cannot_be_understood_is_told() {
    let file = component("plugins", "image");
    for grant in [
        json!(["relative"]),
        json!(["/a/*.img"]),
        json!("/a"),
        json!([1]),
        json!(["${env.HOME}/**"]),
    ] {
        let mut plugin = pinned(
            "image",
            &file,
            config().shipped_digests.get("image").map(String::as_str),
        );
        plugin.grant = Some([("disk-read".to_owned(), grant.clone())].into());
        let error = refusal(vec![plugin], "image").await;
        assert!(matches!(error, PluginError::BadGrant { .. }), "{grant}: {error}");
    }
    let mut plugin = pinned(
        "image",
        &file,
        config().shipped_digests.get("image").map(String::as_str),
    );
    plugin.grant = Some([("disk-reed".to_owned(), json!(["/a"]))].into());
    assert!(
        refusal(vec![plugin], "image")
            .await
            .to_string()
            .contains("there is no such grant")
    );
}

#[tokio::test]
async fn listing_and_inspecting_show_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("broken.wasm"), b"broken").expect("a file");
    let mut config = config();
    config.folders.push(folder.path().to_owned());
    let catalog = PluginCatalog::new(config);
    let listed = catalog.list();
    let names: Vec<_> = listed.iter().map(|plugin| plugin.name.as_str()).collect();
    for name in ["broken", "hostile", "image", "reflink"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(
        listed
            .iter()
            .any(|plugin| plugin.name == "broken" && plugin.inspection.is_err())
    );
    let shown = catalog.inspect("reflink").expect("an inspection");
    assert_eq!(
        (shown.origin, shown.world, shown.granted_as_asked),
        (Origin::Shipped, Some(World::SnapshotProvider), true)
    );
    assert!(
        shown.imports.iter().all(|import| import.starts_with("coffre:plugin/")),
        "{:?}",
        shown.imports
    );
    let by_path: PathBuf = component("plugins", "reflink");
    assert_eq!(
        catalog
            .inspect(&by_path.display().to_string())
            .expect("an inspection")
            .digest,
        shown.digest
    );
}

#[tokio::test]
async fn compiled_code_is_kept_in_a_folder_of_its_own_and_mended_when_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("compiled");
    let load = || async {
        let config = coffre_sandbox::CatalogConfig {
            cache: cache.clone(),
            ..config()
        };
        PluginCatalog::new(config)
            .load_provider("image", &json!({}), limits())
            .await
            .map(drop)
    };
    load().await.expect("it loads");
    assert_eq!(std::fs::metadata(&cache).expect("a folder").mode() & 0o777, 0o700);
    let kept: Vec<_> = std::fs::read_dir(&cache)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    let [kept] = kept.as_slice() else {
        panic!("one file: {kept:?}")
    };
    let whole = std::fs::read(kept).expect("code");

    for damaged in [&b""[..], &whole[..100], &[&whole[..whole.len() - 1], b"x"].concat()] {
        std::fs::write(kept, damaged).expect("damage");
        load().await.expect("it is compiled again");
        assert_eq!(std::fs::read(kept).expect("code").len(), whole.len());
    }
    let written = |path: &Path| std::fs::metadata(path).expect("a file").ino();
    let before = written(kept);
    load().await.expect("it loads");
    assert_eq!(written(kept), before, "what is kept is used, not written again");

    // Others may have written there: not used, not written to.
    std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o777)).expect("permissions");
    std::fs::write(kept, b"planted").expect("damage");
    load().await.expect("it loads without");
    assert_eq!(std::fs::read(kept).expect("code"), b"planted");
}
