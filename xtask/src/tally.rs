//! What passed and failed.
//!
//! Key type: [`Tally`].

use core::fmt;
use core::ops::AddAssign;

/// Counts of checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    pub(crate) const PASS: Self = Self {
        passed: 1,
        failed: 0,
    };
    pub(crate) const FAIL: Self = Self {
        passed: 0,
        failed: 1,
    };

    pub(crate) const fn of(passed: bool) -> Self {
        if passed { Self::PASS } else { Self::FAIL }
    }

    /// Returns whether something passed and nothing failed.
    pub(crate) const fn is_success(self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    pub(crate) const fn has_failures(self) -> bool {
        self.failed > 0
    }

    /// Adds up the closing lines of cargo's test runs: `test result: ok. 3 passed; 0 failed; ...`.
    pub(crate) fn of_test_output(output: &str) -> Self {
        let mut tally = Self::default();
        for line in output
            .lines()
            .filter_map(|line| line.trim().strip_prefix("test result: "))
        {
            let count = |word: &str| {
                let found = line
                    .split([';', '.'])
                    .find_map(|part| part.trim().strip_suffix(word));
                found
                    .and_then(|number| number.trim().parse().ok())
                    .unwrap_or(0)
            };
            tally += Self {
                passed: count(" passed"),
                failed: count(" failed"),
            };
        }
        tally
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod counting {
    use super::Tally;

    #[test]
    fn closing_lines_of_test_runs_add_up() {
        let output = "x\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\n\
                      test result: FAILED. 2 passed; 4 failed; 0 ignored\n";
        assert_eq!(
            Tally::of_test_output(output),
            Tally {
                passed: 5,
                failed: 4
            }
        );
    }

    #[test]
    fn nothing_run_is_no_success() {
        assert!(!Tally::default().is_success());
        assert!(Tally::PASS.is_success());
        assert!(!Tally::FAIL.is_success());
    }
}
