//! `tunneling_config`: the request that a connection goes on in.

use bytestring::ByteString;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::TunnelingConfig;
use filters::formatter::{FormatContext, Formatter};
use filters::head::RequestHead;
use filters::header_mutation::HeaderMutations;
use filters::stream::StreamInfo;
use http::Method;
use xds_client::error::{At, ConfigError};

/// How connections are tunneled, compiled.
pub(super) struct Tunneling {
    hostname: Formatter,
    /// POST to this path in place of CONNECT.
    post: Option<ByteString>,
    headers: HeaderMutations,
}

impl Tunneling {
    /// Compiles the message.
    ///
    /// # Errors
    /// What is wrong or not supported, by field.
    pub(super) fn compile(proto: &TunnelingConfig) -> Result<Self, ConfigError> {
        let refused = [
            (
                proto.propagate_response_trailers,
                "propagate_response_trailers",
            ),
            (proto.request_id_extension.is_some(), "request_id_extension"),
            (!proto.request_id_header.is_empty(), "request_id_header"),
            (
                !proto.request_id_metadata_key.is_empty(),
                "request_id_metadata_key",
            ),
        ];
        if let Some((_, field)) = refused.iter().find(|(set, _)| *set) {
            return Err(ConfigError::unsupported(field));
        }
        if proto.hostname.is_empty() {
            return Err(ConfigError::new("must not be empty").at("hostname"));
        }
        let post = match (proto.use_post, proto.post_path.as_str()) {
            (false, "") => None,
            (false, _) => return Err(ConfigError::new("needs use_post").at("post_path")),
            (true, "") => Some(ByteString::from_static("/")),
            (true, path) if path.starts_with('/') => Some(path.into()),
            (true, _) => return Err(ConfigError::new("must begin with '/'").at("post_path")),
        };
        Ok(Self {
            hostname: Formatter::compile(&proto.hostname).at("hostname")?,
            post,
            headers: HeaderMutations::additions("headers_to_add", &proto.headers_to_add)?,
        })
    }

    /// The request's head for a connection; `secure`: over TLS.
    pub(super) fn head(&self, info: &StreamInfo, secure: bool) -> RequestHead {
        let context = FormatContext::without_message(info);
        let mut authority = Vec::new();
        self.hostname.write(&context, &mut authority);
        let mut head = match &self.post {
            Some(path) => RequestHead::new(Method::POST, path.clone()),
            None => RequestHead::new(Method::CONNECT, ""),
        };
        if secure {
            head.scheme = ByteString::from_static("https");
        }
        // What is not text is no authority either, and fails as such.
        head.authority = String::from_utf8_lossy(&authority).into_owned().into();
        let values = self.headers.values(&context);
        self.headers.write(values, &mut head.headers);
        head
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};

    use super::*;
    use crate::http::testing::connection;

    fn proto(hostname: &str) -> TunnelingConfig {
        TunnelingConfig {
            hostname: hostname.into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_head_is_made_for_the_connection() {
        let info = StreamInfo::for_connection(Rc::new(connection("192.0.2.1:1", "192.0.2.2:2")));
        let tunneling = Tunneling::compile(&proto("%DOWNSTREAM_LOCAL_ADDRESS%")).unwrap();
        let head = tunneling.head(&info, true);
        assert_eq!(head.method, Method::CONNECT);
        assert_eq!((&*head.authority, &*head.path), ("192.0.2.2:2", ""));
        let mut with = proto("a.test:443");
        with.use_post = true;
        with.headers_to_add = vec![HeaderValueOption {
            header: Some(HeaderValue {
                key: "x-from".into(),
                value: "%DOWNSTREAM_REMOTE_ADDRESS%".into(),
                ..Default::default()
            }),
            ..Default::default()
        }];
        let head = Tunneling::compile(&with).unwrap().head(&info, false);
        assert_eq!((head.method, &*head.path), (Method::POST, "/"));
        assert_eq!(head.headers["x-from"], "192.0.2.1:1");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let path = |change: &dyn Fn(&mut TunnelingConfig)| {
            let mut proto = proto("a.test:443");
            change(&mut proto);
            let error = Tunneling::compile(&proto).err().unwrap();
            error.path().to_owned()
        };
        assert_eq!(path(&|t| t.hostname.clear()), "hostname");
        assert_eq!(path(&|t| t.hostname = "%NO%".into()), "hostname");
        assert_eq!(path(&|t| t.post_path = "/a".into()), "post_path");
        assert_eq!(
            path(&|t| {
                t.use_post = true;
                t.post_path = "a".into();
            }),
            "post_path"
        );
        assert_eq!(
            path(&|t| t.propagate_response_trailers = true),
            "propagate_response_trailers"
        );
        assert_eq!(
            path(&|t| t.headers_to_add = vec![HeaderValueOption::default()]),
            "headers_to_add[0]"
        );
    }
}
