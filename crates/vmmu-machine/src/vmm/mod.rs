//! The hypervisor: enters the processor, is told why the guest left, calls the library, emulates.
//!
//! | part | file |
//! |---|---|
//! | one virtual processor: events, entries, exits | [`runner`] |
//! | faults, and what the library answers | `fault` |
//! | one instruction in the guest's name | `emulate` |
//! | the guest's tables, walked by the hypervisor | `walk` |
//! | registers in force | `paging` |
//! | frames taken back | [`reclaim`] |
//! | when the auditor looks, and that nobody calls the library then | [`audits`], [`quiet`] |
//! | the library's embedder | [`host`], [`guest`] |
//! | the processor that the guest is shown | [`cpuid`] |
//! | what a crash report says | [`report`] |
//!
//! Key type: [`Vm`], what all virtual processors share.
//!
//! Invariants:
//! 1. An exit either completes its instruction, or raises an exception, or resumes: each exactly once.
//! 2. What can't be served ends the run with a reason; nothing is guessed.

pub mod audits;
pub mod cpuid;
#[cfg(test)]
mod deliveries;
mod emulate;
pub mod end;
mod fault;
pub mod guest;
pub mod host;
mod paging;
pub mod quiet;
pub mod reclaim;
pub mod report;
pub mod runner;
mod walk;

use core::num::NonZeroU64;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use vmmu::Mmu;
use vmmu::addr::Gpa;

use crate::check::Observer;
use crate::clock::Clock;
use crate::cpu::{Dimensions, Kick};
use crate::devices::{Pending, Platform};
use crate::machine::{Mark, NestedTables};
use crate::memory::Memory;

use self::audits::Audits;
use self::cpuid::Shape;
use self::end::End;
use self::guest::GuestFrames;
use self::host::MachineHost;
use self::quiet::Quiet;

/// The most marks that are kept: a guest can make any number.
const MOST_MARKS: usize = 4096;

/// How long a hypervisor that reports too early is held up before it writes, at least.
const HELD_UP: Duration = Duration::from_micros(20);

/// What all virtual processors share.
#[derive(Debug)]
pub struct Vm<O: Observer> {
    /// The library.
    pub mmu: Mmu<MachineHost<O>>,
    /// Host memory.
    pub memory: Arc<Memory>,
    /// Guest memory.
    pub guest: Arc<GuestFrames>,
    /// The board.
    pub platform: Platform,
    /// The clock.
    pub clock: Clock,
    /// Whose tables processors walk.
    pub dimensions: Dimensions,
    /// What format nested tables have, if there are any.
    pub tables: NestedTables,
    /// The processor that the guest is shown.
    pub shape: Shape,
    /// Who watches.
    pub observer: Arc<O>,
    /// When the run is ended if the guest does not end it.
    pub deadline: Option<Instant>,
    /// How the processors are made to leave their guests.
    pub kicks: Box<[Kick]>,
    /// When the auditor looks.
    pub audits: Audits,
    /// When nobody calls the library.
    pub quiet: Quiet,
    /// By vCPU: it sleeps, and no interrupt wakes it.
    stuck: Mutex<Box<[bool]>>,
    over: AtomicBool,
    end: Mutex<Option<End>>,
    marks: Mutex<Vec<Mark>>,
}

/// Everything that a [`Vm`] is made of.
#[derive(Debug)]
pub struct Parts<O: Observer> {
    /// See [`Vm::mmu`].
    pub mmu: Mmu<MachineHost<O>>,
    /// See [`Vm::platform`].
    pub platform: Platform,
    /// See [`Vm::clock`].
    pub clock: Clock,
    /// See [`Vm::dimensions`].
    pub dimensions: Dimensions,
    /// See [`Vm::tables`].
    pub tables: NestedTables,
    /// See [`Vm::shape`].
    pub shape: Shape,
    /// See [`Vm::deadline`].
    pub deadline: Option<Instant>,
    /// The number of exits between two audits, if there are any before the end.
    pub audit_every: Option<NonZeroU64>,
}

impl<O: Observer> Vm<O> {
    /// Makes it.
    #[must_use]
    pub fn new(parts: Parts<O>) -> Self {
        let host = parts.mmu.host();
        Self {
            memory: Arc::clone(&host.memory),
            guest: Arc::clone(&host.guest),
            observer: Arc::clone(&host.observer),
            kicks: host.kicks.clone(),
            stuck: Mutex::new(host.kicks.iter().map(|_| false).collect()),
            mmu: parts.mmu,
            platform: parts.platform,
            clock: parts.clock,
            dimensions: parts.dimensions,
            tables: parts.tables,
            shape: parts.shape,
            deadline: parts.deadline,
            audits: Audits::new(parts.audit_every),
            quiet: Quiet::default(),
            over: AtomicBool::new(false),
            end: Mutex::new(None),
            marks: Mutex::default(),
        }
    }

    /// Ends the run; the first end counts.
    pub fn finish(&self, end: End) {
        self.end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(end);
        // Release: whoever sees that it is over sees the end.
        self.over.store(true, Ordering::Release);
        for kick in &self.kicks {
            kick.wake();
        }
    }

    /// Notes whether a processor sleeps and no interrupt wakes it; if all do, the run is over.
    ///
    /// A processor that is noted as stuck neither sends signals nor takes them before it is noted as not stuck: under the lock, where all are stuck, what was
    /// sent and not taken is seen.
    pub fn set_stuck(&self, number: usize, is_stuck: bool) {
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        stuck[number] = is_stuck;
        let is_signalled = |cpu| self.platform.pending(cpu).intersects(Pending::SIGNALS);
        let all = stuck.iter().all(|is_stuck| *is_stuck);
        if is_stuck && all && !(0..stuck.len()).any(is_signalled) {
            self.finish(End::Halted);
        }
    }

    /// Audits the library's structure; ends the run if a rule is broken. Nobody else calls the library meanwhile.
    pub fn audit(&self) {
        if let Some(end) = self.audits.run(&self.mmu) {
            self.finish(end);
        }
    }

    /// Makes a write in the guest's name, announced to the library and reported: afterwards, unless the machine is wrong on purpose.
    pub(crate) fn reported<T>(&self, gpa: Gpa, bytes: usize, write: impl FnOnce() -> T) -> T {
        if self.mmu.host().gate.reports_early() {
            self.mmu.guest_wrote(gpa, bytes as u64);
            std::thread::sleep(HELD_UP);
            return write();
        }
        let writing = self.mmu.begin_write(gpa, bytes as u64);
        let done = write();
        writing.report();
        done
    }

    /// Says whether the run is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Keeps a mark, unless a guest makes more than there is a use for.
    pub(crate) fn mark(&self, mark: Mark) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.len() < MOST_MARKS {
            marks.push(mark);
        }
    }

    /// Takes the marks.
    #[must_use]
    pub fn take_marks(&self) -> Vec<Mark> {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        core::mem::take(&mut *marks)
    }

    /// Takes the end of the run.
    #[must_use]
    pub fn take_end(&self) -> Option<End> {
        self.end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}
