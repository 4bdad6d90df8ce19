//! Why a measurement could not be made.

use vmmu::addr::Gva;
use vmmu::{Error, FaultOutcome};

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// The library failed.
    #[error("the library: {0}")]
    Library(#[from] Error),
    /// An answer that the rig has no use for.
    #[error("unexpected answer to an access to {0}: {1:?}")]
    Answer(Gva, FaultOutcome),
    /// A fault was answered, and the tables still refuse the access or lead to another frame.
    #[error("an access to {gva} reaches {found:x?} instead of frame {wanted:#x}")]
    WrongFrame {
        /// The address.
        gva: Gva,
        /// The host frame that the tables lead to.
        found: Option<u64>,
        /// The host frame behind what the guest maps.
        wanted: u64,
    },
    /// There is one processor only.
    #[error("there is one processor, two are needed")]
    OneProcessor,
}
