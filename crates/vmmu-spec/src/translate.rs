//! The translation of one linear address, as one pure function.
//!
//! Key functions: [`translate`], and [`error_code`] for those who find a fault by other means.
//! `walk` decodes the entries, `rights` judges the result.
//!
//! Invariants
//! 1. The first entry from the top that is not present or sets a reserved bit decides (SDM section 4.7);
//!    rights are judged only once the walk is complete.

use crate::outcome::{Cause, ErrorCode, Outcome, PageFault, Translation, Unbacked};
use crate::walk::{Mapping, Progress, Start, Stop, Walk};
use crate::{Access, Controls, Cr3, Cr4, Denial, Efer, Level, Linear, Memory, Path};

/// Translates `linear` for `access`, reading the paging structures from `memory`.
pub fn translate<M: Memory + ?Sized>(
    controls: &Controls,
    root: Cr3,
    linear: Linear,
    access: Access,
    memory: &M,
) -> Outcome {
    let mut walk = match begin(controls, root, linear, access) {
        Ok(walk) => walk,
        Err(outcome) => return outcome,
    };
    loop {
        let slot = walk.needs();
        let Some(value) = memory.read(slot.at, slot.width) else {
            let path = *walk.path();
            return Outcome::Unbacked(Unbacked { slot, path });
        };
        if let Some(outcome) = advance(&mut walk, value, access) {
            return outcome;
        }
    }
}

/// Starts a walk, or says what comes out without one.
#[expect(
    clippy::result_large_err,
    reason = "both sides are as large, and nothing allocates"
)]
pub(crate) fn begin(
    controls: &Controls,
    root: Cr3,
    linear: Linear,
    access: Access,
) -> Result<Walk<'_>, Outcome> {
    match Walk::start(controls, root, linear) {
        Start::Walk(walk) => Ok(walk),
        Start::Done(mapping) => Err(judge(controls, mapping, access)),
        Start::NonCanonical => Err(Outcome::NonCanonical),
        Start::Stopped(stop) => {
            // Only a PDPTE register stops a walk before it reads an entry.
            let level = Level::DirectoryPointer;
            Err(stopped(controls, access, level, stop, Path::new()))
        }
    }
}

/// Feeds one entry's value to a walk and returns what comes out, if it ends there.
pub(crate) fn advance(walk: &mut Walk<'_>, value: u64, access: Access) -> Option<Outcome> {
    let level = walk.needs().level;
    let controls = walk.controls();
    match walk.feed(value) {
        Progress::More => None,
        Progress::Done(mapping) => Some(judge(controls, mapping, access)),
        Progress::Stopped(stop) => Some(stopped(controls, access, level, stop, *walk.path())),
    }
}

/// Decides whether a completed walk permits the access (SDM section 4.6).
fn judge(controls: &Controls, mapping: Mapping, access: Access) -> Outcome {
    let denial = mapping.rights.denial(controls, access);
    if denial.is_empty() {
        return Outcome::Translation(Translation {
            mapping,
            access,
            mode: controls.mode(),
        });
    }
    page_fault(controls, access, Cause::Denied(denial), mapping.path)
}

fn stopped(controls: &Controls, access: Access, level: Level, stop: Stop, path: Path) -> Outcome {
    page_fault(controls, access, Cause::NoTranslation(level, stop), path)
}

fn page_fault(controls: &Controls, access: Access, cause: Cause, path: Path) -> Outcome {
    Outcome::PageFault(PageFault {
        code: error_code(controls, access, cause),
        cause,
        path,
        mode: controls.mode(),
    })
}

/// Returns the error code of a page fault (SDM section 4.7).
#[must_use]
pub fn error_code(controls: &Controls, access: Access, cause: Cause) -> ErrorCode {
    let of_cause = match cause {
        Cause::NoTranslation(_, Stop::NotPresent) => ErrorCode::empty(),
        // Reserved bits are not checked in entries that are not present: RSVD implies P.
        Cause::NoTranslation(_, Stop::Reserved(_)) => ErrorCode::PRESENT | ErrorCode::RESERVED,
        // PK is set whenever PKRU disallows the access, other reasons or not.
        Cause::Denied(denial) if denial.contains(Denial::PROTECTION_KEY) => {
            ErrorCode::PRESENT | ErrorCode::PROTECTION_KEY
        }
        Cause::Denied(_) => ErrorCode::PRESENT,
    };
    of_cause | access_code(controls, access)
}

/// The bits that describe the access, not the cause.
fn access_code(controls: &Controls, access: Access) -> ErrorCode {
    let mut code = ErrorCode::empty();
    code.set(ErrorCode::WRITE, access.is_write());
    code.set(ErrorCode::USER, access.is_user());
    code.set(
        ErrorCode::FETCH,
        access.is_fetch() && reports_fetches(controls),
    );
    code
}

/// SDM section 4.7: I/D is defined if CR4.SMEP = 1, or if CR4.PAE = 1 and EFER.NXE = 1.
fn reports_fetches(controls: &Controls) -> bool {
    controls.cr4().contains(Cr4::SMEP)
        || (controls.cr4().contains(Cr4::PAE) && controls.efer().contains(Efer::NXE))
}
