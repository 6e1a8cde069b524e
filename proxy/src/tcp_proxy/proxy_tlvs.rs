//! `proxy_protocol_tlvs`: TLVs for the PROXY header of the upstream connection.

use std::rc::Rc;

use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    ProxyProtocolTlvMergePolicy as Policy, TcpProxy,
};
use filters::stream::StreamInfo;
use xds_client::error::{At, ConfigError};

use crate::transport::proxy_protocol::tlvs::{AddedTlvs, Tlv};

/// The TLVs, and what becomes of those that the client's own header has.
pub(super) struct ProxyTlvs {
    added: AddedTlvs,
    policy: Policy,
}

impl ProxyTlvs {
    /// Compiles the fields.
    ///
    /// # Errors
    /// What is wrong with a TLV, by field.
    pub(super) fn compile(proto: &TcpProxy) -> Result<Self, ConfigError> {
        let field = "proxy_protocol_tlv_merge_policy";
        Ok(Self {
            added: AddedTlvs::compile(&proto.proxy_protocol_tlvs).at("proxy_protocol_tlvs")?,
            policy: Policy::try_from(proto.proxy_protocol_tlv_merge_policy)
                .map_err(|_| ConfigError::new("unknown value").at(field))?,
        })
    }

    /// What is told: `own` are the TLVs of the client's PROXY header, if it has sent one.
    pub(super) fn merge(&self, own: Option<Rc<[Tlv]>>, info: &StreamInfo) -> Option<Rc<[Tlv]>> {
        let Some(own) = own else {
            return Some(self.added.all(info).into());
        };
        Some(match self.policy {
            Policy::AddIfAbsent => own,
            Policy::AppendIfExistsOrAdd => {
                own.iter().cloned().chain(self.added.all(info)).collect()
            }
            Policy::OverwriteByTypeIfExistsOrAdd => {
                let mut all = self.added.all(info);
                let added = all.len();
                for tlv in own.iter() {
                    let mut replaced = all.iter().take(added).map(|(kind, _)| *kind);
                    if replaced.all(|kind| kind != tlv.0) {
                        all.push(tlv.clone());
                    }
                }
                all.into()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use envoy_types::pb::envoy::config::core::v3::TlvEntry;

    use super::*;
    use crate::http::testing::connection;

    fn merged(policy: Policy, own: Option<&[(u8, &'static str)]>) -> Vec<(u8, String)> {
        let entry = |kind: u32, value: &str| TlvEntry {
            r#type: kind,
            value: value.into(),
            format_string: None,
        };
        let tlvs = ProxyTlvs::compile(&TcpProxy {
            proxy_protocol_tlvs: vec![entry(1, "x"), entry(1, "y")],
            proxy_protocol_tlv_merge_policy: policy as i32,
            ..Default::default()
        });
        let info = StreamInfo::for_connection(Rc::new(connection("127.0.0.1:1", "127.0.0.1:1")));
        let own = own.map(|own| {
            let own = own.iter().map(|(kind, value)| (*kind, Bytes::from(*value)));
            own.collect()
        });
        let merged = tlvs.unwrap().merge(own, &info).unwrap();
        let text = |value: &Bytes| String::from_utf8(value.to_vec()).unwrap();
        merged.iter().map(|(k, value)| (*k, text(value))).collect()
    }

    #[test]
    fn what_a_client_has_told_stays_is_replaced_or_comes_first() {
        let all = |tlvs: &[(u8, &str)]| -> Vec<(u8, String)> {
            tlvs.iter().map(|(k, v)| (*k, (*v).to_owned())).collect()
        };
        let own: &[_] = &[(1, "a"), (2, "b"), (2, "c")];
        let (added, kept) = (all(&[(1, "x"), (1, "y")]), Policy::AddIfAbsent);
        assert_eq!(merged(kept, None), added);
        assert_eq!(merged(kept, Some(own)), all(own));
        // A header without TLVs is one, too.
        assert_eq!(merged(kept, Some(&[])), []);
        let replaced = Policy::OverwriteByTypeIfExistsOrAdd;
        let want = all(&[(1, "x"), (1, "y"), (2, "b"), (2, "c")]);
        assert_eq!(merged(replaced, Some(own)), want);
        let appended = Policy::AppendIfExistsOrAdd;
        assert_eq!(merged(appended, Some(own)), [all(own), added].concat());
    }
}
