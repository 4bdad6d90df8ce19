//! The race as litmus files, so that anyone can check it with the common tools.
//!
//! Key types: [`LitmusFile`], [`Flavour`]; [`files`] makes all of them.
//!
//! A file holds the pair that decides: a creator that counts and reads the guest's entry again, a guest write that stores and reads the count. The locks, the hash and what follows
//! an open gate are left to our own explorer. The condition describes the lost update: the creator read the old entry, the write found no page.
//!
//! | flavour | tool | model |
//! |---|---|---|
//! | x86 | `herd7 -cat x86tso.cat FILE`, `litmus7 FILE` | x86-TSO, and the machine itself |
//! | C11 | `herd7 -cat rc11.cat FILE` | C11 |
//! | kernel | `herd7 -conf linux-kernel.cfg FILE` | the Linux-kernel memory model |
//!
//! A heavy barrier exists in none of these models. In the kernel flavour a grace period around a read-side section gives the same guarantee (whatever a section does
//! comes before the end of the period or after its beginning), so rows with a heavy barrier are exported there alone, with one creator.

use crate::scheme::{Barrier, Heavy, Increment, Reread, Scheme, WriteSide};
use crate::table::{ROWS, Row};

/// A tool's language.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    /// Instructions of x86.
    X86,
    /// C11 atomics.
    C11,
    /// The Linux kernel's primitives.
    Kernel,
}

/// A file to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LitmusFile {
    /// Its name.
    pub name: String,
    /// Its content.
    pub text: String,
}

/// What is known about a guest write's loss in the file's model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Condition {
    Possible,
    Impossible,
}

/// Returns all files.
#[must_use]
pub fn files() -> Vec<LitmusFile> {
    let flavours = [Flavour::X86, Flavour::C11, Flavour::Kernel];
    let all = ROWS
        .iter()
        .flat_map(|row| flavours.map(|flavour| file(row, flavour)));
    all.flatten().collect()
}

/// Returns a row in a flavour, if it can be said there.
fn file(row: &Row, flavour: Flavour) -> Option<LitmusFile> {
    let scheme = &row.scheme;
    let decides_here =
        scheme.increment == Increment::Atomic && scheme.look_up == Scheme::FENCED.look_up;
    let about_the_end = scheme.destroy != Scheme::FENCED.destroy;
    let heavy = scheme.heavy != Heavy::None;
    if !decides_here
        || about_the_end
        || heavy && flavour != Flavour::Kernel
        || !with_one_creator(scheme)
    {
        return None;
    }
    let suffix = match flavour {
        Flavour::X86 => "x86",
        Flavour::C11 => "c11",
        Flavour::Kernel => "kernel",
    };
    let name = format!("gate-{}-{suffix}", row.id);
    let body = match flavour {
        Flavour::X86 => x86(scheme),
        Flavour::C11 => c11(row),
        Flavour::Kernel => kernel(row),
    };
    let title = match flavour {
        Flavour::X86 => format!("X86 {name}"),
        Flavour::C11 | Flavour::Kernel => format!("C {name}"),
    };
    let text = format!(
        "{title}\n\"{}; {}\"\n{body}",
        row.name,
        expectation(row, flavour)
    );
    Some(LitmusFile {
        name: format!("{name}.litmus"),
        text,
    })
}

/// Says whether the row's mistake shows with one creator.
const fn with_one_creator(scheme: &Scheme) -> bool {
    matches!(
        scheme.heavy,
        Heavy::None | Heavy::UntilArmed | Heavy::BeforeIncrement
    )
}

fn expectation(row: &Row, flavour: Flavour) -> &'static str {
    let condition = match flavour {
        // Plain stores, as x86 compilers make of `count++`.
        Flavour::X86 if row.is_offered => Condition::Impossible,
        Flavour::X86 => Condition::Possible,
        Flavour::C11 | Flavour::Kernel if row.is_sound_in_c11() => Condition::Impossible,
        Flavour::C11 | Flavour::Kernel => Condition::Possible,
    };
    match condition {
        Condition::Possible => "the condition is reachable: an update gets lost",
        Condition::Impossible => "the condition is unreachable: no update gets lost",
    }
}

fn x86(scheme: &Scheme) -> String {
    let mut creator = Vec::new();
    if scheme.reread == Reread::BeforeIncrement {
        creator.push("MOV EAX,[entry]");
    }
    if scheme.barrier == Barrier::BeforeIncrement {
        creator.push("MFENCE");
    }
    creator.push("MOV [word],$1");
    if scheme.barrier == Barrier::AfterIncrement {
        creator.push("MFENCE");
    }
    if scheme.reread == Reread::AfterIncrement {
        creator.push("MOV EAX,[entry]");
    }
    let mut writer = vec!["MOV [entry],$2"];
    if scheme.write == WriteSide::Fence {
        writer.push("MFENCE");
    }
    writer.push("MOV EAX,[word]");
    let lines = creator.len().max(writer.len());
    let mut text = "{ entry=1; word=0; }\n P0              | P1              ;\n".to_owned();
    for line in 0..lines {
        let cell = |column: &[&str]| column.get(line).copied().unwrap_or_default().to_owned();
        text += &format!(" {:15} | {:15} ;\n", cell(&creator), cell(&writer));
    }
    text + "exists (0:EAX=1 /\\ 1:EAX=0)\n"
}

