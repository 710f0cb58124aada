//! The events of a network namespace or of one connection, as a stream to take them from.

pub mod ends;
pub mod event;
pub mod history;
pub mod links;
pub mod reader;
pub mod snapshot;
pub mod subscription;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::events::event::{Event, Kind};
use crate::events::links::Watch;
use crate::events::reader::Reader;
use crate::events::snapshot::Snapshot;
use crate::events::subscription::{Filter, Item, Loss, Subscription};
use crate::netlink::diag;
use crate::netlink::Channel;
use crate::sys::lock::lock;
use crate::sys::{self, wait};

/// The sockets of one network namespace that events are read with. Every stream of events holds them, so that all share
/// one reader.
pub trait Sockets: fmt::Debug + Send + Sync {
    /// For requests by inet_diag.
    fn diag(&self) -> &Mutex<Channel>;

    /// Two new sockets of rtnetlink, for [`Watch::start`].
    fn new_route_sockets(&self) -> Result<[OwnedFd; 2]>;

    /// Made by this process, not by the one that it was forked from.
    fn is_ours(&self) -> bool;
}

/// What `Events::take` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    Event(Event),
    /// Nothing yet.
    Nothing,
    /// No more will come: the connection has ended, or `Events::end` was called.
    Over,
}

/// Events in order, from the moment when this was made. Of one connection they are over after Closed.
#[derive(Debug)]
pub struct Events {
    sockets: Arc<dyn Sockets>,
    subscription: Arc<Subscription>,
    /// Held while an event is taken, which may include reading back after a loss.
    taking: Mutex<()>,
    /// The links, in a stream of a whole namespace.
    watch: Option<Arc<Watch>>,
    reader: Arc<Reader>,
}

impl Events {
    /// Of one connection, or of the whole namespace.
    pub fn new(sockets: Arc<dyn Sockets>, reader: Arc<Reader>, token: Option<u32>) -> Result<Events> {
        let filter = token.map_or(Filter::Namespace, Filter::Token);
        let subscription = reader.subscribe_to_stream(filter)?;
        let watch = match token {
            Some(token) => {
                check_there(sockets.diag(), token, reader.is_polling())?;
                None
            }
            None => Some(reader.watch(|| {
                let [notices, requests] = sockets.new_route_sockets()?;
                Watch::start(notices, requests)
            })?),
        };
        Ok(Events { sockets, subscription, taking: Mutex::default(), watch, reader })
    }

    /// The next event, if there is one. After a loss the current state is read back from the sockets here.
    pub fn take(&self) -> Result<Taken> {
        let _taking = lock(&self.taking);
        loop {
            match self.subscription.take() {
                Some(Item::Event(event)) => return Ok(Taken::Event(event)),
                Some(Item::Lost(loss)) => match self.read_back(&loss) {
                    Ok(events) => self.subscription.read_back(events),
                    Err(error) => {
                        self.subscription.put_back(loss);
                        return Err(error);
                    }
                },
                None if self.subscription.is_over() => return Ok(Taken::Over),
                None => return Ok(Taken::Nothing),
            }
        }
    }

    /// Overrun, and the current state, all with one time.
    fn read_back(&self, loss: &Loss) -> Result<Vec<Event>> {
        let snapshot = match loss.snapshot.get() {
            Some(snapshot) => snapshot,
            None => {
                let read = Snapshot::read_all(&mut lock(self.sockets.diag()), self.known());
                let read = read.map_err(diag::failed)?;
                self.reader.ends().read_back(&read);
                loss.snapshot.get_or_init(|| read)
            }
        };
        let token = match self.subscription.filter {
            Filter::Token(token) => Some(token),
            _ => None,
        };
        let mut events = vec![Event { token, ..Event::new(Kind::Overrun, snapshot.time_ns) }];
        events.extend(self.watch.iter().flat_map(|watch| watch.state(snapshot.time_ns)));
        events.extend(snapshot.events(token));
        Ok(events)
    }

    /// The links that are up and the present addresses, as events; in a stream of a whole namespace.
    pub fn links(&self) -> Vec<Event> {
        self.watch.iter().flat_map(|watch| watch.state(sys::monotonic_ns())).collect()
    }

    fn known(&self) -> std::collections::HashSet<u32> {
        let mut known = self.reader.ends().tokens();
        if let Filter::Token(token) = self.subscription.filter {
            known.insert(token);
        }
        known
    }

    /// The next event, waited for until `deadline`, or for ever; Nothing when that has passed. A signal is the error EINTR.
    pub fn next(&self, deadline: Option<Instant>) -> Result<Taken> {
        loop {
            let taken = self.take()?;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if taken != Taken::Nothing || left.is_some_and(|left| left.is_zero()) {
                return Ok(taken);
            }
            self.wait(left).map_err(|error| Error::call("poll", &error))?;
        }
    }

    /// Waits until there may be something to take; false when `timeout` has passed. A signal is the error Interrupted.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        wait::readable([self.fd()], timeout).map(|[ready]| ready)
    }

    /// Says that the caller waits for `fd` next, or that it is awake and takes what there is before it waits again.
    pub fn set_awake(&self, is_awake: bool) {
        self.subscription.set_awake(is_awake);
    }

    /// Readable while there is something to take, and when it is over; but not while the subscriber is awake.
    pub fn fd(&self) -> RawFd {
        self.subscription.descriptor().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// The connection has ended, and its end was taken; or `end` was called.
    pub fn is_over(&self) -> bool {
        self.subscription.is_over()
    }

    /// Has what happened so far be there to take, also where the thread that reads events has not come to it yet.
    pub fn catch_up(&self) {
        self.reader.catch_up();
    }

    /// Ends it: a waiting thread returns.
    pub fn end(&self) {
        self.subscription.end();
    }

    /// Made by this process, not by the one that it was forked from.
    pub fn is_ours(&self) -> bool {
        self.sockets.is_ours()
    }

    /// What it gets its events from, for one who has more to do with it.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    pub fn is_polling(&self) -> bool {
        self.reader.is_polling()
    }

    /// See `Reader::set_receive_buffer`.
    pub fn set_receive_buffer(&self, size: i32) -> Result<()> {
        self.reader.set_receive_buffer(size).map_err(|error| Error::call("setsockopt(SO_RCVBUF)", &error))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if self.watch.take().is_some() {
            self.reader.wake();
        }
    }
}

/// To be called after subscribing: of a connection that has ended by now no event may ever come.
fn check_there(diag: &Mutex<Channel>, token: u32, polling: bool) -> Result<()> {
    let mut channel = lock(diag);
    let found = diag::look_up_tokens(&mut channel, &[token]).map_err(diag::failed)?.pop().flatten();
    let Some(connection) = found.filter(|connection| !connection.is_orphan()) else {
        return Err(Error::os(libc::ENOTCONN, format!("there is no connection with token {token}")));
    };
    if polling {
        diag::check_told(&mut channel, &[connection])?;
    }
    Ok(())
}
