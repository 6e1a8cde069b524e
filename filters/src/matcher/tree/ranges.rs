//! Branches by address range: `xds.type.matcher.v3.IPMatcher`.

use std::net::IpAddr;

use crate::matcher::CidrRange;

/// Address ranges, each with the number of its branch.
#[derive(Debug)]
pub(super) struct Ranges {
    /// Ranges of one length each, the longest first. A mesh has thousands of ranges, and two or three lengths.
    lengths: Vec<Vec<Range>>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    range: CidrRange,
    branch: usize,
    /// Counts only if no longer range has matched.
    exclusive: bool,
}

impl Ranges {
    /// Ranges with their branches, and whether those are exclusive.
    pub(super) fn new(entries: Vec<(CidrRange, usize, bool)>) -> Self {
        let range = |(range, branch, exclusive)| Range {
            range,
            branch,
            exclusive,
        };
        let mut entries: Vec<Range> = entries.into_iter().map(range).collect();
        // Within a length by address, then in the order of the configuration.
        entries.sort_by(|a, b| b.range.len().cmp(&a.range.len()).then_with(|| a.cmp(b)));
        let mut lengths: Vec<Vec<Range>> = Vec::new();
        for entry in entries {
            match lengths.last_mut() {
                Some(same) if same.first().map(|r| r.range.len()) == Some(entry.range.len()) => {
                    same.push(entry);
                }
                _ => lengths.push(vec![entry]),
            }
        }
        Self { lengths }
    }

    /// The branches of the ranges that contain `ip`: of the longest first, and of equals the one that was declared
    /// first.
    pub(super) fn matching(&self, ip: IpAddr) -> impl Iterator<Item = usize> {
        let of_length = move |ranges: &'_ Vec<Range>| {
            let length = ranges.first().map_or(0, |r| r.range.len());
            let wanted = CidrRange::around(ip, length);
            let from = ranges.partition_point(|r| r.range < wanted);
            let len = ranges
                .get(from..)
                .unwrap_or_default()
                .partition_point(|r| r.range == wanted);
            from..from + len
        };
        self.lengths
            .iter()
            .flat_map(move |ranges| ranges.get(of_length(ranges)).unwrap_or_default())
            .enumerate()
            .filter(|(position, range)| *position == 0 || !range.exclusive)
            .map(|(_, range)| range.branch)
    }
}
