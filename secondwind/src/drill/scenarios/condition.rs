//! What a step can wait for, as a short sentence.

use std::fmt;

use anyhow::{Result, bail};

use super::step::Who;

/// What must hold before a step is done, or at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `answered`: every connection of the clients was answered since the step began.
    Answered,
    /// `protected`, `protected by N`: the primary counts on that many backups.
    Protected(usize),
    /// `alone`: the arbiter's record names a primary without a backup.
    Alone,
    /// `WHO live`: it says that it is the primary, and so does the arbiter.
    Live(Who),
    /// `WHO fenced`: it says, wrote or ended with the status that another node took over.
    Fenced(Who),
    /// `WHO ended`: its process is gone.
    Ended(Who),
    /// `WHO wrote EVENT`: its timeline has this event since the last action.
    Wrote(Who, String),
    /// `WHO says FIELD VALUE`: a field of its status has this value; `a.b` is a field of a field.
    Says(Who, String, Value),
}

/// What a field of a status is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// It is shown as this.
    Is(String),
    /// It is a number and at least this: `at least N`.
    AtLeast(u64),
}

const SENTENCES: &str = "answered, protected, protected by N, alone, WHO live, WHO fenced, WHO ended, \
     WHO wrote EVENT, WHO says FIELD VALUE or WHO says FIELD at least N";

impl Condition {
    /// Parses a sentence about hosts among the first `hosts`.
    ///
    /// # Errors
    /// When it is none of those above.
    pub fn parse(text: &str, hosts: usize) -> Result<Condition> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let who = |word: &str| Who::parse(word, hosts);
        Ok(match words.as_slice() {
            ["answered"] => Condition::Answered,
            ["protected"] => Condition::Protected(1),
            ["protected", "by", number] => match number.parse() {
                Ok(number) if (1..hosts).contains(&number) => Condition::Protected(number),
                _ => bail!("{text:?}: {number} is no number of backups among {hosts} hosts"),
            },
            ["alone"] => Condition::Alone,
            [word, "live"] => Condition::Live(who(word)?),
            [word, "fenced"] => Condition::Fenced(who(word)?),
            [word, "ended"] => Condition::Ended(who(word)?),
            [word, "wrote", event] => Condition::Wrote(who(word)?, (*event).to_owned()),
            [word, "says", field, "at", "least", number] => match number.parse() {
                Ok(number) => Condition::Says(who(word)?, (*field).to_owned(), Value::AtLeast(number)),
                Err(_) => bail!("{text:?}: {number} is no number"),
            },
            [word, "says", field, value] => {
                Condition::Says(who(word)?, (*field).to_owned(), Value::Is((*value).to_owned()))
            }
            _ => bail!("{text:?} is no condition; write {SENTENCES}"),
        })
    }
}

impl Value {
    /// Whether a field of a status has it.
    pub fn fits(&self, field: &serde_json::Value) -> bool {
        match self {
            Value::Is(expected) => match field {
                serde_json::Value::String(text) => text == expected,
                other => format!("{other}") == *expected,
            },
            Value::AtLeast(least) => field.as_u64().is_some_and(|number| number >= *least),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Answered => f.write_str("answered"),
            Condition::Protected(1) => f.write_str("protected"),
            Condition::Protected(number) => write!(f, "protected by {number}"),
            Condition::Alone => f.write_str("alone"),
            Condition::Live(who) => write!(f, "{who} live"),
            Condition::Fenced(who) => write!(f, "{who} fenced"),
            Condition::Ended(who) => write!(f, "{who} ended"),
            Condition::Wrote(who, event) => write!(f, "{who} wrote {event}"),
            Condition::Says(who, field, Value::Is(value)) => write!(f, "{who} says {field} {value}"),
            Condition::Says(who, field, Value::AtLeast(least)) => {
                write!(f, "{who} says {field} at least {least}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_sentence_is_read_as_it_is_shown() {
        for text in [
            "answered",
            "protected",
            "protected by 2",
            "alone",
            "b live",
            "primary fenced",
            "backup ended",
            "c wrote took-over",
            "a says mode replay",
            "a says backup.acked_sequence at least 7",
        ] {
            assert_eq!(Condition::parse(text, 3).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_sentence_is_refused_with_those_there_are() {
        for (text, part) in [
            ("soon", "WHO live"),
            ("d live", "a to c"),
            ("protected by 3", "3 hosts"),
            ("protected by all", "no number"),
            ("a says x at least y", "no number"),
        ] {
            let error = Condition::parse(text, 3).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn fields_are_compared_as_they_are_shown() {
        assert!(Value::Is("true".into()).fits(&json!(true)));
        assert!(Value::Is("replay".into()).fits(&json!("replay")));
        assert!(!Value::Is("replay".into()).fits(&json!("hybrid")));
        assert!(Value::AtLeast(3).fits(&json!(3)) && !Value::AtLeast(3).fits(&json!(2)));
        assert!(!Value::AtLeast(0).fits(&json!(null)));
    }
}
