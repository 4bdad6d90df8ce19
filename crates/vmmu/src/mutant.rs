//! Mutants: the library broken on purpose, one small mistake each, to show that the tests notice (docs/mutants.md).
//!
//! The mistakes exist only in a build with `--cfg mutant`; the environment variable VMMU_MUTANT then names the one that is made. In every
//! other build `mutant!` is the constant `false`, and nothing of this is compiled in.
//!
//! Key types: `Mutant`, the macro `mutant!`. The list itself, `mutant/list.rs`, is shared with the tool that runs them (`cargo xtask mutants`).
//!
//! Invariant:
//! 1. Every mutant of the list has a place in the code: one that has none is a dead variant, which the lints refuse.

macro_rules! mutants {
    ($($rule:ident $name:ident $suite:ident $filter:literal $text:literal;)*) => {
        /// A mistake.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Mutant {
            $(
                #[doc = concat!(stringify!($rule), ": ", $text)]
                $name,
            )*
        }

        #[cfg(mutant)]
        const ALL: &[(&str, Mutant)] = &[$((stringify!($name), Mutant::$name)),*];
    };
}
include!("mutant/list.rs");

/// Tells whether a mistake is to be made; false, and known when compiling, in every build but that of the mutants.
#[cfg(not(mutant))]
macro_rules! mutant {
    ($name:ident) => {{
        const _: $crate::mutant::Mutant = $crate::mutant::Mutant::$name;
        false
    }};
}

/// Tells whether a mistake is to be made.
#[cfg(mutant)]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutant::is($crate::mutant::Mutant::$name)
    };
}

#[cfg(mutant)]
extern crate std;

/// Tells whether `mutant` is the one that VMMU_MUTANT names.
#[cfg(mutant)]
pub(crate) fn is(mutant: Mutant) -> bool {
    static ACTIVE: std::sync::OnceLock<Option<Mutant>> = std::sync::OnceLock::new();
    let read = || {
        let name = std::env::var("VMMU_MUTANT").ok()?;
        ALL.iter().find(|(n, _)| *n == name).map(|(_, m)| *m)
    };
    *ACTIVE.get_or_init(read) == Some(mutant)
}
