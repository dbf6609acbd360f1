//! Keys of a pair: made by [`generate`], loaded by [`NodeKeys::load`].
//!
//! A pair has a certificate authority of its own and one certificate for each node. Nothing
//! else is trusted: who shows a certificate of this authority is the peer, and the name in it
//! is the name that the arbiter knows. Files of a directory:
//!
//! | file | what | who needs it |
//! | --- | --- | --- |
//! | `ca.pem` | the pair's certificate | every node |
//! | `ca.key` | its key, to make keys for more nodes | nobody who runs; keep it elsewhere |
//! | `NODE.pem`, `NODE.key` | the node's certificate and key | that node |

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use webpki::{EndEntityCert, KeyUsage};

/// Name in every node's certificate: a dialer does not know the name of the node that
/// answers, only that it must be one of this pair.
pub(crate) const PAIR_NAME: &str = "pair.secondwind.internal";
/// What follows the node's own name in its certificate.
const NODE_DOMAIN: &str = ".node.secondwind.internal";

const DAY: Duration = Duration::from_secs(86_400);
/// How long certificates last by default: as long as hosts do.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(86_400 * 3650);
const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";

/// Why keys cannot be made or used. Each is one line with the way out.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The operating system refused a file operation.
    #[error("keys: cannot {action} {}: {source}", path.display())]
    Io {
        /// "read", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A file that is needed is not there.
    #[error("keys: {} does not exist; make keys with `secondwind keygen` and copy them to this host, or name another directory", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file that would be overwritten.
    #[error("keys: {} exists and is not overwritten; remove it first if it is no longer needed, or name another directory", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file holds something else.
    #[error("keys: {} holds no usable {expected} in PEM form ({detail}); make new keys with `secondwind keygen`", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// Certificate and key do not belong together.
    #[error("keys: the key in {} is not the key of the certificate in {}; copy both from the same `secondwind keygen`", key.display(), certificate.display())]
    WrongKey {
        /// File of the key.
        key: PathBuf,
        /// File of the certificate.
        certificate: PathBuf,
    },
    /// The certificate is another pair's.
    #[error("keys: the certificate in {} was not issued by the authority in {}; copy both from the same `secondwind keygen`", certificate.display(), ca.display())]
    WrongAuthority {
        /// File of the certificate.
        certificate: PathBuf,
        /// File of the authority.
        ca: PathBuf,
    },
    /// The certificate's time is over, or has not come.
    #[error("keys: the certificate in {} {problem}; check this host's date, or make new keys with `secondwind keygen`", path.display())]
    OutOfTime {
        /// File of the certificate.
        path: PathBuf,
        /// "expired" or "is not valid yet".
        problem: &'static str,
    },
    /// A node name that cannot stand in a certificate.
    #[error("keys: {name:?} cannot be a node's name: use 1 to 63 small letters, digits and inner hyphens")]
    BadName {
        /// The name.
        name: String,
    },
    /// A name that is used for something else, or twice.
    #[error("keys: the name {name:?} is taken; give each node a name of its own, other than `ca`")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Making a key or a certificate failed.
    #[error("keys: cannot make a certificate: {0}")]
    Generation(String),
}

/// Where one node's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPaths {
    /// Certificate of the pair's authority.
    pub ca: PathBuf,
    /// Certificate of the node.
    pub certificate: PathBuf,
    /// Key of the node.
    pub key: PathBuf,
}

impl KeyPaths {
    /// The names that [`generate`] gives them.
    pub fn in_directory(directory: &Path, node: &str) -> Self {
        KeyPaths {
            ca: directory.join(CA_CERTIFICATE),
            certificate: directory.join(format!("{node}.pem")),
            key: directory.join(format!("{node}.key")),
        }
    }
}

/// Checks that `name` can be a node's name: it stands in certificates, in the arbiter's
/// record and in file names.
///
/// # Errors
/// [`KeyError::BadName`].
pub fn check_node_name(name: &str) -> Result<(), KeyError> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good {
        return Ok(());
    }
    Err(KeyError::BadName { name: name.to_owned() })
}

