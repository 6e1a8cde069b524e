//! Connections that another listener owns. The PROXY header stands in for the kernel's redirect, which takes rights;
//! the differential cases have that one.

use envoy_types::pb::google::protobuf::BoolValue;

use super::*;

fn with_address(mut listener: Listener, address: &str, port: u16, dual: bool) -> Listener {
    let mut proto = tcp(port);
    if let Some(core::address::Address::SocketAddress(socket)) = &mut proto.address {
        socket.address = address.into();
        socket.ipv4_compat = dual;
    }
    listener.address = Some(proto);
    listener.bind_to_port = Some(BoolValue { value: false });
    listener
}

/// A bound listener `out`, which hands over.
fn out() -> Listener {
    Listener {
        use_original_dst: Some(BoolValue { value: true }),
        listener_filters: vec![pb::ListenerFilter {
            name: "envoy.filters.listener.proxy_protocol".into(),
            ..Default::default()
        }],
        ..listener("out", &["stays"])
    }
}

async fn expect_owner(manager: &ListenerManager, header: &str, owner: &str) -> TcpStream {
    let mut client = connect(manager, "out").await;
    let header = format!("PROXY {header}\r\nhello");
    client.write_all(header.as_bytes()).await.unwrap();
    expect(&mut client, &format!("{owner}:hello")).await;
    client
}

#[tokio::test]
async fn the_owner_of_an_address_is_found_by_rank_and_lost_when_it_goes() {
    let mut manager = manager(Duration::ZERO, 0, u64::MAX);
    manager.apply(&out(), "1").unwrap();
    for (name, address, port, dual) in [
        ("any", "0.0.0.0", 80, false),
        ("this", "10.0.0.1", 80, false),
        ("six", "::", 81, false),
        ("both", "::", 82, true),
        ("mapped", "::ffff:10.0.0.1", 83, true),
    ] {
        let owner = with_address(listener(name, &[name]), address, port, dual);
        manager.apply(&owner, "1").unwrap();
    }
    let cases = [
        ("TCP4 192.0.2.1 10.0.0.1 1 80", "this"),
        ("TCP4 192.0.2.1 10.0.0.2 1 80", "any"),
        ("TCP6 2001:db8::1 2001:db8::2 1 81", "six"),
        ("TCP4 192.0.2.1 10.0.0.1 1 81", "stays"),
        ("TCP4 192.0.2.1 10.0.0.1 1 82", "both"),
        ("TCP6 2001:db8::1 2001:db8::2 1 82", "both"),
        ("TCP4 192.0.2.1 10.0.0.1 1 83", "mapped"),
        ("TCP6 2001:db8::1 2001:db8::2 1 80", "stays"),
        ("UNKNOWN", "stays"),
    ];
    for (header, owner) in cases {
        expect_owner(&manager, header, owner).await;
    }
    // A new version owns the address, and the old one, on its way out, takes it from nobody.
    let moved = Listener {
        transparent: Some(BoolValue { value: true }),
        ..with_address(listener("this", &["new"]), "10.0.0.1", 80, false)
    };
    manager.apply(&moved, "2").unwrap();
    manager.flush().await;
    expect_owner(&manager, cases[0].0, "new").await;
    manager.remove("this");
    manager.flush().await;
    expect_owner(&manager, cases[0].0, "any").await;
}

#[tokio::test]
async fn a_connection_is_handed_over_once_and_counts_where_it_goes() {
    let mut manager = manager(Duration::ZERO, 0, 1);
    manager.apply(&out(), "1").unwrap();
    // Its own limit of no connections at all is not asked.
    let mut limited = with_address(listener("limited", &["limited"]), "10.0.0.1", 80, false);
    limited.use_original_dst = Some(BoolValue { value: true });
    limited.ignore_global_conn_limit = true;
    manager.apply(&limited, "1").unwrap();
    let header = "TCP4 192.0.2.1 10.0.0.1 1 80";
    let first = expect_owner(&manager, header, "limited").await;
    let active = |name: &str| {
        let mut all = manager.listeners();
        let (.., stats) = all.find(|(config, ..)| *config.name == *name).unwrap();
        stats.downstream_cx_active.value()
    };
    assert_eq!((active("out"), active("limited")), (0, 1));
    // It counts against the process's limit as it did before, and no longer than it lives.
    assert_eq!(manager.context().global.active(), 1);
    expect_end(&mut connect(&manager, "out").await).await;
    drop(first);
    while manager.context().global.active() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    expect_owner(&manager, header, "limited").await;
}
