//! Clients that know exactly what they lost.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;

use crate::fairway::LONG;

/// Reads up to and with the empty line; what follows stays in `buffer`.
pub fn read_head(io: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<String> {
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let head: Vec<u8> = buffer.drain(..end + 4).collect();
            return Ok(String::from_utf8_lossy(&head).into_owned());
        }
        read_some(io, buffer)?;
    }
}

fn read_some(io: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut part = [0; 4096];
    let n = io.read(&mut part)?;
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    buffer.extend_from_slice(&part[..n]);
    Ok(())
}

/// A response of HTTP/1.1.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Whether the server asked to close.
    pub close: bool,
    pub body: String,
}

/// An HTTP/1.1 connection that is kept.
pub struct Http1 {
    io: TcpStream,
    buffer: Vec<u8>,
}

impl Http1 {
    pub fn connect(to: SocketAddr) -> io::Result<Self> {
        let io = TcpStream::connect_timeout(&to, LONG)?;
        io.set_nodelay(true)?;
        io.set_read_timeout(Some(LONG))?;
        Ok(Self {
            io,
            buffer: Vec::new(),
        })
    }

    pub fn get(&mut self, path: &str) -> io::Result<Answer> {
        write!(self.io, "GET {path} HTTP/1.1\r\nhost: a.test\r\n\r\n")?;
        let head = read_head(&mut self.io, &mut self.buffer)?.to_ascii_lowercase();
        let field = |name: &str| {
            let lines = head.lines();
            lines
                .filter_map(|l| l.split_once(": "))
                .find_map(|(n, value)| (n == name).then_some(value))
        };
        let length = field("content-length").map_or(0, |l| l.parse().unwrap());
        while self.buffer.len() < length {
            read_some(&mut self.io, &mut self.buffer)?;
        }
        let body: Vec<u8> = self.buffer.drain(..length).collect();
        Ok(Answer {
            status: head[9..12].parse().unwrap(),
            close: field("connection") == Some("close"),
            body: String::from_utf8(body).unwrap(),
        })
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        let wait = Some(Duration::from_millis(10));
        self.io.set_read_timeout(wait).unwrap();
        let closed = match self.io.read(&mut [0]) {
            Ok(n) => n == 0,
            Err(e) => !matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ),
        };
        self.io.set_read_timeout(Some(LONG)).unwrap();
        closed
    }
}

/// An HTTP/2 connection. Lives inside of a tokio runtime.
pub struct Http2(h2::client::SendRequest<Bytes>);

impl Http2 {
    pub async fn connect(to: SocketAddr) -> io::Result<Self> {
        let io = tokio::net::TcpStream::connect(to).await?;
        let (send, connection) = h2::client::handshake(io).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self(send))
    }

    /// Another handle of the same connection.
    pub fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// `None` when the server takes no more streams on this connection: nothing is lost by that.
    pub async fn get(&mut self, path: &str) -> Option<Result<u16, h2::Error>> {
        let mut send = self.0.clone().ready().await.ok()?;
        let uri = format!("http://a.test{path}");
        let request = http::Request::get(uri).body(()).unwrap();
        let (response, _) = send.send_request(request, true).ok()?;
        let answer = async {
            let response = response.await?;
            let status = response.status().as_u16();
            let mut body = response.into_body();
            while let Some(data) = body.data().await {
                let n = data?.len();
                let _ = body.flow_control().release_capacity(n);
            }
            Ok::<_, h2::Error>(status)
        };
        match answer.await {
            // RFC 9113, 6.8: a stream above the GOAWAY's last id was not processed.
            Err(e) if e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR) => None,
            Err(e) if e.reason() == Some(h2::Reason::REFUSED_STREAM) => None,
            answer => Some(answer),
        }
    }
}
