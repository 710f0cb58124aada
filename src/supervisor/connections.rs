//! The connections that the program has used an option on. What this process knows of a connection, the ids of its
//! subflows above all, is kept by whoever holds it, and between two calls nobody else does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::namespace::known::Shared;
use crate::namespace::Namespace;
use crate::netlink::diag;
use crate::sys::lock::lock;

#[derive(Debug, Default)]
pub struct Connections(Mutex<HashMap<u32, Arc<Shared>>>);

impl Connections {
    /// Keeps what is known of a connection for as long as there is one with its token.
    pub fn keep(&self, namespace: &Namespace, shared: Arc<Shared>) {
        let mut kept = lock(&self.0);
        // Look for those that ended only when the table is about to grow, so that the cost of a call stays constant.
        if kept.len() == kept.capacity() && !kept.contains_key(&shared.token) {
            let tokens: Vec<u32> = kept.keys().copied().collect();
            if let Ok(found) = diag::look_up_tokens(&mut lock(&namespace.diag), &tokens) {
                for (token, entry) in tokens.iter().zip(found) {
                    if entry.is_none() {
                        kept.remove(token);
                    }
                }
            }
        }
        kept.insert(shared.token, shared);
    }
}
