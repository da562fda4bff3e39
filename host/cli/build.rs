//! Builds the digests of the plugins that ship into the binary, so that nobody has to type a pin for them.
//!
//! They are read from `target/plugins/*.wasm`, where `cargo xtask plugins` puts them, else from
//! `COFFRE_PLUGIN_DIGESTS=image=HEX,reflink=HEX`, else there are none and every plugin needs a pin.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

fn main() {
    println!("cargo::rerun-if-env-changed=COFFRE_PLUGIN_DIGESTS");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut digests = Vec::new();
    // OUT_DIR is target/[TRIPLE/]PROFILE/build/PACKAGE/out.
    for target in out.ancestors().skip(4).take(2) {
        let folder = target.join("plugins");
        if target.file_name().is_some_and(|name| name == "target") || folder.is_dir() {
            println!("cargo::rerun-if-changed={}", folder.display());
            digests = read_folder(&folder);
            break;
        }
    }
    if digests.is_empty() {
        digests = read_variable(&env::var("COFFRE_PLUGIN_DIGESTS").unwrap_or_default());
    }
    digests.sort();
    let mut code = String::from("&[\n");
    for (name, digest) in digests {
        code.push_str(&format!("    ({name:?}, {digest:?}),\n"));
    }
    code.push_str("]\n");
    fs::write(out.join("first_party.rs"), code).expect("OUT_DIR can be written");
}

fn read_folder(folder: &Path) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut digests = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        if path.extension().is_some_and(|extension| extension == "wasm")
            && let Some(name) = name
        {
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
            digests.push((name, hex::encode(Sha256::digest(&bytes))));
        }
    }
    digests
}

fn read_variable(text: &str) -> Vec<(String, String)> {
    text.split(',')
        .filter(|pair| !pair.trim().is_empty())
        .map(|pair| match pair.trim().split_once('=') {
            Some((name, digest)) if digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                (name.to_owned(), digest.to_ascii_lowercase())
            }
            _ => panic!("COFFRE_PLUGIN_DIGESTS: `{pair}` is not NAME=SHA256"),
        })
        .collect()
}
