//! Finds the routes of a virtual host whose path rule can match, in their order.
//!
//! Every route is filed once: an exact path in a hash map, anything else under the prefix that its
//! paths must begin with (for a regex its leading literal, for rules without one the empty prefix).
//! Several routes may match a path, and the first one in the configuration wins, so a lookup merges
//! the sorted route numbers of the exact path and of every filed prefix of the path.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// Where a route is filed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key<'a> {
    /// Paths equal to this.
    Exact(&'a str),
    /// Paths that begin with this.
    Prefix(&'a str),
    /// This path, and those that continue it with `/`.
    Segments(&'a str),
}

/// Route numbers, ascending.
type Numbers = Vec<u32>;

/// A prefix and what is filed under it.
#[derive(Debug)]
struct Node {
    prefix: Box<[u8]>,
    /// The longest other filed prefix that this one begins with.
    parent: Option<usize>,
    any: Numbers,
    segments: Numbers,
}

/// Keys of one case rule.
#[derive(Debug, Default)]
struct Layer {
    // A fast hash that an attacker can predict: only the configuration fills the map, and a lookup
    // costs one pass over the path whatever the path is.
    exact: FxHashMap<Box<[u8]>, Numbers>,
    /// Sorted by prefix.
    nodes: Vec<Node>,
}

/// The index of one virtual host.
#[derive(Debug, Default)]
pub(super) struct PathIndex {
    sensitive: Layer,
    /// Keys in lower case.
    insensitive: Layer,
}

impl PathIndex {
    /// Files the routes 0, 1, 2... under their keys; `true` says that case counts.
    pub(super) fn build<'a>(keys: impl IntoIterator<Item = (Key<'a>, bool)>) -> Self {
        let mut index = Self::default();
        for ((key, case_sensitive), number) in keys.into_iter().zip(0u32..) {
            if case_sensitive {
                index.sensitive.add(key, number, |s| s.as_bytes().into());
            } else {
                index
                    .insensitive
                    .add(key, number, |s| s.to_ascii_lowercase().into_bytes().into());
            }
        }
        index.sensitive.finish();
        index.insensitive.finish();
        index
    }

    /// The numbers of the routes whose key fits `path` (without the query), ascending.
    pub(super) fn candidates(&self, path: &str) -> Candidates<'_> {
        let mut lists = Lists::new();
        self.sensitive.find(path.as_bytes(), &mut lists);
        if !self.insensitive.is_empty() {
            // On the stack for all but very long paths.
            let lower: SmallVec<[u8; 256]> = path.bytes().map(|b| b.to_ascii_lowercase()).collect();
            self.insensitive.find(&lower, &mut lists);
        }
        Candidates { lists }
    }
}

impl Layer {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.nodes.is_empty()
    }

    /// Files one route; numbers must ascend. Nodes are sorted and merged by [`finish`](Self::finish).
    fn add(&mut self, key: Key<'_>, number: u32, fold: impl Fn(&str) -> Box<[u8]>) {
        let (prefix, any, segments) = match key {
            Key::Exact(path) => {
                self.exact.entry(fold(path)).or_default().push(number);
                return;
            }
            Key::Prefix(prefix) => (prefix, vec![number], vec![]),
            Key::Segments(prefix) => (prefix, vec![], vec![number]),
        };
        self.nodes.push(Node {
            prefix: fold(prefix),
            parent: None,
            any,
            segments,
        });
    }

    fn finish(&mut self) {
        // Stable, so that equal prefixes keep their numbers ascending.
        self.nodes.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        self.nodes.dedup_by(|later, kept| {
            let same = later.prefix == kept.prefix;
            if same {
                kept.any.append(&mut later.any);
                kept.segments.append(&mut later.segments);
            }
            same
        });
        self.nodes.shrink_to_fit();
        // What a prefix begins with sorts before it, so the open prefixes form a stack.
        let mut open: Vec<(usize, Box<[u8]>)> = Vec::new();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            while open
                .last()
                .is_some_and(|(_, prefix)| !node.prefix.starts_with(prefix))
            {
                open.pop();
            }
            node.parent = open.last().map(|(parent, _)| *parent);
            open.push((at, node.prefix.clone()));
        }
    }

    fn find<'a>(&'a self, path: &[u8], lists: &mut Lists<'a>) {
        if let Some(numbers) = self.exact.get(path) {
            lists.push(numbers);
        }
        // Let p be the longest filed prefix of the path and e the greatest filed prefix not above the
        // path. p <= e <= path, and all that lies between p and a continuation of p begins with p: so
        // p is e or one of its ancestors, and the ancestors of p are the other prefixes of the path.
        let above = self.nodes.partition_point(|n| &*n.prefix <= path);
        let mut next = above.checked_sub(1);
        let mut matched = false;
        while let Some(node) = next.and_then(|at| self.nodes.get(at)) {
            next = node.parent;
            matched = matched || path.starts_with(&node.prefix);
            if !matched {
                continue;
            }
            if !node.any.is_empty() {
                lists.push(&node.any);
            }
            if !node.segments.is_empty() && path.get(node.prefix.len()).is_none_or(|b| *b == b'/') {
                lists.push(&node.segments);
            }
        }
    }
}

