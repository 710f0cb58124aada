//! The events of a network namespace or of one connection, for one who waits for them.

pub mod event;
pub mod links;
pub mod reader;
pub mod snapshot;
pub mod subscription;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::connection::Connection;
use crate::error::{Error, Result};
use crate::events::event::{Event, Kind};
use crate::events::links::Watch;
use crate::events::reader::Reader;
use crate::events::snapshot::Picture;
use crate::events::subscription::{Filter, Item, Loss, Subscription};
use crate::namespace::Namespace;
use crate::netlink::diag;
use crate::sys::lock::lock;
use crate::sys::{self, wait};

/// What `Events::take` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    Event(Event),
    /// Nothing yet.
    Nothing,
    /// Nothing any more: the connection has ended, or `Events::end` was called.
    Over,
}

/// Events in order, from the moment when this was made. Of one connection they are over after Closed.
#[derive(Debug)]
pub struct Events {
    namespace: Arc<Namespace>,
    subscription: Arc<Subscription>,
    /// Held over one taking, in which a loss may be dealt with.
    taking: Mutex<()>,
    /// Links, of a whole namespace.
    watch: Option<Arc<Watch>>,
    reader: Arc<Reader>,
}

impl Events {
    /// Of one connection, or of the whole namespace. By netlink if this process may, else by polling.
    pub fn new(namespace: Arc<Namespace>, token: Option<u32>) -> Result<Events> {
        let reader = match namespace.reader() {
            Err(error) if error.errno() == libc::EPERM => namespace.poller()?,
            result => result?,
        };
        let subscription = reader.subscribe_to_stream(token.map_or(Filter::Namespace, Filter::Token))?;
        let watch = match token {
            Some(token) => {
                check_there(&namespace, token, reader.is_polling())?;
                None
            }
            None => Some(reader.watch(|| {
                let socket = || namespace.socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
                Watch::start(socket()?, socket()?)
            })?),
        };
        Ok(Events { namespace, subscription, taking: Mutex::default(), watch, reader })
    }

    /// Of one connection. It must be there after subscribing, or its token may be another's.
    pub fn of_connection(connection: &dyn Connection) -> Result<Events> {
        let events = Events::new(connection.namespace()?, Some(connection.shared()?.token))?;
        connection.shared()?;
        Ok(events)
    }

    /// The next event, if there is one. After a loss what there is is read back from the sockets here.
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

    /// Overrun, and what there is, all with one time.
    fn read_back(&self, loss: &Loss) -> Result<Vec<Event>> {
        let picture = match loss.picture.get() {
            Some(picture) => picture,
            None => {
                let read = Picture::read_all(&mut lock(&self.namespace.diag), self.known());
                let read = read.map_err(diag::failed)?;
                self.reader.forget_all_but(&read);
                loss.picture.get_or_init(|| read)
            }
        };
        let token = match self.subscription.filter {
            Filter::Token(token) => Some(token),
            _ => None,
        };
        let mut events = vec![Event { token, ..Event::new(Kind::Overrun, picture.time_ns) }];
        events.extend(self.watch.iter().flat_map(|watch| watch.state(picture.time_ns)));
        events.extend(picture.events(token));
        Ok(events)
    }

    /// The links that are up and the addresses there are, as the events by which they came about; of a namespace.
    pub fn links(&self) -> Vec<Event> {
        self.watch.iter().flat_map(|watch| watch.state(sys::monotonic_ns())).collect()
    }

    fn known(&self) -> std::collections::HashSet<u32> {
        let mut known = self.reader.known();
        if let Filter::Token(token) = self.subscription.filter {
            known.insert(token);
        }
        known
    }

    /// Waits until there may be something to take; false when `timeout` has passed. A signal is the error Interrupted.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        wait::readable([self.fd()], timeout).map(|[ready]| ready)
    }

    /// Readable while there is something to take, and when it is over.
    pub fn fd(&self) -> RawFd {
        self.subscription.descriptor().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// The connection has ended, and its end was taken; or `end` was called.
    pub fn is_over(&self) -> bool {
        self.subscription.is_over()
    }

    /// Ends it: who waits goes on.
    pub fn end(&self) {
        self.subscription.end();
    }

    /// Made by this process, not by the one that it was forked from.
    pub fn is_ours(&self) -> bool {
        self.namespace.is_ours()
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

/// After subscribing: a connection that has ended by now may never be heard of.
fn check_there(namespace: &Namespace, token: u32, polling: bool) -> Result<()> {
    let mut channel = lock(&namespace.diag);
    let found = diag::look_up_tokens(&mut channel, &[token]).map_err(diag::failed)?.pop().flatten();
    let Some(connection) = found.filter(|connection| !connection.is_orphan()) else {
        return Err(Error::os(libc::ENOTCONN, format!("there is no connection with token {token}")));
    };
    if polling {
        diag::check_told(&mut channel, &[connection])?;
    }
    Ok(())
}
