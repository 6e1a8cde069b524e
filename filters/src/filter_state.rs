//! Filter state: objects that filters leave for each other by key, on one stream or on its whole connection, and that
//! may go on to the next hop inside the process (Envoy: "Sharing data between filters", `StreamInfo::FilterState`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytestring::ByteString;

use crate::http::alpn::AlpnNames;

/// The keys of objects that say where something goes, and what it asks of TLS there.
pub mod keys {
    /// A name: the one that is asked for (SNI).
    pub const UPSTREAM_SERVER_NAME: &str = "envoy.network.upstream_server_name";
    /// Protocols: those that are offered (ALPN).
    pub const APPLICATION_PROTOCOLS: &str = "envoy.network.application_protocols";
    /// Names with commas between them: the server's certificate must cover one.
    pub const SUBJECT_ALT_NAMES: &str = "envoy.network.upstream_subject_alt_names";
    /// A name: the cluster of a connection.
    pub const TCP_CLUSTER: &str = "envoy.tcp_proxy.cluster";
    /// A flag: no tunnel for this connection.
    pub const DISABLE_TUNNELING: &str = "envoy.tcp_proxy.disable_tunneling";
    /// Fields: what the PROXY header tells (`tlv_location`).
    pub const PROXY_TLVS: &str = "envoy.network.proxy_protocol.tlv";
    /// A number: how many milliseconds a connection may be quiet.
    pub const TCP_IDLE_TIMEOUT: &str = "envoy.tcp_proxy.per_connection_idle_timeout_ms";
}

/// How far an object goes: to the upstream connection, and from there to the internal listener at its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Sharing {
    /// It stays.
    #[default]
    None,
    /// To the next hop, and no further.
    Once,
    /// To every hop that comes.
    Transitive,
}

/// A filter-state object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FilterObject {
    /// Text, which matchers and formatters can read.
    Text(ByteString),
    /// Text of a kind of its own, which is only written as it is: a name or a list of names.
    Name(ByteString),
    /// Protocols, best first, which have no written form.
    Protocols(AlpnNames),
    /// An address with its port.
    Address(SocketAddr),
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(u64),
    /// Text by name.
    Fields(Arc<BTreeMap<String, String>>),
}

impl FilterObject {
    /// The object as text, if it has such a form.
    pub fn text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(text) | Self::Name(text) => Some(Cow::Borrowed(text)),
            Self::Address(address) => Some(Cow::Owned(address.to_string())),
            Self::Flag(flag) => Some(Cow::Borrowed(if *flag { "true" } else { "false" })),
            Self::Number(number) => Some(Cow::Owned(number.to_string())),
            Self::Fields(fields) => serde_json::to_string(&**fields).ok().map(Cow::Owned),
            Self::Protocols(_) => None,
        }
    }

    /// The field called `name` of an object that has fields, else the whole as text; without a name the whole.
    pub fn part(&self, name: &str) -> Option<Cow<'_, str>> {
        match self {
            Self::Fields(_) if !name.is_empty() => self.field(name).map(Cow::Borrowed),
            _ => self.text(),
        }
    }

    /// One of its fields, if it has any.
    pub fn field(&self, name: &str) -> Option<&str> {
        match self {
            Self::Fields(fields) => fields.get(name).map(String::as_str),
            _ => None,
        }
    }
}

/// An object under its key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    key: ByteString,
    object: FilterObject,
    sharing: Sharing,
}

/// Objects by key: those of one stream, with those of its connection behind them, or those of a connection.
#[derive(Debug, Clone, Default)]
pub struct FilterState {
    // A handful at most, so that a list is the fastest map.
    entries: Vec<Entry>,
    connection: Option<Rc<Self>>,
}

/// What one hop, which may be on another worker, shares with the next. Cheap to clone, and equal if every object is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SharedObjects(Arc<[Entry]>);

impl FilterState {
    /// The state of a stream on a connection with this one.
    pub fn on(connection: Option<Rc<Self>>) -> Self {
        Self {
            entries: Vec::new(),
            connection,
        }
    }

    /// The state of a connection that was handed these objects.
    pub fn received(shared: &SharedObjects) -> Self {
        let received = |entry: &Entry| Entry {
            sharing: match entry.sharing {
                Sharing::Transitive => Sharing::Transitive,
                Sharing::None | Sharing::Once => Sharing::None,
            },
            ..entry.clone()
        };
        Self {
            entries: shared.0.iter().map(received).collect(),
            connection: None,
        }
    }

    /// Of the connection alone, with what was set in this state on top.
    pub fn into_connection(self) -> Self {
        let mut all = self.connection.map(Rc::unwrap_or_clone).unwrap_or_default();
        for entry in self.entries {
            all.set_shared(entry.key, entry.object, entry.sharing);
        }
        all
    }

