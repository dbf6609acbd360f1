//! What a checkpoint keeps of the machine's surroundings, to make the machine again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use netbuf::{NetKind, NetSpec};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use store::checkpoint::{CheckpointFile, Image};

use crate::vm::{ImageSource, Vm};

/// The JSON in a checkpoint's description.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointRecipe {
    /// As in a recording.
    machine: Box<RawValue>,
    /// Where the boot images were; none for those that come along.
    #[serde(default)]
    images: Vec<ImagePlace>,
    /// The network ports, as `--net` names them.
    nets: Vec<String>,
    /// As `--forward` names them.
    forwards: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImagePlace {
    name: String,
    path: PathBuf,
}

/// Images that are elsewhere than they were.
#[derive(Debug, Clone, Default)]
pub struct ImageOverrides {
    /// `--kernel`.
    pub kernel: Option<PathBuf>,
    /// `--initrd`.
    pub initrd: Option<PathBuf>,
    /// `--firmware`.
    pub firmware: Option<PathBuf>,
}

impl ImageOverrides {
    fn of(&self, name: &str) -> Option<&PathBuf> {
        match name {
            "kernel" => self.kernel.as_ref(),
            "initrd" => self.initrd.as_ref(),
            "firmware" => self.firmware.as_ref(),
            _ => None,
        }
    }
}

/// The recipe of a machine.
pub fn encode(vm: &Vm) -> Result<Bytes> {
    let mut images = Vec::new();
    for (name, source) in vm.images.named() {
        if let ImageSource::File(path) = source {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            images.push(ImagePlace { name: name.to_owned(), path });
        }
    }
    let forwards = vm.nets.iter().flat_map(|net| match &net.kind {
        NetKind::User { forwards } => forwards.as_slice(),
        _ => &[],
    });
    let recipe = CheckpointRecipe {
        machine: serde_json::from_slice(&vm.recipe()?)?,
        images,
        nets: vm.nets.iter().map(ToString::to_string).collect(),
        forwards: forwards.map(ToString::to_string).collect(),
    };
    Ok(serde_json::to_vec(&recipe)?.into())
}

/// The boot images of a machine, as a checkpoint refers to them.
pub fn images(vm: &Vm, bundle: bool) -> Result<Vec<Image>> {
    let named = vm.images.named().into_iter();
    named
        .map(|(name, source)| {
            let bundled = bundle || !matches!(source, ImageSource::File(_));
            Ok(Image { name: name.to_owned(), bytes: source.read()?, bundled })
        })
        .collect()
}

/// The machine of a checkpoint, and its boot images in the checkpoint's order.
pub fn decode(file: &CheckpointFile, overrides: &ImageOverrides) -> Result<(Vm, Vec<Bytes>)> {
    let shown = file.path().display();
    let description = file.description();
    let recipe: CheckpointRecipe = serde_json::from_slice(&description.recipe)
        .with_context(|| format!("{shown} was made by another version; restore it with that one"))?;
    let (mut held, mut sources) = (Vec::new(), Vec::new());
    for reference in &description.images {
        let name = reference.name.as_str();
        let place = recipe.images.iter().find(|image| image.name == name).map(|image| &image.path);
        let (bytes, source) = match (overrides.of(name), place) {
            (Some(path), _) => (read_image(path, name)?, ImageSource::File(path.clone())),
            (None, _) if reference.bundled => {
                let bundled = file.bundled_image(name)?;
                let bytes =
                    bundled.with_context(|| format!("{shown} lacks its {name}; name it with --{name}"))?;
                (bytes.clone(), ImageSource::Held(bytes))
            }
            (None, Some(path)) => (read_image(path, name)?, ImageSource::File(path.clone())),
            (None, None) => bail!("{shown} does not say where its {name} is; name it with --{name}"),
        };
        if bytes.len() as u64 != reference.bytes {
            bail!(
                "the {name} has {} bytes, the one that was checkpointed {}; name that one with --{name}",
                bytes.len(),
                reference.bytes
            );
        }
        sources.push((name.to_owned(), source));
        held.push(bytes);
    }
    let source =
        |wanted: &str| sources.iter().find(|(name, _)| name == wanted).map(|(_, source)| source.clone());
    let mut vm = Vm::from_recipe(recipe.machine.get().as_bytes(), source)
        .with_context(|| format!("{shown} was made by another version; restore it with that one"))?;
    vm.nets = recipe.nets.iter().map(|net| net.parse::<NetSpec>()).collect::<Result<_, _>>()?;
    vm.plug_nets(&[], &recipe.forwards)?;
    Ok((vm, held))
}

/// Names the first image that is not the one that was checkpointed.
pub fn check_images(file: &CheckpointFile, images: &[Bytes]) -> Result<()> {
    for (reference, bytes) in file.description().images.iter().zip(images) {
        let name = &reference.name;
        if *blake3::hash(bytes).as_bytes() != reference.hash {
            bail!("the {name} is not the one that was checkpointed; name that one with --{name}");
        }
    }
    Ok(())
}

fn read_image(path: &Path, name: &str) -> Result<Bytes> {
    let read = std::fs::read(path);
    let bytes = read.with_context(|| {
        format!("cannot read the {name} that was checkpointed, {}; name it with --{name}", path.display())
    })?;
    Ok(bytes.into())
}
