//! Values for filter state, made by format strings (`envoy.extensions.filters.common.set_filter_state.v3`): what the
//! HTTP and the network filter `set_filter_state` share.

use std::net::SocketAddr;

use bytestring::ByteString;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::{
    FilterStateValue,
    filter_state_value::{Key, SharedWithUpstream, Value},
};
use xds_client::error::{At, ConfigError};

use crate::filter_state::keys;
use crate::formatter::{FormatContext, TextFormat};
use crate::head::RequestHead;
use crate::stream::{FilterObject, Sharing, StreamInfo};

/// What an object is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Factory {
    Text,
    Name,
    Protocols,
    Flag,
    Number,
    Address,
}

impl Factory {
    /// The factory of this name: an object's own key, or a general one. `istio.hashable_string` is what istio's build
    /// of Envoy adds.
    fn named(name: &str) -> Option<Self> {
        match name {
            "envoy.string" | "envoy.hashable_string" | "istio.hashable_string" => Some(Self::Text),
            keys::UPSTREAM_SERVER_NAME | keys::SUBJECT_ALT_NAMES | keys::TCP_CLUSTER => {
                Some(Self::Name)
            }
            keys::APPLICATION_PROTOCOLS => Some(Self::Protocols),
            keys::DISABLE_TUNNELING => Some(Self::Flag),
            keys::TCP_IDLE_TIMEOUT => Some(Self::Number),
            "envoy.filters.listener.original_dst.local_ip"
            | "envoy.filters.listener.original_dst.remote_ip"
            | "envoy.network.transport_socket.original_dst_address" => Some(Self::Address),
            _ => None,
        }
    }

    /// The object that `bytes` say; none if they do not say one of this kind, as a name where an address is meant.
    fn make(self, bytes: Vec<u8>) -> Option<FilterObject> {
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            // Not left out: a rule that forbids something must still see that there is a value.
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        };
        match self {
            Self::Text => Some(FilterObject::Text(text.into())),
            Self::Name => Some(FilterObject::Name(text.into())),
            Self::Protocols => {
                let names = text
                    .split(',')
                    .filter(|name| (1..=255).contains(&name.len()));
                Some(FilterObject::Protocols(names.map(Into::into).collect()))
            }
            // Anything else is no, as in Envoy.
            Self::Flag => Some(FilterObject::Flag(text == "true")),
            Self::Number => text.parse().ok().map(FilterObject::Number),
            Self::Address => text.parse::<SocketAddr>().ok().map(FilterObject::Address),
        }
    }
}

/// One object, and how it is made.
#[derive(Debug)]
pub struct StateValue {
    /// Its key.
    pub key: ByteString,
    /// How far it goes.
    pub sharing: Sharing,
    factory: Factory,
    format: TextFormat,
    skip_if_empty: bool,
}

impl StateValue {
    /// Makes the objects and leaves them in the filter state, one after the other: a format may tell one that was set
    /// before.
    pub fn set_all(values: &[Self], info: &mut StreamInfo, request: Option<&RequestHead>) {
        for value in values {
            let object = value.make(&FormatContext {
                info,
                request,
                response: None,
                trailers: None,
                local_reply: None,
            });
            if let Some(object) = object {
                let state = &mut info.filter_state;
                state.set_shared(value.key.clone(), object, value.sharing);
            }
        }
    }

    /// Compiles a list of values.
    ///
    /// # Errors
    /// A factory that is not known, or what is wrong with a format, by field.
    pub fn compile_all(protos: &[FilterStateValue]) -> Result<Vec<Self>, ConfigError> {
        let one = |(i, proto)| Self::compile(proto).at(format!("[{i}]"));
        protos.iter().enumerate().map(one).collect()
    }

    fn compile(proto: &FilterStateValue) -> Result<Self, ConfigError> {
        let Some(Key::ObjectKey(key)) = &proto.key else {
            return Err(ConfigError::new("value is required").at("object_key"));
        };
        if key.is_empty() {
            return Err(ConfigError::new("must not be empty").at("object_key"));
        }
        let (name, field) = match proto.factory_key.as_str() {
            "" => (key.as_str(), "object_key"),
            name => (name, "factory_key"),
        };
        let factory = Factory::named(name).ok_or_else(|| {
            ConfigError::new(format!("'{name}' does not have an object factory")).at(field)
        })?;
        let Some(Value::FormatString(format)) = &proto.value else {
            return Err(ConfigError::new("value is required").at("format_string"));
        };
        Ok(Self {
            key: key.as_str().into(),
            sharing: match proto.shared_with_upstream() {
                SharedWithUpstream::None => Sharing::None,
                SharedWithUpstream::Once => Sharing::Once,
                SharedWithUpstream::Transitive => Sharing::Transitive,
            },
            factory,
            format: TextFormat::compile(format).at("format_string")?,
            skip_if_empty: proto.skip_if_empty,
        })
    }

