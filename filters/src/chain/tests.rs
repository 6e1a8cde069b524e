use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use http::{Method, StatusCode};

use super::*;
use crate::body::{BodyError, ResetReason};
use crate::stream::{Address, ConnectionInfo, Protocol, StreamInfo};

pub(crate) fn info() -> SharedInfo {
    let addr = Address::Ip("127.0.0.1:1".parse().unwrap());
    let connection = ConnectionInfo {
        id: 1,
        remote: addr.clone(),
        direct_remote: addr.clone(),
        direct_local: addr.clone(),
        local: addr,
        server_name: None,
        alpn: None,
        ja4: None,
        secure: false,
        tls: None,
        listener: ByteString::new(),
        filter_chain: ByteString::new(),
        listener_metadata: Default::default(),
        filter_chain_metadata: Default::default(),
        proxy_tlvs: None,
        filter_state: None,
        local_restored: false,
        notes: None,
    };
    let stream = StreamInfo::new(Rc::new(connection), Protocol::Http11);
    Rc::new(RefCell::new(stream))
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Act {
    Pass,
    Wait,
    Reply,
    Reset,
    Never,
}

/// Does what it is told in each direction and counts what it saw.
struct Probe {
    request: Act,
    response: Act,
    seen: [AtomicUsize; 3],
}

impl Probe {
    fn new(request: Act, response: Act) -> Arc<Self> {
        Arc::new(Self {
            request,
            response,
            seen: Default::default(),
        })
    }

    fn counts(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.seen[i].load(Ordering::Relaxed))
    }
}

fn step(act: Act) -> Step<'static> {
    let reply = || LocalReply::new(StatusCode::IM_A_TEAPOT, "tea", "probe");
    match act {
        Act::Pass => Step::CONTINUE,
        Act::Wait => Step::Wait(Box::pin(async {
            tokio::task::yield_now().await;
            Flow::Continue
        })),
        Act::Reply => Step::Ready(Flow::Reply(Box::new(reply()))),
        Act::Reset => Step::Ready(Flow::Reset(BodyError::new(ResetReason::LocalReset))),
        Act::Never => Step::Wait(Box::pin(std::future::pending())),
    }
}

impl HttpFilter for Probe {
    fn on_request<'a>(
        &'a self,
        _: &'a mut RequestHead,
        _: &'a mut Body,
        _: &'a mut Slot,
        _: &'a SharedInfo,
    ) -> Step<'a> {
        self.seen[0].fetch_add(1, Ordering::Relaxed);
        step(self.request)
    }
    fn on_response<'a>(
        &'a self,
        _: &'a mut ResponseHead,
        _: &'a mut Body,
        _: &'a mut Slot,
        _: &'a SharedInfo,
    ) -> Step<'a> {
        self.seen[1].fetch_add(1, Ordering::Relaxed);
        step(self.response)
    }
    fn on_complete(&self, _: &mut Slot, _: &SharedInfo) {
        self.seen[2].fetch_add(1, Ordering::Relaxed);
    }
}

fn chain(probes: &[Arc<Probe>]) -> FilterChain {
    let entry = |(i, p): (usize, &Arc<Probe>)| ChainEntry {
        id: FilterId(i as u32),
        name: ByteString::from(format!("f{i}")),
        filter: p.clone(),
        disabled_by_default: false,
    };
    FilterChain::new(probes.iter().enumerate().map(entry).collect())
}

#[tokio::test]
async fn every_act_at_every_point() {
    for at in 0..3 {
        for act in [Act::Pass, Act::Wait, Act::Reply, Act::Reset] {
            let probes: Vec<_> = (0..3)
                .map(|i| Probe::new(if i == at { act } else { Act::Pass }, Act::Pass))
                .collect();
            let facts = info();
            let mut run = StreamFilters::new(chain(&probes), &facts);
            let mut head = RequestHead::new(Method::GET, "/");
            let mut body = Body::Empty;
            let flow = run.run_request(&mut head, &mut body, |_, _| {}).await;
            let mut response = ResponseHead::new(StatusCode::OK);
            match flow {
                Flow::Continue => assert!(act == Act::Pass || act == Act::Wait),
                Flow::Reply(reply) => {
                    assert_eq!(act, Act::Reply);
                    (response, body) = local_response(*reply, run.reply_shape(), &facts);
                    assert_eq!(facts.borrow().details.as_deref(), Some("probe"));
                }
                Flow::Reset(_) => {
                    assert_eq!(act, Act::Reset);
                    drop(run);
                    for (i, probe) in probes.iter().enumerate() {
                        let n = usize::from(i <= at);
                        assert_eq!(probe.counts(), [n, 0, n]);
                    }
                    continue;
                }
            }
            assert!(matches!(
                run.run_response(&mut response, &mut body).await,
                Flow::Continue
            ));
            run.complete();
            drop(run);
            for (i, probe) in probes.iter().enumerate() {
                let expected = match act {
                    Act::Reply if i > at => [0, 1, 1],
                    _ => [1, 1, 1],
                };
                assert_eq!(probe.counts(), expected, "{act:?} at {at}, filter {i}");
            }
        }
    }
}

