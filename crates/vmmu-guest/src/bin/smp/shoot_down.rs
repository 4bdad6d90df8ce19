//! Flushes that one processor asks of others, with acknowledgement.
//!
//! Each pair of processors has a slot: the asking one writes what to flush and raises `asked`, then interrupts the other or
//! lets it find the request; the other flushes and raises `done` to the same number. While a processor waits, for whatever, it
//! serves its own slots ([`serve`]), so two that ask each other both get their answer.
//!
//! Invariants:
//! 1. A slot has one request at a time: the asking processor waits for it before the next.
//! 2. `done` is raised after the flush, so that who sees it knows that no older translation is left.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU64, Ordering};

use vmmu_guest::machine::register::{self, Control};
use vmmu_guest::machine::{Va, local_apic};

use crate::startup::MOST;
use crate::trap::{self, FLUSH_VECTOR};

/// What is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// The page of an address, by INVLPG.
    Page(Va),
    /// Everything that isn't global, by a load of CR3.
    Root,
    /// Everything, by two changes of CR4.PGE.
    Everything,
}

impl Flush {
    const ROOT: u64 = 0;
    const EVERYTHING: u64 = 1;

    fn to_word(self) -> u64 {
        match self {
            Self::Page(address) => address.value(),
            Self::Root => Self::ROOT,
            Self::Everything => Self::EVERYTHING,
        }
    }

    fn from_word(word: u64) -> Self {
        match word {
            Self::ROOT => Self::Root,
            Self::EVERYTHING => Self::Everything,
            address => Self::Page(Va::new(address)),
        }
    }

    /// Does it on this processor.
    pub(crate) fn run(self) {
        match self {
            Self::Page(address) => register::invalidate_page(address),
            Self::Root => register::reload_root(),
            Self::Everything => {
                let control = Control::current();
                control.symmetric_difference(Control::PGE).load();
                control.load();
            }
        }
    }
}

/// How the other processor learns of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// By an interrupt.
    Interrupt,
    /// It looks.
    Mailbox,
}

/// The requests of one processor to another.
struct Slot {
    what: AtomicU64,
    asked: AtomicU64,
    done: AtomicU64,
}

/// By asked processor, then by the one that asks.
static SLOTS: [[Slot; MOST]; MOST] = [const {
    [const {
        Slot {
            what: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            done: AtomicU64::new(0),
        }
    }; MOST]
}; MOST];

/// Flushes on this processor, `own`, and on `others`, a set of processors by number; returns when all have.
pub(crate) fn flush(own: usize, others: u64, what: Flush, signal: Signal) {
    let targets = (0..MOST).filter(|&other| other != own && others >> other & 1 != 0);
    for other in targets.clone() {
        let slot = &SLOTS[other][own];
        slot.what.store(what.to_word(), Ordering::SeqCst);
        slot.asked.fetch_add(1, Ordering::SeqCst);
        if signal == Signal::Interrupt {
            // The handler sends nothing, but it may come between the two halves of the command.
            trap::disable_interrupts();
            local_apic::send_fixed(other as u8, FLUSH_VECTOR);
            trap::enable_interrupts();
        }
    }
    what.run();
    for other in targets {
        let slot = &SLOTS[other][own];
        let asked = slot.asked.load(Ordering::SeqCst);
        while slot.done.load(Ordering::SeqCst) != asked {
            wait(own);
        }
    }
}

/// Does what others have asked of processor `own`, which is the one that calls.
pub(crate) fn serve(own: usize) {
    for slot in &SLOTS[own] {
        let asked = slot.asked.load(Ordering::SeqCst);
        if slot.done.load(Ordering::SeqCst) != asked {
            Flush::from_word(slot.what.load(Ordering::SeqCst)).run();
            // An interrupt may have come since, and served the same request.
            slot.done.fetch_max(asked, Ordering::SeqCst);
        }
    }
}

/// One turn of a loop that waits for another processor.
pub(crate) fn wait(own: usize) {
    serve(own);
    spin_loop();
}
