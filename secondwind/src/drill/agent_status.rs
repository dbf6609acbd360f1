//! What an agent says of itself on its control socket, as far as a drill needs it.

use serde_json::Value;

/// The last known answers of an agent. Counters only grow: a backup's count of digests is
/// kept when it becomes the primary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentStatus {
    /// Whether it answered at all.
    pub is_known: bool,
    /// `primary` or `backup`.
    pub role: String,
    /// Its term.
    pub term: u64,
    /// Of a primary: a backup is counted on.
    pub is_protected: bool,
    /// It was told that another machine took over.
    pub is_fenced: bool,
    /// Digests compared with the other side's.
    pub digests_compared: u64,
    /// Hashes of outputs compared with the other side's.
    pub outputs_compared: u64,
    /// Digests that differed.
    pub digests_diverged: u64,
    /// Log shipped, in bytes.
    pub log_bytes: u64,
    /// The guest's longest pause at a checkpoint for a join, in microseconds.
    pub checkpoint_pause_us: Option<u64>,
}

impl AgentStatus {
    /// Takes in an answer.
    pub fn update(&mut self, answer: &Value) {
        let number = |name: &str| answer.get(name).and_then(Value::as_u64);
        let is = |name: &str| answer.get(name).and_then(Value::as_bool).unwrap_or(false);
        self.is_known = true;
        self.role = answer.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
        self.term = number("term").unwrap_or(self.term);
        self.is_protected = is("protected");
        self.is_fenced = is("fenced");
        self.digests_compared = self.digests_compared.max(number("digests_compared").unwrap_or(0));
        self.outputs_compared = self.outputs_compared.max(number("outputs_verified").unwrap_or(0));
        self.digests_diverged = self.digests_diverged.max(number("digests_diverged").unwrap_or(0));
        self.log_bytes = self.log_bytes.max(number("log_bytes").unwrap_or(0));
        self.checkpoint_pause_us = self.checkpoint_pause_us.max(number("checkpoint_pause_us"));
    }

    /// Whether it is the live machine, by its own word.
    pub fn is_live(&self) -> bool {
        self.role == "primary" && !self.is_fenced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counters_do_not_go_back_when_the_role_changes() {
        let mut status = AgentStatus::default();
        status.update(&json!({ "role": "backup", "term": 1, "digests_compared": 9 }));
        assert!(!status.is_live());
        status.update(&json!({ "role": "primary", "term": 2, "protected": true }));
        assert_eq!((status.digests_compared, status.term), (9, 2));
        assert!(status.is_live() && status.is_protected);
        status.update(&json!({ "role": "primary", "term": 2, "fenced": true }));
        assert!(!status.is_live() && !status.is_protected);
    }
}
