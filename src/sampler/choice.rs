//! Which of the two ways of reading subflows is taken where both could be: that which takes less processor time by
//! measurement, and never MPTCP_FULL_INFO once it has waited for a connection's lock.

use super::Method;

/// Readings by each way in one measurement at most, and the time after which there are no more than two of each.
pub const READINGS: usize = 5;
pub const NS: u64 = 1_000_000;

/// A measurement is not repeated before this time has passed.
const RARELY_NS: u64 = 1_000_000_000;

/// Measurements that are kept.
const KEPT: usize = 32;

/// What reading everything once took, by one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Processor time, the least of some readings.
    pub cpu_ns: u64,
    /// The subflows that it showed.
    pub subflows: usize,
    /// The thread slept in it: somebody held a lock.
    pub waited: bool,
}

/// One measurement. A way that failed has no cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial {
    pub time_ns: u64,
    pub full_info: Option<Cost>,
    pub inet_diag: Option<Cost>,
}

impl Trial {
    fn decide(&self) -> Method {
        match (self.full_info, self.inet_diag) {
            (_, None) => Method::FullInfo,
            (None, Some(_)) => Method::InetDiag,
            // Older kernels do not tell an ordinary user which sockets are subflows.
            (Some(full), Some(diag)) if full.subflows > diag.subflows => Method::FullInfo,
            (Some(full), Some(diag)) if full.waited || diag.cpu_ns <= full.cpu_ns => Method::InetDiag,
            _ => Method::FullInfo,
        }
    }

    /// inet_diag shows all that MPTCP_FULL_INFO does.
    fn diag_suffices(&self) -> bool {
        let shown = |cost: Option<Cost>| cost.map_or(0, |cost| cost.subflows);
        self.inet_diag.is_some() && shown(self.inet_diag) >= shown(self.full_info)
    }

    fn subflows(&self) -> usize {
        [self.full_info, self.inet_diag].into_iter().flatten().map(|cost| cost.subflows).max().unwrap_or(0)
    }
}

/// The measurements of a recording, and what follows from them.
#[derive(Debug, Clone)]
pub struct Choice {
    pub method: Method,
    /// The newest last. Empty where the way was asked for, or only one is possible.
    pub trials: Vec<Trial>,
    /// A reading by MPTCP_FULL_INFO slept.
    pub waited: bool,
}

impl Choice {
    pub fn new(method: Method) -> Choice {
        Choice { method, trials: Vec::new(), waited: false }
    }

    /// Whether it is time for another measurement, with so many subflows there are now.
    pub fn is_due(&self, time_ns: u64, subflows: usize) -> bool {
        match self.trials.last() {
            None => true,
            Some(_) if self.waited => false,
            Some(last) => {
                let (before, now) = (last.subflows().max(1), subflows.max(1));
                (now >= 2 * before || 2 * now <= before) && time_ns >= last.time_ns + RARELY_NS
            }
        }
    }

    /// Takes a measurement over.
    pub fn add(&mut self, trial: Trial) {
        self.method = trial.decide();
        self.waited |= trial.full_info.is_some_and(|cost| cost.waited) && self.method == Method::InetDiag;
        if self.trials.len() == KEPT {
            self.trials.remove(1);
        }
        self.trials.push(trial);
    }

    /// A reading by MPTCP_FULL_INFO slept.
    pub fn wait(&mut self) {
        if self.trials.last().is_some_and(Trial::diag_suffices) {
            self.waited = true;
            self.method = Method::InetDiag;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn cost(cpu_ns: u64, subflows: usize, waited: bool) -> Option<Cost> {
        Some(Cost { cpu_ns, subflows, waited })
    }

    fn chosen(full_info: Option<Cost>, inet_diag: Option<Cost>) -> Choice {
        let mut choice = Choice::new(Method::InetDiag);
        choice.add(Trial { time_ns: SECOND, full_info, inet_diag });
        choice
    }

    #[test]
    fn the_cheaper_way_is_taken() {
        assert_eq!(chosen(cost(10, 4, false), cost(20, 4, false)).method, Method::FullInfo);
        assert_eq!(chosen(cost(20, 4, false), cost(10, 4, true)).method, Method::InetDiag);
    }

    #[test]
    fn one_that_fails_or_shows_less_is_not() {
        assert_eq!(chosen(None, cost(20, 4, false)).method, Method::InetDiag);
        assert_eq!(chosen(cost(20, 4, true), None).method, Method::FullInfo);
        assert_eq!(chosen(cost(20, 4, true), cost(1, 0, false)).method, Method::FullInfo);
    }

    #[test]
    fn what_waited_is_not_tried_again() {
        let choice = chosen(cost(10, 4, true), cost(20, 4, false));
        assert_eq!((choice.method, choice.waited), (Method::InetDiag, true));
        assert!(!choice.is_due(100 * SECOND, 400));
        let mut choice = chosen(cost(10, 4, false), cost(20, 4, false));
        choice.wait();
        assert_eq!((choice.method, choice.waited), (Method::InetDiag, true));
        let mut blind = chosen(cost(10, 4, false), cost(20, 0, false));
        blind.wait();
        assert_eq!(blind.method, Method::FullInfo);
    }

    #[test]
    fn it_is_measured_again_when_there_are_twice_as_many_or_half() {
        let choice = chosen(cost(10, 4, false), cost(20, 4, false));
        let later = 3 * SECOND;
        assert!(!choice.is_due(later, 7) && !choice.is_due(later, 3) && !choice.is_due(SECOND + 1, 8));
        assert!(choice.is_due(later, 8) && choice.is_due(later, 2) && choice.is_due(later, 0));
        assert!(Choice::new(Method::InetDiag).is_due(0, 0));
    }
}
