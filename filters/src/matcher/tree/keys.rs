//! Branches by key: `exact_match_map` and `prefix_match_map`.

/// Keys with their values.
pub(super) type Keyed<T> = Vec<(Box<[u8]>, T)>;

/// Values by exact key.
#[derive(Debug)]
pub(super) struct ExactKeys<T>(Keyed<T>);

impl<T> ExactKeys<T> {
    /// Keys with their values; each key once.
    pub(super) fn new(mut entries: Keyed<T>) -> Self {
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self(entries)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&T> {
        let at = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }
}

/// Values by prefix.
#[derive(Debug)]
pub(super) struct PrefixKeys<T> {
    /// Keys of one length each, the longest first.
    lengths: Vec<(usize, ExactKeys<T>)>,
}

impl<T> PrefixKeys<T> {
    /// Keys with their values; each key once.
    pub(super) fn new(mut entries: Keyed<T>) -> Self {
        entries.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
        let mut lengths: Vec<(usize, Keyed<T>)> = Vec::new();
        for entry in entries {
            match lengths.last_mut() {
                Some((length, same)) if *length == entry.0.len() => same.push(entry),
                _ => lengths.push((entry.0.len(), vec![entry])),
            }
        }
        let sorted = |(length, entries)| (length, ExactKeys::new(entries));
        Self {
            lengths: lengths.into_iter().map(sorted).collect(),
        }
    }

    /// The values of the keys that `text` begins with, of the longest first.
    pub(super) fn prefixes(&self, text: &[u8]) -> impl Iterator<Item = &T> {
        self.lengths
            .iter()
            .filter_map(|(length, keys)| keys.get(text.get(..*length)?))
    }
}
