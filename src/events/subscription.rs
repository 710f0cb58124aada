//! The queue of events between the thread that reads them and a subscriber.
//!
//! It is bounded: a subscriber that does not take its events loses them, and finds the loss in their place.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::events::event::{Event, Kind};
use crate::events::snapshot::Snapshot;
use crate::sys::lock::lock;
use crate::sys::{self, wait::EventFd};

/// How many events may wait for one subscriber; with one more, all of them are lost to it.
pub const CAPACITY: usize = 16_384;

/// Events that were lost, to one subscriber or, where the kernel dropped them, to all. The current state is then read back
/// from the sockets, once for all subscribers with the same loss.
#[derive(Debug, Default)]
pub struct Loss {
    pub snapshot: OnceLock<Snapshot>,
}

#[derive(Debug, Clone)]
pub enum Item {
    Event(Event),
    Lost(Arc<Loss>),
}

/// Whose events are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Of the connection with this token.
    Token(u32),
    /// Of all connections and listeners.
    Connections,
    /// The same, and of links and addresses.
    Namespace,
}

impl Filter {
    fn wants(self, event: &Event) -> bool {
        match self {
            Filter::Token(token) => event.token == Some(token),
            Filter::Connections => !event.kind.is_of_link(),
            Filter::Namespace => true,
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// What was read back after a loss. It comes before the rest, and its length is the kernel's.
    read_back: VecDeque<Event>,
    items: VecDeque<Item>,
    /// No more will come.
    over: bool,
    /// The descriptor is readable.
    is_set: bool,
    /// The subscriber looks before it waits, so the descriptor is left alone.
    is_awake: bool,
    /// How many threads wait in `next`.
    waiting: usize,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.read_back.is_empty() && self.items.is_empty()
    }

    fn finish(&mut self) {
        self.read_back.clear();
        self.items.clear();
        self.over = true;
    }
}

/// A subscriber's events, in order, until it is dropped. Those of one connection are over after its end.
#[derive(Debug)]
pub struct Subscription {
    pub filter: Filter,
    queue: Mutex<Queue>,
    ready: Condvar,
    /// Readable while there is something to take, and at the end. Absent for a subscriber that waits by `next` alone.
    descriptor: Option<EventFd>,
}

impl Subscription {
    pub fn new(filter: Filter, descriptor: Option<EventFd>) -> Subscription {
        Subscription { filter, queue: Mutex::default(), ready: Condvar::new(), descriptor }
    }

    pub fn descriptor(&self) -> Option<&EventFd> {
        self.descriptor.as_ref()
    }

    /// The next event, waited for until `deadline`. A loss is an event of the kind Overrun.
    pub fn next(&self, deadline: Instant) -> Option<Event> {
        let mut queue = lock(&self.queue);
        loop {
            match self.pop(&mut queue) {
                Some(Item::Event(event)) => return Some(event),
                Some(Item::Lost(_)) => return Some(Event::new(Kind::Overrun, sys::monotonic_ns())),
                None => {}
            }
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            queue.waiting += 1;
            queue = self.ready.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
            queue.waiting -= 1;
        }
    }

    /// The next item, if there is one.
    pub fn take(&self) -> Option<Item> {
        self.pop(&mut lock(&self.queue))
    }

    fn pop(&self, queue: &mut Queue) -> Option<Item> {
        let item = match queue.read_back.pop_front() {
            Some(event) => Item::Event(event),
            None => queue.items.pop_front()?,
        };
        if let (Filter::Token(_), Item::Event(Event { kind: Kind::Closed, .. })) = (self.filter, &item) {
            // A later connection may get the token.
            queue.finish();
        }
        if queue.is_empty() && !queue.over && queue.is_set {
            queue.is_set = false;
            if let Some(descriptor) = &self.descriptor {
                descriptor.reset();
            }
        }
        Some(item)
    }

    pub fn is_over(&self) -> bool {
        lock(&self.queue).over
    }

    /// Ends it: nothing more is taken, and a waiting thread returns.
    pub fn end(&self) {
        let mut queue = lock(&self.queue);
        queue.finish();
        self.wake(&mut queue);
    }

    /// The subscriber is about to wait for the descriptor, or is awake again: while it is, the descriptor is not kept.
    pub fn set_awake(&self, is_awake: bool) {
        let mut queue = lock(&self.queue);
        queue.is_awake = is_awake;
        if !is_awake && (queue.over || !queue.is_empty()) {
            self.wake(&mut queue);
        }
    }

    /// What was read back after a loss that was taken: it is taken next.
    pub fn read_back(&self, events: Vec<Event>) {
        let mut queue = lock(&self.queue);
        if !queue.over {
            queue.read_back = events.into();
            self.wake(&mut queue);
        }
    }

