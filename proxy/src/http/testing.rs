//! What tests of heads and bodies need of a connection.

use std::rc::Rc;

use filters::stream::{Address, ConnectionInfo, Protocol, StreamInfo};

/// A plaintext connection from `peer` to `local`, both `address:port`.
pub(crate) fn connection(peer: &str, local: &str) -> ConnectionInfo {
    let peer = Address::Ip(peer.parse().unwrap());
    let local = Address::Ip(local.parse().unwrap());
    ConnectionInfo {
        id: 1,
        remote: peer.clone(),
        direct_remote: peer,
        direct_local: local.clone(),
        local,
        server_name: None,
        alpn: None,
        ja4: None,
        secure: false,
        tls: None,
        listener: "".into(),
        filter_chain: "".into(),
        listener_metadata: Default::default(),
        filter_chain_metadata: Default::default(),
        proxy_tlvs: None,
        filter_state: None,
        local_restored: false,
        notes: None,
    }
}

/// An HTTP/1.1 stream on such a connection of this machine.
pub(crate) fn stream_info() -> StreamInfo {
    let connection = connection("127.0.0.1:1", "127.0.0.1:80");
    StreamInfo::new(Rc::new(connection), Protocol::Http11)
}
