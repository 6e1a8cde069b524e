//! Consistent hashing: the tables of RING_HASH and MAGLEV, laid out exactly as Envoy lays them out, so that both
//! proxies send a hash to the same host.
//!
//! Envoy: "Ring hash" (Ketama), "Maglev" (the Maglev paper, listing 1).

use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use crate::upstream::host::Host;

/// The hash of a ring's points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingHash {
    /// xxHash64; the default.
    XxHash,
    /// MurmurHash2, 64 bit, with the seed of libstdc++.
    Murmur2,
}

/// The settings of a hash table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashTableConfig {
    /// Which table, and its size.
    pub kind: HashTableKind,
    /// Whether a host's name stands for it, rather than its address.
    pub use_hostname: bool,
}

/// The kind of a hash table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashTableKind {
    /// A ring of points.
    Ring {
        /// `minimum_ring_size`; 1024 by default.
        min: u32,
        /// `maximum_ring_size`; 8 M by default.
        max: u32,
        /// `hash_function`.
        function: RingHash,
    },
    /// A table of a prime number of places.
    Maglev {
        /// `table_size`; 65537 by default.
        size: u32,
    },
}

/// A built table: indices into the hosts that it was built of.
#[derive(Debug)]
pub enum HashTable {
    /// Points in ascending order.
    Ring(Vec<(u64, u32)>),
    /// Places.
    Maglev(Vec<u32>),
}

/// A host and its share of the load; all shares sum up to 1.
pub type Share = (Arc<Host>, f64);

impl HashTable {
    /// Builds the table. Takes time in proportion to its size, so it is built when it is first used.
    pub fn build(config: &HashTableConfig, hosts: &[Share]) -> Self {
        let key = |host: &Host| -> String {
            match host.hash_key() {
                Some(key) => key.to_string(),
                None if config.use_hostname => host.hostname.to_string(),
                None => host.address.to_string(),
            }
        };
        let keys: Vec<(String, f64)> = hosts.iter().map(|(h, share)| (key(h), *share)).collect();
        match config.kind {
            HashTableKind::Ring { min, max, function } => {
                Self::Ring(ring(&keys, min, max, function))
            }
            HashTableKind::Maglev { size } => Self::Maglev(maglev(&keys, size)),
        }
    }

    /// The host of a hash. Later `attempt`s are for hosts to be avoided; they may find the same one again.
    pub fn find(&self, hash: u64, attempt: u32) -> Option<u32> {
        match self {
            Self::Ring(points) => {
                let at = points.partition_point(|(point, _)| *point < hash);
                let at = if at == points.len() { 0 } else { at };
                let at = (at + attempt as usize).checked_rem(points.len())?;
                points.get(at).map(|(_, host)| *host)
            }
            Self::Maglev(table) => {
                let hash = match u64::from(attempt) {
                    0 => hash,
                    attempt => hash ^ (u64::MAX - attempt + 1),
                };
                let at = hash.checked_rem(table.len() as u64)?;
                table.get(usize::try_from(at).ok()?).copied()
            }
        }
    }
}

fn ring(keys: &[(String, f64)], min: u32, max: u32, function: RingHash) -> Vec<(u64, u32)> {
    let Some(least) = keys.iter().map(|key| key.1).reduce(f64::min) else {
        return Vec::new();
    };
    // The least of the hosts gets a whole number of points, unless that makes the ring too large.
    let scale = ((least * f64::from(min)).ceil() / least).min(f64::from(max));
    // At most `max`, which is a u32.
    let mut points = Vec::with_capacity(scale.ceil() as usize);
    let mut target = 0.0;
    let mut text = String::new();
    for (index, (key, share)) in (0u32..).zip(keys) {
        target += scale * share;
        let mut i = 0u32;
        while (points.len() as f64) < target {
            text.clear();
            text.push_str(key);
            text.push('_');
            text.push_str(itoa::Buffer::new().format(i));
            let hash = match function {
                RingHash::XxHash => xxh64(text.as_bytes(), 0),
                RingHash::Murmur2 => murmur2(text.as_bytes()),
            };
            points.push((hash, index));
            i += 1;
        }
    }
    points.sort_by_key(|point| point.0);
    points
}

