//! Which listener of a worker owns an address: the way of connections that were redirected to another listener.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::{Rc, Weak};

use rustc_hash::FxHashMap;

use super::listener::WorkerListener;
use super::socket::BindAddress;

/// The listeners of a worker by their addresses, bound or not.
#[derive(Default)]
pub(super) struct Owners(RefCell<FxHashMap<SocketAddr, Owner>>);

struct Owner {
    listener: Weak<WorkerListener>,
    /// An IPv6 address that stands for IPv4 addresses, too.
    dual: bool,
}

impl Owners {
    /// `listener` owns `addresses` from now on. Another version of the listener that had them has them no more.
    pub(super) fn add(&self, addresses: &[BindAddress], listener: &Rc<WorkerListener>) {
        let mut owners = self.0.borrow_mut();
        for address in addresses {
            // Nothing is redirected to a path.
            if let BindAddress::Tcp { address, dual } = address {
                let listener = Rc::downgrade(listener);
                let dual = *dual;
                owners.insert(*address, Owner { listener, dual });
            }
        }
    }

    /// `listener` takes no more connections.
    pub(super) fn remove(&self, listener: &WorkerListener) {
        let of_others = |owner: &Owner| !std::ptr::eq(owner.listener.as_ptr(), listener);
        self.0.borrow_mut().retain(|_, owner| of_others(owner));
    }

    /// The owner of an address: of exactly this one, else of its port on any address.
    pub(super) fn find(&self, address: SocketAddr) -> Option<Rc<WorkerListener>> {
        let owners = self.0.borrow();
        let at = |ip| owners.get(&SocketAddr::new(ip, address.port()));
        let dual = |ip: Ipv6Addr| at(ip.into()).filter(|owner| owner.dual);
        let owner = match address.ip() {
            IpAddr::V4(ip) => at(ip.into())
                .or_else(|| dual(ip.to_ipv6_mapped()))
                .or_else(|| at(Ipv4Addr::UNSPECIFIED.into()))
                .or_else(|| dual(Ipv6Addr::UNSPECIFIED)),
            IpAddr::V6(ip) => at(ip.into()).or_else(|| at(Ipv6Addr::UNSPECIFIED.into())),
        };
        owner?.listener.upgrade()
    }
}
