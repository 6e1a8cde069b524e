//! Matchers that filters, routes, RBAC and access-log filters share: strings, headers, query parameters,
//! metadata values, addresses, and the generic matcher tree over all of them. Each is compiled once from its protobuf message and matches without
//! allocating unless a rule joins several header lines or decodes a query. Nothing here knows routes.

pub mod cidr;
pub mod cookie;
pub mod header;
pub mod metadata;
pub mod query;
pub mod regex;
pub mod san;
pub mod string;
pub mod tree;
pub mod uri_template;

pub use cidr::{CidrRange, CidrSet};
pub use cookie::CookieMatcher;
pub use header::{HeaderMatcher, HeaderRef};
pub use metadata::{FilterStateMatcher, MetadataMatcher, ValueMatcher};
pub use query::QueryMatcher;
pub use regex::{FullRegex, Substitution};
pub use san::SanMatcher;
pub use string::StringMatcher;
pub use tree::{MatchInput, MatcherTree};
pub use uri_template::UriTemplate;
