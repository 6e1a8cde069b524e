//! Internal listeners on real workers.

use tokio::sync::oneshot;

use super::*;
use crate::internal::Handover;
use crate::internal::registry;

fn internal(name: &str, chains: &[&str]) -> Listener {
    use pb::listener::{InternalListenerConfig, ListenerSpecifier};
    Listener {
        address: None,
        listener_specifier: Some(ListenerSpecifier::InternalListener(
            InternalListenerConfig::default(),
        )),
        ..listener(name, chains)
    }
}

/// Of a process that takes no connection from outside.
fn manager() -> ListenerManager {
    manager_for(0)
}

fn manager_for(connections: u64) -> ListenerManager {
    let mut context = ListenerContext::new(connections, &Stats::new());
    context.internal_buffer = Some(1024);
    let mut manager = ListenerManager::new(
        1,
        Arc::new(context),
        Arc::new(DrainManager::new(LONG, DrainStrategy::Immediate)),
        Arc::new(Compiler::default()),
        Arc::new(|_| None),
    );
    manager.start_workers().unwrap();
    manager
}

/// What is said on a connection to `name` until the test says to go on; nothing if nobody listens. `text` is what
/// the listener is expected to say after `go`.
async fn said(
    manager: &ListenerManager,
    name: &'static str,
    first: &'static str,
    go: Option<oneshot::Receiver<()>>,
) -> oneshot::Receiver<bool> {
    let (tell, told) = oneshot::channel();
    let (ready, connected) = oneshot::channel::<()>();
    manager.workers()[0].run(move || {
        tokio::task::spawn_local(async move {
            let Some(mut io) = registry::connect(name, "", Handover::default()) else {
                drop(ready);
                let _ = tell.send(false);
                return;
            };
            expect(&mut io, first).await;
            let _ = ready.send(());
            if let Some(go) = go {
                let _ = go.await;
                expect(&mut io, "drained").await;
            }
            let _ = tell.send(true);
        });
    });
    let _ = connected.await;
    told
}

#[tokio::test]
async fn it_is_found_by_name_updated_in_place_and_drained_when_it_goes() {
    let mut manager = manager();
    manager.apply(&internal("in", &["one"]), "1").unwrap();
    let (go, went) = oneshot::channel();
    let open = said(&manager, "in", "one:", Some(went)).await;
    let (_, _, stats) = manager.listeners().next().unwrap();
    assert_eq!(stats.downstream_cx_active.value(), 1);
    assert_eq!(
        stats.downstream_global_cx_overflow.value(),
        0,
        "counts nowhere else"
    );
    manager.apply(&internal("in", &["two"]), "2").unwrap();
    go.send(()).unwrap();
    assert!(open.await.unwrap(), "its chain is gone, so it drains");
    assert!(said(&manager, "in", "two:", None).await.await.unwrap());
    assert!(!said(&manager, "out", "", None).await.await.unwrap());
    manager.remove("in");
    manager.flush().await;
    assert!(!said(&manager, "in", "", None).await.await.unwrap());
}

#[test]
fn it_has_no_socket_and_needs_the_bootstrap_extension() {
    let manager = manager();
    let path = |change: &dyn Fn(&mut Listener)| {
        let mut config = internal("in", &["one"]);
        change(&mut config);
        manager.validate(&config).unwrap_err().path().to_owned()
    };
    assert_eq!(path(&|l| l.address = Some(tcp(0))), "address");
    assert_eq!(
        path(&|l| l.tcp_backlog_size = Some(UInt32Value { value: 1 })),
        "tcp_backlog_size"
    );
    assert_eq!(path(&|l| l.filter_chains.clear()), "");
    let without = super::manager(LONG, 0, 0);
    let error = without.validate(&internal("in", &["one"])).unwrap_err();
    assert_eq!(error.path(), "internal_listener");
}

#[tokio::test]
async fn it_outlasts_the_connections_that_may_go_on_to_it() {
    let mut manager = manager_for(u64::MAX);
    manager.apply(&internal("in", &["one"]), "1").unwrap();
    manager.apply(&listener("out", &["two"]), "1").unwrap();
    manager.flush().await;
    let mut client = connect(&manager, "out").await;
    expect(&mut client, "two:").await;
    manager.stop_all(false);
    manager.flush().await;
    assert!(said(&manager, "in", "one:", None).await.await.unwrap());
    let plan = DrainPlan::new(LONG, DrainStrategy::Gradual);
    let drained = manager.drain_all(plan, false, DrainEnd::Idle);
    manager.flush().await;
    assert!(said(&manager, "in", "one:", None).await.await.unwrap());
    drop(client);
    let waited = tokio::time::timeout(Duration::from_secs(20), drained.wait());
    waited.await.unwrap();
    assert!(!said(&manager, "in", "", None).await.await.unwrap());
}
