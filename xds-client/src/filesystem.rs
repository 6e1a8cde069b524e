//! Filesystem subscriptions (`path_config_source`): a file that holds a `DiscoveryResponse` in JSON, YAML
//! or binary, read anew when it changes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use prost::{Message, Name};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::bootstrap::encode;
use crate::error::ConfigError;
use crate::json::{UnknownFields, name_of};
use crate::subscription::{Event, ResourceHandler, Subscription};

/// How often the file is looked at: soon enough for Envoy's users, whose kernel tells of changes. Polling sees every
/// way of replacing a file, Kubernetes' swapped links included, so `watched_directory` needs nothing of its own.
const INTERVAL: Duration = Duration::from_millis(100);

/// A file that is watched until this is dropped.
#[derive(Debug)]
pub struct Watch {
    task: tokio::task::JoinHandle<()>,
    awaited: UnboundedSender<Awaited>,
}

/// A name that somebody waits for, and until when.
type Awaited = (String, Instant);

impl Watch {
    /// The handler hears [`Event::FetchTimeout`] of those of the names that the file does not hold within
    /// this time; `initial_fetch_timeout` zero waits for ever. No names are all of the type.
    pub fn expect(&self, mut names: Vec<String>, initial_fetch_timeout: Duration) {
        if initial_fetch_timeout.is_zero() {
            return;
        }
        if names.is_empty() {
            names.push(WILDCARD.to_owned());
        }
        let until = Instant::now() + initial_fetch_timeout;
        for name in names {
            // The task ends with us only.
            let _ = self.awaited.send((name, until));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const WILDCARD: &str = "*";

/// Watches a file. The handler gets all the resources in it, of which those with new bytes are applied.
/// Listeners and clusters that are gone from the file are removed; of the other types a file, like a response,
/// need not be complete. A broken file leaves things as they are.
pub fn spawn(path: PathBuf, type_url: &str, handler: Box<dyn ResourceHandler>) -> Watch {
    let subscription = subscription(type_url);
    let (awaited, names) = unbounded_channel();
    let task = tokio::spawn(watch(path, subscription, handler, names));
    Watch { task, awaited }
}

async fn watch(
    path: PathBuf,
    mut subscription: Subscription,
    mut handler: Box<dyn ResourceHandler>,
    mut names: UnboundedReceiver<Awaited>,
) {
    let (mut seen, mut answered) = (None, false);
    let mut waiting: Vec<Awaited> = Vec::new();
    loop {
        let now = stamp(&path);
        if now.is_some() && now != seen {
            seen = now;
            answered |= update(&path, &mut subscription, handler.as_mut()).await;
        }
        let tick = Instant::now() + INTERVAL;
        loop {
            let now = Instant::now();
            waiting.retain(|(name, until)| {
                let known = subscription.known.contains_key(name);
                if known || (answered && name == WILDCARD) {
                    return false;
                }
                if *until <= now {
                    let (type_url, name) = (subscription.type_url.clone(), name.clone());
                    handler.on_event(Event::FetchTimeout { type_url, name });
                }
                *until > now
            });
            let until = waiting.iter().map(|(_, until)| *until).min();
            tokio::select! {
                () = tokio::time::sleep_until(until.map_or(tick, |until| until.min(tick))) => {}
                Some(name) = names.recv() => waiting.push(name),
            }
            if Instant::now() >= tick {
                break;
            }
        }
    }
}

/// Takes whatever is in the file.
fn subscription(type_url: &str) -> Subscription {
    let mut subscription = Subscription::new(type_url);
    match name_of(type_url) {
        "envoy.config.listener.v3.Listener" | "envoy.config.cluster.v3.Cluster" => {
            subscription.wildcard = true;
        }
        _ => subscription.takes_all = true,
    }
    subscription
}

/// What changes when a file is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    file: (u64, u64),
    modified: (i64, i64),
    size: u64,
}

/// A file's stamp, links followed; `None` if it is not there. One system call, cheaper than another thread's wake-up.
pub fn stamp(path: &Path) -> Option<Stamp> {
    let m = std::fs::metadata(path).ok()?;
    Some(Stamp {
        file: (m.dev(), m.ino()),
        modified: (m.mtime(), m.mtime_nsec()),
        size: m.size(),
    })
}

/// Whether the file could be taken.
async fn update(
    path: &Path,
    subscription: &mut Subscription,
    handler: &mut dyn ResourceHandler,
) -> bool {
    let response = match tokio::fs::read(path).await {
        Ok(content) => decode(path, &content),
        Err(e) => Err(ConfigError::new(e.to_string())),
    };
    match response {
        // A refusal has reached the handler as an event; there is nobody to send a NACK to.
        Ok(response) => subscription.accept_sotw(response, handler).is_ok(),
        Err(error) => {
            handler.on_event(Event::UpdateRejected {
                type_url: subscription.type_url.clone(),
                error: format!("{}: {error}", path.display()),
            });
            false
        }
    }
}

fn decode(path: &Path, content: &[u8]) -> Result<DiscoveryResponse, ConfigError> {
    let bytes = encode(
        &DiscoveryResponse::full_name(),
        path,
        content,
        UnknownFields::Allow,
    )?;
    DiscoveryResponse::decode(bytes.as_slice()).map_err(|e| ConfigError::new(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::{Rejected, Resource};

    #[derive(Default)]
    struct Recorder(Vec<(Vec<String>, Vec<String>)>, Vec<Event>);

    impl ResourceHandler for Recorder {
        fn apply(
            &mut self,
            _: &str,
            added: Vec<Resource>,
            removed: Vec<String>,
            _: bool,
        ) -> Vec<Rejected> {
            let names = added.into_iter().map(|r| r.name).collect();
            self.0.push((names, removed));
            Vec::new()
        }
        fn on_event(&mut self, event: Event) {
            self.1.push(event);
        }
    }

    /// Passes events on to the test.
    struct Told(UnboundedSender<Event>);

    impl ResourceHandler for Told {
        fn apply(&mut self, _: &str, _: Vec<Resource>, _: Vec<String>, _: bool) -> Vec<Rejected> {
            Vec::new()
        }
        fn on_event(&mut self, event: Event) {
            let _ = self.0.send(event);
        }
    }

    #[tokio::test]
    async fn who_waits_for_a_name_that_the_file_does_not_hold_is_told() {
        let path = std::env::temp_dir().join(format!("fairway-rds-{}.yaml", std::process::id()));
        let url = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
        std::fs::write(
            &path,
            format!("resources:\n- {{\"@type\": {url}, name: here}}\n"),
        )
        .unwrap();
        let (told, mut events) = unbounded_channel();
        let watch = spawn(path.clone(), url, Box::new(Told(told)));
        watch.expect(vec!["here".into(), "gone".into()], Duration::from_millis(1));
        let timed_out = loop {
            match events.recv().await {
                Some(Event::FetchTimeout { name, .. }) => break name,
                Some(_) => {}
                None => panic!("the watch ended"),
            }
        };
        assert_eq!(timed_out, "gone");
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn a_changed_file_is_applied_and_a_broken_one_is_not() {
        let path = std::env::temp_dir().join(format!("fairway-cds-{}.yaml", std::process::id()));
        let url = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
        let (mut handler, mut subscription) = (Recorder::default(), Subscription::new(url));
        subscription.wildcard = true;
        let file = |name: &str| format!("resources:\n- {{\"@type\": {url}, name: {name}}}\n");
        for content in [file("a"), "resources: 3".into(), file("b")] {
            std::fs::write(&path, content).unwrap();
            update(&path, &mut subscription, &mut handler).await;
        }
        std::fs::remove_file(&path).unwrap();
        let expected = [
            (vec!["a".to_owned()], vec![]),
            (vec!["b".to_owned()], vec!["a".to_owned()]),
        ];
        assert_eq!(handler.0, expected);
        let refused = |e: &&Event| matches!(e, Event::UpdateRejected { .. });
        assert_eq!(handler.1.iter().filter(refused).count(), 1);
    }
}
