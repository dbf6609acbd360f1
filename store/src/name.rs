//! Names of segment files.

/// The name of the segment whose first batch has this number: 20 digits and `.log`, so that
/// names sort as numbers do.
pub fn segment_name(first_sequence: u64) -> String {
    format!("{first_sequence:020}.log")
}

/// The number of the first batch of the segment with this name, if it is one of a segment.
pub fn first_sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    let is_number = digits.len() == 20 && digits.bytes().all(|digit| digit.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::{first_sequence_of, segment_name};

    #[test]
    fn names_and_numbers_belong_together() {
        for sequence in [0, 1, 42, u64::MAX] {
            assert_eq!(first_sequence_of(&segment_name(sequence)), Some(sequence));
        }
        for foreign in [
            "1.log",
            "+0000000000000000001.log",
            "00000000000000000001.txt",
            "00000000000000000001",
            "99999999999999999999.log",
            ".log",
        ] {
            assert_eq!(first_sequence_of(foreign), None, "{foreign}");
        }
    }
}
