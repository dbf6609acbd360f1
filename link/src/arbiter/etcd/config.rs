//! Where etcd is and how it is spoken to: the text after `--arbiter etcd:`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Value;

const DEFAULT_PREFIX: &str = "/secondwind";
const DEFAULT_TTL: Duration = Duration::from_secs(10);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// etcd counts leases in seconds, and grants none under 1.5 times its election timeout.
const TTL_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(3600);
const TIMEOUT_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(300);

/// How an [`super::EtcdArbiter`] reaches its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `HOST:PORT` of each member.
    pub endpoints: Vec<String>,
    /// Folder of the keys: `PREFIX/VM/record`, `PREFIX/VM/lease`, `PREFIX/VM/write`.
    pub prefix: String,
    /// How long a primary's lease lives without being renewed. Whole seconds.
    pub ttl: Duration,
    /// How long a question may take before the arbiter counts as out of reach.
    pub timeout: Duration,
    /// Certificate of the authority that signed the members' certificates; TLS if given.
    pub ca: Option<PathBuf>,
    /// This host's certificate and key, where etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// User name, and the file whose first line is the password.
    pub user: Option<(String, PathBuf)>,
}

/// What is wrong with the text.
#[derive(Debug, thiserror::Error)]
pub enum EtcdConfigError {
    /// No member is named.
    #[error("etcd:{spec} names no member; give etcd:HOST:PORT[,HOST:PORT...], or etcd:@FILE.toml")]
    NoEndpoint {
        /// The text.
        spec: String,
    },
    /// A word is neither a member nor an option.
    #[error("{word:?} is neither HOST:PORT of an etcd member nor an option; there are {}", OPTIONS.join("=, "))]
    UnknownWord {
        /// The word.
        word: String,
    },
    /// An option's value is not of its form.
    #[error("{key}={value} is not usable: {expected}")]
    BadValue {
        /// The option.
        key: String,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Options that need each other.
    #[error("{0}")]
    Incomplete(&'static str),
    /// The file with the options cannot be used.
    #[error("{}: {detail}; it is a TOML file with endpoints = [\"HOST:PORT\"] and the options as strings", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        detail: String,
    },
}

const OPTIONS: [&str; 9] =
    ["prefix", "ttl", "timeout", "ca", "cert", "key", "user", "password-file", "endpoints"];

/// The options as they come, before they are checked together.
#[derive(Default)]
struct Words {
    endpoints: Vec<String>,
    prefix: Option<String>,
    ttl: Option<Duration>,
    timeout: Option<Duration>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    user: Option<String>,
    password_file: Option<PathBuf>,
}

impl EtcdConfig {
    /// Parses `HOST:PORT,...[,OPTION=VALUE...]`, or `@FILE.toml`, which holds the same.
    ///
    /// # Errors
    /// [`EtcdConfigError`], which says what would be right.
    pub fn parse(spec: &str) -> Result<EtcdConfig, EtcdConfigError> {
        let words = match spec.strip_prefix('@') {
            Some(path) => Words::from_file(Path::new(path))?,
            None => Words::from_line(spec)?,
        };
        words.checked(spec)
    }
}

impl Words {
    fn from_line(spec: &str) -> Result<Words, EtcdConfigError> {
        let mut words = Words::default();
        for word in spec.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word.split_once('=') {
                Some((key, value)) => words.option(key, value)?,
                None => words.endpoint(word)?,
            }
        }
        Ok(words)
    }

