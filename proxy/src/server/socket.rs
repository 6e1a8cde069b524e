//! Listening sockets: addresses, options, binding. Every failure is an error for the NACK.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::socket_option::SocketState;
use filters::stream::Address;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use xds_client::error::{At, ConfigError};

use super::socket_option::SocketOptionList;

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BindAddress {
    /// A TCP address. `dual` accepts IPv4 on an IPv6 socket (`ipv4_compat`).
    Tcp {
        /// IP and port; port 0 lets the kernel choose.
        address: SocketAddr,
        /// Accept IPv4 peers as mapped addresses.
        dual: bool,
    },
    /// A Unix domain socket.
    Pipe {
        /// Path; a leading `@` names the abstract namespace.
        path: Arc<str>,
        /// Permission bits of the file; 0 leaves the umask's.
        mode: u32,
    },
}

impl BindAddress {
    /// Reads a listener's address.
    ///
    /// # Errors
    /// Anything but a TCP socket address with a literal IP, or a pipe.
    pub fn parse(address: &core::Address) -> Result<Self, ConfigError> {
        use core::address::Address as A;
        match &address.address {
            Some(A::SocketAddress(a)) => Self::parse_socket(a).at("socket_address"),
            Some(A::Pipe(p)) if p.path.is_empty() => {
                Err(ConfigError::new("value is required").at("pipe.path"))
            }
            Some(A::Pipe(p)) if p.mode > 0o777 => {
                Err(ConfigError::new("value must be at most 0777").at("pipe.mode"))
            }
            Some(A::Pipe(p)) => Ok(Self::Pipe {
                path: p.path.as_str().into(),
                mode: p.mode,
            }),
            Some(A::EnvoyInternalAddress(_)) => {
                Err(ConfigError::unsupported("envoy_internal_address"))
            }
            None => Err(ConfigError::new("value is required")),
        }
    }

    fn parse_socket(a: &core::SocketAddress) -> Result<Self, ConfigError> {
        use core::socket_address::PortSpecifier;
        if a.protocol != core::socket_address::Protocol::Tcp as i32 {
            return Err(ConfigError::unsupported("protocol"));
        }
        if !a.network_namespace_filepath.is_empty() {
            return Err(ConfigError::unsupported("network_namespace_filepath"));
        }
        let ip = a.address.parse().map_err(|_| {
            ConfigError::new(format!("malformed IP address: {}", a.address)).at("address")
        })?;
        let port = match &a.port_specifier {
            Some(PortSpecifier::PortValue(port)) => {
                u16::try_from(*port).map_err(|_| ConfigError::new("not a port").at("port_value"))?
            }
            Some(PortSpecifier::NamedPort(_)) => {
                return Err(ConfigError::unsupported("named_port"));
            }
            None => 0,
        };
        Ok(Self::Tcp {
            address: SocketAddr::new(ip, port),
            dual: a.ipv4_compat,
        })
    }

    /// The address as filters and logs see it.
    pub fn to_address(&self) -> Address {
        match self {
            Self::Tcp { address, .. } => Address::Ip(*address),
            Self::Pipe { path, .. } => Address::Pipe(path.clone()),
        }
    }
}

impl std::fmt::Display for BindAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_address().fmt(f)
    }
}

/// Options of a listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOptions {
    /// One socket per worker (`SO_REUSEPORT`) instead of one shared socket.
    pub reuse_port: bool,
    /// Length of the accept queue.
    pub backlog: i32,
    /// `IP_FREEBIND`
    pub freebind: bool,
    /// `IP_TRANSPARENT`
    pub transparent: bool,
    /// `socket_options` and `tcp_keepalive`.
    pub(super) more: SocketOptionList,
}

/// Binds `address` for `workers` workers: that many sockets with `SO_REUSEPORT`, else one shared one. Also
/// gives the address really bound, which differs when the port was 0.
///
/// # Errors
/// `cannot bind '<address>': <reason>`, in Envoy's words.
pub fn bind(
    address: &BindAddress,
    options: &SocketOptions,
    workers: usize,
) -> Result<(Vec<Socket>, BindAddress), ConfigError> {
    bind_inner(address, options, workers.max(1)).map_err(|e| {
        // The operating system's text without Rust's "(os error N)", as Envoy prints it.
        let text = e.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        ConfigError::new(format!("cannot bind '{address}': {text}"))
    })
}

fn bind_inner(
    address: &BindAddress,
    options: &SocketOptions,
    workers: usize,
) -> io::Result<(Vec<Socket>, BindAddress)> {
    match address {
        BindAddress::Tcp { address, dual } => {
            let first = bind_tcp(*address, *dual, options)?;
            let bound = first.local_addr()?.as_socket().unwrap_or(*address);
            let mut sockets = vec![first];
            while sockets.len() < workers {
                let next = match sockets.first() {
                    Some(first) if !options.reuse_port => first.try_clone()?,
                    _ => bind_tcp(bound, *dual, options)?,
                };
                sockets.push(next);
            }
            let bound = BindAddress::Tcp {
                address: bound,
                dual: *dual,
            };
            Ok((sockets, bound))
        }
        BindAddress::Pipe { path, mode } => {
            let first = bind_pipe(path, *mode, options.backlog)?;
            let mut sockets = vec![first];
            while sockets.len() < workers {
                if let Some(first) = sockets.first() {
                    let next = first.try_clone()?;
                    sockets.push(next);
                }
            }
            Ok((sockets, address.clone()))
        }
    }
}

fn bind_tcp(address: SocketAddr, dual: bool, options: &SocketOptions) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(!dual)?;
    }
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if options.freebind {
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
    }
    if options.transparent {
        socket.set_ip_transparent_v4(true)?;
    }
    socket.set_nonblocking(true)?;
    options.more.set(&socket, SocketState::StatePrebind)?;
    socket.bind(&address.into())?;
    options.more.set(&socket, SocketState::StateBound)?;
    socket.listen(options.backlog)?;
    options.more.set(&socket, SocketState::StateListening)?;
    Ok(socket)
}

fn bind_pipe(path: &str, mode: u32, backlog: i32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let abstract_name = path.strip_prefix('@');
    match abstract_name {
        // An abstract name has a NUL where the path begins.
        Some(name) => socket.bind(&SockAddr::unix(format!("\0{name}"))?)?,
        None => {
            remove_stale(Path::new(path))?;
            socket.bind(&SockAddr::unix(path)?)?;
            if mode != 0 {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            }
        }
    }
    socket.listen(backlog)?;
    Ok(socket)
}

/// Removes a socket file that nobody listens on any more. One in use, or a file of another kind, stays, and
/// the bind reports it.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}
