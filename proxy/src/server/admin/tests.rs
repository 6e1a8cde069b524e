use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[derive(Default)]
struct Fake(Mutex<Vec<String>>);

impl AdminBackend for Fake {
    fn state(&self) -> ServerState {
        ServerState::Draining
    }
    fn update_stats(&self) {}
    fn server_info(&self) -> String {
        "{}".into()
    }
    fn config_dump(&self, request: &DumpRequest) -> Result<String, AdminError> {
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
    fn listeners(&self) -> Vec<(String, Vec<String>)> {
        vec![("l1".into(), vec!["127.0.0.1:19080".into()])]
    }
    fn drain_listeners(&self, request: DrainRequest) {
        self.0.lock().unwrap().push(format!("{request:?}"));
    }
    fn health_check(&self, _: bool) {}
    fn quit(&self) {}
    fn loggers(&self) -> Vec<(String, String)> {
        vec![("http".into(), "info".into())]
    }
    fn set_log_level(&self, change: &LogChange) -> Result<(), String> {
        self.0.lock().unwrap().push(format!("{change:?}"));
        Ok(())
    }
    fn memory(&self) -> String {
        "{}".into()
    }
    fn init_dump(&self) -> String {
        "{}".into()
    }
    fn certs(&self) -> String {
        "{}".into()
    }
    fn runtime(&self) -> String {
        "{}".into()
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
            "\r\n\r\nserver.state: 0\n",
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
            "\r\n\r\nl1::127.0.0.1:19080\n",
        ),
        ("POST /drain_listeners?graceful", "HTTP/1.1 200", "OK\n"),
    ];
    for (request, status, body) in cases {
        let answer = ask(tokio::net::TcpStream::connect(addr).await.unwrap(), request).await;
        assert!(
            answer.starts_with(status) && answer.contains(body),
            "{request}: {answer}"
        );
    }
    let answer = ask(
        tokio::net::UnixStream::connect(&path).await.unwrap(),
        "GET /ready",
    )
    .await;
    assert!(answer.ends_with("DRAINING\n"), "{answer}");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(backend.0.lock().unwrap().len(), 2);
}

#[test]
fn numbers_print_as_c_does() {
    let stats = Stats::new();
    let h = stats.scope("").histogram("h");
    h.record(2_500_000);
    let page = stats::text(&stats, &stats::Selection::default());
    assert!(page.contains("P50(nan,2.55e+06)"), "{page}");
}
