//! The processors as the board sees them: a local APIC each, a word of what is pending, and when the timer expires.
//!
//! Key type: [`Processors`]: delivers messages, and keeps words and times up to date whenever an APIC changes.
//!
//! Invariants:
//! 1. An APIC changes only inside [`Processors::update`], which refreshes the word and the time before it unlocks.
//! 2. No two APICs are locked at once, and nothing else is locked with one locked.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::local_apic::{BASE_BOOTSTRAP, BASE_ENABLED, LocalApic};
use super::message::{Delivery, Destination, Message, Trigger};
use super::pending::{Pending, PendingWord};
use super::{Time, Wake, lock, places};

/// The time at which nothing is due.
pub(super) const NEVER: u64 = u64::MAX;

/// One processor.
#[derive(Debug)]
struct Processor {
    apic: Mutex<LocalApic>,
    /// IA32_APIC_BASE.
    base: AtomicU64,
    pending: PendingWord,
    /// When the timer expires, or [`NEVER`].
    deadline: AtomicU64,
}

/// All of them.
pub(super) struct Processors {
    all: Box<[Processor]>,
    wake: Arc<dyn Wake>,
}

impl core::fmt::Debug for Processors {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(&self.all).finish()
    }
}

impl Processors {
    /// Makes `count` processors as firmware leaves them: the first in virtual wire mode, the others after reset.
    pub(super) fn new(count: u8, wake: Arc<dyn Wake>) -> Self {
        let processor = |id: u8| {
            let mut apic = LocalApic::new(id);
            let mut base = u64::from(places::LOCAL_APIC) | BASE_ENABLED;
            if id == 0 {
                apic.set_virtual_wire();
                base |= BASE_BOOTSTRAP;
            }
            Processor {
                apic: Mutex::new(apic),
                base: AtomicU64::new(base),
                pending: PendingWord::default(),
                deadline: AtomicU64::new(NEVER),
            }
        };
        Self {
            all: (0..count).map(processor).collect(),
            wake,
        }
    }

    /// Changes an APIC, or reads it.
    pub(super) fn update<R>(&self, cpu: usize, change: impl FnOnce(&mut LocalApic) -> R) -> R {
        let processor = &self.all[cpu];
        let mut apic = lock(&processor.apic);
        let result = change(&mut apic);
        let deadline = apic.next_event().map_or(NEVER, |at| at.0);
        // Relaxed: a time that is read late is acted on late, by a processor that looks again.
        processor.deadline.store(deadline, Ordering::Relaxed);
        if processor.pending.set_interrupt(apic.has_interrupt()) {
            self.wake.wake(cpu);
        }
        result
    }

    /// Returns a processor's word.
    #[inline]
    pub(super) fn pending(&self, cpu: usize) -> &PendingWord {
        &self.all[cpu].pending
    }

    /// Returns IA32_APIC_BASE.
    #[inline]
    pub(super) fn base(&self, cpu: usize) -> u64 {
        // Relaxed: it is the processor's own.
        self.all[cpu].base.load(Ordering::Relaxed)
    }

    /// Sets IA32_APIC_BASE, which is valid.
    pub(super) fn set_base(&self, cpu: usize, value: u64) {
        self.all[cpu].base.store(value, Ordering::Relaxed);
        self.update(cpu, |apic| {
            apic.set_globally_enabled(value & BASE_ENABLED != 0);
        });
    }

    /// Tells when the first timer expires.
    pub(super) fn next_event(&self) -> u64 {
        let deadlines = self
            .all
            .iter()
            .map(|processor| processor.deadline.load(Ordering::Relaxed));
        deadlines.min().unwrap_or(NEVER)
    }

    /// Lets timers expire.
    pub(super) fn advance(&self, now: Time) {
        for (cpu, processor) in self.all.iter().enumerate() {
            if processor.deadline.load(Ordering::Relaxed) <= now.0 {
                self.update(cpu, |apic| apic.fire(now));
            }
        }
    }

    /// Sets the line that leads from the 8259s to every LINT0.
    pub(super) fn set_external_line(&self, high: bool) {
        for cpu in 0..self.all.len() {
            if self.update(cpu, |apic| apic.set_lint0(high)) {
                self.signal(cpu, Pending::NMI);
            }
        }
    }

    /// Delivers a message that `sender`, or the I/O APIC, has sent.
    pub(super) fn deliver(&self, sender: Option<usize>, message: &Message) {
        if message.delivery == Delivery::Lowest {
            if let Some(cpu) = self.lowest(sender, message.destination) {
                self.request(cpu, message.vector, message.trigger);
            }
            return;
        }
        for cpu in 0..self.all.len() {
            if self.is_for(sender, message.destination, cpu) {
                self.deliver_to(cpu, message);
            }
        }
    }

    fn deliver_to(&self, cpu: usize, message: &Message) {
        match message.delivery {
            Delivery::Fixed => self.request(cpu, message.vector, message.trigger),
            Delivery::Nmi => self.signal(cpu, Pending::NMI),
            Delivery::Init => {
                self.update(cpu, LocalApic::reset);
                self.signal(cpu, Pending::INIT);
            }
            Delivery::Startup => {
                if self.all[cpu].pending.send_startup(message.vector) {
                    self.wake.wake(cpu);
                }
            }
            // Without a system-management mode, and with one pair of 8259s that has a line of its own.
            Delivery::Smi | Delivery::External => {}
            Delivery::Lowest | Delivery::Reserved => {}
        }
    }

    fn is_for(&self, sender: Option<usize>, destination: Destination, cpu: usize) -> bool {
        match destination {
            Destination::Itself => sender == Some(cpu),
            Destination::Others if sender == Some(cpu) => false,
            _ => {
                let apic = lock(&self.all[cpu].apic);
                apic.is_globally_enabled() && apic.matches(destination)
            }
        }
    }

    /// Chooses among the destinations the enabled one of the lowest priority, the first of equals.
    fn lowest(&self, sender: Option<usize>, destination: Destination) -> Option<usize> {
        (0..self.all.len())
            .filter(|&cpu| self.is_for(sender, destination, cpu))
            .filter_map(|cpu| {
                let apic = lock(&self.all[cpu].apic);
                apic.is_enabled().then(|| (apic.processor_priority(), cpu))
            })
            .min()
            .map(|(_, cpu)| cpu)
    }

    fn request(&self, cpu: usize, vector: u8, trigger: Trigger) {
        self.update(cpu, |apic| apic.request(vector, trigger));
    }

    fn signal(&self, cpu: usize, signal: Pending) {
        if self.all[cpu].pending.send(signal) {
            self.wake.wake(cpu);
        }
    }
}
