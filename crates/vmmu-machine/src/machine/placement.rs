//! On which processors of the host a machine's threads run.
//!
//! Key type: [`Placement`]. It is a matter of speed and of who meets whom, not of what the guest may see.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where the threads of a machine's processors run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Placement {
    /// Where the system's scheduler puts them.
    #[default]
    Anywhere,
    /// Each on a processor of its own of those that the process may use; in turn, where there are too few. For guests whose processors are to meet.
    Apart,
}

impl Placement {
    /// Binds the calling thread, which runs the processor with that number. Where the system refuses, its scheduler does as it likes.
    pub(crate) fn bind(self, number: usize) {
        if self == Self::Anywhere {
            return;
        }
        let Ok(allowed) = sched_getaffinity(None) else {
            return;
        };
        if let Some(cpu) = chosen(&allowed, number) {
            let mut set = CpuSet::new();
            set.set(cpu);
            let _ = sched_setaffinity(None, &set);
        }
    }
}

/// Returns the processor of the host for the one with a number.
fn chosen(allowed: &CpuSet, number: usize) -> Option<usize> {
    let count = allowed.count() as usize;
    let mut all = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    all.nth(number.checked_rem(count)?)
}

#[cfg(test)]
mod processors_of_the_host {
    use super::{CpuSet, chosen};

    #[test]
    fn are_taken_in_turn_from_those_that_are_allowed() {
        let mut allowed = CpuSet::new();
        assert_eq!(chosen(&allowed, 0), None);
        allowed.set(3);
        allowed.set(5);
        let taken: Vec<_> = (0..4)
            .filter_map(|number| chosen(&allowed, number))
            .collect();
        assert_eq!(taken, [3, 5, 3, 5]);
    }
}
