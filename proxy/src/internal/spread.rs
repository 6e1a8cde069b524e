//! Spreads tunnels over the workers. A node's proxy sends the connections of many clients in one, which is on one worker;
//! were its tunnels to stay there, that worker would do the work of all of them while others idle (istio#51305).

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use filters::stream::Address;
use tokio::sync::{mpsc, oneshot};

use super::stream::{FarEnd, InternalStream};
use super::{Handover, InternalConnection, registry};

/// How many more tunnels than the idlest worker one may have, beside a quarter, before it hands over what comes: a hop
/// to another thread costs more than a little imbalance.
const SLACK: usize = 2;

/// The workers of a process, by their index.
pub struct Workers(Box<[Seat]>);

struct Seat {
    /// Tunnels that go on here.
    tunnels: Arc<AtomicUsize>,
    // Unbounded: whoever sends waits for the answer, so that there are no more of them than streams.
    arrivals: mpsc::UnboundedSender<Arrival>,
    /// Until the worker takes it.
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Arrival>>>,
}

/// A tunnel from another worker.
struct Arrival {
    name: Arc<str>,
    endpoint_id: Arc<str>,
    end: FarEnd,
    handover: Handover,
    /// Whether there is such a listener.
    found: oneshot::Sender<bool>,
}

thread_local! {
    static SEATED: RefCell<Option<(Arc<Workers>, usize)>> = const { RefCell::new(None) };
}

impl Workers {
    /// `count` workers, none of which has taken its seat.
    pub fn new(count: usize) -> Arc<Self> {
        let seat = |_| {
            let (arrivals, receiver) = mpsc::unbounded_channel();
            Seat {
                tunnels: Arc::default(),
                arrivals,
                receiver: Mutex::new(Some(receiver)),
            }
        };
        Arc::new(Self((0..count).map(seat).collect()))
    }

    /// Where the next tunnel of worker `index` goes on.
    fn choose(&self, index: usize) -> Option<&Seat> {
        let load = |seat: &Seat| seat.tunnels.load(Ordering::Relaxed);
        let own = self.0.get(index)?;
        let idlest = self.0.iter().min_by_key(|seat| load(seat))?;
        let least = load(idlest);
        Some(match load(own) <= least + least / 4 + SLACK {
            true => own,
            false => idlest,
        })
    }
}

/// From now on this thread is worker `index`, and takes tunnels from others; inside its `LocalSet`.
pub fn take_seat(workers: &Arc<Workers>, index: usize) {
    let Some(seat) = workers.0.get(index) else {
        return;
    };
    let receiver = seat.receiver.lock();
    let receiver = receiver.unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mut receiver) = receiver {
        SEATED.set(Some((workers.clone(), index)));
        tokio::task::spawn_local(async move {
            while let Some(arrival) = receiver.recv().await {
                arrival.take().await;
            }
        });
    }
}

impl Arrival {
    async fn take(self) {
        let listener = registry::find(&self.name);
        let found = listener.is_some();
        if let Some(listener) = listener {
            listener.accept(InternalConnection {
                stream: self.end.into(),
                local: Address::Internal(self.name, self.endpoint_id),
                handover: self.handover,
            });
            // What is refused at once is refused before the other side is told.
            tokio::task::yield_now().await;
        }
        let _ = self.found.send(found);
    }
}

/// A tunnel among those of its worker.
#[derive(Debug)]
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(tunnels: &Arc<AtomicUsize>) -> Self {
        tunnels.fetch_add(1, Ordering::Relaxed);
        Self(tunnels.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connects a tunnel to the listener called `name` on the worker that it should go on at; `None` if there is none.
pub async fn connect(
    name: &Arc<str>,
    endpoint_id: &Arc<str>,
    handover: Handover,
) -> Option<InternalStream> {
    let listener = registry::find(name)?;
    let seated = SEATED.with_borrow(Clone::clone);
    let Some((workers, index)) = seated.filter(|(workers, _)| workers.0.len() > 1) else {
        return registry::connect(name, endpoint_id, handover);
    };
    let seat = workers.choose(index)?;
    let own = workers.0.get(index)?;
    if !std::ptr::eq(seat, own) {
        let counted = Counted::new(&seat.tunnels);
        let (ours, end) = InternalStream::across(listener.buffer_size());
        let (found, told) = oneshot::channel();
        let arrival = Arrival {
            name: name.clone(),
            endpoint_id: endpoint_id.clone(),
            end,
            handover: handover.clone(),
            found,
        };
        // A worker that is ending, or does not have the listener yet or any more, takes nothing.
        if seat.arrivals.send(arrival).is_ok() && told.await == Ok(true) {
            return Some(ours.counted(counted));
        }
    }
    let stream = registry::connect(name, endpoint_id, handover)?;
    Some(stream.counted(Counted::new(&own.tunnels)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(loads: &[usize]) -> Arc<Workers> {
        let workers = Workers::new(loads.len());
        for (seat, load) in workers.0.iter().zip(loads) {
            seat.tunnels.store(*load, Ordering::Relaxed);
        }
        workers
    }

    fn chosen(all: &[usize], index: usize) -> usize {
        let workers = loads(all);
        let seat = workers.choose(index).unwrap();
        workers
            .0
            .iter()
            .position(|s| std::ptr::eq(s, seat))
            .unwrap()
    }

    #[test]
    fn a_worker_keeps_its_share_and_hands_over_the_rest() {
        assert_eq!(chosen(&[0, 0], 1), 1);
        assert_eq!(chosen(&[0, 2], 1), 1);
        assert_eq!(chosen(&[0, 3], 1), 0);
        assert_eq!(chosen(&[40, 52, 44], 1), 1);
        assert_eq!(chosen(&[44, 53, 40], 1), 2);
    }

    #[test]
    fn streams_of_one_connection_come_to_all_workers() {
        let workers = loads(&[0; 4]);
        for _ in 0..100 {
            let seat = workers.choose(0).unwrap();
            std::mem::forget(Counted::new(&seat.tunnels));
        }
        let load = |seat: &Seat| seat.tunnels.load(Ordering::Relaxed);
        assert!(workers.0.iter().all(|seat| (20..=35).contains(&load(seat))));
        drop(Counted::new(&workers.0[0].tunnels));
        assert_eq!(workers.0.iter().map(load).sum::<usize>(), 100);
    }
}
