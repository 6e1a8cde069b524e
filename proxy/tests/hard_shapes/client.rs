//! Clients that send in pieces, read slowly, stall and leave, as a plan says.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::plan::{Ending, Fault, Plan, pieces};

/// Carries a plan out against a listener.
pub async fn run(port: u16, plan: &Plan) -> Ending {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    if plan.http2 {
        over_http2(stream, plan).await
    } else {
        over_http1(stream, plan).await
    }
}

async fn pause(plan: &Plan, random: &mut fastrand::Rng) {
    if plan.pauses && random.u8(..4) == 0 {
        tokio::time::sleep(Duration::from_millis(random.u64(..4))).await;
    }
}

/// How much of the request's body is sent.
fn sent_until(plan: &Plan) -> usize {
    match plan.fault {
        Fault::ClientResetsRequest => plan.at,
        _ => plan.request,
    }
}

async fn over_http1(stream: TcpStream, plan: &Plan) -> Ending {
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let chunked = random.bool();
    let mut head = format!(
        "POST {} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n",
        plan.path()
    );
    for (name, value) in plan.headers() {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match chunked {
        true => head.push_str("transfer-encoding: chunked\r\n\r\n"),
        false => head.push_str(&format!("content-length: {}\r\n\r\n", plan.request)),
    }
    let body = plan.request_body();
    let (mut reader, mut writer) = stream.into_split();
    let writing = async {
        writer.write_all(head.as_bytes()).await?;
        for piece in pieces(&body[..sent_until(plan)], &mut random) {
            if chunked {
                let size = format!("{:x}\r\n", piece.len());
                writer.write_all(size.as_bytes()).await?;
            }
            writer.write_all(&piece).await?;
            if chunked {
                writer.write_all(b"\r\n").await?;
            }
            pause(plan, &mut random).await;
        }
        if plan.fault != Fault::ClientResetsRequest && chunked {
            writer.write_all(b"0\r\n\r\n").await?;
        }
        std::io::Result::Ok(())
    };
    let reading = async {
        let mut random = fastrand::Rng::with_seed(!plan.seed);
        let mut all = Vec::new();
        let mut part = vec![0; 20_000];
        loop {
            let size = random.usize(1..=part.len());
            match reader.read(&mut part[..size]).await {
                Ok(read) if read > 0 => all.extend_from_slice(&part[..read]),
                _ => return all,
            }
            if plan.fault == Fault::ClientResetsResponse && all.len() >= plan.at + 200 {
                return Vec::new();
            }
            pause(plan, &mut random).await;
        }
    };
    match plan.fault {
        Fault::ClientResetsRequest => {
            let _ = writing.await;
            Ending::Nothing
        }
        Fault::ClientStalls => {
            let _ = writing.await;
            std::future::pending().await
        }
        _ => {
            // A refused upload is no error: what was answered counts.
            let writing = async {
                let _ = writing.await;
                std::future::pending::<()>().await
            };
            let bytes = tokio::select! {
                bytes = reading => bytes,
                () = writing => Vec::new(),
            };
            parse(&bytes)
        }
    }
}

/// Everything that came on a connection, as one response.
fn parse(bytes: &[u8]) -> Ending {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(length)) = head.parse(bytes) else {
        return Ending::Nothing;
    };
    let mut headers = HeaderMap::new();
    for field in head.headers.iter() {
        let name: http::HeaderName = field.name.parse().unwrap();
        headers.append(name, field.value.try_into().unwrap());
    }
    let status = head.code.unwrap();
    let rest = &bytes[length..];
    let (body, complete) = match headers.get("content-length") {
        Some(declared) => {
            let declared: usize = declared.to_str().unwrap().parse().unwrap();
            assert!(rest.len() <= declared, "more than was declared");
            (rest.to_vec(), rest.len() == declared)
        }
        None => dechunk(rest),
    };
    Ending::Response {
        status,
        headers,
        body,
        complete,
    }
}

fn dechunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let (start, size) = match httparse::parse_chunk_size(rest).expect("a chunk's size") {
            httparse::Status::Complete((start, size)) => (start, size as usize),
            httparse::Status::Partial => return (body, false),
        };
        if size == 0 {
            return (body, &rest[start..] == b"\r\n");
        }
        let data = &rest[start..];
        if data.len() < size + 2 {
            body.extend_from_slice(&data[..data.len().min(size)]);
            return (body, false);
        }
        body.extend_from_slice(&data[..size]);
        assert_eq!(&data[size..size + 2], b"\r\n");
        rest = &data[size + 2..];
    }
}

async fn over_http2(stream: TcpStream, plan: &Plan) -> Ending {
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(100_000)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    let driving = tokio::spawn(connection);
    let ending = exchange(requests, plan).await;
    if let Ok(Some(ending)) = ending {
        return ending;
    }
    driving.abort();
    Ending::Nothing
}

async fn exchange(
    requests: h2::client::SendRequest<Bytes>,
    plan: &Plan,
) -> Result<Option<Ending>, h2::Error> {
    let mut request = http::Request::builder()
        .method("POST")
        .uri(format!("http://a.test{}", plan.path()));
    for (name, value) in plan.headers() {
        request = request.header(name, value);
    }
    let body = plan.request_body();
    let end = body.is_empty();
    let mut requests = requests.ready().await?;
    let (response, mut sender) = requests.send_request(request.body(()).unwrap(), end)?;
    let sending = async {
        let mut random = fastrand::Rng::with_seed(plan.seed);
        let mut sent = 0;
        for mut piece in pieces(&body[..sent_until(plan)], &mut random) {
            while !piece.is_empty() {
                sender.reserve_capacity(piece.len());
                // The server may have had enough: then the response tells.
                let Some(Ok(room)) = poll_fn(|cx| sender.poll_capacity(cx)).await else {
                    return;
                };
                let part: Vec<u8> = piece.drain(..room.min(piece.len())).collect();
                sent += part.len();
                if sender.send_data(part.into(), sent == plan.request).is_err() {
                    return;
                }
            }
            pause(plan, &mut random).await;
        }
        if plan.fault == Fault::ClientResetsRequest && !end {
            sender.send_reset(h2::Reason::CANCEL);
        }
    };
    let reading = async {
        let mut random = fastrand::Rng::with_seed(!plan.seed);
        let response = response.await?;
        let (head, mut incoming) = response.into_parts();
        let mut body = Vec::new();
        let mut complete = true;
        while let Some(part) = incoming.data().await {
            let Ok(part) = part else {
                complete = false;
                break;
            };
            body.extend_from_slice(&part);
            if plan.fault == Fault::ClientStalls {
                std::future::pending::<()>().await;
            }
            if plan.fault == Fault::ClientResetsResponse && body.len() >= plan.at {
                return Ok(None);
            }
            pause(plan, &mut random).await;
            let _ = incoming.flow_control().release_capacity(part.len());
        }
        Ok(Some(Ending::Response {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            complete,
        }))
    };
    let sending = async {
        sending.await;
        std::future::pending::<()>().await
    };
    tokio::select! {
        ending = reading => ending,
        () = sending => Ok(None),
    }
}
