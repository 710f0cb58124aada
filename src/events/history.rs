//! What the events of each connection told of its subflows and addresses, for the one who asks later why it has no others.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use crate::events::event::{Event, Kind};
use crate::sys::lock::lock;

/// How many events of a connection are kept, the newest.
const MOST: usize = 64;

/// How many connections are kept. Of more, those that come later are left out.
const CONNECTIONS: usize = 4096;

#[derive(Debug, Default)]
pub struct History(Mutex<HashMap<u32, VecDeque<Event>>>);

impl History {
    /// Takes an event. What belongs to a connection that has ended is forgotten.
    pub fn note(&self, event: &Event) {
        let Some(token) = event.token else { return };
        match event.kind {
            Kind::Closed => {
                lock(&self.0).remove(&token);
            }
            Kind::Created | Kind::Announced | Kind::Removed | Kind::SubEstablished | Kind::SubClosed => {
                let mut connections = lock(&self.0);
                if connections.len() >= CONNECTIONS && !connections.contains_key(&token) {
                    return;
                }
                let events = connections.entry(token).or_default();
                if event.kind == Kind::Created {
                    events.clear();
                }
                if events.len() == MOST {
                    events.pop_front();
                }
                events.push_back(event.clone());
            }
            _ => {}
        }
    }

    /// Those of one connection, oldest first.
    pub fn of(&self, token: u32) -> Vec<Event> {
        lock(&self.0).get(&token).into_iter().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, token: u32, time_ns: u64) -> Event {
        Event { token: Some(token), ..Event::new(kind, time_ns) }
    }

    #[test]
    fn the_newest_of_each_connection_are_kept_until_it_ends() {
        let history = History::default();
        for time in 0..MOST as u64 + 2 {
            history.note(&event(Kind::SubClosed, 1, time));
        }
        history.note(&event(Kind::SubEstablished, 2, 7));
        history.note(&event(Kind::SubPriority, 2, 8));
        let times: Vec<u64> = history.of(1).iter().map(|event| event.time_ns).collect();
        assert_eq!((times.len(), times[0]), (MOST, 2));
        assert_eq!(history.of(2).len(), 1);
        history.note(&event(Kind::Created, 1, 100));
        assert_eq!(history.of(1).len(), 1);
        history.note(&event(Kind::Closed, 1, 101));
        assert!(history.of(1).is_empty());
    }
}
