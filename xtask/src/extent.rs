//! How much is explored: what CI has time for, or the long form.
//!
//! Key type: [`Extent`].

use clap::Args;

/// How much is explored.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Extent {
    /// Runs the long form
    #[arg(long)]
    long: bool,
}

impl Extent {
    /// Returns what belongs to this extent.
    pub(crate) const fn choose<'a>(self, short: &'a str, long: &'a str) -> &'a str {
        if self.long { long } else { short }
    }
}
