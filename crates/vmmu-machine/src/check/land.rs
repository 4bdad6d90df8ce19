//! The machine's guest memory as the judge sees it.

use vmmu::addr::Gfn;
use vmmu_cpu::{Frame, Hpa};

use super::ground::{Ground, Home};
use crate::vmm::guest::GuestFrames;

impl Ground for GuestFrames {
    fn guest_frames(&self) -> u64 {
        let end = |piece: &crate::vmm::guest::Piece| piece.base.get() + piece.frames;
        self.pieces().iter().map(end).max().unwrap_or(0)
    }

    #[inline]
    fn home(&self, gfn: Gfn) -> Option<Home> {
        let number = self.number(gfn)?;
        loop {
            if let Some(frame) = self.frame(number) {
                return Some(Home {
                    frame,
                    writable: true,
                });
            }
            // On the move: that takes no longer than a copy.
            std::thread::yield_now();
        }
    }

    #[inline]
    fn guest_of(&self, frame: Frame) -> Option<Gfn> {
        self.gfn(self.number_at(frame)?)
    }

    #[inline]
    fn word(&self, at: Hpa) -> u64 {
        self.memory().load(at)
    }
}
