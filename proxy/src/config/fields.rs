//! Every field of the main messages of Envoy's API: read, refused, or without effect.
//!
//! `fields.txt` says which, message by message: `+` what the code reads (and may refuse some values of), `-` what is
//! refused by its mere presence, `~` what is accepted without effect, and why. The refusals are carried out from
//! here; the page docs/configuration.md has the rest, and tests compare both with the descriptors.

use std::sync::LazyLock;

use envoy_types::pb::envoy::config::bootstrap::v3::Bootstrap;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use xds_client::constraints::{self, Refused};
use xds_client::error::ConfigError;

static TABLE: &str = include_str!("fields.txt");
static REFUSED: LazyLock<Refused> = LazyLock::new(|| {
    let words = |block: &Block| block.refused.split_whitespace().collect();
    blocks().map(|b| (b.message, words(&b))).collect()
});

/// What the table says of one message.
#[derive(Default)]
struct Block {
    message: &'static str,
    #[cfg(test)]
    read: &'static str,
    refused: &'static str,
    /// Field and reason.
    #[cfg(test)]
    ignored: Vec<(&'static str, &'static str)>,
}

fn blocks() -> impl Iterator<Item = Block> {
    TABLE.split("\n\n").map(|text| {
        let mut lines = text.lines();
        let mut block = Block {
            message: lines.next().unwrap_or_default(),
            ..Block::default()
        };
        for line in lines {
            match line.split_at_checked(2) {
                Some(("- ", fields)) => block.refused = fields,
                #[cfg(test)]
                Some(("+ ", fields)) => block.read = fields,
                #[cfg(test)]
                Some(("~ ", field)) => block.ignored.extend(field.split_once(": ")),
                _ => {}
            }
        }
        block
    })
}

/// Checks a resource against the constraints of Envoy's API, and refuses the fields that are not supported.
///
/// # Errors
/// The path of the first such field.
pub fn check(resource: &Any) -> Result<(), ConfigError> {
    let name = resource.type_url.rsplit('/').next().unwrap_or_default();
    constraints::check_with(name, &resource.value, &REFUSED)
}

/// [`check`] for a bootstrap.
///
/// # Errors
/// As [`check`].
pub fn check_bootstrap(bootstrap: &Bootstrap) -> Result<(), ConfigError> {
    let bytes = bootstrap.encode_to_vec();
    constraints::check_with(&Bootstrap::full_name(), &bytes, &REFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fmt::Write;
    use xds_client::json::Pool;

    #[test]
    fn every_field_of_the_descriptors_has_its_place() {
        let pool = Pool::load().unwrap();
        for block in blocks() {
            let mut listed: Vec<&str> = block.read.split_whitespace().collect();
            listed.extend(block.refused.split_whitespace());
            listed.extend(block.ignored.iter().map(|(field, _)| *field));
            let once: BTreeSet<&str> = listed.iter().copied().collect();
            assert_eq!(once.len(), listed.len(), "{}: a field twice", block.message);
            let fields = pool.fields(block.message);
            let known: BTreeSet<&str> = fields.iter().map(String::as_str).collect();
            assert_eq!(once, known, "{}", block.message);
        }
    }

    #[test]
    fn the_page_says_what_the_table_says() {
        let mut wanted = String::new();
        for block in blocks() {
            let refused: Vec<_> = block.refused.split_whitespace().collect();
            if refused.is_empty() && block.ignored.is_empty() {
                continue;
            }
            writeln!(wanted, "\n`{}`\n", block.message).unwrap();
            if !refused.is_empty() {
                writeln!(wanted, "- refused: `{}`", refused.join("`, `")).unwrap();
            }
            for (field, reason) in block.ignored {
                writeln!(wanted, "- no effect: `{field}`: {reason}").unwrap();
            }
        }
        let page = include_str!("../../../docs/configuration.md");
        let (_, section) = page.split_once("<!-- fields.txt -->\n").unwrap();
        let (section, _) = section.split_once("\n<!-- end -->").unwrap();
        assert_eq!(
            section.trim(),
            wanted.trim(),
            "docs/configuration.md, wanted:\n{wanted}"
        );
    }

    #[test]
    fn what_istiod_sends_passes() {
        use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse;
        let folder = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../conformance/fixtures/istio-1.27"
        );
        for kind in ["lds", "cds", "rds", "eds", "sds"] {
            let bytes = std::fs::read(format!("{folder}/{kind}.pb")).unwrap();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap();
                for resource in response.resources {
                    check(&resource.resource.unwrap()).expect(&resource.name);
                }
            }
        }
    }

    #[test]
    fn what_is_refused_is_refused() {
        let with = |yaml: &str| {
            let options = xds_client::bootstrap::LoadOptions {
                config_yaml: Some(yaml),
                ..Default::default()
            };
            let bootstrap = xds_client::bootstrap::load(options).unwrap();
            check_bootstrap(&bootstrap).map_err(|e| e.to_string())
        };
        with("static_resources: {listeners: [{name: l, drain_type: MODIFY_ONLY}]}").unwrap();
        assert_eq!(
            with("static_resources: {listeners: [{name: l, enable_mptcp: true}]}").unwrap_err(),
            "static_resources.listeners[0].enable_mptcp: not supported"
        );
        assert_eq!(
            with("static_resources: {clusters: [{name: c, queuing_policies: {}}]}").unwrap_err(),
            "static_resources.clusters[0].queuing_policies: not supported"
        );
    }
}