/// Makes keys for `nodes` in `directory`, which is created if it is missing: with a new
/// authority, or with the one whose certificate and key are there already. Returns the files
/// written. Overwrites nothing; after an error, no new file is left.
///
/// # Errors
/// When a name is bad or taken, a file exists, or cannot be written.
pub fn generate(directory: &Path, nodes: &[&str], validity: Duration) -> Result<Vec<PathBuf>, KeyError> {
    for (index, node) in nodes.iter().enumerate() {
        check_node_name(node)?;
        if *node == "ca" || nodes[..index].contains(node) {
            return Err(KeyError::NameTaken { name: (*node).to_owned() });
        }
    }
    let mut files = Vec::new();
    let authority = existing_authority(directory)?;
    let authority_key = match authority {
        Some(key) => key,
        None => {
            let key = KeyPair::generate().map_err(generation)?;
            let params = authority_params(&key, validity)?;
            let certificate = params.self_signed(&key).map_err(generation)?;
            files.push((directory.join(CA_CERTIFICATE), certificate.pem()));
            files.push((directory.join(CA_KEY), key.serialize_pem()));
            key
        }
    };
    let issuer = Issuer::new(authority_params(&authority_key, validity)?, authority_key);
    for node in nodes {
        let key = KeyPair::generate().map_err(generation)?;
        let params = node_params(node, validity)?;
        let certificate = params.signed_by(&key, &issuer).map_err(generation)?;
        let paths = KeyPaths::in_directory(directory, node);
        files.push((paths.certificate, certificate.pem()));
        files.push((paths.key, key.serialize_pem()));
    }
    write_all_or_none(directory, &files)?;
    Ok(files.into_iter().map(|(path, _)| path).collect())
}

/// The key of the authority in `directory`, if there is one.
fn existing_authority(directory: &Path) -> Result<Option<KeyPair>, KeyError> {
    let (certificate, key) = (directory.join(CA_CERTIFICATE), directory.join(CA_KEY));
    match (certificate.exists(), key.exists()) {
        (false, false) => Ok(None),
        (true, false) => Err(KeyError::Missing { path: key }),
        (false, true) => Err(KeyError::Missing { path: certificate }),
        (true, true) => {
            let pem = std::fs::read_to_string(&key).map_err(io_error("read", &key))?;
            KeyPair::from_pem(&pem).map(Some).map_err(|error| malformed(&key, "key", error))
        }
    }
}

/// The authority's certificate follows from its key, so that the key alone can issue more.
fn authority_params(key: &KeyPair, validity: Duration) -> Result<CertificateParams, KeyError> {
    let mut params = CertificateParams::default();
    // A name of its own: certificates of another pair's authority fail by issuer, not by
    // signature.
    let identifier: String = params.key_identifier(key).iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("Secondwind pair {identifier}");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    set_validity(&mut params, validity)?;
    Ok(params)
}

fn node_params(node: &str, validity: Duration) -> Result<CertificateParams, KeyError> {
    let names = vec![PAIR_NAME.to_owned(), format!("{node}{NODE_DOMAIN}")];
    let mut params = CertificateParams::new(names).map_err(generation)?;
    params.distinguished_name.push(DnType::CommonName, node);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, validity)?;
    Ok(params)
}

/// Valid from a day ago, since the clocks of two hosts differ.
fn set_validity(params: &mut CertificateParams, validity: Duration) -> Result<(), KeyError> {
    let now = since_1970();
    let latest = Duration::from_secs(200 * 365 * 86_400);
    if validity > latest {
        return Err(KeyError::Generation(format!(
            "a validity of {} days is too long, at most {} days",
            validity.as_secs() / DAY.as_secs(),
            latest.as_secs() / DAY.as_secs()
        )));
    }
    params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(DAY);
    params.not_after = date_time_ymd(1970, 1, 1) + now + validity;
    Ok(())
}

