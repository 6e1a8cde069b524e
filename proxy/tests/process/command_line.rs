//! What the command line accepts, refuses and says.

use std::process::{Command, Output, Stdio};

use crate::fairway::{BINARY, Home, bootstrap};

fn run(args: &[&str]) -> Output {
    Command::new(BINARY)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A bootstrap that can be run, and its path.
fn good(home: &Home) -> String {
    let path = home.write(
        "good.yaml",
        &bootstrap(home, "127.0.0.1:1".parse().unwrap()),
    );
    path.to_str().unwrap().to_owned()
}

#[test]
fn versions_and_help_are_printed() {
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert!(stdout(&version).contains("fairway  version: 0/"));
    let hot = run(&["--hot-restart-version"]);
    assert_eq!(
        (hot.status.code(), stdout(&hot).trim()),
        (Some(0), "disabled")
    );
    assert!(run(&["--help"]).status.success());
}

#[test]
fn what_nobody_knows_is_refused() {
    let unknown = run(&["--never-heard-of", "--mode", "validate"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        stderr(&unknown).contains("--never-heard-of"),
        "{}",
        stderr(&unknown)
    );
    assert_eq!(run(&["--concurrency", "many"]).status.code(), Some(1));
    let level = run(&["-l", "loud"]);
    assert_eq!(level.status.code(), Some(1));
    assert!(
        stderr(&level).contains("invalid log level"),
        "{}",
        stderr(&level)
    );
    let tag = run(&["--stats-tag", "no-colon"]);
    assert_eq!(tag.status.code(), Some(1));
    assert!(stderr(&tag).contains("stats-tag"), "{}", stderr(&tag));
}

#[test]
fn validate_names_what_is_wrong_and_where() {
    let home = Home::new();
    let path = good(&home);
    let fine = run(&["-c", &path, "--mode", "validate"]);
    assert!(fine.status.success(), "{}", stderr(&fine));
    assert!(stdout(&fine).contains("OK"));

    let text = std::fs::read_to_string(&path).unwrap();
    let bad = text.replace(r#""prefix": "/""#, r#""safe_regex": {"regex": "("}"#);
    let bad = home.write("bad.yaml", &bad);
    let refused = run(&["-c", bad.to_str().unwrap(), "--mode", "validate"]);
    assert_eq!(refused.status.code(), Some(1));
    let error = stderr(&refused);
    for part in [
        "static_resources.listeners[0]",
        "virtual_hosts[0].routes[0].match",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }

    let unknown = home.write("unknown.yaml", &format!("{text}\nnever_heard_of: 1\n"));
    let unknown = unknown.to_str().unwrap();
    let refused = run(&["-c", unknown, "--mode", "validate"]);
    assert_eq!(refused.status.code(), Some(1));
    let error = stderr(&refused);
    assert!(
        error.contains(unknown) && error.contains("never_heard_of"),
        "{error}"
    );
    let allowed = [
        "-c",
        unknown,
        "--mode",
        "validate",
        "--allow-unknown-static-fields",
    ];
    assert!(run(&allowed).status.success());

    let missing = run(&["-c", "/nowhere.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("/nowhere.yaml"));
}

#[test]
fn init_only_leaves_when_it_could_serve() {
    let home = Home::new();
    let output = run(&["-c", &good(&home), "--mode", "init_only"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn an_address_in_use_ends_the_start() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = std::fs::read_to_string(good(&home)).unwrap();
    // The admin interface's address, and the listener's.
    for (n, what) in [(0, "admin"), (1, "static_resources.listeners[0]")] {
        let zero = "\"port_value\": 0";
        let text = text.replace("port_value: 0", zero);
        let at = text.match_indices(zero).nth(n).unwrap().0;
        let mut text = text.clone();
        text.replace_range(at..at + zero.len(), &format!("\"port_value\": {port}"));
        let path = home.write("taken.yaml", &text);
        let output = run(&["-c", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{what}");
        let error = stderr(&output);
        assert!(error.contains(what) && error.contains("in use"), "{error}");
    }
}

#[test]
fn options_without_meaning_are_accepted_and_said_once() {
    let home = Home::new();
    let path = good(&home);
    let output = run(&[
        "-c",
        &path,
        "--mode",
        "init_only",
        "--enable-core-dump",
        "--base-id",
        "3",
    ]);
    assert!(output.status.success());
    let said = stderr(&output);
    let lines: Vec<_> = said.lines().filter(|l| l.contains("--base-id")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(lines[0].contains("--enable-core-dump"));
}
