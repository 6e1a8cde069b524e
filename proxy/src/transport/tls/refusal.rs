//! Why a peer's certificate was refused, from the verifier to whoever waits for the handshake.
//!
//! rustls hands a verifier nothing of its connection, and its errors, which choose the alert, have no room for
//! words. A verifier runs inside one poll of its handshake's future, on one thread: what it leaves here is taken at
//! the end of that poll, before anything else runs.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;

use filters::tls::PeerCertificate;

/// A refusal, in words and with the certificate.
#[derive(Debug)]
pub(super) struct Refusal {
    /// As Envoy tells it, such as `verify cert failed: cert hash and spki`.
    pub(super) why: String,
    /// What was shown, if it can be read.
    pub(super) peer: Option<Box<PeerCertificate>>,
}

thread_local! {
    static LEFT: RefCell<Option<Refusal>> = const { RefCell::new(None) };
}

/// Leaves a refusal for the handshake that is being polled.
pub(super) fn leave(refusal: Refusal) {
    LEFT.with(|left| *left.borrow_mut() = Some(refusal));
}

/// Waits for a handshake, and takes what its verifier left.
pub(super) async fn watched<F: Future>(handshake: F) -> (F::Output, Option<Refusal>) {
    let mut handshake = pin!(handshake);
    let mut refusal = None;
    let output = poll_fn(|cx| {
        let polled = handshake.as_mut().poll(cx);
        if let Some(left) = LEFT.with(RefCell::take) {
            refusal = Some(left);
        }
        polled
    });
    let output = output.await;
    (output, refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_handshake_takes_its_own() {
        let handshake = |why: &str| {
            let refusal = Refusal {
                why: why.to_owned(),
                peer: None,
            };
            watched(async move {
                leave(refusal);
                tokio::task::yield_now().await;
            })
        };
        let (one, two) = tokio::join!(handshake("one"), handshake("two"));
        assert_eq!(one.1.unwrap().why, "one");
        assert_eq!(two.1.unwrap().why, "two");
        assert!(watched(async {}).await.1.is_none());
    }
}
