//! How a run ends.
//!
//! Key type: [`End`].

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum End {
    /// The guest wrote this value to the debug-exit port.
    Exit(u32),
    /// The guest switched the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The guest ran into a triple fault; a report says where.
    TripleFault(String),
    /// The guest did what can't be served; the text says what.
    Refused(String),
    /// The processor was led where it must never be, or a check failed: a bug of the library or of this crate. The report says more.
    Broken(String),
    /// Every processor halts with interrupts off: nothing can happen any more.
    Halted,
    /// Time is over.
    Timeout,
    /// Somebody outside ended it.
    Stopped,
}