/// The date: certificates are the one thing here that lives by it.
#[expect(clippy::disallowed_methods)]
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn write_all_or_none(directory: &Path, files: &[(PathBuf, String)]) -> Result<(), KeyError> {
    if let Some((path, _)) = files.iter().find(|(path, _)| path.exists()) {
        return Err(KeyError::Exists { path: path.clone() });
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io_error("create", directory))?;
    for (index, (path, contents)) in files.iter().enumerate() {
        if let Err(error) = write_private(path, contents) {
            // What was written is of no use without the rest; the first error is the one to tell.
            for (path, _) in &files[..index] {
                let _ = std::fs::remove_file(path);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn write_private(path: &Path, contents: &str) -> Result<(), KeyError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = match opened {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let path = path.to_owned();
            return Err(KeyError::Exists { path });
        }
        other => other.map_err(io_error("create", path))?,
    };
    let written = file.write_all(contents.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|error| {
        let _ = std::fs::remove_file(path);
        io_error("write", path)(error)
    })
}

/// A node's keys, checked: the key fits the certificate, the certificate is of this pair, is
/// valid today, and names the node.
#[derive(Debug)]
pub struct NodeKeys {
    pub(crate) node: String,
    pub(crate) ca: CertificateDer<'static>,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl NodeKeys {
    /// Loads and checks.
    ///
    /// # Errors
    /// A file is missing or malformed, or something does not fit: see [`KeyError`].
    pub fn load(paths: &KeyPaths) -> Result<Self, KeyError> {
        let ca = read_certificate(&paths.ca)?;
        let certificate = read_certificate(&paths.certificate)?;
        let pem = read(&paths.key)?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| malformed(&paths.key, "key", error))?;
        warn_if_readable_by_others(&paths.key);
        check_key_fits(&certificate, &key, paths)?;
        check_issued(&certificate, &ca, paths, since_1970())?;
        let node = node_name(&certificate).ok_or_else(|| KeyError::Malformed {
            path: paths.certificate.clone(),
            expected: "node certificate",
            detail: "it names no node".into(),
        })?;
        Ok(NodeKeys { node, ca, certificate, key })
    }

    /// The node's name, from its certificate.
    pub fn node(&self) -> &str {
        &self.node
    }
}

/// The node that a certificate names.
pub(crate) fn node_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate.valid_dns_names();
    let name = names.find_map(|name| name.strip_suffix(NODE_DOMAIN))?;
    check_node_name(name).ok()?;
    Some(name.to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, KeyError> {
    std::fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => KeyError::Missing { path: path.to_owned() },
        _ => io_error("read", path)(error),
    })
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, KeyError> {
    let pem = read(path)?;
    CertificateDer::from_pem_slice(&pem).map_err(|error| malformed(path, "certificate", error))
}

fn check_key_fits(
    certificate: &CertificateDer<'static>,
    key: &PrivateKeyDer<'static>,
    paths: &KeyPaths,
) -> Result<(), KeyError> {
    let provider = rustls::crypto::ring::default_provider();
    let chain = vec![certificate.clone()];
    rustls::sign::CertifiedKey::from_der(chain, key.clone_key(), &provider).map(drop).map_err(|error| {
        match error {
            rustls::Error::InconsistentKeys(_) => {
                KeyError::WrongKey { key: paths.key.clone(), certificate: paths.certificate.clone() }
            }
            rustls::Error::InvalidCertificate(_) => malformed(&paths.certificate, "certificate", error),
            _ => malformed(&paths.key, "key", error),
        }
    })
}

fn check_issued(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    paths: &KeyPaths,
    now_since_1970: Duration,
) -> Result<(), KeyError> {
    let anchor = webpki::anchor_from_trusted_cert(ca).map_err(|e| malformed(&paths.ca, "certificate", e))?;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let parsed = EndEntityCert::try_from(certificate)
        .map_err(|error| malformed(&paths.certificate, "certificate", error))?;
    let now = UnixTime::since_unix_epoch(now_since_1970);
    let usage = KeyUsage::client_auth();
    let out_of_time = |problem| KeyError::OutOfTime { path: paths.certificate.clone(), problem };
    parsed.verify_for_usage(algorithms.all, &[anchor], &[], now, usage, None, None).map(drop).map_err(
        |error| match error {
            webpki::Error::CertExpired { .. } => out_of_time("expired"),
            webpki::Error::CertNotValidYet { .. } => out_of_time("is not valid yet"),
            _ => KeyError::WrongAuthority { certificate: paths.certificate.clone(), ca: paths.ca.clone() },
        },
    )
}

fn warn_if_readable_by_others(path: &Path) {
    if let Ok(metadata) = std::fs::metadata(path) {
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let path = path.display();
            tracing::warn!("{path} has mode {mode:03o}: others can read this node's key; chmod 600");
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> KeyError {
    let path = path.to_owned();
    move |source| KeyError::Io { action, path, source }
}

fn malformed(path: &Path, expected: &'static str, error: impl std::fmt::Display) -> KeyError {
    KeyError::Malformed { path: path.to_owned(), expected, detail: error.to_string() }
}

fn generation(error: rcgen::Error) -> KeyError {
    KeyError::Generation(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        generate(directory.path(), &["alpha", "beta"], DEFAULT_VALIDITY).unwrap();
        directory
    }

    fn load(directory: &Path, node: &str) -> Result<NodeKeys, KeyError> {
        NodeKeys::load(&KeyPaths::in_directory(directory, node))
    }

    #[test]
    fn keys_are_private_files_that_load() {
        let directory = pair();
        for node in ["alpha", "beta"] {
            assert_eq!(load(directory.path(), node).unwrap().node(), node);
        }
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn a_third_node_can_be_added_and_nothing_is_overwritten() {
        let directory = pair();
        let before = std::fs::read(directory.path().join("alpha.key")).unwrap();
        let files = generate(directory.path(), &["gamma"], DEFAULT_VALIDITY).unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(load(directory.path(), "gamma").unwrap().node(), "gamma");
        let refused = generate(directory.path(), &["delta", "alpha"], DEFAULT_VALIDITY);
        assert!(matches!(refused, Err(KeyError::Exists { .. })));
        assert!(!directory.path().join("delta.key").exists());
        let after = std::fs::read(directory.path().join("alpha.key")).unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let absent = directory.path().join("x.pem/below");
        let files = [(directory.path().join("x.pem"), "first".to_owned()), (absent, "second".to_owned())];
        assert!(write_all_or_none(directory.path(), &files).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn names_that_cannot_stand_in_a_certificate_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["", "a b", "../a", "Alpha", "-a", "a-", &"a".repeat(64)] {
            let refused = generate(directory.path(), &[name], DEFAULT_VALIDITY);
            assert!(matches!(refused, Err(KeyError::BadName { .. })), "{name:?}");
        }
        for nodes in [&["ca"][..], &["a", "a"]] {
            let refused = generate(directory.path(), nodes, DEFAULT_VALIDITY);
            assert!(matches!(refused, Err(KeyError::NameTaken { .. })));
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_wrong_with_keys_is_told_apart() {
        let (one, other) = (pair(), pair());
        let path = |name: &str| one.path().join(name);
        let copy = |name: &str, to: &str| std::fs::copy(other.path().join(name), path(to)).unwrap();

        copy("alpha.key", "beta.key");
        let error = load(one.path(), "beta").unwrap_err();
        assert!(matches!(error, KeyError::WrongKey { .. }), "{error}");

        copy("beta.key", "beta.key");
        copy("beta.pem", "beta.pem");
        let error = load(one.path(), "beta").unwrap_err();
        assert!(matches!(error, KeyError::WrongAuthority { .. }), "{error}");

        std::fs::write(path("beta.pem"), "no certificate").unwrap();
        let error = load(one.path(), "beta").unwrap_err();
        assert!(matches!(error, KeyError::Malformed { .. }), "{error}");

        std::fs::remove_file(path("beta.pem")).unwrap();
        let error = load(one.path(), "beta").unwrap_err();
        assert!(matches!(error, KeyError::Missing { .. }), "{error}");
        assert!(!error.to_string().contains('\n'));

        std::fs::remove_file(path("ca.key")).unwrap();
        let error = generate(one.path(), &["gamma"], DEFAULT_VALIDITY).unwrap_err();
        assert!(matches!(error, KeyError::Missing { .. }), "{error}");
    }

    #[test]
    fn an_expired_certificate_is_named() {
        let directory = tempfile::tempdir().unwrap();
        generate(directory.path(), &["alpha"], Duration::ZERO).unwrap();
        // Valid until this second, inclusive: the check is of the next one.
        let paths = KeyPaths::in_directory(directory.path(), "alpha");
        let ca = read_certificate(&paths.ca).unwrap();
        let certificate = read_certificate(&paths.certificate).unwrap();
        let later = since_1970() + Duration::from_secs(2);
        let error = check_issued(&certificate, &ca, &paths, later).unwrap_err();
        assert!(error.to_string().contains("alpha.pem expired"), "{error}");
        let before = since_1970().saturating_sub(2 * DAY);
        let error = check_issued(&certificate, &ca, &paths, before).unwrap_err();
        assert!(error.to_string().contains("not valid yet"), "{error}");
    }
}
