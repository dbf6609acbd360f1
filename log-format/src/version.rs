//! Versions of the format and how two sides choose one (`docs/log-format.md` section 7).

use serde::{Deserialize, Serialize};

/// The version of the frames that this program writes: the newest it knows.
pub const FORMAT_VERSION: u8 = 1;

/// The newest version of what two sides say to each other. It grows with the kinds of messages,
/// while the frames that hold them stay as they are.
pub const PROTOCOL_VERSION: u8 = 2;

/// From this version on two sides know protection modes other than replay.
pub const MODES_VERSION: u8 = 2;

/// The oldest version this program reads.
pub const OLDEST_FORMAT_VERSION: u8 = 1;

/// The protocol versions a side speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest.
    pub min: u8,
    /// The newest.
    pub max: u8,
}

impl VersionRange {
    /// What this program speaks.
    pub const SUPPORTED: VersionRange = VersionRange { min: OLDEST_FORMAT_VERSION, max: PROTOCOL_VERSION };

    /// The highest version that both sides speak, if there is one.
    pub fn negotiate(self, other: VersionRange) -> Option<u8> {
        let highest = self.max.min(other.max);
        (highest >= self.min && highest >= other.min).then_some(highest)
    }

    /// Whether this version is in the range.
    pub fn contains(self, version: u8) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

#[cfg(test)]
mod tests {
    use super::VersionRange;

    fn range(min: u8, max: u8) -> VersionRange {
        VersionRange { min, max }
    }

    #[test]
    fn the_highest_common_version_is_chosen() {
        assert_eq!(range(1, 3).negotiate(range(2, 5)), Some(3));
        assert_eq!(range(2, 5).negotiate(range(1, 3)), Some(3));
        assert_eq!(range(1, 1).negotiate(range(1, 1)), Some(1));
        assert_eq!(range(1, 2).negotiate(range(3, 4)), None);
        assert_eq!(range(3, 4).negotiate(range(1, 2)), None);
    }
}
