//! Branches by domain name: `xds.type.matcher.v3.ServerNameMatcher`.

use super::keys::ExactKeys;

/// Domains, each with the number of its branch.
#[derive(Debug)]
pub(super) struct Domains {
    exact: ExactKeys<usize>,
    /// `example.com` for `*.example.com`.
    suffixes: ExactKeys<usize>,
    any: Option<usize>,
}

impl Domains {
    /// Domains with their branches; each domain once. `*` stands for everything, `*.` in front for any labels.
    pub(super) fn new(entries: Vec<(String, usize)>) -> Self {
        let (mut exact, mut suffixes, mut any) = (Vec::new(), Vec::new(), None);
        for (domain, branch) in entries {
            match domain.strip_prefix('*') {
                Some("") => any = Some(branch),
                Some(suffix) => suffixes.push((key(suffix.trim_start_matches('.')), branch)),
                None => exact.push((key(&domain), branch)),
            }
        }
        Self {
            exact: ExactKeys::new(exact),
            suffixes: ExactKeys::new(suffixes),
            any,
        }
    }

    /// The branches for `name`: its own, then by its longest suffix, then that for all. None for no name.
    pub(super) fn matching(&self, name: &[u8]) -> impl Iterator<Item = usize> {
        let any = self.any.filter(|_| !name.is_empty());
        let suffixes = name
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'.')
            .filter_map(move |(at, _)| self.suffixes.get(name.get(at + 1..)?));
        let own = self.exact.get(name).into_iter();
        own.chain(suffixes).copied().chain(any)
    }
}

fn key(text: &str) -> Box<[u8]> {
    text.as_bytes().into()
}
