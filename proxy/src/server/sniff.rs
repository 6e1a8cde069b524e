//! Listener filters' look at the first bytes: TLS ClientHello (SNI, ALPN) and plain-text HTTP.
//!
//! Pure functions over what has been read so far; the caller reads, bounds and times.

/// The most bytes a ClientHello may take, records and all (Envoy's tls_inspector limit is 16 KiB too).
pub const MAX_CLIENT_HELLO: usize = 16 * 1024;
/// The most bytes a request line may take before the connection is called "not HTTP" (Envoy: 64 KiB).
pub const MAX_REQUEST_LINE: usize = 64 * 1024;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a look at the bytes so far says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sniff<T> {
    /// More bytes are needed.
    More,
    /// It is the protocol, and this was found.
    Yes(T),
    /// It is not the protocol.
    No,
    /// It is, but larger than it may be.
    TooLarge,
}

/// What a ClientHello said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// SNI host name, lower case; empty without one.
    pub server_name: String,
    /// ALPN protocols in the client's order; those that are not UTF-8 are left out.
    pub alpn: Vec<String>,
}

/// Reads forward in a slice; every step is checked.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    /// A big-endian number of `n` bytes (at most 3 here).
    pub(super) fn number(&mut self, n: usize) -> Option<usize> {
        Some(
            self.take(n)?
                .iter()
                .fold(0, |v, b| v << 8 | usize::from(*b)),
        )
    }

    /// A vector with a length field of `n` bytes.
    pub(super) fn vector(&mut self, n: usize) -> Option<Self> {
        let length = self.number(n)?;
        self.take(length).map(Cursor)
    }
}

/// Looks for a TLS ClientHello (RFC 8446 section 4.1.2), also one spread over several records, and reads it.
pub fn client_hello(bytes: &[u8]) -> Sniff<ClientHello> {
    match hello_message(bytes) {
        Sniff::Yes(hello) => parse_hello(&hello).map_or(Sniff::No, Sniff::Yes),
        Sniff::More => Sniff::More,
        Sniff::No => Sniff::No,
        Sniff::TooLarge => Sniff::TooLarge,
    }
}

/// Looks for a ClientHello, and gives it without its head.
pub fn hello_message(bytes: &[u8]) -> Sniff<Vec<u8>> {
    let mut records = Cursor(bytes);
    let mut handshake: Vec<u8> = Vec::new();
    loop {
        // Decide on the first byte that contradicts, so that plain text is not made to wait.
        if records.0.first().is_some_and(|b| *b != 22) || records.0.get(1).is_some_and(|b| *b != 3)
        {
            return Sniff::No;
        }
        let Some(head) = records.take(5) else {
            break;
        };
        let length = head
            .get(3..)
            .map_or(0, |l| l.iter().fold(0, |v, b| v << 8 | usize::from(*b)));
        if length == 0 || length > MAX_CLIENT_HELLO {
            return Sniff::No; // no TLS record is that long
        }
        let available = length.min(records.0.len());
        handshake.extend_from_slice(records.take(available).unwrap_or_default());
        if handshake.first().is_some_and(|kind| *kind != 1) {
            return Sniff::No;
        }
        if let Some(wanted) = handshake_length(&handshake) {
            if wanted > MAX_CLIENT_HELLO {
                return Sniff::TooLarge;
            }
            if let Some(hello) = handshake.get(4..4 + wanted) {
                return Sniff::Yes(hello.to_vec());
            }
        }
        if available < length {
            break;
        }
    }
    if bytes.len() >= MAX_CLIENT_HELLO {
        Sniff::TooLarge
    } else {
        Sniff::More
    }
}

fn handshake_length(handshake: &[u8]) -> Option<usize> {
    Cursor(handshake.get(1..)?).number(3)
}

