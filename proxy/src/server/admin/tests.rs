use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UnixStream};

#[derive(Default)]
struct Fake(Mutex<Vec<String>>);

impl AdminBackend for Fake {
    fn state(&self) -> ServerState {
        ServerState::Draining
    }
    fn update_stats(&self) {}
    fn server_info(&self) -> Value {
        json!({"server_info": []})
    }
    fn config_dump(&self, request: &DumpRequest) -> Result<Value, AdminError> {
        Err(AdminError {
            status: 404,
            message: format!(
                "{} not found in config dump",
                request.resource.clone().unwrap_or_default()
            ),
        })
    }
    fn clusters(&self) -> Vec<ClusterStatus> {
        Vec::new()
    }
    fn listeners(&self) -> Vec<ListenerStatus> {
        vec![ListenerStatus {
            name: "l1".into(),
            addresses: vec!["127.0.0.1:19080".into(), "/run/l1".into()],
        }]
    }
    fn drain_listeners(&self, request: DrainRequest) {
        self.0.lock().unwrap().push(format!("{request:?}"));
    }
    fn health_check(&self, _: bool) {}
    fn quit(&self) {
        self.0.lock().unwrap().push("quit".into());
    }
    fn loggers(&self) -> Vec<(String, String)> {
        vec![("http".into(), "info".into())]
    }
    fn set_log_level(&self, change: &LogChange) -> Result<(), String> {
        self.0.lock().unwrap().push(format!("{change:?}"));
        Ok(())
    }
    fn memory(&self) -> Value {
        json!({"memory": []})
    }
    fn init_dump(&self) -> Value {
        json!({"init_dump": []})
    }
    fn certs(&self) -> Value {
        json!({"certs": []})
    }
    fn runtime(&self) -> Value {
        json!({"runtime": []})
    }
    fn runtime_modify(&self, _: &[(String, String)]) -> Result<(), AdminError> {
        Ok(())
    }
    fn reopen_logs(&self) {}
}

