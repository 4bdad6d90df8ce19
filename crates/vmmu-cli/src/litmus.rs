//! `vmmu litmus`: may a guest write read the count of indirect shadow pages without a lock, with which barriers, at what cost?
//!
//! Key function: [`litmus()`]. `docs/litmus.md` tells the story.
//!
//! | module | noun |
//! |---|---|
//! | [`verdicts`] | every answer explored under x86-TSO, and under C11 by loom |
//! | [`loom`] | the loom tests of the real type |
//! | [`side`] | both sides of each answer, on this machine |
//! | [`race`] | the two sides in lockstep on two cores |
//! | [`stale`] | tables made on one core and written on another |
//! | [`guest`] | the same by a guest with two processors, on the software machine |
//! | [`cost`] | what an operation costs |

pub mod cost;
pub mod guest;
pub mod loom;
pub mod race;
pub mod side;
pub mod stale;
pub mod verdicts;

use std::path::Path;

use vmmu_machine::membarrier::Membarrier;

use crate::args::LitmusArgs;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::screen::say;
use crate::signals;
use crate::workspace::Workspace;

/// The part of the rounds in which tables are made and written: each takes far longer.
const STALE_PART: u32 = 15;
/// The part of the rounds that a guest plays.
const GUEST_PART: u32 = 15;

/// Explores, tries, measures, and prints.
///
/// # Errors
///
/// [`Error::Unmeasured`] if there is one processor only, [`Error::Litmus`] if a verdict is not what it must be; those of building the loom tests; [`Error::File`] for the export.
pub fn litmus(args: &LitmusArgs) -> Result<u8> {
    signals::end_soon()?;
    if let Some(folder) = &args.export {
        export(folder)?;
    }
    say(
        "May a guest write, performed by the hypervisor, read the count of shadow pages without a lock?\n\n",
    )?;
    let loom = loom::run(&Workspace::find())?;
    let verdicts = verdicts::explore(&loom);
    say(&format!("{}\n", verdicts.table()))?;
    say(&format!("{}\n", verdicts.traces()))?;
    let strategy = if Membarrier::register().is_some() {
        "membarrier(2) is there: asymmetric issues it when the gate opens"
    } else {
        "there is no membarrier(2) here: asymmetric falls back to fences on both sides"
    };
    say(&format!("On this machine ({strategy}):\n\n"))?;
    let progress = Progress::quiet("letting both sides meet on two cores");
    let races = race::all(args.rounds);
    drop(progress);
    say(&format!("{}\n\n", race::table(&races)))?;
    let progress = Progress::quiet("writing to tables while they are made");
    let tried =
        stale::all((args.rounds / STALE_PART).max(1)).map_err(|trouble| Error::Unmeasured {
            reason: trouble.to_string(),
        })?;
    drop(progress);
    say(&format!("{}\n\n", stale::table(&tried)))?;
    let progress = Progress::quiet("running a guest that writes to its tables while they are made");
    let seen = guest::all((args.rounds / GUEST_PART).max(1))?;
    drop(progress);
    say(&format!("{}\n\n", guest::table(&seen)))?;
    let progress = Progress::quiet("measuring what an operation costs");
    say(&format!("{}\n\n", cost::table()))?;
    drop(progress);
    let mut wrong = verdicts.wrong();
    wrong.extend(race::wrong(&races));
    wrong.extend(stale::wrong(&tried));
    wrong.extend(guest::wrong(&seen));
    match wrong.first() {
        None => {
            say(&format!("{VERDICT}\n"))?;
            Ok(0)
        }
        Some(first) => Err(Error::Litmus {
            count: wrong.len(),
            first: first.clone(),
        }),
    }
}

const VERDICT: &str = "\
Verdict: yes. The write must be ordered before the read of the count, and counting before the last look at the guest's entry.
A full barrier on both sides does that (fenced, the default). So does none on the write side, if whoever opens the gate makes every other
processor execute one (asymmetric). Every cheaper proposal loses updates. Where only a heuristic reads the count, no barrier is needed.";

fn export(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::file("make the folder", folder))?;
    let files = vmmu_litmus::files();
    for file in &files {
        let path = folder.join(&file.name);
        std::fs::write(&path, &file.text).map_err(Error::file("write", &path))?;
    }
    let (count, folder) = (files.len(), folder.display());
    say(&format!("{count} litmus files are in {folder}\n\n"))
}
