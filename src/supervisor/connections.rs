//! The connections that the program has used an option on. What this process knows of a connection, the ids of its
//! subflows above all, is kept only while something holds it, and between two calls nothing else does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::namespace::known::Known;
use crate::namespace::Namespace;
use crate::netlink::diag;
use crate::sys::lock::lock;

/// How many are kept before the first look at which of them have ended.
const ROOM: usize = 64;

#[derive(Debug, Default)]
pub struct Connections(Mutex<Kept<Used>>);

/// A connection that the program uses options on.
#[derive(Debug)]
struct Used {
    /// Held so that it is kept.
    _known: Arc<Known>,
    /// The process that opened a subflow of it last, and how many there are at most that were opened here.
    opener: i32,
    opened: usize,
}

impl Connections {
    /// Keeps what is known of a connection for as long as there is one with its token.
    pub fn keep(&self, namespace: &Namespace, known: Arc<Known>) {
        let mut kept = lock(&self.0);
        if kept.by_token.contains_key(&known.token) {
            return;
        }
        let token = known.token;
        kept.keep(token, Used { _known: known, opener: 0, opened: 0 }, |tokens| {
            let found = diag::look_up_tokens(&mut lock(&namespace.diag), tokens).ok()?;
            Some(found.iter().map(Option::is_some).collect())
        });
    }

    /// Counts one more subflow that a process is about to open, of the connection with this token, unless there would be
    /// more than `most` of its connections together.
    pub fn open_one(&self, namespace: &Namespace, token: u32, process: i32, most: usize) -> bool {
        let mut kept = lock(&self.0);
        let mut count = |recount: bool| {
            if recount {
                kept.recount(namespace);
            }
            let others =
                kept.by_token.iter().filter(|(other, used)| **other != token && used.opener == process);
            let opened: usize = others.map(|(_, used)| used.opened).sum();
            let Some(used) = kept.by_token.get_mut(&token) else { return opened < most };
            used.opener = process;
            if opened + used.opened >= most {
                return false;
            }
            used.opened += 1;
            true
        };
        // Those that were closed since have not been taken off.
        count(false) || count(true)
    }
}

impl Kept<Used> {
    /// Counts the subflows that were opened here. If they cannot be read, the number stays.
    fn recount(&mut self, namespace: &Namespace) {
        let mut opened: HashMap<u32, usize> = HashMap::new();
        let dumped = diag::dump(&mut lock(&namespace.diag), |entry, _| {
            if let Some(subflow) = entry.subflow.filter(|subflow| subflow.joined_here()) {
                *opened.entry(subflow.token).or_default() += 1;
            }
        });
        if dumped.is_ok() {
            for (token, used) in &mut self.by_token {
                used.opened = opened.get(token).copied().unwrap_or(0);
            }
        }
    }
}

/// Values by token, of which those whose connections have ended are dropped now and then.
#[derive(Debug)]
struct Kept<T> {
    by_token: HashMap<u32, T>,
    /// How many there may be before the next look at which of them have ended.
    room: usize,
}

impl<T> Default for Kept<T> {
    fn default() -> Kept<T> {
        Kept { by_token: HashMap::new(), room: ROOM }
    }
}

impl<T> Kept<T> {
    /// `are_live` returns which tokens still belong to a connection, or nothing if that cannot be read. It is called
    /// once for as many new connections as there were live ones, so that the cost of a call stays constant.
    fn keep(&mut self, token: u32, value: T, are_live: impl FnOnce(&[u32]) -> Option<Vec<bool>>) {
        if self.by_token.len() >= self.room && !self.by_token.contains_key(&token) {
            let tokens: Vec<u32> = self.by_token.keys().copied().collect();
            if let Some(live) = are_live(&tokens) {
                for token in tokens.iter().zip(live).filter(|(_, live)| !live).map(|(token, _)| token) {
                    self.by_token.remove(token);
                }
                self.by_token.shrink_to(2 * ROOM);
            }
            self.room = ROOM.max(2 * self.by_token.len());
        }
        self.by_token.insert(token, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_connections_are_forgotten_however_many_options_were_used_on_each() {
        let mut kept = Kept::default();
        for token in 0..100_000 {
            for option in 0..3 {
                // Of all that there were, this one and one of the first are still there.
                kept.keep(token, option, |tokens| {
                    Some(tokens.iter().map(|t| *t == token || *t == 7).collect())
                });
            }
        }
        assert!(kept.by_token.len() <= ROOM + 1, "{}", kept.by_token.len());
        assert!(kept.by_token.capacity() <= 4 * ROOM, "{}", kept.by_token.capacity());
        assert!(kept.by_token.contains_key(&7) && kept.by_token.contains_key(&99_999));
    }

    #[test]
    fn it_is_asked_seldom_which_have_ended() {
        let (mut kept, mut asked) = (Kept::default(), 0);
        for token in 0..100_000 {
            kept.keep(token, (), |tokens| {
                asked += 1;
                Some(vec![true; tokens.len()])
            });
        }
        assert_eq!(kept.by_token.len(), 100_000);
        assert!(asked < 20, "{asked}");
    }
}
