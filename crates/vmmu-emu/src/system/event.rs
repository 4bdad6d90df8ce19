//! Interrupts and exceptions, as an embedder hands them over.
//!
//! Key types: [`Event`], [`Delivery`], [`Merged`]; key functions: [`raise`], [`deliver`], [`merge`].
//!
//! Invariants
//! 1. [`deliver`] has done nothing if it fails, but that CR2 holds the address of the #PF that it was to deliver.
//! 2. [`raise`] ends: a guest whose handlers fault for ever gives control back to the embedder after a few rounds.

use crate::cpu::{Cpu, Exception, Stop};
use crate::state::State;
use crate::system::interrupt::{self, Request, Source};

/// The vector of a page fault.
const PAGE_FAULT: u8 = 14;
/// The vector of a double fault.
const DOUBLE_FAULT: u8 = 8;
/// The vector of a non-maskable interrupt.
const NMI: u8 = 2;
/// How often [`raise`] merges before it gives control back: enough for a double fault.
const ROUNDS: usize = 8;

/// What is delivered between two instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A maskable interrupt; whether it may be delivered now is the embedder's to know.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception.
    Exception {
        /// Its vector and error code.
        exception: Exception,
        /// #PF: the address. It is kept here, since what is accessed in the meantime may change [`State::fault_address`].
        address: u64,
    },
}

impl Event {
    /// Makes one of an exception that was raised just now.
    #[must_use]
    pub const fn raised(state: &State, exception: Exception) -> Self {
        Self::Exception {
            exception,
            address: state.fault_address,
        }
    }

    /// Returns the vector.
    #[must_use]
    pub const fn vector(&self) -> u8 {
        match self {
            Self::Interrupt(vector) => *vector,
            Self::Nmi => NMI,
            Self::Exception { exception, .. } => exception.vector,
        }
    }
}

/// How [`raise`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Delivery {
    /// The guest's handler is next.
    Done,
    /// Something stopped it; this is to be raised again (it may be another event than the first).
    Stopped(Event, Stop),
    /// A fault while a double fault was delivered: the processor shuts down (AMD APM vol. 2, section 8.2.9).
    Shutdown,
}

/// What an exception becomes that is raised while another event is delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merged {
    /// This is delivered instead; the first event happens again, or is lost, as on a processor.
    Exception(Exception),
    /// The processor shuts down.
    Shutdown,
}

/// The classes of exceptions (AMD APM vol. 2, table 8-2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

const fn class(event: &Event) -> Class {
    match event {
        Event::Exception { exception, .. } => match exception.vector {
            0 | 10..=13 | 21 => Class::Contributory,
            PAGE_FAULT => Class::PageFault,
            DOUBLE_FAULT => Class::DoubleFault,
            _ => Class::Benign,
        },
        Event::Interrupt(_) | Event::Nmi => Class::Benign,
    }
}

/// Says what becomes of an exception raised while `first` was delivered (AMD APM vol. 2, section 8.2.9).
#[must_use]
pub const fn merge(first: &Event, second: Exception) -> Merged {
    let of_second = class(&Event::Exception {
        exception: second,
        address: 0,
    });
    let double = Merged::Exception(Exception::with_code(DOUBLE_FAULT, 0));
    match (class(first), of_second) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => {
            Merged::Shutdown
        }
        (Class::Contributory, Class::Contributory) => double,
        (Class::PageFault, Class::Contributory | Class::PageFault) => double,
        _ => Merged::Exception(second),
    }
}

/// Delivers an event: through the interrupt table to the guest's handler, or not at all.
///
/// # Errors
/// The exception that the delivery raises, which [`merge`] combines with this event; [`Stop::Exit`] of an access.
pub fn deliver(cpu: &mut impl Cpu, event: &Event) -> Result<(), Stop> {
    let state = cpu.state_mut();
    let (vector, code, source) = match *event {
        Event::Interrupt(vector) => (vector, None, Source::External),
        Event::Nmi => (NMI, None, Source::External),
        Event::Exception { exception, address } => {
            if exception.vector == PAGE_FAULT {
                state.cr2 = address;
            }
            (exception.vector, exception.code, Source::Exception)
        }
    };
    let request = Request {
        vector,
        code,
        source,
        rip: state.rip(),
    };
    interrupt::deliver(cpu, &request)?;
    if *event == Event::Nmi {
        cpu.state_mut().nmi_blocked = true;
    }
    Ok(())
}

/// Delivers an event, or what it becomes by the faults of its delivery: another exception, a double fault, a shutdown.
pub fn raise(cpu: &mut impl Cpu, event: Event) -> Delivery {
    let mut event = event;
    for _ in 0..ROUNDS {
        match deliver(cpu, &event) {
            Ok(()) => return Delivery::Done,
            Err(Stop::Exception(second)) => match merge(&event, second) {
                Merged::Exception(exception) => event = Event::raised(cpu.state(), exception),
                Merged::Shutdown => return Delivery::Shutdown,
            },
            Err(stop) => return Delivery::Stopped(event, stop),
        }
        // The address of a page fault that became part of a double fault is seen too.
        let state = cpu.state_mut();
        if event.vector() == DOUBLE_FAULT {
            state.cr2 = state.fault_address;
        }
    }
    Delivery::Stopped(event, Stop::Exit)
}
