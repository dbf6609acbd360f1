//! The keys of checkpoint files where none is named: the user's own.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use store::checkpoint::{PublicKey, SecretKey, SigningKey, Trust, generate_signing};

/// Name of the user's own key.
const OWN_KEY: &str = "checkpoint.key";

/// Where the user's own key is.
pub fn own_key_path() -> PathBuf {
    let config = std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty());
    let config = config.map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".config")
    });
    config.join("secondwind").join(OWN_KEY)
}

/// The key that signs: the one named, or the user's own, which is made at first use. Also
/// where it is.
pub fn signing_key(named: Option<&Path>) -> Result<(SigningKey, PathBuf)> {
    if let Some(path) = named {
        return Ok((SigningKey::load(path)?, path.to_owned()));
    }
    let path = own_key_path();
    if !path.exists() {
        let folder = path.parent().context("the configuration folder has no path")?;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.with_context(|| format!("cannot make {}; name a key with --sign-key", folder.display()))?;
        // Another process may make it at the same moment: then that one's is used.
        if let Err(error) = generate_signing(&path)
            && !path.exists()
        {
            return Err(error).context("cannot make a key to sign with; name one with --sign-key");
        }
    }
    Ok((SigningKey::load(&path)?, path))
}

/// Whose checkpoints are used: those of the public keys named, and the user's own.
pub fn trust(named: &[PathBuf]) -> Result<Trust> {
    let mut keys = Vec::new();
    for path in named {
        keys.extend(PublicKey::load_all(path)?);
    }
    let own = own_key_path();
    if own.exists() {
        keys.push(SigningKey::load(&own)?.public());
    }
    Ok(Trust::Keys(keys))
}

/// The secret key named, if one is.
pub fn secret_key(named: Option<&Path>) -> Result<Option<SecretKey>> {
    Ok(named.map(SecretKey::load).transpose()?)
}
