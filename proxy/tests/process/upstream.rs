//! A server that answers every request with its own name.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::client::read_head;

/// Starts one; it lives until the end of the test's process. Each answer takes `delay`.
pub fn start(name: &'static str, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for io in listener.incoming().flatten() {
            std::thread::spawn(move || serve(io, name, delay));
        }
    });
    address
}

fn serve(mut io: TcpStream, name: &str, delay: Duration) {
    io.set_nodelay(true).unwrap();
    let mut buffer = Vec::new();
    while read_head(&mut io, &mut buffer).is_ok() {
        std::thread::sleep(delay);
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}",
            name.len()
        );
        if io.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
