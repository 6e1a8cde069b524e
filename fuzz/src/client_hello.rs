//! What must hold of the look for a ClientHello whatever bytes it is given.

use fairway::server::ja4;
use fairway::server::sniff::{self, MAX_CLIENT_HELLO, Sniff};

/// What is said of the first bytes is not taken back when more come, and what is found is what the TLS library finds:
/// the name that chooses a filter chain is the name that the handshake is for.
pub fn found(data: &[u8]) {
    let whole = sniff::client_hello(data);
    // Not every end: a ClientHello has some two thousand.
    let most = data.len().min(MAX_CLIENT_HELLO);
    for end in (0..most).step_by(1 + most / 100) {
        match sniff::client_hello(&data[..end]) {
            Sniff::More => {}
            early => {
                assert_eq!(early, whole, "{end}");
                break;
            }
        }
    }
    if let Sniff::Yes(hello) = &whole {
        assert!(!hello.server_name.contains(|c: char| c.is_ascii_uppercase()));
        let names: usize = hello.alpn.iter().map(String::len).sum();
        assert!(hello.server_name.len() + names < data.len());
        // What can be read has a fingerprint, of one length.
        let Sniff::Yes(message) = sniff::hello_message(data) else {
            unreachable!("it was there")
        };
        assert_eq!(ja4::fingerprint(&message).map(|ja4| ja4.len()), Some(36));
    }
    let mut acceptor = rustls::server::Acceptor::default();
    let mut left = data;
    while !left.is_empty() {
        if acceptor.read_tls(&mut left).unwrap_or(0) == 0 {
            return;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => return agrees(&accepted.client_hello(), &whole),
            Err(_) => return,
        }
    }
}

fn agrees(theirs: &rustls::server::ClientHello<'_>, ours: &Sniff<sniff::ClientHello>) {
    let ours = match ours {
        Sniff::Yes(hello) => hello,
        // The library takes larger ones.
        Sniff::TooLarge => return,
        other => panic!("{other:?} is what the library takes for a ClientHello"),
    };
    // An address is no name to the library; to us it is one that no filter chain has.
    if let Some(name) = theirs.server_name() {
        assert_eq!(ours.server_name, name.to_ascii_lowercase());
    }
    let protocols: Vec<String> = theirs
        .alpn()
        .into_iter()
        .flatten()
        .filter_map(|name| String::from_utf8(name.to_vec()).ok())
        .collect();
    assert_eq!(ours.alpn, protocols);
}
