//! Mutual TLS 1.3 between the nodes of a pair, and what its failures mean.

use crate::keys::{NodeKeys, PAIR_NAME, node_name};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig, version};
use std::sync::Arc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// How the bytes between two hosts are protected.
#[derive(Debug, Clone)]
pub enum Security {
    /// Mutual TLS with the pair's keys.
    Tls(Arc<PairTls>),
    /// Nothing: whoever reaches the port is believed. Only on explicit demand.
    Insecure,
}

/// TLS as this node speaks it in both roles.
pub struct PairTls {
    node: String,
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) connector: TlsConnector,
}

impl PairTls {
    /// From keys that were checked when they were loaded.
    ///
    /// # Errors
    /// One line, when TLS does not take the keys.
    pub fn new(keys: NodeKeys) -> Result<Self, TlsSetupError> {
        let setup = |error: &dyn std::fmt::Display| TlsSetupError(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(keys.ca).map_err(|e| setup(&e))?;
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|e| setup(&e))?;
        let chain = vec![keys.certificate];

        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| setup(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), keys.key.clone_key())
            .map_err(|e| setup(&e))?;
        // No resumption: every connection proves both keys.
        server.send_tls13_tickets = 0;

        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| setup(&e))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, keys.key)
            .map_err(|e| setup(&e))?;
        client.resumption = Resumption::disabled();

        Ok(PairTls {
            node: keys.node,
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
        })
    }

    /// This node's name, from its certificate.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The name that every certificate of the pair carries.
    pub(crate) fn pair_name() -> ServerName<'static> {
        ServerName::try_from(PAIR_NAME).expect("a constant that is a DNS name")
    }
}

impl std::fmt::Debug for PairTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PairTls").field("node", &self.node).finish()
    }
}

/// TLS does not take the keys.
#[derive(Debug, thiserror::Error)]
#[error("keys: TLS does not take them: {0}; make new keys with `secondwind keygen`")]
pub struct TlsSetupError(String);

/// The node that the peer's certificate names.
pub(crate) fn peer_node(certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
    node_name(certificates?.first()?)
}

/// Why two hosts do not agree on a protected connection, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsFailure {
    /// The peer's certificate is not of this pair.
    #[error(
        "its certificate was not issued by this pair's authority (wrong key); give both hosts keys of the same `secondwind keygen`"
    )]
    ForeignPeer,
    /// The peer's certificate is out of time.
    #[error("its certificate {0}; check the date on both hosts, or make new keys")]
    OutOfTime(&'static str),
    /// The peer showed no certificate.
    #[error("it showed no certificate; start it with keys of this pair's `secondwind keygen`")]
    NoCertificate,
    /// The peer does not take this node's certificate.
    #[error(
        "it does not accept this node's certificate (wrong key: {0}); give both hosts keys of the same `secondwind keygen`"
    )]
    Refused(&'static str),
    /// The peer does not speak TLS.
    #[error("it does not speak TLS; check the address, or use --insecure on both sides or on neither")]
    NotTls,
    /// The peer speaks TLS, this side does not.
    #[error("it speaks TLS and this side was started with --insecure; use it on both sides or on neither")]
    SpeaksTls,
    /// The peer is this very node, or has its keys.
    #[error("it shows the certificate of this very node, {0}; give each host the keys of its own name")]
    SameNode(String),
    /// The peer's certificate names no node.
    #[error("its certificate names no node; make new keys with `secondwind keygen`")]
    Nameless,
    /// Anything else.
    #[error("TLS failed: {0}")]
    Other(String),
}

impl TlsFailure {
    /// What a TLS error that came wrapped in an I/O error means, if it is one.
    pub(crate) fn from_io(error: &std::io::Error) -> Option<Self> {
        let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        Some(Self::from_tls(inner))
    }

    fn from_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(problem) => Self::from_certificate(problem),
            rustls::Error::NoCertificatesPresented => TlsFailure::NoCertificate,
            rustls::Error::AlertReceived(alert) => Self::from_alert(*alert),
            rustls::Error::InvalidMessage(_) => TlsFailure::NotTls,
            other => TlsFailure::Other(other.to_string()),
        }
    }

    fn from_certificate(problem: &CertificateError) -> Self {
        match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                TlsFailure::OutOfTime("expired")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsFailure::OutOfTime("is not valid yet")
            }
            _ => TlsFailure::ForeignPeer,
        }
    }

    fn from_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::UnknownCA => TlsFailure::Refused("unknown authority"),
            AlertDescription::BadCertificate => TlsFailure::Refused("bad certificate"),
            AlertDescription::CertificateUnknown => TlsFailure::Refused("unknown certificate"),
            AlertDescription::DecryptError => TlsFailure::Refused("bad signature"),
            AlertDescription::CertificateExpired => TlsFailure::Refused("expired certificate"),
            AlertDescription::CertificateRequired => TlsFailure::Refused("no certificate"),
            AlertDescription::AccessDenied => TlsFailure::Refused("access denied"),
            other => TlsFailure::Other(format!("the peer reports {other:?}")),
        }
    }
}
