//! What the micro-benchmarks measure with: a connection, a place to compile into, and what istiod sent.

#![allow(clippy::expect_used)] // A benchmark that cannot begin ends here; there is nobody to hand an error to.

pub mod captures;
pub mod context;

use std::rc::Rc;

use filters::stream::{Address, ConnectionInfo, Protocol, StreamInfo};

/// A plaintext HTTP/1.1 stream.
pub fn stream() -> StreamInfo {
    let peer = Address::Ip(([10, 0, 0, 1], 40000).into());
    let connection = ConnectionInfo {
        id: 1,
        remote: peer.clone(),
        direct_remote: peer,
        direct_local: Address::Ip(([10, 0, 0, 2], 80).into()).clone(),
        local: Address::Ip(([10, 0, 0, 2], 80).into()),
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
    };
    StreamInfo::new(Rc::new(connection), Protocol::Http11)
}