    /// The object for these facts, if there is to be one.
    pub fn make(&self, context: &FormatContext<'_>) -> Option<FilterObject> {
        let bytes = self.format.bytes(context);
        if bytes.is_empty() && self.skip_if_empty {
            return None;
        }
        self.factory.make(bytes)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use envoy_types::pb::envoy::config::core::v3::{
        DataSource, SubstitutionFormatString, data_source, substitution_format_string,
    };

    use super::*;
    use crate::chain::tests::info;

    /// A value of this key, factory and format.
    pub(crate) fn value(key: &str, factory: &str, format: &str) -> FilterStateValue {
        let source = DataSource {
            specifier: Some(data_source::Specifier::InlineString(format.into())),
            ..Default::default()
        };
        FilterStateValue {
            key: Some(Key::ObjectKey(key.into())),
            factory_key: factory.into(),
            value: Some(Value::FormatString(SubstitutionFormatString {
                format: Some(substitution_format_string::Format::TextFormatSource(source)),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn made(proto: FilterStateValue) -> Option<FilterObject> {
        let compiled = StateValue::compile_all(&[proto]).unwrap();
        let info = info();
        let info = info.borrow();
        compiled[0].make(&FormatContext::without_message(&info))
    }

    const LOCAL: &str = "envoy.filters.listener.original_dst.local_ip";

    #[test]
    fn objects_are_what_their_factory_makes_of_the_text() {
        let text = |t: &str| Some(FilterObject::Text(t.into()));
        assert_eq!(made(value("k", "envoy.string", "a%%b")), text("a%b"));
        assert_eq!(made(value("k", "istio.hashable_string", "v")), text("v"));
        let address = |t: &str| Some(FilterObject::Address(t.parse().unwrap()));
        assert_eq!(
            made(value(LOCAL, "", "10.0.0.1:80")),
            address("10.0.0.1:80")
        );
        assert_eq!(made(value(LOCAL, "", "[::1]:80")), address("[::1]:80"));
        assert_eq!(made(value("k", LOCAL, "1.2.3.4:5")), address("1.2.3.4:5"));
        let name = made(value("k", keys::UPSTREAM_SERVER_NAME, "a,b"));
        assert_eq!(name, Some(FilterObject::Name("a,b".into())));
        let long = "x".repeat(256);
        let protocols = format!("istio,,{long},h2");
        let protocols = made(value(keys::APPLICATION_PROTOCOLS, "", &protocols));
        let usable = ["istio", "h2"].map(Into::into).into();
        assert_eq!(protocols, Some(FilterObject::Protocols(usable)));
        for (said, flag) in [("true", true), ("false", false), ("TRUE", false)] {
            let made = made(value(keys::DISABLE_TUNNELING, "", said));
            assert_eq!(made, Some(FilterObject::Flag(flag)), "{said}");
        }
        let number = |said| made(value(keys::TCP_IDLE_TIMEOUT, "", said));
        assert_eq!(number("300"), Some(FilterObject::Number(300)));
        assert_eq!((number("soon"), number("-1")), (None, None));
        for bad in ["a.test:80", "10.0.0.1", "-", "10.0.0.1:99999", "::1"] {
            assert_eq!(made(value(LOCAL, "", bad)), None, "{bad}");
        }
    }

    #[test]
    fn a_missing_value_is_a_dash_or_nothing() {
        let missing = || value("k", "envoy.string", "%REQ(x)%");
        let text = |t: &str| Some(FilterObject::Text(t.into()));
        assert_eq!(made(missing()), text("-"));
        let mut empty = missing();
        if let Some(Value::FormatString(format)) = &mut empty.value {
            format.omit_empty_values = true;
        }
        assert_eq!(made(empty.clone()), text(""));
        empty.skip_if_empty = true;
        assert_eq!(made(empty), None);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let path = |proto| {
            let error = StateValue::compile_all(&[proto]).unwrap_err();
            error.path().to_owned()
        };
        assert_eq!(path(value("k", "", "x")), "[0].object_key");
        assert_eq!(path(value("k", "envoy.nothing", "x")), "[0].factory_key");
        assert_eq!(
            path(value("k", "envoy.string", "%NO%")),
            "[0].format_string.text_format_source.inline_string"
        );
        let mut formatless = value("k", "envoy.string", "x");
        formatless.value = None;
        assert_eq!(path(formatless), "[0].format_string");
    }
}
