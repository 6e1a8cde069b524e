//! Socket options that configurations name by their numbers, as far as they can be set without unsafe code.

use std::io;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::socket_option::{SocketState, Value};
use socket2::{Socket, TcpKeepalive};
use xds_client::error::{At, ConfigError};

/// An option of a listening socket; accepted sockets inherit most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SocketOption {
    /// `SO_KEEPALIVE`
    Keepalive(bool),
    /// `TCP_KEEPIDLE`
    KeepaliveTime(Duration),
    /// `TCP_KEEPINTVL`
    KeepaliveInterval(Duration),
    /// `TCP_KEEPCNT`
    KeepaliveProbes(u32),
    /// `TCP_NODELAY`; accepted sockets have it in any case.
    NoDelay(bool),
    /// `TCP_USER_TIMEOUT`; zero is the system's.
    UserTimeout(Duration),
    /// `SO_RCVBUF`, bytes.
    ReceiveBuffer(usize),
    /// `SO_SNDBUF`, bytes.
    SendBuffer(usize),
    /// `SO_MARK`
    Mark(u32),
    /// `IP_TOS`
    TypeOfService(u32),
}

impl SocketOption {
    /// Linux's number of an option, and its value.
    fn by_number(level: i64, name: i64, value: i64) -> Result<Self, ConfigError> {
        let range = || ConfigError::new("out of range").at("int_value");
        let number = || u32::try_from(value).map_err(|_| range());
        let bytes = || usize::try_from(value).map_err(|_| range());
        let seconds = || number().map(|n| Duration::from_secs(n.into()));
        Ok(match (level, name) {
            (1, 7) => Self::SendBuffer(bytes()?),
            (1, 8) => Self::ReceiveBuffer(bytes()?),
            (1, 9) => Self::Keepalive(value != 0),
            (1, 36) => Self::Mark(number()?),
            (6, 1) => Self::NoDelay(value != 0),
            (6, 4) => Self::KeepaliveTime(seconds()?),
            (6, 5) => Self::KeepaliveInterval(seconds()?),
            (6, 6) => Self::KeepaliveProbes(number()?),
            (6, 18) => Self::UserTimeout(Duration::from_millis(number()?.into())),
            (0, 1) => Self::TypeOfService(number()?),
            _ => {
                return Err(ConfigError::new(format!(
                    "option {name} of level {level} is not supported"
                )));
            }
        })
    }

    /// Sets it.
    ///
    /// # Errors
    /// The system's.
    fn set(self, socket: &Socket) -> io::Result<()> {
        let keepalive = TcpKeepalive::new();
        match self {
            Self::Keepalive(on) => socket.set_keepalive(on),
            Self::KeepaliveTime(time) => socket.set_tcp_keepalive(&keepalive.with_time(time)),
            Self::KeepaliveInterval(time) => {
                socket.set_tcp_keepalive(&keepalive.with_interval(time))
            }
            Self::KeepaliveProbes(n) => socket.set_tcp_keepalive(&keepalive.with_retries(n)),
            Self::NoDelay(on) => socket.set_tcp_nodelay(on),
            Self::UserTimeout(time) => {
                socket.set_tcp_user_timeout(Some(time).filter(|t| !t.is_zero()))
            }
            Self::ReceiveBuffer(bytes) => socket.set_recv_buffer_size(bytes),
            Self::SendBuffer(bytes) => socket.set_send_buffer_size(bytes),
            Self::Mark(mark) => socket.set_mark(mark),
            Self::TypeOfService(tos) => socket.set_tos_v4(tos),
        }
    }
}

/// Options, each with the state of the socket in which it is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SocketOptionList(Vec<(SocketState, SocketOption)>);

impl SocketOptionList {
    /// Compiles a listener's `socket_options` and `tcp_keepalive`.
    ///
    /// # Errors
    /// An option that is not supported, or a value that is out of its range, by path.
    pub(super) fn compile(
        options: &[core::SocketOption],
        keepalive: Option<&core::TcpKeepalive>,
    ) -> Result<Self, ConfigError> {
        let mut all = Vec::new();
        if let Some(keepalive) = keepalive {
            let seconds = |v: u32| Duration::from_secs(v.into());
            let time = keepalive.keepalive_time.as_ref();
            let interval = keepalive.keepalive_interval.as_ref();
            let probes = keepalive.keepalive_probes.as_ref();
            all.push(SocketOption::Keepalive(true));
            all.extend(time.map(|v| SocketOption::KeepaliveTime(seconds(v.value))));
            all.extend(interval.map(|v| SocketOption::KeepaliveInterval(seconds(v.value))));
            all.extend(probes.map(|v| SocketOption::KeepaliveProbes(v.value)));
        }
        let mut all: Vec<_> = all
            .into_iter()
            .map(|option| (SocketState::StatePrebind, option))
            .collect();
        for (i, option) in options.iter().enumerate() {
            let compiled = match &option.value {
                _ if option.r#type.is_some() => Err(ConfigError::unsupported("type")),
                Some(Value::IntValue(value)) => {
                    SocketOption::by_number(option.level, option.name, *value)
                }
                Some(Value::BufValue(_)) => Err(ConfigError::unsupported("buf_value")),
                None => Err(ConfigError::new("is required").at("value")),
            };
            all.push((option.state(), compiled.at(format!("socket_options[{i}]"))?));
        }
        Ok(Self(all))
    }

    /// Sets the options of one state.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn set(&self, socket: &Socket, state: SocketState) -> io::Result<()> {
        let of_state = self.0.iter().filter(|(s, _)| *s == state);
        of_state
            .map(|(_, option)| *option)
            .try_for_each(|option| option.set(socket))
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};

    use super::*;

    fn option(level: i64, name: i64, value: i64) -> core::SocketOption {
        core::SocketOption {
            level,
            name,
            value: Some(Value::IntValue(value)),
            ..Default::default()
        }
    }

    #[test]
    fn options_are_set_by_their_numbers() {
        let options = [
            option(1, 9, 1),
            option(6, 4, 77),
            option(6, 5, 7),
            option(6, 6, 3),
            option(6, 18, 5000),
        ];
        let list = SocketOptionList::compile(&options, None).unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        list.set(&socket, SocketState::StateBound).unwrap();
        assert!(!socket.keepalive().unwrap());
        list.set(&socket, SocketState::StatePrebind).unwrap();
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap().as_secs(), 77);
        assert_eq!(socket.tcp_keepalive_interval().unwrap().as_secs(), 7);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        let timeout = socket.tcp_user_timeout().unwrap();
        assert_eq!(timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn keepalive_has_its_times() {
        use envoy_types::pb::google::protobuf::UInt32Value;
        let keepalive = core::TcpKeepalive {
            keepalive_time: Some(UInt32Value { value: 60 }),
            ..Default::default()
        };
        let list = SocketOptionList::compile(&[], Some(&keepalive)).unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        list.set(&socket, SocketState::StatePrebind).unwrap();
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap().as_secs(), 60);
    }

    #[test]
    fn what_cannot_be_set_is_refused() {
        for (refused, path) in [
            (option(1, 9999, 1), "socket_options[0]"),
            (option(6, 4, -1), "socket_options[0].int_value"),
            (core::SocketOption::default(), "socket_options[0].value"),
        ] {
            let error = SocketOptionList::compile(&[refused], None).unwrap_err();
            assert_eq!(error.path(), path);
        }
    }
}
