//! The protocols that the drill's clients speak: the ledger's and Redis's.

use anyhow::{Context, Result, bail};

use super::history::{Answer, Request};

/// The service inside the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// The built-in guest: guest/ledger/README.md.
    Ledger,
    /// Redis, in RESP: SET and GET.
    Redis,
}

/// Longest answer that is waited for; both services answer in far less.
const ANSWER_LIMIT_BYTES: usize = 4096;

impl Workload {
    /// TCP port of the service in the guest.
    pub fn port(self) -> u16 {
        match self {
            Workload::Ledger => 7000,
            Workload::Redis => 6379,
        }
    }

    /// The bytes that ask for `request` about `key`.
    pub fn encode(self, key: &str, request: &Request) -> Vec<u8> {
        match (self, request) {
            (Workload::Ledger, Request::Put(value)) => format!("PUT {key} {value}\n").into_bytes(),
            (Workload::Ledger, Request::Get) => format!("GET {key}\n").into_bytes(),
            (Workload::Redis, Request::Put(value)) => resp(&["SET", key, value]),
            (Workload::Redis, Request::Get) => resp(&["GET", key]),
        }
    }

    /// The answer at the start of `bytes` and how many bytes it takes; `None` while it is
    /// not whole.
    ///
    /// # Errors
    /// When these bytes do not begin an answer, or the service refused the request.
    pub fn decode(self, bytes: &[u8]) -> Result<Option<(Answer, usize)>> {
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            if bytes.len() > ANSWER_LIMIT_BYTES {
                bail!("an answer of over {ANSWER_LIMIT_BYTES} bytes without an end");
            }
            return Ok(None);
        };
        let line = std::str::from_utf8(&bytes[..end]).context("an answer that is not text")?.trim_end();
        match self {
            Workload::Ledger => Ok(Some((ledger_answer(line)?, end + 1))),
            Workload::Redis => redis_answer(line, bytes, end + 1),
        }
    }
}

/// `OK LENGTH HASH`, `VALUE LENGTH HASH VALUE` or `NONE LENGTH HASH`.
fn ledger_answer(line: &str) -> Result<Answer> {
    let words: Vec<&str> = line.split(' ').collect();
    let length = words.get(1).and_then(|word| word.parse().ok());
    match (words.as_slice(), length) {
        (["OK" | "NONE", _, _], Some(length)) => Ok(Answer { value: None, length: Some(length) }),
        (["VALUE", _, _, value], Some(length)) => {
            Ok(Answer { value: Some((*value).to_owned()), length: Some(length) })
        }
        _ => bail!("the ledger answered {line:?}"),
    }
}

/// `+OK`, `$-1`, or `$LENGTH` and the value on the next line (the RESP specification).
fn redis_answer(line: &str, bytes: &[u8], header: usize) -> Result<Option<(Answer, usize)>> {
    if line == "+OK" || line == "$-1" {
        return Ok(Some((Answer { value: None, length: None }, header)));
    }
    let length: Option<usize> = line.strip_prefix('$').and_then(|length| length.parse().ok());
    let Some(length) = length.filter(|&length| length <= ANSWER_LIMIT_BYTES) else {
        bail!("Redis answered {line:?}");
    };
    let Some(value) = bytes.get(header..header + length + 2) else { return Ok(None) };
    if !value.ends_with(b"\r\n") {
        bail!("a Redis value that does not end where it should");
    }
    let value = String::from_utf8_lossy(&value[..length]).into_owned();
    Ok(Some((Answer { value: Some(value), length: None }, header + length + 2)))
}

fn resp(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len());
    for word in words {
        bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    bytes.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(value: Option<&str>, length: Option<u64>) -> Answer {
        Answer { value: value.map(Into::into), length }
    }

    #[test]
    fn ledger_answers_are_understood() {
        let decode = |text: &str| Workload::Ledger.decode(text.as_bytes());
        assert_eq!(decode("OK 3 00ff\nrest").unwrap(), Some((answer(None, Some(3)), 10)));
        assert_eq!(decode("VALUE 3 00ff abc\n").unwrap(), Some((answer(Some("abc"), Some(3)), 17)));
        assert_eq!(decode("NONE 0 00ff\n").unwrap(), Some((answer(None, Some(0)), 12)));
        assert_eq!(decode("VALUE 3 00").unwrap(), None);
        assert!(decode("ERROR 3 00ff ledger full\n").is_err());
    }

    #[test]
    fn redis_answers_are_understood_at_every_cut() {
        let whole = b"$3\r\nabc\r\n";
        for cut in 0..whole.len() {
            assert_eq!(Workload::Redis.decode(&whole[..cut]).unwrap(), None, "cut at {cut}");
        }
        assert_eq!(Workload::Redis.decode(whole).unwrap(), Some((answer(Some("abc"), None), 9)));
        assert_eq!(Workload::Redis.decode(b"+OK\r\n").unwrap(), Some((answer(None, None), 5)));
        assert_eq!(Workload::Redis.decode(b"$-1\r\n").unwrap(), Some((answer(None, None), 5)));
        assert!(Workload::Redis.decode(b"-ERR no\r\n").is_err());
        assert!(Workload::Redis.decode(b"$99999999\r\n").is_err());
    }

    #[test]
    fn redis_requests_are_resp() {
        assert_eq!(Workload::Redis.encode("k", &Request::Get), b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }
}