#[tokio::test]
async fn a_reply_in_the_response_path_is_sent_as_it_is() {
    let probes = [
        Probe::new(Act::Pass, Act::Pass),
        Probe::new(Act::Pass, Act::Reply),
        Probe::new(Act::Pass, Act::Wait),
    ];
    let facts = info();
    let mut run = StreamFilters::new(chain(&probes), &facts);
    let mut head = RequestHead::new(Method::GET, "/");
    let mut body = Body::Empty;
    run.run_request(&mut head, &mut body, |_, _| {}).await;
    let mut response = ResponseHead::new(StatusCode::OK);
    run.run_response(&mut response, &mut body).await;
    assert_eq!(response.status, StatusCode::IM_A_TEAPOT);
    assert_eq!(body.remaining(), Some(3));
    assert_eq!([0, 1, 2].map(|i: usize| probes[i].counts()[1]), [0, 1, 1]);
}

#[tokio::test]
async fn a_reply_to_a_request_that_no_filter_saw_is_seen_by_all() {
    let probes = [Probe::new(Act::Pass, Act::Pass)];
    let facts = info();
    let mut run = StreamFilters::new(chain(&probes), &facts);
    let mut response = ResponseHead::new(StatusCode::BAD_REQUEST);
    run.run_response(&mut response, &mut Body::Empty).await;
    drop(run);
    assert_eq!(probes[0].counts(), [0, 1, 1]);
}

#[test]
fn a_dropped_stream_completes_what_it_had_reached() {
    let probes = [
        Probe::new(Act::Pass, Act::Pass),
        Probe::new(Act::Never, Act::Pass),
        Probe::new(Act::Pass, Act::Pass),
    ];
    let facts = info();
    let mut run = StreamFilters::new(chain(&probes), &facts);
    let mut head = RequestHead::new(Method::GET, "/");
    let mut body = Body::Empty;
    let polled = run
        .run_request(&mut head, &mut body, |_, _| {})
        .now_or_never();
    assert!(polled.is_none());
    drop(run);
    assert_eq!([0, 1, 2].map(|i: usize| probes[i].counts()[2]), [1, 1, 0]);
}

#[derive(Debug)]
struct Route;
impl crate::stream::RouteView for Route {
    fn name(&self) -> &str {
        ""
    }
    fn virtual_host(&self) -> &str {
        ""
    }
    fn filter_config(&self, filter: FilterId) -> Option<&RouteFilterConfig> {
        const OFF: &RouteFilterConfig = &RouteFilterConfig::Disabled;
        (filter == FilterId(1)).then_some(OFF)
    }
    fn metadata(&self, _: &str) -> Option<&serde_json::Value> {
        None
    }
}

#[test]
fn disabled_filters_see_nothing_and_ready_filters_need_one_poll() {
    let probes = [
        Probe::new(Act::Pass, Act::Pass),
        Probe::new(Act::Reply, Act::Pass),
    ];
    let facts = info();
    facts.borrow_mut().route = Some(Arc::new(Route));
    let mut run = StreamFilters::new(chain(&probes), &facts);
    let mut head = RequestHead::new(Method::GET, "/");
    let mut body = Body::Empty;
    let flow = run
        .run_request(&mut head, &mut body, |_, _| {})
        .now_or_never();
    assert!(matches!(flow, Some(Flow::Continue)));
    drop(run);
    assert_eq!(probes[0].counts(), [1, 0, 1]);
    assert_eq!(probes[1].counts(), [0, 0, 0]);
}

struct Stale;
impl HttpFilter for Stale {
    fn on_request<'a>(
        &'a self,
        head: &'a mut RequestHead,
        _: &'a mut Body,
        _: &'a mut Slot,
        info: &'a SharedInfo,
    ) -> Step<'a> {
        head.path = ByteString::from_static("/new");
        info.borrow_mut().route_stale = true;
        Step::CONTINUE
    }
}

#[test]
fn a_stale_route_is_chosen_again() {
    let facts = info();
    let entry = ChainEntry {
        id: FilterId(0),
        name: ByteString::new(),
        filter: Arc::new(Stale),
        disabled_by_default: false,
    };
    let mut run = StreamFilters::new(FilterChain::new(vec![entry]), &facts);
    let mut head = RequestHead::new(Method::GET, "/");
    let paths = RefCell::new(Vec::new());
    run.run_request(&mut head, &mut Body::Empty, |head, _| {
        paths.borrow_mut().push(head.path.to_string());
    })
    .now_or_never();
    assert_eq!(*paths.borrow(), ["/new"]);
}
