//! Linux booted with instructions counted: the whole boot, and 100 times fork and exec.
//!
//! Key type: [`Boot`].

use serde::Serialize;

use crate::args::{Paging, RunArgs};
use crate::error::{Error, Result};
use crate::number::{Limit, grouped};
use crate::run;

/// What a boot cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Boot {
    /// Instructions from the machine's reset to the shell.
    pub to_shell: u64,
    /// Instructions for 100 times fork and exec of `true`.
    pub forks: u64,
    /// Seconds of wall time for all of it.
    pub wall_seconds: f64,
}

const COMMANDS: &str = "\
a=$(tsc); i=0
while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done
b=$(tsc); echo \"$a $((b-a))\"";

/// The hypervisor shows its guest no ACPI tables and no interrupt routing; without these words the native boot would
/// do more work, not the same work faster.
const SAME_DEVICES: &str = "acpi=off noapic nolapic";

/// Boots Linux once.
///
/// # Errors
///
/// Those of a run; [`Error::Bench`] when the guest's line can't be read.
pub fn measure(paging: Paging, limit: Limit, qemu_args: &[String]) -> Result<Boot> {
    let mut args = RunArgs::exec(paging, COMMANDS);
    args.timeout = Some(limit);
    args.icount = true;
    args.append = Some(SAME_DEVICES.to_owned());
    // The same processor as for the operations; the later -cpu wins.
    args.qemu_arg = vec!["-cpu".to_owned(), super::CPU.to_owned()];
    args.qemu_arg.extend(qemu_args.iter().cloned());
    let record = run::exec(&args)?;
    let text = record.debug.text();
    let figures = text
        .split_once(' ')
        .and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    let Some((to_shell, forks)) = figures else {
        return Err(Error::Bench {
            reason: format!("Linux under {} paging printed {text:?}", paging.name()),
        });
    };
    Ok(Boot {
        to_shell,
        forks,
        wall_seconds: record.wall.as_secs_f64(),
    })
}

/// Lays out the boots, one a line, with their ratio to native.
#[must_use]
pub fn render(boots: &[(Paging, Boot)]) -> String {
    let native = boots
        .iter()
        .find(|(paging, _)| *paging == Paging::Native)
        .map(|(_, boot)| *boot);
    let ratio = |value: u64, of: fn(&Boot) -> u64| {
        native.map_or(String::new(), |n| {
            format!(" ({:.3} x native)", value as f64 / of(&n).max(1) as f64)
        })
    };
    let line = |(paging, boot): &(Paging, Boot)| {
        format!(
            "Linux, {}: {} instructions to the shell{}, {} for 100 x fork and exec{}; {:.1} s\n",
            paging.name(),
            grouped(boot.to_shell),
            ratio(boot.to_shell, |b| b.to_shell),
            grouped(boot.forks),
            ratio(boot.forks, |b| b.forks),
            boot.wall_seconds,
        )
    };
    boots.iter().map(line).collect()
}

#[cfg(test)]
mod ratios {
    use super::{Boot, render};
    use crate::args::Paging;

    #[test]
    fn each_boot_is_held_against_the_native_one() {
        let boot = |to_shell| Boot {
            to_shell,
            forks: 1000,
            wall_seconds: 1.0,
        };
        let text = render(&[(Paging::Native, boot(1000)), (Paging::Shadow, boot(1100))]);
        assert!(
            text.contains("shadow: 1,100 instructions to the shell (1.100 x native)"),
            "{text}"
        );
    }
}
