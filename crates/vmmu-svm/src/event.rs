//! Events on their way into the guest: injection, and what becomes of one whose delivery exited.
//!
//! An exit in the middle of a delivery leaves the event in EXITINTINFO (AMD APM vol. 2, section 15.7.2). Once the cause of the exit is
//! mended the event is injected again; if the guest gets an exception instead, the two are merged as the processor would have
//! (section 8.2.9).
//!
//! Invariants:
//! 1. An interrupt that the processor has taken from the controller is delivered, unless an exception of its delivery comes first,
//!    as on the bare machine.
//! 2. A software interrupt isn't injected again: RIP still points at its instruction, which runs again.

use vmmu::addr::Gva;
use vmmu::walk::PageFaultCode;

const VALID: u64 = 1 << 31;
const HAS_CODE: u64 = 1 << 11;

/// What kind of event it is (AMD APM vol. 2, section 15.20).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Interrupt = 0,
    Nmi = 2,
    Exception = 3,
    Software = 4,
}

/// An event in the form of EVENTINJ and EXITINTINFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event(u64);

/// An exception that the hypervisor raises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exception {
    /// Single-step trap.
    Debug,
    /// Undefined instruction.
    Undefined,
    /// General protection, error code 0.
    Protection,
    /// Page fault.
    Page(Gva, PageFaultCode),
    /// Any other, with its error code.
    Other(u8, Option<u16>),
}

/// What an exception raised during a delivery comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merged {
    /// This event is delivered.
    Deliver(Event),
    /// A fault during the delivery of #DF: the guest is shut down.
    TripleFault,
}

impl Event {
    /// An NMI.
    pub const NMI: Self = Self(2 | (Kind::Nmi as u64) << 8 | VALID);

    /// Returns the event of a field, if it holds one.
    #[inline]
    pub const fn from_field(field: u64) -> Option<Self> {
        if field & VALID == 0 {
            None
        } else {
            Some(Self(field))
        }
    }
    /// Returns the field's content.
    #[inline]
    pub const fn field(self) -> u64 {
        self.0
    }
    const fn vector(self) -> u8 {
        self.0 as u8
    }

    const fn exception(vector: u8, code: Option<u32>) -> Self {
        let code = match code {
            Some(code) => HAS_CODE | (code as u64) << 32,
            None => 0,
        };
        Self(vector as u64 | (Kind::Exception as u64) << 8 | VALID | code)
    }

    /// Returns what kind of event it was.
    ///
    /// The processor underneath may report an external interrupt, or an NMI, as an exception of that vector: exceptions have vectors
    /// below 32, and vector 2 is no exception.
    const fn kind(self) -> Kind {
        match (self.0 >> 8 & 7, self.vector()) {
            (2, _) | (3, 2) => Kind::Nmi,
            (3, vector) if vector < 32 => Kind::Exception,
            (4, _) => Kind::Software,
            _ => Kind::Interrupt,
        }
    }

    /// Returns what to inject so that a delivery that exited is taken up again.
    #[inline]
    pub const fn again(self) -> Option<Self> {
        let (kind, vector) = (self.kind(), self.vector());
        match kind {
            Kind::Software => None,
            // INT3 and INTO are instructions that run again.
            Kind::Exception if vector == 3 || vector == 4 => None,
            Kind::Exception => Some(self),
            Kind::Interrupt | Kind::Nmi => Some(Self(vector as u64 | (kind as u64) << 8 | VALID)),
        }
    }
}

impl Exception {
    const fn event(self) -> Event {
        match self {
            Self::Debug => Event::exception(1, None),
            Self::Undefined => Event::exception(6, None),
            Self::Protection => Event::exception(13, Some(0)),
            Self::Page(_, code) => Event::exception(14, Some(code.bits())),
            Self::Other(vector, Some(code)) => Event::exception(vector, Some(code as u32)),
            Self::Other(vector, None) => Event::exception(vector, None),
        }
    }

    /// Merges the exception with the event in whose delivery it came.
    pub const fn merge(self, delivering: Option<Event>) -> Merged {
        let own = self.event();
        let Some(first) = delivering else {
            return Merged::Deliver(own);
        };
        if !matches!(first.kind(), Kind::Exception) {
            return Merged::Deliver(own);
        }
        match (class(first.vector()), class(own.vector())) {
            (Class::DoubleFault, _) => Merged::TripleFault,
            (Class::Contributory, Class::Contributory)
            | (Class::Page, Class::Contributory | Class::Page) => {
                Merged::Deliver(Event::exception(8, Some(0)))
            }
            _ => Merged::Deliver(own),
        }
    }
}

/// How an exception takes part in a double fault.
enum Class {
    Benign,
    Contributory,
    Page,
    DoubleFault,
}

const fn class(vector: u8) -> Class {
    match vector {
        0 | 10..=13 => Class::Contributory,
        14 => Class::Page,
        8 => Class::DoubleFault,
        _ => Class::Benign,
    }
}

#[cfg(test)]
mod events_are_merged_as_by_the_processor {
    use super::*;

    const PAGE: Exception = Exception::Page(Gva::new(0x1000), PageFaultCode::WRITE);
    fn during(field: u64) -> Merged {
        PAGE.merge(Event::from_field(field))
    }

    #[test]
    fn a_page_fault_alone_is_delivered_with_its_code() {
        assert_eq!(during(0), Merged::Deliver(Event(0x2_8000_0b0e)));
    }

    #[test]
    fn in_a_page_fault_it_is_a_double_fault_and_in_that_the_end() {
        assert_eq!(during(0x8000_0b0e), Merged::Deliver(Event(0x8000_0b08)));
        assert_eq!(during(0x8000_0b08), Merged::TripleFault);
    }

    #[test]
    fn in_a_contributory_exception_a_page_fault_comes_first_and_a_protection_fault_doubles() {
        assert_eq!(during(0x8000_0b0d), PAGE.merge(None));
        let merged = Exception::Protection.merge(Event::from_field(0x8000_0b0d));
        assert_eq!(merged, Merged::Deliver(Event(0x8000_0b08)));
    }

    #[test]
    fn in_an_interrupt_it_is_a_page_fault() {
        for field in [0x8000_0030, 0x8000_0330, 0x8000_0202, 0x8000_0480] {
            assert_eq!(during(field), PAGE.merge(None));
        }
    }

    #[test]
    fn a_delivery_is_taken_up_again_unless_its_instruction_runs_again() {
        let again = |field| {
            Event::from_field(field)
                .and_then(Event::again)
                .map(Event::field)
        };
        assert_eq!(again(0x8000_0030), Some(0x8000_0030));
        assert_eq!(again(0x8000_0330), Some(0x8000_0030));
        assert_eq!(again(0x8000_0302), Some(0x8000_0202));
        assert_eq!(again(0x5_8000_0b0e), Some(0x5_8000_0b0e));
        assert_eq!(again(0x8000_0480), None);
        assert_eq!(again(0x8000_0303), None);
        assert_eq!(again(0), None);
    }
}