    fn from_file(path: &Path) -> Result<Words, EtcdConfigError> {
        let wrong = |detail: String| EtcdConfigError::File { path: path.to_owned(), detail };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| wrong(error.message().to_owned()))?;
        let mut words = Words::default();
        for (key, value) in &table {
            match (key.as_str(), value) {
                ("endpoints", Value::Array(endpoints)) => {
                    for endpoint in endpoints {
                        let endpoint = endpoint.as_str();
                        words.endpoint(endpoint.ok_or_else(|| wrong("endpoints are strings".into()))?)?;
                    }
                }
                (_, Value::String(value)) => words.option(key, value)?,
                _ => return Err(wrong(format!("{key} is not a string"))),
            }
        }
        Ok(words)
    }

    fn endpoint(&mut self, word: &str) -> Result<(), EtcdConfigError> {
        let unknown = || EtcdConfigError::UnknownWord { word: word.to_owned() };
        let (host, port) = word.rsplit_once(':').ok_or_else(unknown)?;
        let is_host = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
        // An address of version 6 is in brackets, so that its port can be told from it.
        let is_plain = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
        if !is_host || !is_plain || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(unknown());
        }
        self.endpoints.push(word.to_owned());
        Ok(())
    }

    fn option(&mut self, key: &str, value: &str) -> Result<(), EtcdConfigError> {
        let bad = |expected| EtcdConfigError::BadValue { key: key.into(), value: value.into(), expected };
        let file = || match value {
            "" => Err(bad("name a file")),
            path => Ok(Some(PathBuf::from(path))),
        };
        match key {
            "prefix" => {
                if !value.starts_with('/') || value.ends_with('/') || value.contains('\0') {
                    return Err(bad("a prefix begins with a slash and ends without one"));
                }
                self.prefix = Some(value.to_owned());
            }
            "ttl" => {
                let ttl = duration(value).filter(|ttl| ttl.subsec_nanos() == 0 && TTL_RANGE.contains(ttl));
                self.ttl = Some(ttl.ok_or_else(|| bad("choose whole seconds from 2s to 3600s"))?);
            }
            "timeout" => {
                let timeout = duration(value).filter(|timeout| TIMEOUT_RANGE.contains(timeout));
                self.timeout = Some(timeout.ok_or_else(|| bad("choose 100ms to 300s"))?);
            }
            "ca" => self.ca = file()?,
            "cert" => self.cert = file()?,
            "key" => self.key = file()?,
            "password-file" => self.password_file = file()?,
            "user" if !value.is_empty() => self.user = Some(value.to_owned()),
            "user" => return Err(bad("name a user")),
            _ => return Err(EtcdConfigError::UnknownWord { word: format!("{key}={value}") }),
        }
        Ok(())
    }

    fn checked(self, spec: &str) -> Result<EtcdConfig, EtcdConfigError> {
        if self.endpoints.is_empty() {
            return Err(EtcdConfigError::NoEndpoint { spec: spec.to_owned() });
        }
        let identity = match (self.cert, self.key) {
            (Some(cert), Some(key)) if self.ca.is_some() => Some((cert, key)),
            (None, None) => None,
            (Some(_), Some(_)) => {
                return Err(EtcdConfigError::Incomplete(
                    "cert= and key= need ca=, the authority's certificate",
                ));
            }
            _ => return Err(EtcdConfigError::Incomplete("cert= and key= come together")),
        };
        let user = match (self.user, self.password_file) {
            (Some(user), Some(file)) => Some((user, file)),
            (None, None) => None,
            _ => return Err(EtcdConfigError::Incomplete("user= and password-file= come together")),
        };
        Ok(EtcdConfig {
            endpoints: self.endpoints,
            prefix: self.prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned()),
            ttl: self.ttl.unwrap_or(DEFAULT_TTL),
            timeout: self.timeout.unwrap_or(DEFAULT_TIMEOUT),
            ca: self.ca,
            identity,
            user,
        })
    }
}

/// `10s`, `500ms`, or a bare number of seconds.
fn duration(text: &str) -> Option<Duration> {
    if let Some(milliseconds) = text.strip_suffix("ms") {
        return Some(Duration::from_millis(milliseconds.parse().ok()?));
    }
    Some(Duration::from_secs(text.strip_suffix('s').unwrap_or(text).parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(spec: &str) -> String {
        EtcdConfig::parse(spec).unwrap_err().to_string()
    }

    #[test]
    fn members_and_options_in_any_order() {
        let config = EtcdConfig::parse("a:2379, b:2379,prefix=/ha,[::1]:23,ttl=4s,timeout=900ms").unwrap();
        assert_eq!(config.endpoints, ["a:2379", "b:2379", "[::1]:23"]);
        assert_eq!((config.prefix.as_str(), config.ttl.as_secs()), ("/ha", 4));
        assert_eq!(config.timeout.as_millis(), 900);
        let plain = EtcdConfig::parse("a:2379").unwrap();
        assert_eq!(
            (plain.prefix.as_str(), plain.ttl, plain.timeout),
            (DEFAULT_PREFIX, DEFAULT_TTL, DEFAULT_TIMEOUT)
        );
        assert_eq!((plain.ca, plain.identity, plain.user), (None, None, None));
    }

    #[test]
    fn a_file_says_the_same_as_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etcd.toml");
        std::fs::write(
            &path,
            "endpoints = [\"a:2379\", \"b:2379\"]\nttl = \"7\"\nca = \"ca.pem\"\ncert = \"c.pem\"\nkey = \"k.pem\"\n\
             user = \"sw\"\npassword-file = \"pw\"\n",
        )
        .unwrap();
        let line = "a:2379,b:2379,ttl=7,ca=ca.pem,cert=c.pem,key=k.pem,user=sw,password-file=pw";
        let from_file = EtcdConfig::parse(&format!("@{}", path.display())).unwrap();
        assert_eq!(from_file, EtcdConfig::parse(line).unwrap());
        std::fs::write(&path, "endpoints = [2379]\n").unwrap();
        assert!(error_of(&format!("@{}", path.display())).contains("endpoints are strings"));
        assert!(error_of("@/nowhere/etcd.toml").contains("/nowhere/etcd.toml"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(error_of("").contains("names no member"));
        assert!(error_of("prefix=/x").contains("names no member"));
        assert!(error_of("host").contains("\"host\" is neither"));
        assert!(error_of("host:0").contains("neither"));
        assert!(error_of("http://a:2379").contains("neither"));
        assert!(error_of("::1:2379").contains("neither"));
        assert!(error_of("a:1,lease=3").contains("\"lease=3\" is neither"));
        assert!(error_of("a:1,ttl=1s").contains("from 2s to 3600s"));
        assert!(error_of("a:1,ttl=2500ms").contains("whole seconds"));
        assert!(error_of("a:1,timeout=5m").contains("100ms to 300s"));
        assert!(error_of("a:1,prefix=x").contains("begins with a slash"));
        assert!(error_of("a:1,cert=c").contains("come together"));
        assert!(error_of("a:1,cert=c,key=k").contains("need ca="));
        assert!(error_of("a:1,user=u").contains("password-file"));
    }
}
