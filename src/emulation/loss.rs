//! Which frames are lost, determined by a seed.

use oorandom::Rand64;

use super::limits::Loss;

#[derive(Debug)]
pub struct Chance {
    random: Rand64,
    loss: Option<Loss>,
    /// Gilbert and Elliott: whether the state is the bad one.
    bad: bool,
}

impl Chance {
    pub fn new(loss: Option<Loss>, random: Rand64) -> Chance {
        Chance { random, loss, bad: false }
    }

    pub fn set(&mut self, loss: Option<Loss>) {
        if loss != self.loss {
            self.loss = loss;
            self.bad = false;
        }
    }

    /// Returns whether the next frame is lost.
    pub fn loses(&mut self) -> bool {
        match self.loss {
            None => false,
            Some(Loss::Bernoulli(loss)) => self.random.rand_float() < loss,
            Some(Loss::GilbertElliott { to_bad, to_good, in_bad, in_good }) => {
                let lost = self.random.rand_float() < if self.bad { in_bad } else { in_good };
                let change = if self.bad { to_good } else { to_bad };
                self.bad ^= self.random.rand_float() < change;
                lost
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: u32 = 20_000;

    fn losses(loss: Loss, seed: u128) -> Vec<bool> {
        let mut chance = Chance::new(Some(loss), Rand64::new(seed));
        (0..FRAMES).map(|_| chance.loses()).collect()
    }

    fn ratio(losses: &[bool]) -> f64 {
        losses.iter().filter(|lost| **lost).count() as f64 / losses.len() as f64
    }

    #[test]
    fn losses_are_as_many_as_asked_for() {
        for (seed, loss) in (1..).zip([0.0, 0.001, 0.01, 0.1, 0.5, 1.0]) {
            let standard_error = (loss * (1.0 - loss) / f64::from(FRAMES)).sqrt();
            let found = ratio(&losses(Loss::Bernoulli(loss), seed));
            assert!((found - loss).abs() <= 3.0 * standard_error, "{found} for {loss}");
        }
    }

    #[test]
    fn losses_come_in_bursts_of_the_length_asked_for() {
        let (to_bad, to_good) = (0.01, 0.25);
        let lost = losses(Loss::GilbertElliott { to_bad, to_good, in_bad: 1.0, in_good: 0.0 }, 42);
        let bursts = lost.windows(2).filter(|pair| pair == &[false, true]).count() as f64;
        let good = lost.iter().filter(|lost| !**lost).count() as f64;
        // Each good frame begins a burst with the probability `to_bad`.
        let error = (to_bad * (1.0 - to_bad) / good).sqrt();
        assert!((bursts / good - to_bad).abs() <= 3.0 * error, "{bursts} bursts in {good}");
        let bad = f64::from(FRAMES) - good;
        // And each bad one ends it with `to_good`.
        let error = (to_good * (1.0 - to_good) / bad).sqrt();
        assert!((bursts / bad - to_good).abs() <= 3.0 * error, "{bursts} bursts in {bad}");
    }

    #[test]
    fn both_states_lose_what_they_are_to() {
        let loss = Loss::GilbertElliott { to_bad: 0.05, to_good: 0.05, in_bad: 0.5, in_good: 0.1 };
        let found = ratio(&losses(loss, 3));
        // Neighbours are alike, so fewer frames count: by the autocorrelation of 0.9, a nineteenth of the excess.
        assert!((found - 0.3).abs() < 0.02, "{found}");
    }

    #[test]
    fn a_seed_gives_the_same_losses_again_and_another_one_others() {
        let loss = Loss::Bernoulli(0.3);
        assert_eq!(losses(loss, 5), losses(loss, 5));
        assert_ne!(losses(loss, 5), losses(loss, 6));
    }
}
