//! Filesystem subscriptions (`path_config_source`): a file that holds a `DiscoveryResponse` in JSON, YAML
//! or binary, read anew when it changes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use prost::{Message, Name};

use crate::bootstrap::encode;
use crate::error::ConfigError;
use crate::json::{UnknownFields, name_of};
use crate::subscription::{Event, ResourceHandler, Subscription};

/// How often the file is looked at. Polling sees every way of replacing a file, Kubernetes' swapped links
/// included, so `watched_directory` needs nothing of its own.
const INTERVAL: Duration = Duration::from_millis(250);

/// Watches a file until the task is aborted. The handler gets all the resources in it, of which those with
/// new bytes are applied. Listeners and clusters that are gone from the file are removed; of the other types a
/// file, like a response, need not be complete. A broken file leaves things as they are.
pub fn spawn(
    path: PathBuf,
    type_url: &str,
    mut handler: Box<dyn ResourceHandler>,
) -> tokio::task::JoinHandle<()> {
    let mut subscription = subscription(type_url);
    tokio::spawn(async move {
        let mut seen = None;
        loop {
            let now = stamp(&path).await;
            if now.is_some() && now != seen {
                seen = now;
                update(&path, &mut subscription, handler.as_mut()).await;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    })
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
async fn stamp(path: &Path) -> Option<(u64, u64, i64, i64, u64)> {
    let m = tokio::fs::metadata(path).await.ok()?;
    Some((m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
}

async fn update(path: &Path, subscription: &mut Subscription, handler: &mut dyn ResourceHandler) {
    let response = match tokio::fs::read(path).await {
        Ok(content) => decode(path, &content),
        Err(e) => Err(ConfigError::new(e.to_string())),
    };
    match response {
        // A refusal has reached the handler as an event; there is nobody to send a NACK to.
        Ok(response) => drop(subscription.accept_sotw(response, handler)),
        Err(error) => handler.on_event(Event::UpdateRejected {
            type_url: subscription.type_url.clone(),
            error: format!("{}: {error}", path.display()),
        }),
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
    struct Recorder {
        applied: Vec<(Vec<String>, Vec<String>)>,
        events: Vec<Event>,
        /// The name that it refuses.
        refuses: &'static str,
    }

    impl ResourceHandler for Recorder {
        fn apply(
            &mut self,
            _: &str,
            added: Vec<Resource>,
            removed: Vec<String>,
            _: bool,
        ) -> Vec<Rejected> {
            let names: Vec<_> = added.into_iter().map(|r| r.name).collect();
            let bad = names.iter().filter(|n| **n == self.refuses);
            let rejected = bad.map(|n| Rejected {
                name: n.clone(),
                error: ConfigError::new("no"),
            });
            let rejected = rejected.collect();
            self.applied.push((names, removed));
            rejected
        }
        fn on_event(&mut self, event: Event) {
            self.events.push(event);
        }
    }

    const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

    fn file(kind: &str, names: &[&str]) -> String {
        let resource = |n: &&str| format!("- {{\"@type\": {kind}, name: {n}}}\n");
        let resources: String = names.iter().map(resource).collect();
        format!("resources:\n{resources}")
    }

    /// What the handler is told of these contents of a file, one after the other.
    async fn run(name: &str, kind: &str, contents: &[String], refuses: &'static str) -> Recorder {
        let path = std::env::temp_dir().join(format!("fairway-{name}-{}.yaml", std::process::id()));
        let mut handler = Recorder {
            refuses,
            ..Recorder::default()
        };
        let mut subscription = subscription(kind);
        for content in contents {
            std::fs::write(&path, content).unwrap();
            update(&path, &mut subscription, &mut handler).await;
        }
        std::fs::remove_file(&path).unwrap();
        handler
    }

    fn applied(added: &[&str], removed: &[&str]) -> (Vec<String>, Vec<String>) {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        (owned(added), owned(removed))
    }

    #[tokio::test]
    async fn a_changed_file_is_applied_and_a_broken_one_is_not() {
        let other = "type.googleapis.com/envoy.config.listener.v3.Listener";
        let contents = [
            file(CDS, &["a"]),
            "resources: 3".into(),
            file(other, &["a"]),
            file(CDS, &["b"]),
        ];
        let seen = run("cds", CDS, &contents, "").await;
        assert_eq!(
            seen.applied,
            [applied(&["a"], &[]), applied(&["b"], &["a"])]
        );
        let refused = |e: &&Event| matches!(e, Event::UpdateRejected { .. });
        assert_eq!(seen.events.iter().filter(refused).count(), 2);
    }

    #[tokio::test]
    async fn routes_that_a_file_lacks_stay() {
        let kind = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
        let contents = [file(kind, &["a"]), file(kind, &["b"]), file(kind, &[])];
        let seen = run("rds", kind, &contents, "").await;
        assert_eq!(seen.applied, [applied(&["a"], &[]), applied(&["b"], &[])]);
    }

    #[tokio::test]
    async fn what_was_refused_is_tried_again_and_its_going_is_told() {
        let contents = [
            file(CDS, &["a", "bad"]),
            file(CDS, &["a", "bad"]),
            file(CDS, &["a"]),
        ];
        let seen = run("bad", CDS, &contents, "bad").await;
        let expected = [
            applied(&["a", "bad"], &[]),
            applied(&["bad"], &[]),
            applied(&[], &["bad"]),
        ];
        assert_eq!(seen.applied, expected);
    }
}
