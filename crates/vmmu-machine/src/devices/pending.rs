//! What waits for one virtual processor: one word, read between blocks with a single load.
//!
//! Key types: [`PendingWord`], [`Pending`], [`Signals`].
//!
//! | bits | meaning | who sets | who clears |
//! |---|---|---|---|
//! | 0 | an interrupt can be acknowledged | the holder of the local APIC's lock | the same |
//! | 1 | NMI | any sender | the processor, taking signals |
//! | 2 | INIT | any sender | the processor, taking signals |
//! | 3 | start-up, with its vector in bits 8-15 | any sender | the processor, taking signals |

use core::sync::atomic::{AtomicU32, Ordering};

use bitflags::bitflags;

bitflags! {
    /// What waits for a processor.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Pending: u32 {
        /// An interrupt that [`Platform::acknowledge`](super::Platform::acknowledge) will name, to be taken with RFLAGS.IF set.
        const INTERRUPT = 1 << 0;
        /// A non-maskable interrupt: see [`Platform::take_signals`](super::Platform::take_signals).
        const NMI = 1 << 1;
        /// INIT.
        const INIT = 1 << 2;
        /// A start-up message.
        const STARTUP = 1 << 3;
    }
}

impl Pending {
    /// What is taken as signals.
    pub const SIGNALS: Self = Self::NMI.union(Self::INIT).union(Self::STARTUP);
}

/// The signals that came since they were last taken. INIT is to be served before a start-up message, an NMI last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Signals {
    /// INIT: the processor resets, and waits for a start-up message; the bootstrap processor would begin in the firmware.
    pub init: bool,
    /// A start-up message: a waiting processor starts in real mode at `vector << 12`; any other ignores it.
    pub startup: Option<u8>,
    /// A non-maskable interrupt.
    pub nmi: bool,
}

const VECTOR_SHIFT: u32 = 8;

/// The word of one processor.
#[derive(Debug, Default)]
pub(super) struct PendingWord(AtomicU32);

impl PendingWord {
    /// Reads it. Acquire pairs with the setters' Release: what was stored before a message is seen by who sees the message.
    #[inline]
    pub(super) fn get(&self) -> Pending {
        Pending::from_bits_truncate(self.0.load(Ordering::Acquire))
    }

    /// Sets or clears the interrupt bit; tells whether it was newly set. The caller holds the local APIC's lock: nobody else
    /// changes the bit, so a relaxed load of it is exact.
    pub(super) fn set_interrupt(&self, pending: bool) -> bool {
        let bit = Pending::INTERRUPT.bits();
        if (self.0.load(Ordering::Relaxed) & bit != 0) == pending {
            return false;
        }
        // Release pairs with the Acquire of `get`.
        if pending {
            self.0.fetch_or(bit, Ordering::Release);
        } else {
            self.0.fetch_and(!bit, Ordering::Release);
        }
        pending
    }

    /// Sends a signal other than a start-up message; tells whether it is new.
    pub(super) fn send(&self, signal: Pending) -> bool {
        self.0.fetch_or(signal.bits(), Ordering::Release) & signal.bits() == 0
    }

    /// Sends a start-up message; the last vector counts. Tells whether none was waiting.
    pub(super) fn send_startup(&self, vector: u8) -> bool {
        let message = Pending::STARTUP.bits() | u32::from(vector) << VECTOR_SHIFT;
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let new = word & !(0xff << VECTOR_SHIFT) | message;
            match self
                .0
                .compare_exchange_weak(word, new, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return word & Pending::STARTUP.bits() == 0,
                Err(other) => word = other,
            }
        }
    }

    /// Takes the signals. Acquire: see [`PendingWord::get`].
    pub(super) fn take_signals(&self) -> Signals {
        let word = self
            .0
            .fetch_and(Pending::INTERRUPT.bits(), Ordering::AcqRel);
        let had = Pending::from_bits_truncate(word);
        Signals {
            init: had.contains(Pending::INIT),
            startup: had
                .contains(Pending::STARTUP)
                .then_some((word >> VECTOR_SHIFT) as u8),
            nmi: had.contains(Pending::NMI),
        }
    }
}

#[cfg(test)]
mod signals_are_taken_once {
    use super::{Pending, PendingWord, Signals};

    #[test]
    fn and_an_interrupt_stays() {
        let word = PendingWord::default();
        assert!(word.set_interrupt(true));
        assert!(!word.set_interrupt(true));
        assert!(word.send(Pending::NMI));
        assert!(!word.send(Pending::NMI));
        word.send(Pending::INIT);
        assert!(word.send_startup(0x9f));
        assert!(!word.send_startup(0x10));
        assert_eq!(
            word.take_signals(),
            Signals {
                init: true,
                startup: Some(0x10),
                nmi: true
            }
        );
        assert_eq!(word.get(), Pending::INTERRUPT);
        assert_eq!(word.take_signals(), Signals::default());
        word.set_interrupt(false);
        assert_eq!(word.get(), Pending::empty());
    }
}
