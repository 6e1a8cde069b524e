//! Route tables and the upstream side of a request.