    /// Puts back a loss that could not be handled.
    pub fn put_back(&self, loss: Arc<Loss>) {
        let mut queue = lock(&self.queue);
        if !queue.over {
            queue.items.push_front(Item::Lost(loss));
            self.wake(&mut queue);
        }
    }

    pub fn push(&self, event: &Event) {
        if self.filter.wants(event) && self.add(Item::Event(event.clone())) {
            self.tell();
        }
    }

    /// The same, but `tell` is called later: until then who waits is not woken.
    pub fn push_silently(&self, event: &Event) {
        if self.filter.wants(event) {
            self.add(Item::Event(event.clone()));
        }
    }

    /// Wakes who waits, if there is something to take.
    pub fn tell(&self) {
        let mut queue = lock(&self.queue);
        if !queue.is_empty() {
            self.wake(&mut queue);
        }
    }

    /// The kernel dropped events.
    pub fn lost(&self, loss: &Arc<Loss>) {
        if self.add(Item::Lost(Arc::clone(loss))) {
            self.tell();
        }
    }

    /// True if the subscriber may wait: there was nothing to take before.
    fn add(&self, item: Item) -> bool {
        let mut queue = lock(&self.queue);
        if queue.over {
            return false;
        }
        if queue.items.len() >= CAPACITY {
            queue.items.clear();
            queue.items.push_back(Item::Lost(Arc::default()));
        }
        let was_empty = queue.is_empty();
        queue.items.push_back(item);
        was_empty
    }

    /// With the queue locked, so that the descriptor is readable exactly while there is something to take.
    fn wake(&self, queue: &mut Queue) {
        if let Some(descriptor) = self.descriptor.as_ref().filter(|_| !queue.is_set && !queue.is_awake) {
            queue.is_set = true;
            descriptor.set();
        }
        if queue.waiting > 0 {
            self.ready.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64) -> Event {
        Event { token: Some(7), ..Event::new(Kind::SubClosed, number) }
    }

    #[test]
    fn one_who_takes_nothing_loses_all_but_what_comes_after() {
        let subscription = Subscription::new(Filter::Token(7), None);
        for number in 0..=CAPACITY as u64 {
            subscription.push(&event(number));
        }
        assert!(matches!(subscription.take(), Some(Item::Lost(_))));
        let Some(Item::Event(last)) = subscription.take() else { panic!("no event") };
        assert_eq!(last.time_ns, CAPACITY as u64);
        assert!(subscription.take().is_none());
    }

    #[test]
    fn the_descriptor_is_readable_while_something_waits() {
        let readable = |subscription: &Subscription| {
            use std::os::fd::AsRawFd;
            let fd = subscription.descriptor().unwrap().as_raw_fd();
            sys::wait::readable([fd], Some(std::time::Duration::ZERO)).unwrap()[0]
        };
        let subscription = Subscription::new(Filter::Namespace, Some(EventFd::new().unwrap()));
        assert!(!readable(&subscription));
        subscription.push(&event(1));
        subscription.push(&event(2));
        assert!(readable(&subscription));
        subscription.take().unwrap();
        assert!(readable(&subscription));
        subscription.take().unwrap();
        assert!(!readable(&subscription));
    }

    #[test]
    fn who_is_awake_is_woken_once_it_waits() {
        let readable = |subscription: &Subscription| {
            use std::os::fd::AsRawFd;
            let fd = subscription.descriptor().unwrap().as_raw_fd();
            sys::wait::readable([fd], Some(std::time::Duration::ZERO)).unwrap()[0]
        };
        let subscription = Subscription::new(Filter::Namespace, Some(EventFd::new().unwrap()));
        subscription.set_awake(true);
        subscription.push(&event(1));
        assert!(!readable(&subscription));
        subscription.set_awake(false);
        assert!(readable(&subscription));
        subscription.take().unwrap();
        assert!(!readable(&subscription));
        subscription.push_silently(&event(2));
        assert!(!readable(&subscription));
        subscription.tell();
        assert!(readable(&subscription));
        subscription.set_awake(true);
        subscription.end();
        subscription.set_awake(false);
        assert!(readable(&subscription) && subscription.is_over());
    }

    #[test]
    fn a_filter_lets_its_own_pass() {
        let link = Event::new(Kind::LinkUp, 0);
        assert!(Filter::Token(7).wants(&event(0)) && !Filter::Token(8).wants(&event(0)));
        assert!(Filter::Namespace.wants(&link) && !Filter::Connections.wants(&link));
        assert!(!Filter::Token(7).wants(&link));
    }
}
