//! The gate's strategies, and proposals that sound right and are wrong, under the C11 memory model: the real type with an atomic increment.
//!
//! Each test prints `gate <row>: <executions> executions, <updates lost>`; `vmmu litmus` shows the lines. Strategies with a heavy barrier are not here:
//! loom knows no barrier on another processor.

use std::println;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering as Std};

use loom::sync::atomic::AtomicU64;
use loom::thread;

use crate::gate::{Fenced, Gate, Locked, Strategy, Word};
use crate::sync::{Ordering, fence};

const OLD: u64 = 1;
const NEW: u64 = 2;

/// When a creator reads the guest's entry for the last time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reread {
    AfterCount,
    BeforeCount,
}

/// Lets a creator and a guest write meet; returns how many executions lost the update.
fn lost<S: Strategy + 'static>(row: &str, reread: Reread) -> usize {
    let (executions, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, missed) = (Arc::clone(&executions), Arc::clone(&lost));
    loom::model(move || {
        counted.fetch_add(1, Std::Relaxed);
        let gate = Arc::new(Gate::new(S::default()));
        let entry = Arc::new(AtomicU64::new(OLD));
        let creator = {
            let (gate, entry) = (Arc::clone(&gate), Arc::clone(&entry));
            thread::spawn(move || {
                let early = entry.load(Ordering::Relaxed);
                gate.create();
                match reread {
                    Reread::AfterCount => entry.load(Ordering::Relaxed),
                    Reread::BeforeCount => early,
                }
            })
        };
        entry.store(NEW, Ordering::Relaxed);
        let is_open = gate.is_open();
        if creator.join().unwrap() == OLD && !is_open {
            missed.fetch_add(1, Std::Relaxed);
        }
    });
    let (executions, lost) = (executions.load(Std::Relaxed), lost.load(Std::Relaxed));
    println!("gate {row}: {executions} executions, {lost}");
    lost
}

/// A proposal that is wrong: where it has a full barrier.
macro_rules! proposal {
    ($name:ident, before $before:literal, after $after:literal, write $write:literal, $order:ident) => {
        #[derive(Debug, Default)]
        struct $name;

        impl Strategy for $name {
            const NAME: &'static str = stringify!($name);

            fn create(&self, word: &Word) {
                if $before {
                    fence(Ordering::SeqCst);
                }
                word.raw().fetch_add(1, Ordering::$order);
                if $after {
                    fence(Ordering::SeqCst);
                }
            }

            fn destroy(&self, word: &Word) {
                word.raw().fetch_sub(1, Ordering::AcqRel);
            }

            fn is_open(&self, word: &Word) -> bool {
                if $write {
                    fence(Ordering::SeqCst);
                }
                word.raw().load(Ordering::Acquire) != 0
            }
        }
    };
}

proposal!(Volatile, before false, after false, write false, Relaxed);
proposal!(EarlyBarrier, before true, after false, write true, Relaxed);
proposal!(CreateOnly, before false, after true, write false, Relaxed);
proposal!(WriteOnly, before false, after false, write true, Relaxed);

/// A write barrier and a read barrier: what release and acquire fences are at least.
#[derive(Debug, Default)]
struct WriteAndRead;

impl Strategy for WriteAndRead {
    const NAME: &'static str = "WriteAndRead";

    fn create(&self, word: &Word) {
        word.raw().fetch_add(1, Ordering::Relaxed);
        fence(Ordering::AcqRel);
    }

    fn destroy(&self, word: &Word) {
        word.raw().fetch_sub(1, Ordering::AcqRel);
    }

    fn is_open(&self, word: &Word) -> bool {
        fence(Ordering::AcqRel);
        word.raw().load(Ordering::Acquire) != 0
    }
}

#[test]
fn the_librarys_strategies_lose_nothing() {
    assert_eq!(lost::<Fenced>("fenced", Reread::AfterCount), 0);
    assert_eq!(lost::<Locked>("locked", Reread::AfterCount), 0);
}

#[test]
fn every_proposal_that_is_wrong_loses_an_update() {
    assert_ne!(lost::<Volatile>("volatile", Reread::AfterCount), 0);
    assert_ne!(lost::<WriteAndRead>("wmb-rmb", Reread::AfterCount), 0);
    assert_ne!(lost::<EarlyBarrier>("early-barrier", Reread::AfterCount), 0);
    assert_ne!(lost::<CreateOnly>("create-only", Reread::AfterCount), 0);
    assert_ne!(lost::<WriteOnly>("write-only", Reread::AfterCount), 0);
    assert_ne!(lost::<Fenced>("early-reread", Reread::BeforeCount), 0);
}
