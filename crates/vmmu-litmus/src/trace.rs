//! An interleaving, for people.
//!
//! Key type: [`Trace`].

use core::fmt;

use crate::machine::{Cell, Op, Register, State, Step, Value};
use crate::program::Program;
use crate::threads::ARMED;

/// What happened, one line a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    lines: Vec<Line>,
    end: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Line {
    who: String,
    what: String,
}

impl Trace {
    pub(crate) fn new(program: &Program, (steps, last): &(Vec<(State, Step)>, State)) -> Self {
        let lines = steps
            .iter()
            .map(|(before, step)| line(program, before, *step));
        Self {
            lines: lines.collect(),
            end: end(program, last),
        }
    }

    /// Returns how many steps it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Says whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .lines
            .iter()
            .map(|line| line.who.len())
            .max()
            .unwrap_or(0);
        for (number, line) in self.lines.iter().enumerate() {
            writeln!(f, "{:>4}  {:width$}  {}", number + 1, line.who, line.what)?;
        }
        write!(f, "      {}", self.end)
    }
}

/// Shows a value; in the word ARMED has a name.
fn shown(program: &Program, cell: Cell, value: u8) -> String {
    if program.name(cell) == "word" && value & ARMED != 0 {
        format!("{} + ARMED", value & !ARMED)
    } else {
        value.to_string()
    }
}

fn line(program: &Program, before: &State, step: Step) -> Line {
    let name = |thread: u8| program.threads[usize::from(thread)].name;
    match step {
        Step::Leave(thread) => {
            let (cell, value) = before.oldest(thread).unwrap_or((Cell(0), 0));
            Line {
                who: format!("({})", name(thread)),
                what: format!(
                    "its store {} = {} reaches memory",
                    program.name(cell),
                    shown(program, cell, value)
                ),
            }
        }
        Step::Execute(thread) => Line {
            who: name(thread).to_owned(),
            what: before
                .next_op(program, thread)
                .map_or_else(String::new, |op| executed(program, before, thread, op)),
        },
    }
}

fn executed(program: &Program, before: &State, thread: u8, op: Op) -> String {
    let after = before.after(program, Step::Execute(thread));
    let cell = |cell| program.name(cell);
    let register = |state: &State, register: Register| state.register(thread, register);
    let found = |into| after.as_ref().map_or(0, |after| register(after, into));
    match op {
        Op::Load(into, from) => {
            format!(
                "reads {}: {}",
                cell(from),
                shown(program, from, found(into))
            )
        }
        Op::Store(to, value) => {
            let value = match value {
                Value::Constant(value) => value,
                Value::Register(from) => register(before, from),
                Value::Sum(from, more) => register(before, from).wrapping_add(more),
            };
            format!("{} = {value}, into its store buffer", cell(to))
        }
        Op::FetchAdd(old, at, by) => {
            let was = shown(program, at, found(old));
            match by {
                u8::MAX => format!("takes one off {}, atomically; it was {was}", cell(at)),
                by => format!("adds {by} to {}, atomically; it was {was}", cell(at)),
            }
        }
        Op::FetchOr(at, _) => format!("sets ARMED in {}, atomically", cell(at)),
        Op::FetchAnd(at, _) => format!("clears ARMED in {}, atomically", cell(at)),
        Op::CompareExchange(at, from, to) if before.memory(at) == from => {
            let (from, to) = (shown(program, at, from), shown(program, at, to));
            format!("{}: {from} becomes {to}, in one step", cell(at))
        }
        Op::CompareExchange(at, from, _) => {
            format!(
                "leaves {} as it is: it is not {}",
                cell(at),
                shown(program, at, from)
            )
        }
        Op::TakeLast { cell: at, .. } => {
            let left = after.as_ref().map_or(0, |after| after.memory(at));
            format!(
                "takes one off {}, in one step; {} is left",
                cell(at),
                shown(program, at, left)
            )
        }
        Op::Fence => "full barrier: its store buffer is empty".to_owned(),
        Op::Drain(other) => {
            let other = program.threads[usize::from(other)].name;
            format!("heavy barrier: the store buffer of {other} is empty")
        }
        Op::Lock(at, _) => format!("takes the {}", cell(at)),
        Op::Unlock(at) => format!("frees the {}", cell(at)),
        Op::Branch(..) => "goes on".to_owned(),
    }
}

fn end(program: &Program, last: &State) -> String {
    let guest = last.memory(program.guest);
    let stale = program.shadows.iter().find(|shadow| {
        let entry = last.memory(shadow.entry);
        entry != 0 && entry != guest
    });
    match stale {
        Some(shadow) => format!(
            "lost: the guest's entry is {guest}, {} maps {} for ever",
            program.name(shadow.entry),
            last.memory(shadow.entry)
        ),
        None => "stuck: nobody can go on".to_owned(),
    }
}