    /// Sets `key` for this stream, replacing what was there.
    pub fn set(&mut self, key: ByteString, object: FilterObject) {
        self.set_shared(key, object, Sharing::None);
    }

    /// The same for an object that goes further.
    pub fn set_shared(&mut self, key: ByteString, object: FilterObject, sharing: Sharing) {
        let entry = Entry {
            key,
            object,
            sharing,
        };
        match self.entries.iter_mut().find(|e| e.key == entry.key) {
            Some(slot) => *slot = entry,
            None => self.entries.push(entry),
        }
    }

    /// The object under `key`.
    pub fn get(&self, key: &str) -> Option<&FilterObject> {
        let found = self.entries.iter().find(|e| &*e.key == key);
        match found {
            Some(entry) => Some(&entry.object),
            None => self.connection.as_ref()?.get(key),
        }
    }

    /// The object under `key` as text.
    pub fn text(&self, key: &str) -> Option<Cow<'_, str>> {
        self.get(key)?.text()
    }

    /// The address under `key`.
    pub fn address(&self, key: &str) -> Option<SocketAddr> {
        match self.get(key)? {
            FilterObject::Address(address) => Some(*address),
            _ => None,
        }
    }

    /// The name under `key`.
    pub fn name(&self, key: &str) -> Option<&ByteString> {
        match self.get(key)? {
            FilterObject::Name(name) => Some(name),
            _ => None,
        }
    }

    /// The protocols under `key`.
    pub fn protocols(&self, key: &str) -> Option<&AlpnNames> {
        match self.get(key)? {
            FilterObject::Protocols(names) => Some(names),
            _ => None,
        }
    }

    /// The flag under `key`.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            FilterObject::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The number under `key`.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            FilterObject::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// What goes on to the next hop; `None`, without an allocation, if nothing does.
    pub fn shared(&self) -> Option<SharedObjects> {
        let of_connection = self.connection.iter().flat_map(|c| &c.entries);
        // What the stream has hides what its connection has.
        let hidden = |entry: &&Entry| !self.entries.iter().any(|own| own.key == entry.key);
        let all = self.entries.iter().chain(of_connection.filter(hidden));
        let mut shared = all.filter(|e| e.sharing != Sharing::None).peekable();
        shared.peek()?;
        Some(SharedObjects(shared.cloned().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> FilterObject {
        FilterObject::Text(value.into())
    }

    #[test]
    fn a_stream_sees_its_connections_objects_behind_its_own() {
        let mut connection = FilterState::default();
        connection.set("a".into(), text("connection"));
        connection.set("b".into(), text("connection"));
        let mut stream = FilterState::on(Some(Rc::new(connection)));
        stream.set("a".into(), text("stream"));
        assert_eq!(stream.text("a").as_deref(), Some("stream"));
        assert_eq!(stream.text("b").as_deref(), Some("connection"));
        assert_eq!(stream.text("c"), None);
    }

    #[test]
    fn objects_go_as_far_as_they_are_shared() {
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let mut first = FilterState::default();
        first.set("none".into(), text("x"));
        first.set_shared("once".into(), FilterObject::Address(address), Sharing::Once);
        first.set_shared("all".into(), text("y"), Sharing::Transitive);
        let second = FilterState::received(&first.shared().unwrap());
        assert_eq!(second.get("none"), None);
        assert_eq!(second.address("once"), Some(address));
        assert_eq!(second.text("once").as_deref(), Some("10.0.0.1:80"));
        let third = FilterState::received(&second.shared().unwrap());
        assert_eq!(third.get("once"), None);
        assert_eq!(third.text("all").as_deref(), Some("y"));
        assert!(FilterState::default().shared().is_none());
    }

    #[test]
    fn an_object_that_a_stream_keeps_hides_its_connections() {
        let mut connection = FilterState::default();
        connection.set_shared("k".into(), text("other"), Sharing::Transitive);
        let mut stream = FilterState::on(Some(Rc::new(connection)));
        assert!(stream.shared().is_some());
        stream.set("k".into(), text("own"));
        assert!(stream.shared().is_none());
    }

    #[test]
    fn connections_are_told_apart_by_every_shared_value() {
        let of = |value: &str, sharing| {
            let mut state = FilterState::default();
            state.set_shared("principal".into(), text(value), sharing);
            state.shared()
        };
        assert_eq!(of("a", Sharing::Once), of("a", Sharing::Once));
        assert_ne!(of("a", Sharing::Once), of("b", Sharing::Once));
        assert_ne!(of("a", Sharing::Once), of("a", Sharing::Transitive));
    }
}
