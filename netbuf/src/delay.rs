//! A fixed-size histogram of delays, for percentiles without keeping samples.

/// Sub-buckets per power of two: a reading is at most 1/8 above the true value.
const SUB_BUCKETS: usize = 8;
const SUB_BITS: u32 = SUB_BUCKETS.ilog2();
const BUCKETS: usize = SUB_BUCKETS * (64 - SUB_BITS as usize + 1);

/// How long things took, in nanoseconds: count, mean, maximum and percentiles.
///
/// Buckets grow with the value (log-linear, as in HdrHistogram), so that 1 µs and 1 s are
/// read with the same relative error of at most 12.5 %.
#[derive(Clone)]
pub struct DelayHistogram {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    total_ns: u128,
    max_ns: u64,
}

impl Default for DelayHistogram {
    fn default() -> Self {
        DelayHistogram { buckets: Box::new([0; BUCKETS]), count: 0, total_ns: 0, max_ns: 0 }
    }
}

impl std::fmt::Debug for DelayHistogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DelayHistogram")
            .field("count", &self.count)
            .field("mean_ns", &self.mean_ns())
            .field("p50_ns", &self.percentile_ns(50.0))
            .field("p99_ns", &self.percentile_ns(99.0))
            .field("max_ns", &self.max_ns)
            .finish()
    }
}

impl DelayHistogram {
    /// Adds one delay.
    pub fn record(&mut self, delay_ns: u64) {
        self.buckets[bucket_of(delay_ns)] += 1;
        self.count += 1;
        self.total_ns += u128::from(delay_ns);
        self.max_ns = self.max_ns.max(delay_ns);
    }

    /// How many delays were recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest delay recorded, exactly.
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The mean delay, or 0 when there is none.
    pub fn mean_ns(&self) -> u64 {
        self.total_ns
            .checked_div(u128::from(self.count))
            .map_or(0, |mean| u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// The delay that `percent` of the recorded ones do not exceed, read up to 12.5 % too
    /// high; 0 when there is none. `percent` is cut to 0..=100.
    pub fn percentile_ns(&self, percent: f64) -> u64 {
        let share = percent.clamp(0.0, 100.0) / 100.0;
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, in_bucket) in self.buckets.iter().enumerate() {
            seen += in_bucket;
            if seen >= rank {
                return highest_of(bucket).min(self.max_ns);
            }
        }
        0
    }
}

fn bucket_of(value: u64) -> usize {
    if value < SUB_BUCKETS as u64 {
        return value as usize;
    }
    let exponent = value.ilog2() - SUB_BITS;
    let mantissa = (value >> exponent) as usize - SUB_BUCKETS;
    SUB_BUCKETS * (exponent as usize + 1) + mantissa
}

fn highest_of(bucket: usize) -> u64 {
    if bucket < SUB_BUCKETS {
        return bucket as u64;
    }
    let exponent = (bucket / SUB_BUCKETS - 1) as u32;
    let lowest = ((bucket % SUB_BUCKETS + SUB_BUCKETS) as u64) << exponent;
    lowest + ((1u64 << exponent) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_histogram_reads_zero() {
        let histogram = DelayHistogram::default();
        assert_eq!((histogram.mean_ns(), histogram.percentile_ns(99.0), histogram.max_ns()), (0, 0, 0));
    }

    #[test]
    fn the_ends_of_the_range_have_buckets() {
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(highest_of(BUCKETS - 1), u64::MAX);
    }

    proptest! {
        #[test]
        fn a_value_reads_at_most_an_eighth_too_high(value: u64) {
            let read = highest_of(bucket_of(value));
            prop_assert!(read >= value);
            prop_assert!(read - value <= value / 8);
        }

        #[test]
        fn percentiles_match_sorted_samples(mut samples in prop::collection::vec(0u64..1 << 40, 1..200)) {
            let mut histogram = DelayHistogram::default();
            samples.iter().for_each(|sample| histogram.record(*sample));
            samples.sort_unstable();
            for percent in [0.0f64, 50.0, 99.0, 100.0] {
                let rank = ((samples.len() as f64 * percent / 100.0).ceil() as usize).max(1);
                let exact = samples[rank - 1];
                let read = histogram.percentile_ns(percent);
                prop_assert!(read >= exact && read - exact <= exact / 8);
            }
        }
    }
}
