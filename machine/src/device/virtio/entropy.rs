//! The entropy device, and the stream behind it.

use serde::{Deserialize, Serialize};

use super::Environment;
use super::queue::{Broken, Queue, scatter};

/// Bytes given for one buffer at most.
const MAX_BUFFER_BYTES: usize = 4096;

/// A stream of random bytes that is a function of the seeds given: BLAKE3 in its extendable
/// output mode, keyed with all seeds so far.
///
/// Before the first `Event::Entropy` the key is zero: the stream is then the same for
/// everybody, and not random at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntropyPool {
    key: [u8; 32],
    position: u64,
}

impl EntropyPool {
    /// Mixes a seed in.
    pub fn seed(&mut self, seed: &[u8]) {
        self.key = *blake3::keyed_hash(&self.key, seed).as_bytes();
        self.position = 0;
    }

    /// Takes the next bytes of the stream.
    pub fn fill(&mut self, into: &mut [u8]) {
        let mut stream = blake3::Hasher::new_keyed(&self.key).finalize_xof();
        stream.set_position(self.position);
        stream.fill(into);
        self.position = self.position.wrapping_add(into.len() as u64);
    }
}

/// Fills the buffers that the driver made available.
///
/// # Errors
/// When the ring is malformed.
pub fn serve(queue: &mut Queue, environment: &mut Environment<'_>) -> Result<(), Broken> {
    for _ in 0..queue.available(environment.ram)? {
        let chain = queue.pop(environment.ram)?;
        let mut bytes = [0; MAX_BUFFER_BYTES];
        let len = chain.writable_bytes().min(MAX_BUFFER_BYTES as u64) as usize;
        environment.pool.fill(&mut bytes[..len]);
        scatter(environment.ram, &chain.writable, 0, &bytes[..len])?;
        queue.push_used(environment.ram, chain.head, len as u32)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_depends_on_all_seeds_and_nothing_else() {
        let take = |seeds: &[&[u8]], cuts: &[usize]| {
            let mut pool = EntropyPool::default();
            seeds.iter().for_each(|seed| pool.seed(seed));
            let mut all = Vec::new();
            for cut in cuts {
                let mut bytes = vec![0; *cut];
                pool.fill(&mut bytes);
                all.extend(bytes);
            }
            all
        };
        assert_eq!(take(&[b"a", b"b"], &[100]), take(&[b"a", b"b"], &[1, 63, 36]));
        assert_ne!(take(&[b"a", b"b"], &[100]), take(&[b"b"], &[100]));
        assert_ne!(take(&[b"a", b"b"], &[100]), take(&[b"ab"], &[100]));
    }
}
