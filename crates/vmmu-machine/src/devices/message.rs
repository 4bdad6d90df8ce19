//! Interrupt messages: what I/O APIC and local APICs send to local APICs (Intel SDM vol. 3, section 11.6.1; 82093AA, 3.2.4).

/// Where a message goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Destination {
    /// The local APIC with this identifier; FFh: all.
    Physical(u8),
    /// Those whose logical identifier matches, by the format that each has chosen.
    Logical(u8),
    /// The sender itself.
    Itself,
    /// All.
    All,
    /// All but the sender.
    Others,
}

/// What a message does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Delivery {
    /// Requests an interrupt at every destination.
    Fixed,
    /// Requests an interrupt at the destination with the lowest priority.
    Lowest,
    /// A system-management interrupt: there is none.
    Smi,
    /// A non-maskable interrupt.
    Nmi,
    /// Resets.
    Init,
    /// Starts a processor that waits after INIT; the vector is the page.
    Startup,
    /// An interrupt whose vector the 8259s know.
    External,
    /// An encoding without a meaning.
    Reserved,
}

impl Delivery {
    /// Decodes the three bits of a delivery mode.
    pub(super) const fn from_bits(bits: u32) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::Lowest,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            7 => Self::External,
            _ => Self::Reserved,
        }
    }
}

/// How an interrupt is triggered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trigger {
    /// By an edge: it is requested once.
    Edge,
    /// By a level: its end is told to the I/O APIC, which requests it again while the level lasts.
    Level,
}

impl Trigger {
    /// Decodes a trigger-mode bit, at position 15 everywhere.
    pub(super) const fn from_register(register: u32) -> Self {
        if register & 1 << 15 == 0 {
            Self::Edge
        } else {
            Self::Level
        }
    }
}

/// A message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Message {
    pub(super) destination: Destination,
    pub(super) delivery: Delivery,
    pub(super) trigger: Trigger,
    pub(super) vector: u8,
}
