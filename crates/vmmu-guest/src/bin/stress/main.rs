//! The stress guest: paging used in every way that the guest can think of, each result checked.
//!
//! It runs the same natively, under shadow paging and under nested paging, so it is the oracle of whole-system tests. Each
//! check prints `ok <name> <n> accesses, <n> faults` or
//!
//! ```text
//! FAIL <name> round <n>: <what> at <address>: got <outcome>, want <outcome> (<source line>)
//! ```
//!
//! on the debug console and on the first serial port. The run ends with the number of failed checks (at most 100), or 127
//! after a panic: an exception where none can be.
//!
//! Options on the command line: `only=TEXT` runs the checks whose names begin so, `rounds=N` (2 by default) goes through
//! them N times, so that frames, addresses and tables come into use again, `seed=N` and `steps=N` (4000) shape the random
//! programs.
//!
//! What an access must do is read out of the tables in memory by `model`, a translation of its own written from the
//! manuals; the codes that matter most are written out beside that. RAM: 64 MiB from 0.
#![no_std]
#![no_main]

mod access;
mod bits;
mod changes;
mod delivery;
mod forms;
#[path = "../../freestanding/mod.rs"]
mod freestanding;
mod lab;
mod model;
mod probe;
mod processes;
mod random;
mod rights;
mod sizes;
mod state;
mod tables;

use core::fmt::Write;

use vmmu_guest::console::Console;
use vmmu_guest::machine::{CommandLine, end_run};

use access::{Check, Mismatch};
use lab::{Features, Lab};

vmmu_guest::long_mode_entry!(main);

/// A check: its name and what it does.
type Named = (&'static str, fn(&mut Lab) -> Check);

/// Every check, in running order.
const CHECKS: &[Named] = &[
    ("small-pages", sizes::small_pages),
    ("far-addresses", sizes::far_addresses),
    ("large-page", sizes::large_page),
    ("huge-page", sizes::huge_page),
    ("size-changes", sizes::size_changes),
    ("invalidate-part", sizes::invalidate_part),
    ("tables-in-large-page", sizes::tables_in_large_page),
    ("across-pages", sizes::across_pages),
    ("leaf-invalidate", changes::leaf_invalidate),
    ("leaf-reload", changes::leaf_reload),
    ("appearance", changes::appearance),
    ("leaf-rights", changes::leaf_rights),
    ("subtree-switch", changes::subtree_switch),
    ("change-while-unlinked", changes::change_while_unlinked),
    ("table-reuse", changes::table_reuse),
    ("global-pages", changes::global_pages),
    ("cache-bits", changes::cache_bits),
    ("combinations", rights::combinations),
    ("large-combinations", rights::large_combinations),
    ("error-codes", rights::error_codes),
    ("shared-table", rights::shared_table),
    ("shared-subtree", rights::shared_subtree),
    ("write-protect", rights::write_protect),
    ("write-protect-leftovers", rights::write_protect_leftovers),
    ("user-pages-shielded", rights::user_pages_shielded),
    ("no-execute-switch", rights::no_execute_switch),
    ("reserved-bits", rights::reserved_bits),
    ("ignored-bits", rights::ignored_bits),
    ("aliases", rights::aliases),
    ("load-then-store", bits::load_then_store),
    ("store-first", bits::store_first),
    ("neighbours", bits::neighbours),
    ("large-leaves", bits::large_leaves),
    ("cleared-and-set-again", bits::cleared_and_set_again),
    ("faults-leave-dirty-alone", bits::faults_leave_dirty_alone),
    ("aliases-have-their-own-bits", bits::aliases_have_their_own),
    ("recursive-root", tables::recursive_root),
    ("table-as-data", tables::table_as_data),
    ("table-maps-itself", tables::table_maps_itself),
    (
        "code-changes-its-own-entry",
        tables::code_changes_its_own_entry,
    ),
    ("table-at-two-levels", tables::table_at_two_levels),
    ("odd-writes", tables::odd_writes),
    ("growing-table", tables::growing_table),
    ("code-through-aliases", tables::code_through_aliases),
    ("demand-paging", processes::demand_paging),
    ("interrupted-copy", processes::interrupted_copy),
    ("fork-and-copy", processes::fork_and_copy),
    ("switching", processes::switching),
    ("shared-kernel-half", processes::shared_kernel_half),
    ("short-lives", processes::short_lives),
    ("large-working-set", processes::large_working_set),
    ("fresh-stack", delivery::fresh_stack),
    ("broken-stack", delivery::broken_stack),
    ("fresh-descriptor-table", delivery::fresh_descriptor_table),
    ("device-page", delivery::device_page),
    ("registers-survive", state::registers_survive),
    ("cr2-survives", state::cr2_survives),
    (
        "cr3-through-every-register",
        state::cr3_through_every_register,
    ),
    ("invalidate-forms", state::invalidate_forms),
    ("control-registers", state::control_registers),
    ("unflushed-change", state::unflushed_change),
    ("status-word-in-memory", forms::status_word_in_memory),
    ("needless-prefixes", forms::needless_prefixes),
    ("repeated-ports", forms::repeated_ports),
    ("absent-memory", forms::absent_memory),
    ("random-1", |lab| random::program(lab, 1)),
    ("random-2", |lab| random::program(lab, 2)),
    ("random-3", |lab| random::program(lab, 3)),
];

/// The most failures that a run's value tells apart.
const MOST_FAILURES: u32 = 100;

extern "C" fn main(line: &'static CommandLine) -> ! {
    probe::install();
    let features = Features::detect();
    let mut lab = Lab::new(features, line);
    say(format_args!(
        "stress guest: {} physical bits, 1 GiB pages {}, {:?}\n",
        features.physical_bits, features.gigabyte_pages, features.control
    ));
    let only = line.option("only").unwrap_or_default();
    let chosen = CHECKS.iter().filter(|(name, _)| name.starts_with(only));
    let mut failures = 0;
    for round in 1..=line.number("rounds").unwrap_or(2) {
        for check in chosen.clone() {
            failures += u32::from(run(&mut lab, check, round).is_err());
        }
    }
    say(format_args!("{failures} failures\n"));
    end_run(failures.min(MOST_FAILURES))
}

/// Runs one check from a clean start and says how it went.
fn run(lab: &mut Lab, (name, check): &Named, round: u64) -> Check {
    lab.restart();
    let (accesses, faults) = (lab.accesses, lab.faults);
    let result = check(lab);
    probe::repairs_left();
    match result {
        Ok(()) => say(format_args!(
            "ok {name} {} accesses, {} faults\n",
            lab.accesses - accesses,
            lab.faults - faults
        )),
        Err(Mismatch {
            place,
            what,
            subject,
            got,
            want,
        }) => say(format_args!(
            "FAIL {name} round {round}: {what} at {subject:#x}: got {got:x?}, want {want:x?} ({}:{})\n",
            place.file(),
            place.line()
        )),
    }
    result
}

fn say(text: core::fmt::Arguments<'_>) {
    // Writing to the consoles cannot fail.
    let _ = Console.write_fmt(text);
}
