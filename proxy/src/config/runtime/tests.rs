use super::*;
use envoy_types::pb::envoy::config::bootstrap::v3::{RuntimeLayer, runtime_layer};

fn number(n: f64) -> Value {
    Value {
        kind: Some(Kind::NumberValue(n)),
    }
}

fn text(text: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.into())),
    }
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Struct {
    let fields = fields.into_iter().map(|(k, v)| (k.to_owned(), v));
    Struct {
        fields: fields.collect(),
    }
}

fn nested(object: Struct) -> Value {
    Value {
        kind: Some(Kind::StructValue(object)),
    }
}

fn layer(name: &str, specifier: LayerSpecifier) -> RuntimeLayer {
    RuntimeLayer {
        name: name.into(),
        layer_specifier: Some(specifier),
    }
}

fn runtime(layers: Vec<RuntimeLayer>) -> Result<Runtime, ConfigError> {
    Runtime::compile(Some(&LayeredRuntime { layers }), "cluster-1")
}

#[test]
fn later_layers_win_and_the_admin_layer_changes() {
    let base = object([
        ("a", nested(object([("b", text("x")), ("n", number(5.0))]))),
        (
            "share",
            nested(object([
                ("numerator", number(3.0)),
                ("denominator", text("HUNDRED")),
            ])),
        ),
    ]);
    let runtime = runtime(vec![
        layer("base", LayerSpecifier::StaticLayer(base)),
        layer("admin", LayerSpecifier::AdminLayer(Default::default())),
    ])
    .unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    runtime.observe(move |r| lock(&log).push(r.integer("a.n")));
    assert_eq!(runtime.get("a.b").as_deref(), Some("x"));
    assert_eq!(runtime.get("share.numerator"), None);
    let set = |key: &str, value: &str| runtime.modify(&[(key.into(), value.into())]).unwrap();
    set("a.n", "7");
    let dump = runtime.dump();
    assert_eq!(dump["layers"], json!(["base", "admin"]));
    assert_eq!(
        dump["entries"]["a.n"],
        json!({"layer_values": ["5", "7"], "final_value": "7"})
    );
    set("a.n", "");
    assert_eq!(*lock(&seen), [Some(5), Some(7), Some(5)]);
}

#[test]
fn without_an_admin_layer_nothing_is_modified() {
    let runtime = runtime(vec![]).unwrap();
    assert_eq!(
        runtime.modify(&[("a".into(), "b".into())]),
        Err(NoAdminLayer)
    );
    assert_eq!(runtime.get("a"), None);
}

#[test]
fn rtds_fills_its_layer_and_a_bad_one_changes_nothing() {
    let rtds = runtime_layer::RtdsLayer {
        name: "from-contour".into(),
        rtds_config: Some(ConfigSource::default()),
    };
    let runtime = runtime(vec![layer("dynamic", LayerSpecifier::RtdsLayer(rtds))]).unwrap();
    assert_eq!(runtime.rtds().len(), 1);
    let apply = |v: Option<&Struct>| runtime.apply_rtds("from-contour", v);
    apply(Some(&object([("k", number(1.5))]))).unwrap();
    assert_eq!(runtime.get("k").as_deref(), Some("1.5"));
    let null = Value {
        kind: Some(Kind::NullValue(0)),
    };
    let error = apply(Some(&object([("k", null)]))).unwrap_err();
    assert_eq!(error.to_string(), "layer.k: Invalid runtime entry value");
    assert_eq!(runtime.get("k").as_deref(), Some("1.5"));
    apply(None).unwrap();
    assert_eq!(runtime.get("k"), None);
}

#[test]
fn what_cannot_be_a_layer_is_refused_by_path() {
    let error = |layers| runtime(layers).err().unwrap().to_string();
    let empty = || LayerSpecifier::StaticLayer(Struct::default());
    assert_eq!(
        error(vec![layer("a", empty()), layer("a", empty())]),
        "layered_runtime.layers[1].name: Duplicate layer name: a"
    );
    let rtds = LayerSpecifier::RtdsLayer(Default::default());
    assert_eq!(
        error(vec![layer("r", rtds)]),
        "layered_runtime.layers[0].rtds_layer.rtds_config: value is required"
    );
}

#[test]
fn a_disk_layer_is_read_anew_when_its_link_is_exchanged() {
    let home = std::env::temp_dir().join(format!("fairway-runtime-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&home);
    for (version, value) in [("v1", "1"), ("v2", "2")] {
        let below = home.join(version).join("envoy/cluster-1/health");
        std::fs::create_dir_all(&below).unwrap();
        std::fs::write(below.join("min"), format!("# comment\n{value}\n")).unwrap();
    }
    let link = home.join("current");
    std::os::unix::fs::symlink(home.join("v1"), &link).unwrap();
    let disk = runtime_layer::DiskLayer {
        symlink_root: link.to_string_lossy().into_owned(),
        subdirectory: "envoy".into(),
        append_service_cluster: true,
    };
    let runtime = runtime(vec![layer("disk", LayerSpecifier::DiskLayer(disk))]).unwrap();
    assert_eq!(runtime.integer("health.min"), Some(1));
    let new = home.join("new");
    std::os::unix::fs::symlink(home.join("v2"), &new).unwrap();
    std::fs::rename(&new, &link).unwrap();
    assert_eq!(runtime.integer("health.min"), Some(1));
    runtime.refresh_disk();
    assert_eq!(runtime.integer("health.min"), Some(2));
    std::fs::remove_dir_all(&home).unwrap();
}

#[test]
fn a_share_follows_its_key() {
    let admin = LayerSpecifier::AdminLayer(runtime_layer::AdminLayer::default());
    let runtime = runtime(vec![layer("admin", admin)]).unwrap();
    let share = runtime.fraction("a.b", Fraction::ALL);
    let again = runtime.fraction("a.b", Fraction::ALL);
    assert!(Arc::ptr_eq(&share, &again));
    let takes = |random| share.get().takes(random);
    assert!(takes(99));
    let set = |value: &str| runtime.modify(&[("a.b".into(), value.into())]).is_ok();
    assert!(set("10") && takes(9) && !takes(10));
    let late = runtime.fraction(
        "a.b",
        Fraction {
            numerator: 1,
            denominator: 100,
        },
    );
    assert!(!Arc::ptr_eq(&share, &late));
    assert!(late.get().takes(9));
    assert!(set("") && takes(99));
}
