//! Guest memory as the judge sees it: where each guest frame lies now, and what it holds.
//!
//! Key types: [`Ground`], the trait that a machine's memory implements; [`Home`]. [`entry`] reads guest tables through it.
//!
//! Invariants that it keeps:
//! 1. A guest frame moves to another host frame only inside an invalidation, with its content; [`Ground::home`] says so before the old host frame's
//!    content changes.
//! 2. A host frame backs at most one guest frame.

use vmmu::addr::Gfn;
use vmmu_cpu::{Frame, Hpa};
use vmmu_spec::{Physical, Width};

/// Where a guest frame lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Home {
    /// The host frame.
    pub frame: Frame,
    /// Whether the guest may write to it: the slot is not read-only.
    pub writable: bool,
}

/// Guest memory.
pub trait Ground: Send + Sync {
    /// Returns how many guest frames there may be: all numbers are below it.
    fn guest_frames(&self) -> u64;

    /// Returns where a guest frame lies now; `None` where no memory is.
    fn home(&self, gfn: Gfn) -> Option<Home>;

    /// Returns the guest frame that a host frame backs now; `None` for tables, free frames and those that were taken back.
    fn guest_of(&self, frame: Frame) -> Option<Gfn>;

    /// Reads the aligned word at a host address; one atomic load, with acquire ordering.
    fn word(&self, at: Hpa) -> u64;
}

/// Reads an entry of a guest table as it is now; `None` where no memory is.
pub(super) fn entry<G: Ground>(ground: &G, at: Physical, width: Width) -> Option<u64> {
    let gfn = Gfn::new(at.get() >> 12);
    let mut home = ground.home(gfn)?;
    loop {
        let word = ground.word(home.frame.hpa().plus(at.get() & 0xff8));
        // The frame may have been moved meanwhile, and the old one poisoned.
        let after = ground.home(gfn)?;
        if after.frame == home.frame {
            return Some(match width {
                Width::Eight => word,
                Width::Four => word >> ((at.get() & 4) * 8) & 0xffff_ffff,
            });
        }
        home = after;
    }
}