/// Reads what a ClientHello says; `None` if it is none.
pub fn parse_hello(hello: &[u8]) -> Option<ClientHello> {
    let mut cursor = Cursor(hello);
    cursor.take(2 + 32)?; // version, random
    cursor.vector(1)?; // session id
    cursor.vector(2)?; // cipher suites
    cursor.vector(1)?; // compression methods
    let mut found = ClientHello::default();
    if cursor.0.is_empty() {
        return Some(found); // no extensions at all is legal
    }
    let mut extensions = cursor.vector(2)?;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let mut body = extensions.vector(2)?;
        match kind {
            0 => {
                let mut names = body.vector(2)?;
                while !names.0.is_empty() {
                    // How long a name of another kind is, nobody knows (RFC 6066, 3).
                    if names.number(1)? != 0 {
                        break;
                    }
                    let name = names.vector(2)?;
                    if found.server_name.is_empty() {
                        found.server_name = std::str::from_utf8(name.0).ok()?.to_ascii_lowercase();
                    }
                }
            }
            16 => {
                let mut protocols = body.vector(2)?;
                while !protocols.0.is_empty() {
                    let name = protocols.vector(1)?;
                    if let Ok(name) = std::str::from_utf8(name.0) {
                        found.alpn.push(name.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    Some(found)
}

/// Looks for plain-text HTTP, as Envoy's http_inspector does: `h2c`, `http/1.1` or `http/1.0`.
pub fn http(bytes: &[u8]) -> Sniff<&'static str> {
    let seen = bytes.len().min(PREFACE.len());
    if bytes.get(..seen) == PREFACE.get(..seen) {
        return if seen == PREFACE.len() {
            Sniff::Yes("h2c")
        } else {
            Sniff::More
        };
    }
    // A method is a token (RFC 9110 section 5.6.2) of sane length, then one space.
    let method = bytes.iter().take_while(|b| is_token(**b)).count();
    if method > 64 || (method == 0 && !bytes.is_empty()) {
        return Sniff::No;
    }
    match bytes.get(method) {
        None => return Sniff::More,
        Some(b' ') => {}
        Some(_) => return Sniff::No,
    }
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        return if bytes.len() >= MAX_REQUEST_LINE {
            Sniff::No
        } else {
            Sniff::More
        };
    };
    let line = bytes.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.ends_with(b" HTTP/1.1") {
        Sniff::Yes("http/1.1")
    } else if line.ends_with(b" HTTP/1.0") {
        Sniff::Yes("http/1.0")
    } else {
        Sniff::No
    }
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(width: usize, body: &[u8]) -> Vec<u8> {
        let mut out = (body.len() as u32).to_be_bytes()[4 - width..].to_vec();
        out.extend_from_slice(body);
        out
    }

    /// A ClientHello's handshake message.
    fn hello(name: &str, alpn: &[&str]) -> Vec<u8> {
        let mut sni = vec![0];
        sni.extend(vector(2, name.as_bytes()));
        let protocols: Vec<u8> = alpn.iter().flat_map(|p| vector(1, p.as_bytes())).collect();
        let mut extensions = vec![0, 0];
        extensions.extend(vector(2, &vector(2, &sni)));
        extensions.extend([0, 16]);
        extensions.extend(vector(2, &vector(2, &protocols)));
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(vector(1, &[]));
        body.extend(vector(2, &[0x13, 0x01]));
        body.extend(vector(1, &[0]));
        body.extend(vector(2, &extensions));
        let mut message = vec![1];
        message.extend(vector(3, &body));
        message
    }

    fn record(body: &[u8]) -> Vec<u8> {
        let mut out = vec![22, 3, 1];
        out.extend(vector(2, body));
        out
    }

    #[test]
    fn finds_sni_and_alpn_in_one_or_many_records() {
        let message = hello("WWW.Example.com", &["h2", "http/1.1"]);
        let expected = Sniff::Yes(ClientHello {
            server_name: "www.example.com".into(),
            alpn: vec!["h2".into(), "http/1.1".into()],
        });
        let whole = record(&message);
        assert_eq!(client_hello(&whole), expected);
        let split: Vec<u8> = message.chunks(20).flat_map(record).collect();
        assert_eq!(client_hello(&split), expected);
        for end in 0..whole.len() {
            assert_eq!(client_hello(&whole[..end]), Sniff::More, "{end}");
        }
    }

    #[test]
    fn rejects_what_is_not_a_client_hello_at_once() {
        assert_eq!(client_hello(b"G"), Sniff::No);
        assert_eq!(client_hello(&[22, 2]), Sniff::No);
        assert_eq!(client_hello(&record(&[2, 0, 0, 0])), Sniff::No);
        let mut broken = hello("a", &[]);
        broken[38] = 255; // session id runs past the end
        assert_eq!(client_hello(&record(&broken)), Sniff::No);
        let huge = [22, 3, 1, 0, 4, 1, 255, 255, 255];
        assert_eq!(client_hello(&huge), Sniff::TooLarge);
    }

    #[test]
    fn tells_http_versions_apart() {
        assert_eq!(
            http(b"GET / HTTP/1.1\r\nhost: x\r\n"),
            Sniff::Yes("http/1.1")
        );
        assert_eq!(http(b"GET / HTTP/1.0\n"), Sniff::Yes("http/1.0"));
        assert_eq!(http(PREFACE), Sniff::Yes("h2c"));
        assert_eq!(http(&PREFACE[..20]), Sniff::More);
        assert_eq!(http(b"PR"), Sniff::More);
        assert_eq!(http(b"PROPFIND /x"), Sniff::More);
        assert_eq!(http(b""), Sniff::More);
        assert_eq!(http(b"GET /\r\n"), Sniff::No);
        assert_eq!(http(b"\x16\x03"), Sniff::No);
        assert_eq!(http(b"G\0"), Sniff::No);
        let mut long = b"GET /".to_vec();
        long.resize(MAX_REQUEST_LINE, b'a');
        assert_eq!(http(&long), Sniff::No);
    }
}