async fn ask(io: impl AsyncRead + AsyncWrite, line: &str) -> String {
    let mut io = Box::pin(io);
    let head = format!("{line} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    io.write_all(head.as_bytes()).await.unwrap();
    let mut out = String::new();
    io.read_to_string(&mut out).await.unwrap();
    out
}

#[tokio::test]
async fn answers_over_tcp_and_unix() {
    let stats = Stats::new();
    let state = stats.scope("server.").gauge("state");
    state.set(0);
    let rq = stats.scope("cluster.foo.").counter("upstream_rq_200");
    rq.add(3);
    let time = stats.scope("http.ingress.").histogram("downstream_rq_time");
    for v in [0, 0, 1] {
        time.record(v);
    }
    let backend = Arc::new(Fake::default());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let path = std::env::temp_dir().join(format!("fairway-admin-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let unix = UnixListener::bind(&path).unwrap();
    tokio::spawn(serve(
        AdminListener::Tcp(tcp),
        backend.clone(),
        stats.clone(),
    ));
    tokio::spawn(serve(
        AdminListener::Unix(unix),
        backend.clone(),
        stats.clone(),
    ));
    let cases = [
        ("GET //ready", "HTTP/1.1 503", "DRAINING\n"),
        (
            "GET /stats?filter=server.state",
            "HTTP/1.1 200",
            "server.state: 0\n",
        ),
        (
            "GET /stats?filter=rq_time",
            "HTTP/1.1 200",
            "downstream_rq_time: P0(nan,0) P25(nan,0) P50(nan,0) P75(nan,1.05) P90(nan,1.05) P95(nan,1.05) \
             P99(nan,1.05) P99.5(nan,1.05) P99.9(nan,1.05) P100(nan,1.05)\n",
        ),
        (
            "GET /stats/prometheus?usedonly&filter=foo",
            "HTTP/1.1 200",
            "# TYPE envoy_cluster_upstream_rq counter\n\
             envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"foo\"} 3\n",
        ),
        (
            "GET /stats?format=json&filter=foo",
            "HTTP/1.1 200",
            "{\"stats\":[{\"name\":\"cluster.foo.upstream_rq_200\",\"value\":3}]}",
        ),
        (
            "GET /stats?type=bogus",
            "HTTP/1.1 400",
            "invalid &type= param",
        ),
        (
            "GET /logging",
            "HTTP/1.1 405",
            "Method GET not allowed, POST required.",
        ),
        (
            "POST /logging?level=debug",
            "HTTP/1.1 200",
            "active loggers:\n  http: info\n\n",
        ),
        (
            "POST /logging?level=x",
            "HTTP/1.1 400",
            "error: unknown logger level\n\n",
        ),
        (
            "GET /nope",
            "HTTP/1.1 404",
            "invalid path. admin commands are:\n",
        ),
        (
            "GET /config_dump?resource=bogus",
            "HTTP/1.1 404",
            "bogus not found in config dump",
        ),
        (
            "GET /listeners",
            "HTTP/1.1 200",
            "l1::127.0.0.1:19080\nl1::/run/l1\n",
        ),
        (
            "GET /listeners?format=json",
            "HTTP/1.1 200",
            "\n   \"additional_local_addresses\": [\n    {\n     \"pipe\": {\n",
        ),
        ("GET /certs", "HTTP/1.1 200", "{\n \"certs\": []\n}\n"),
        ("POST /runtime_modify", "HTTP/1.1 400", "usage: "),
        ("POST /runtime_modify?a=b", "HTTP/1.1 200", "OK\n"),
        ("POST /cpuprofiler?enable=y", "HTTP/1.1 500", ""),
        (
            "POST /logging?paths=a",
            "HTTP/1.1 400",
            "error: empty logger name",
        ),
        (
            "GET /stats?filter=rq_time&histogram_buckets=disjoint",
            "HTTP/1.1 200",
            "downstream_rq_time: B0.5(0,2) B1(0,1) B5(0,0) B10(0,0)",
        ),
        (
            "GET /stats?filter=rq_time&histogram_buckets=cumulative&format=json",
            "HTTP/1.1 200",
            "\"buckets\":[{\"upper_bound\":0.5,\"interval\":0,\"cumulative\":2},",
        ),
        (
            "GET /stats/prometheus?filter=rq_time&histogram_buckets=summary",
            "HTTP/1.1 200",
            "quantile=\"0.995\"} 1.05\n",
        ),
        (
            "GET /stats?histogram_buckets=x",
            "HTTP/1.1 400",
            "usage: /stats?histogram_buckets=",
        ),
        ("POST /drain_listeners?graceful", "HTTP/1.1 200", "OK\n"),
    ];
    for (request, status, body) in cases {
        let answer = ask(TcpStream::connect(addr).await.unwrap(), request).await;
        assert!(
            answer.starts_with(status) && answer.contains(body),
            "{request}: {answer}"
        );
    }
    let answer = ask(UnixStream::connect(&path).await.unwrap(), "GET /ready").await;
    assert!(answer.contains("DRAINING\n"), "{answer}");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(backend.0.lock().unwrap().len(), 2);
}

#[test]
fn numbers_print_as_c_does() {
    let stats = Stats::new();
    let h = stats.scope("").histogram("h");
    h.record(2_500_000);
    let uri = "/stats".parse().unwrap();
    let page = commands::respond(&http::Method::GET, &uri, &Fake::default(), &stats).body;
    assert!(page.contains("P50(nan,2.55e+06)"), "{page}");
}

#[tokio::test]
async fn the_process_ends_after_its_last_answer() {
    let backend = Arc::new(Fake::default());
    // So small that the answer waits for its reader.
    let (mut client, server) = tokio::io::duplex(64);
    let serving = tokio::spawn(connection(server, backend.clone(), Stats::new()));
    let asked = b"POST /quitquitquit HTTP/1.1\r\nhost: a\r\n\r\n";
    client.write_all(asked).await.unwrap();
    let mut answer = vec![0; 32];
    client.read_exact(&mut answer).await.unwrap();
    assert!(backend.0.lock().unwrap().is_empty(), "before it was sent");
    client.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("OK\n"), "{answer}");
    serving.await.unwrap();
    assert_eq!(*backend.0.lock().unwrap(), ["quit"]);
}
