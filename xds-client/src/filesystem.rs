//! Filesystem subscriptions (`path_config_source`): a file that holds a `DiscoveryResponse` in JSON, YAML
//! or binary, read anew when it changes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use prost::{Message, Name};

use crate::bootstrap::encode;
use crate::error::ConfigError;
use crate::json::UnknownFields;
use crate::subscription::{Event, ResourceHandler, Subscription};

/// How often the file is looked at: soon enough for Envoy's users, whose kernel tells of changes. Polling sees every
/// way of replacing a file, Kubernetes' swapped links included, so `watched_directory` needs nothing of its own.
const INTERVAL: Duration = Duration::from_millis(100);

/// Watches a file until the task is aborted. The handler gets all the resources in it, of which those with
/// new bytes are applied; what is gone from the file is removed. A broken file leaves things as they are.
pub fn spawn(
    path: PathBuf,
    type_url: &str,
    mut handler: Box<dyn ResourceHandler>,
) -> tokio::task::JoinHandle<()> {
    let mut subscription = Subscription::new(type_url);
    subscription.wildcard = true;
    tokio::spawn(async move {
        let mut seen = None;
        loop {
            let now = stamp(&path);
            if now.is_some() && now != seen {
                seen = now;
                update(&path, &mut subscription, handler.as_mut()).await;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    })
}

/// What changes when a file is written or replaced. One system call, cheaper than another thread's wake-up.
fn stamp(path: &Path) -> Option<(u64, u64, i64, i64, u64)> {
    let m = std::fs::metadata(path).ok()?;
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