fn maglev(keys: &[(String, f64)], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    struct Entry {
        offset: u64,
        skip: u64,
        next: u64,
        share: f64,
        target: f64,
    }
    let Some(most) = keys.iter().map(|key| key.1).reduce(f64::max) else {
        return Vec::new();
    };
    let places = u64::from(size);
    let mut entries: Vec<Entry> = keys
        .iter()
        .map(|(key, share)| Entry {
            offset: xxh64(key.as_bytes(), 0) % places,
            skip: xxh64(key.as_bytes(), 1) % (places - 1) + 1,
            next: 0,
            share: *share,
            target: 0.0,
        })
        .collect();
    let mut table = vec![FREE; size as usize];
    let mut filled = 0;
    let mut round = 0.0;
    while filled < places {
        round += 1.0;
        for (index, entry) in (0u32..).zip(&mut entries) {
            if filled == places {
                break;
            }
            // A host with half of the greatest share is left out every other round.
            if round * entry.share < entry.target {
                continue;
            }
            entry.target += most;
            // The size is prime, so that a host's places go through the whole table; one of them is free.
            for _ in 0..places {
                let at = (entry.offset + entry.skip * entry.next) % places;
                entry.next += 1;
                let place = usize::try_from(at).ok().and_then(|at| table.get_mut(at));
                if let Some(place) = place.filter(|place| **place == FREE) {
                    *place = index;
                    filled += 1;
                    break;
                }
            }
        }
    }
    table
}

/// Whether a Maglev table may have this size.
pub(crate) fn is_prime(n: u64) -> bool {
    n > 1
        && (2..)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

/// MurmurHash2 for 64 bits (Austin Appleby's MurmurHash64A), as libstdc++ hashes strings.
fn murmur2(data: &[u8]) -> u64 {
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    const SEED: u64 = 0xc70f_6907;
    let mix = |v: u64| v ^ (v >> 47);
    let read = |chunk: &[u8]| {
        let bytes = chunk.iter().rev();
        bytes.fold(0u64, |n, byte| n << 8 | u64::from(*byte))
    };
    let mut hash = SEED ^ (data.len() as u64).wrapping_mul(MUL);
    let chunks = data.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        let word = mix(read(chunk).wrapping_mul(MUL)).wrapping_mul(MUL);
        hash = (hash ^ word).wrapping_mul(MUL);
    }
    if !rest.is_empty() {
        hash = (hash ^ read(rest)).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(weights: &[f64]) -> Vec<(String, f64)> {
        let sum: f64 = weights.iter().sum();
        let key = |(i, weight): (usize, &f64)| (format!("127.0.0.1:{}", 90 + i), weight / sum);
        weights.iter().enumerate().map(key).collect()
    }

    fn count(found: impl Iterator<Item = u32>, hosts: usize) -> Vec<usize> {
        let mut counts = vec![0; hosts];
        found.for_each(|host| counts[host as usize] += 1);
        counts
    }

    #[test]
    fn murmur_is_libstdcxx_s() {
        // std::hash<std::string> of GCC on x86-64.
        assert_eq!(murmur2(b""), 6142509188972423790);
        assert_eq!(murmur2(b"a"), 4993892634952068459);
    }

    #[test]
    fn a_ring_has_points_by_weight_and_goes_round() {
        let points = ring(&keys(&[1.0, 2.0, 1.0]), 1024, 8 << 20, RingHash::XxHash);
        assert_eq!(count(points.iter().map(|p| p.1), 3), [256, 512, 256]);
        let small = ring(&keys(&[1.0, 100.0]), 1024, 50, RingHash::XxHash);
        assert_eq!(small.len(), 50);
        let (first, last) = (points[0], points[1023]);
        let table = HashTable::Ring(points);
        assert_eq!(table.find(first.0, 0), Some(first.1));
        assert_eq!(table.find(last.0, 0), Some(last.1));
        assert_eq!(table.find(last.0 + 1, 0), Some(first.1));
        assert_eq!(table.find(last.0, 1), Some(first.1));
        assert_eq!(HashTable::Ring(Vec::new()).find(1, 1), None);
    }

    #[test]
    fn a_maglev_table_is_full_and_shared_by_weight() {
        let table = maglev(&keys(&[1.0, 3.0]), 65537);
        let counts = count(table.iter().copied(), 2);
        assert!(counts[1].abs_diff(3 * counts[0]) < 10, "{counts:?}");
        let one = maglev(&keys(&[1.0]), 2);
        assert_eq!(one, [0, 0]);
        assert_eq!(HashTable::Maglev(Vec::new()).find(1, 0), None);
        // A host that goes takes little but its own places along.
        let (many, fewer) = (
            maglev(&keys(&[1.0; 10]), 65537),
            maglev(&keys(&[1.0; 9]), 65537),
        );
        let moved = many.iter().zip(&fewer).filter(|(a, b)| **a != 9 && a != b);
        assert!(moved.count() < 65537 / 10);
    }

    #[test]
    fn primes() {
        let primes = (0..30).filter(|n| is_prime(*n)).collect::<Vec<_>>();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(is_prime(65537) && !is_prime(65536));
    }
}