/// The words of a language.
struct Words {
    start: &'static str,
    parameters: &'static str,
    read: &'static str,
    barrier: &'static str,
    increment: &'static str,
    store: &'static str,
    count: &'static str,
    light: &'static str,
    read_barrier: &'static str,
}

const C11: Words = Words {
    start: "{ entry=1; word=0; }",
    parameters: "atomic_int* entry, atomic_int* word",
    read: "atomic_load_explicit(entry, memory_order_relaxed)",
    barrier: "atomic_thread_fence(memory_order_seq_cst);",
    increment: "atomic_fetch_add_explicit(word, 1, memory_order_relaxed);",
    store: "atomic_store_explicit(entry, 2, memory_order_relaxed);",
    count: "atomic_load_explicit(word, memory_order_acquire)",
    light: "atomic_thread_fence(memory_order_acq_rel);",
    read_barrier: "atomic_thread_fence(memory_order_acq_rel);",
};

const KERNEL: Words = Words {
    start: "{ int entry=1; atomic_t word=ATOMIC_INIT(0); }",
    parameters: "int *entry, atomic_t *word",
    read: "READ_ONCE(*entry)",
    barrier: "smp_mb();",
    increment: "atomic_inc(word);",
    store: "WRITE_ONCE(*entry, 2);",
    count: "atomic_read(word)",
    light: "smp_wmb();",
    read_barrier: "smp_rmb();",
};

fn c11(row: &Row) -> String {
    c(row, &C11)
}

fn kernel(row: &Row) -> String {
    c(row, &KERNEL)
}

fn c(row: &Row, words: &Words) -> String {
    let scheme = &row.scheme;
    let read = format!("int r1 = {};", words.read);
    let pair = row.id == "wmb-rmb";
    let mut creator: Vec<&str> = Vec::new();
    let mut add = |is_there: bool, line| creator.extend(is_there.then_some(line));
    add(scheme.reread == Reread::BeforeIncrement, read.as_str());
    add(scheme.barrier == Barrier::BeforeIncrement, words.barrier);
    add(scheme.heavy == Heavy::BeforeIncrement, "synchronize_rcu();");
    add(true, words.increment);
    add(pair, words.read_barrier);
    add(scheme.barrier == Barrier::AfterIncrement, words.barrier);
    add(scheme.heavy == Heavy::UntilArmed, "synchronize_rcu();");
    add(scheme.reread == Reread::AfterIncrement, read.as_str());
    let count = format!("int r2 = {};", words.count);
    let is_section = scheme.heavy != Heavy::None;
    let mut writer: Vec<&str> = Vec::new();
    let mut add = |is_there: bool, line| writer.extend(is_there.then_some(line));
    add(is_section, "rcu_read_lock();");
    add(true, words.store);
    add(pair, words.light);
    add(scheme.write == WriteSide::Fence, words.barrier);
    add(true, count.as_str());
    add(is_section, "rcu_read_unlock();");
    let thread = |number: u8, lines: &[&str]| {
        let body: String = lines.iter().map(|line| format!("  {line}\n")).collect();
        format!("P{number} ({}) {{\n{body}}}\n", words.parameters)
    };
    format!(
        "{}\n{}{}exists (0:r1=1 /\\ 1:r2=0)\n",
        words.start,
        thread(0, &creator),
        thread(1, &writer)
    )
}

#[cfg(test)]
mod litmus_files {
    use super::files;

    #[test]
    fn exist_for_each_language_with_names_of_their_own() {
        let files = files();
        for suffix in ["-x86.litmus", "-c11.litmus", "-kernel.litmus"] {
            let of_this = files.iter().filter(|file| file.name.ends_with(suffix));
            assert!(of_this.count() >= 7, "{suffix}");
        }
        let mut names: Vec<_> = files.iter().map(|file| &file.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), files.len());
    }

    #[test]
    fn say_what_the_row_does() {
        let files = files();
        let text = |name: &str| {
            &files
                .iter()
                .find(|file| file.name == name)
                .expect("it is made")
                .text
        };
        let fenced = text("gate-fenced-x86.litmus");
        assert_eq!(fenced.matches("MFENCE").count(), 2, "{fenced}");
        let one_sided = text("gate-create-only-x86.litmus");
        assert_eq!(one_sided.matches("MFENCE").count(), 1, "{one_sided}");
        assert!(text("gate-abrupt-kernel.litmus").contains("synchronize_rcu"));
        let early = text("gate-early-reread-c11.litmus");
        assert!(early.find("int r1") < early.find("fetch_add"), "{early}");
    }
}