/// Sorted lists to merge. More than eight (nested prefixes of one path) go to the heap.
type Lists<'a> = SmallVec<[&'a [u32]; 8]>;

/// The merged numbers of a lookup, ascending.
#[derive(Debug)]
pub(super) struct Candidates<'a> {
    lists: Lists<'a>,
}

impl Iterator for Candidates<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let heads = self.lists.iter_mut().filter(|list| !list.is_empty());
        let least = heads.min_by_key(|list| list.first().copied())?;
        let (first, rest) = least.split_first()?;
        *least = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(key: Key<'_>, case_sensitive: bool, path: &str) -> bool {
        let fold = |s: &str| match case_sensitive {
            true => s.to_owned(),
            false => s.to_ascii_lowercase(),
        };
        let path = fold(path);
        match key {
            Key::Exact(s) => path == fold(s),
            Key::Prefix(s) => path.starts_with(&fold(s)),
            Key::Segments(s) => path
                .strip_prefix(&fold(s))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }

    #[test]
    fn finds_what_a_linear_search_finds() {
        let rng = &mut fastrand::Rng::with_seed(7);
        let word = |rng: &mut fastrand::Rng| -> String {
            (0..rng.usize(..6))
                .map(|_| *rng.choice(&['/', 'a', 'A', 'b', 'é']).unwrap())
                .collect()
        };
        for _ in 0..500 {
            let words: Vec<_> = (0..rng.usize(..40))
                .map(|_| (word(rng), rng.u8(..3), rng.bool()))
                .collect();
            let keys: Vec<_> = words
                .iter()
                .map(|(word, kind, case)| match kind {
                    0 => (Key::Exact(word), *case),
                    1 => (Key::Prefix(word), *case),
                    _ => (Key::Segments(word), *case),
                })
                .collect();
            let index = PathIndex::build(keys.iter().copied());
            for _ in 0..50 {
                let path = word(rng) + &word(rng);
                let naive: Vec<u32> = keys
                    .iter()
                    .zip(0..)
                    .filter(|((key, case), _)| fits(*key, *case, &path))
                    .map(|(_, number)| number)
                    .collect();
                let found: Vec<u32> = index.candidates(&path).collect();
                assert_eq!(found, naive, "{path} in {keys:?}");
            }
        }
    }

    #[test]
    fn the_last_of_many_is_the_only_candidate() {
        let words: Vec<String> = (0..10_000).map(|i| format!("/svc-{i:05}/")).collect();
        let index = PathIndex::build(words.iter().map(|w| (Key::Prefix(w), true)));
        assert_eq!(
            index.candidates("/svc-09999/x").collect::<Vec<_>>(),
            [9_999]
        );
        assert_eq!(index.candidates("/svc-1").count(), 0);
    }
}
