//! From a core module to a component with its manifest as a custom section, so that one digest covers all of it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use wasm_encoder::{ComponentSection, CustomSection};
use wasmparser::{Parser, Payload, Validator, WasmFeatures};

/// The custom section that holds `manifest.toml` as JSON. The sandbox reads it before anything is instantiated.
pub const MANIFEST_SECTION: &str = "coffre:manifest";

#[derive(Debug)]
pub struct Component {
    pub bytes: Vec<u8>,
    pub version: String,
    pub world: String,
}

/// Makes the component. The manifest has to name the plugin as its folder does.
pub fn make(name: &str, core: &Path, manifest: &Path) -> Result<Component> {
    let text = std::fs::read_to_string(manifest).with_context(|| format!("read {}", manifest.display()))?;
    let manifest_json: serde_json::Value =
        toml::from_str(&text).with_context(|| format!("understand {}", manifest.display()))?;
    let field = |key: &str| -> Result<String> {
        let value = manifest_json.get(key).and_then(serde_json::Value::as_str);
        value
            .map(str::to_owned)
            .with_context(|| format!("{} lacks `{key} = \"…\"`", manifest.display()))
    };
    let (said, version, world) = (field("name")?, field("version")?, field("world")?);
    if said != name {
        bail!(
            "{} says name = \"{said}\", but its folder is {name}",
            manifest.display()
        );
    }

    let module = std::fs::read(core).with_context(|| format!("read {}", core.display()))?;
    let mut bytes = wit_component::ComponentEncoder::default()
        .module(&module)
        .context("read the module that cargo built")?
        .validate(true)
        .encode()
        .context("encode the component")?;
    let data = serde_json::to_vec(&manifest_json)?;
    CustomSection {
        name: MANIFEST_SECTION.into(),
        data: data.as_slice().into(),
    }
    .append_to_component(&mut bytes);

    Validator::new_with_features(WasmFeatures::default() | WasmFeatures::COMPONENT_MODEL)
        .validate_all(&bytes)
        .context("validate the component")?;
    only_our_imports(&bytes)?;
    Ok(Component { bytes, version, world })
}

/// A first-party plugin imports the contract in wit/ and nothing else: no clock, no files, no randomness by a side door.
fn only_our_imports(component: &[u8]) -> Result<()> {
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(component) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(imports) if depth == 0 => {
                for import in imports {
                    let name = import?.name.name.to_owned();
                    if !name.starts_with("coffre:plugin/") {
                        bail!("it imports {name}, which is not part of coffre:plugin");
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
