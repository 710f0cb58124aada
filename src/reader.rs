//! One thread a network namespace that reads `mptcp_pm_events` and hands each event to whoever subscribed.
//!
//! The subscription itself matters as much as what is read: under the userspace path manager the kernel accepts
//! joins only while somebody is subscribed, and overrun is lost events, never a lost subscription.

use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::event::{self, Event};
use crate::netlink::{messages, Message};
use crate::sys;

/// Takes a lock. No code that can panic runs under any of ours, and if it did, the data would still be whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a subscriber gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    Event(Event),
    /// The kernel dropped events: what is known of the connections has to be read anew.
    Overrun,
}

/// A subscriber's events, in order, until it is dropped.
#[derive(Debug)]
pub struct Subscription {
    /// Only events of this connection; all if absent.
    token: Option<u32>,
    queue: Mutex<VecDeque<Notice>>,
    ready: Condvar,
}

impl Subscription {
    /// The next event, waiting for it until `deadline`.
    pub fn next(&self, deadline: Instant) -> Option<Notice> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(notice) = queue.pop_front() {
                return Some(notice);
            }
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            queue = self.ready.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wants(&self, notice: &Notice) -> bool {
        match (self.token, notice) {
            (Some(token), Notice::Event(event)) => event.token == Some(token),
            _ => true,
        }
    }

    fn push(&self, notice: Notice) {
        lock(&self.queue).push_back(notice);
        self.ready.notify_one();
    }
}

#[derive(Debug)]
struct Shared {
    socket: Arc<socket2::Socket>,
    stop: OwnedFd,
    subscribers: Mutex<Vec<Weak<Subscription>>>,
}

/// The subscription of this process to the events of one namespace. It ends when the last owner drops it.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    group: u32,
    process: u32,
}

impl Reader {
    /// Joins the group on an unbound or bound netlink socket and starts to read. Needs CAP_NET_ADMIN.
    pub fn start(socket: Arc<socket2::Socket>, group: u32) -> Result<Reader> {
        // What an earlier reader left in the queue is old news.
        while (&*socket).read(&mut [0; 16]).is_ok() {}
        membership(&socket, libc::NETLINK_ADD_MEMBERSHIP, group)
            .map_err(|error| Error::call("joining mptcp_pm_events (CAP_NET_ADMIN)", &error))?;
        let stop = sys::eventfd().map_err(|error| Error::call("eventfd", &error))?;
        let shared = Arc::new(Shared { socket, stop, subscribers: Mutex::default() });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("mptcp-events".into())
            .spawn(move || run(&for_thread))
            .map_err(|error| Error::call("starting the thread that reads events", &error))?;
        Ok(Reader { shared, thread: Some(thread), group, process: std::process::id() })
    }

    /// Subscribes to the events of one connection, or of all.
    pub fn subscribe(&self, token: Option<u32>) -> Arc<Subscription> {
        let subscription = Arc::new(Subscription { token, queue: Mutex::default(), ready: Condvar::new() });
        let mut subscribers = lock(&self.shared.subscribers);
        subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        subscribers.push(Arc::downgrade(&subscription));
        subscription
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // After a fork the thread and the subscription are the parent's.
        if self.process != std::process::id() {
            return;
        }
        let _ = membership(&self.shared.socket, libc::NETLINK_DROP_MEMBERSHIP, self.group);
        let stop = std::fs::File::from(match self.shared.stop.try_clone() {
            Ok(stop) => stop,
            Err(_) => return, // no descriptor left: the thread stays until the process ends
        });
        if std::io::Write::write(&mut &stop, &1u64.to_ne_bytes()).is_ok() {
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

fn membership(socket: &socket2::Socket, option: i32, group: u32) -> std::io::Result<()> {
    sys::setsockopt_i32(socket.as_raw_fd(), libc::SOL_NETLINK, option, group as i32)
}

/// The thread: reads until it is told to stop.
fn run(shared: &Shared) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match sys::wait_readable(shared.socket.as_raw_fd(), shared.stop.as_raw_fd()) {
            Ok((_, false)) => {}
            _ => return,
        }
        match (&*shared.socket).read(&mut buffer) {
            Ok(length) => {
                let now = sys::monotonic_ns();
                for message in messages(&buffer[..length]) {
                    if let Message::Data { payload, .. } = message {
                        if let Some(event) = event::decode(payload, now) {
                            dispatch(shared, &Notice::Event(event));
                        }
                    }
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => dispatch(shared, &Notice::Overrun),
            Err(error) => match error.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => {}
                _ => return,
            },
        }
    }
}

fn dispatch(shared: &Shared, notice: &Notice) {
    for subscriber in lock(&shared.subscribers).iter().filter_map(Weak::upgrade) {
        if subscriber.wants(notice) {
            subscriber.push(notice.clone());
        }
    }
}
