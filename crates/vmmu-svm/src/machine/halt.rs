//! HLT, with several processors: the processor waits outside its guest.
//!
//! There it needs no kick when another flushes the TLB: it flushes on its way back, once for all that came meanwhile. With one processor HLT
//! doesn't exit.

use super::nmi::Answered;
use super::{Machine, Stop};
use crate::arch::idle::Woken;

impl Machine {
    /// Waits until the guest's HLT, which is over, is ended. An interrupt is left to the guest, which takes it right behind the HLT.
    #[cold]
    pub(super) fn wait(&mut self) -> Result<(), Stop> {
        // The trap of single-stepping ends it too.
        while self.vcpu.vmcb.event == 0 {
            match self.vcpu.wait() {
                Woken::Interrupt => break,
                Woken::Nmi => match self.answer_nmi()? {
                    Answered::Hosts => {}
                    Answered::Reset => break,
                    Answered::Guests => self.inject_nmi(),
                },
            }
        }
        Ok(())
    }
}
