//! Finds a worker's internal listeners by name.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use bytestring::ByteString;
use filters::stream::Address;
use rustc_hash::FxHashMap;

use super::stream::InternalStream;
use super::{Handover, InternalConnection};

/// What takes connections in.
pub trait Accept {
    /// How many bytes each direction of a connection buffers.
    fn buffer_size(&self) -> usize;

    /// Takes a connection, or drops it.
    fn accept(self: Rc<Self>, connection: InternalConnection);
}

thread_local! {
    /// Names are hashed once for a connection, and come from the configuration.
    static LISTENERS: RefCell<FxHashMap<ByteString, Weak<dyn Accept>>> = RefCell::default();
}

/// From now on connections to `name` on this worker go to `listener`.
pub fn register(name: ByteString, listener: Weak<dyn Accept>) {
    LISTENERS.with_borrow_mut(|all| all.insert(name, listener));
}

/// `listener` takes no more connections; one that has taken its name since stays.
pub fn unregister(name: &str, listener: &Weak<dyn Accept>) {
    LISTENERS.with_borrow_mut(|all| {
        if all.get(name).is_some_and(|l| Weak::ptr_eq(l, listener)) {
            all.remove(name);
        }
    });
}

/// This worker's listener called `name`.
pub(super) fn find(name: &str) -> Option<Rc<dyn Accept>> {
    LISTENERS
        .with_borrow(|all| all.get(name).cloned())?
        .upgrade()
}

/// Connects to the listener called `name`; `None` if this worker has none.
pub fn connect(name: &str, endpoint_id: &str, handover: Handover) -> Option<InternalStream> {
    let listener = find(name)?;
    let (ours, theirs) = InternalStream::pair(listener.buffer_size());
    listener.accept(InternalConnection {
        stream: theirs,
        local: Address::Internal(name.into(), endpoint_id.into()),
        handover,
    });
    Some(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Taking(RefCell<Vec<InternalConnection>>);

    impl Accept for Taking {
        fn buffer_size(&self) -> usize {
            16
        }

        fn accept(self: Rc<Self>, connection: InternalConnection) {
            self.0.borrow_mut().push(connection);
        }
    }

    #[test]
    fn the_last_listener_of_a_name_has_it_until_it_goes() {
        let new = || Rc::new(Taking(RefCell::default()));
        let weak = |listener: &Rc<Taking>| -> Weak<dyn Accept> {
            let listener: Rc<dyn Accept> = listener.clone();
            Rc::downgrade(&listener)
        };
        let (first, second) = (new(), new());
        assert!(connect("a", "", Handover::default()).is_none());
        register("a".into(), weak(&first));
        register("a".into(), weak(&second));
        // As when an update has replaced it.
        unregister("a", &weak(&first));
        assert!(connect("a", "id", Handover::default()).is_some());
        assert!(first.0.borrow().is_empty());
        let local = second.0.borrow().first().map(|c| c.local.to_string());
        assert_eq!(local.as_deref(), Some("envoy://a/id"));
        unregister("a", &weak(&second));
        assert!(connect("a", "", Handover::default()).is_none());
        register("a".into(), weak(&first));
        drop(first);
        assert!(connect("a", "", Handover::default()).is_none());
    }
}
