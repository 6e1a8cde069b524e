//! Filter chains, compiled: the network filters of a chain and the transport socket under them.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::listener::v3::{FilterChain as FilterChainProto, Listener, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, http_connection_manager as hcm, http_filter,
};
use envoy_types::pb::google::protobuf::Any;
use filters::chain::{ChainEntry, FilterChain};
use filters::filter::HttpFilter as _;
use filters::registry::{Compiled, FactoryContext};
use filters::stream::ConnectionInfo;
use futures_util::future::LocalBoxFuture;
use pingora_core::protocols::Stream;
use xds_client::any;
use xds_client::error::{At, ConfigError};

use super::context::ChainContext;
use crate::http::conn_manager::ConnectionManager;
use crate::http::conn_manager::config::{Codec, HcmConfig, HcmParts};
use crate::http::conn_manager::stats::ConnectionManagerStats;
use crate::http::service::ConnectionControl;
use crate::http::{h1, h2};
use crate::router::slot::RouteSlot;
use crate::router::table::RouteTable;
use crate::server::compiled::{FilterChainCompiler, FilterChainHandler};
use crate::server::sniff::{self, Sniff};
use crate::transport::prefixed::Prefixed;
