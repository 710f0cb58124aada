//! The u8 ids that the enhanced socket API gives to subflows.

use std::collections::{HashMap, HashSet};

/// The ids of one connection: 1 to 255, each belongs to a subflow for its life, and is reused only after all others were used.
#[derive(Debug, Default)]
pub struct SubIds {
    last: u8,
    by_cookie: HashMap<u64, u8>,
}

impl SubIds {
    /// The ids of all live subflows, by their cookies, oldest first. `None` for those beyond 255.
    pub fn assign(&mut self, cookies: &[u64]) -> Vec<Option<u8>> {
        let mut ids = Vec::with_capacity(cookies.len());
        for cookie in cookies {
            let id = match self.by_cookie.get(cookie) {
                Some(id) => Some(*id),
                None => self.free(cookies).inspect(|id| {
                    self.by_cookie.insert(*cookie, *id);
                }),
            };
            ids.push(id);
        }
        ids
    }

    /// The id of a subflow that was gone before it could be listed: unused from now on.
    pub fn pass(&mut self, live: &[u64]) -> Option<u8> {
        self.free(live)
    }

    /// The next id that no subflow has. Subflows that are gone are forgotten only when all ids are taken, so that
    /// one that a reading missed keeps its id.
    fn free(&mut self, live: &[u64]) -> Option<u8> {
        if self.by_cookie.len() == usize::from(u8::MAX) {
            let live: HashSet<&u64> = live.iter().collect();
            self.by_cookie.retain(|cookie, _| live.contains(cookie));
        }
        let taken: HashSet<u8> = self.by_cookie.values().copied().collect();
        let after_last = (self.last..u8::MAX).map(|id| id + 1);
        let id = after_last.chain(1..=self.last).find(|id| !taken.contains(id))?;
        self.last = id;
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_kept_for_life_and_given_again_last() {
        let mut ids = SubIds::default();
        assert_eq!(ids.assign(&[50, 40]), [Some(1), Some(2)]);
        assert_eq!(ids.assign(&[40, 60]), [Some(2), Some(3)]);
        assert_eq!(ids.pass(&[40, 60]), Some(4));
        // Every other id in turn, then the first that is free again.
        for (cookie, id) in (100..).zip(5..=255) {
            assert_eq!(ids.assign(&[40, cookie]), [Some(2), Some(id)]);
        }
        assert_eq!(ids.assign(&[40, 1000]), [Some(2), Some(4)]);
        assert_eq!(ids.assign(&[40, 1001]), [Some(2), Some(5)], "all were taken: those of the dead are free");
        assert_eq!(ids.assign(&[40, 1000, 1001])[1], Some(6), "that was dead by what we were told");
    }

    #[test]
    fn there_are_255() {
        let cookies: Vec<u64> = (1..=300).collect();
        let mut ids = SubIds::default();
        let assigned = ids.assign(&cookies);
        assert!(assigned[..255].iter().zip(1u8..=255).all(|(id, expected)| *id == Some(expected)));
        assert!(assigned[255..].iter().all(Option::is_none));
        assert_eq!(ids.assign(&cookies), assigned);
    }
}
