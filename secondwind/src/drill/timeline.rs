//! What the agents wrote down: a line of JSON for each event of the protocol.

use std::path::Path;

use serde_json::Value;

use super::clock::Clock;

/// Something that an agent wrote down.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentEvent {
    /// When, in nanoseconds since the drill began.
    pub at_ns: u64,
    /// What, in a word.
    pub event: String,
    /// All that the line says.
    pub details: Value,
}

impl AgentEvent {
    /// The event with its details, for people.
    pub fn text(&self) -> String {
        let mut text = self.event.replace('-', " ");
        let omitted = ["unix_ns", "event", "node", "name"];
        for (name, value) in self.details.as_object().into_iter().flatten() {
            if omitted.contains(&name.as_str()) || value.is_null() {
                continue;
            }
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            text.push_str(&format!(", {} {value}", name.replace('_', " ")));
        }
        text
    }
}

/// Reads the timeline at `path`, oldest first. An agent that was killed may have left half a
/// line, and one that never began left no file: both are no events.
pub fn read(path: &Path, clock: Clock) -> Vec<AgentEvent> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut events: Vec<AgentEvent> = text.lines().filter_map(|line| parse(line, clock)).collect();
    events.sort_by_key(|event| event.at_ns);
    events
}

fn parse(line: &str, clock: Clock) -> Option<AgentEvent> {
    let details: Value = serde_json::from_str(line).ok()?;
    let unix_ns = details.get("unix_ns")?.as_u64()?;
    let event = details.get("event")?.as_str()?.to_owned();
    Some(AgentEvent { at_ns: clock.at_unix_ns(unix_ns), event, details })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_is_no_event() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let line = r#"{"unix_ns":5,"node":"a","event":"took-over","term":2}"#;
        std::fs::write(&path, format!("{line}\n{}", &line[..20])).unwrap();
        let events = read(&path, Clock::start());
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].text(), "took over, term 2");
        assert_eq!(read(&folder.path().join("none"), Clock::start()), vec![]);
    }
}
