//! The gate end to end: tables made by one thread while another writes to them, with each strategy.
//!
//! Key functions: [`all`], [`table`], [`wrong`].

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use vmmu::gate::{Fenced, Locked};
use vmmu_machine::membarrier::Membarrier;
use vmmu_parallel::Trouble;
use vmmu_parallel::stale::{Order, Stale, measure};

use crate::number::grouped;

/// A strategy, and whether the write was reported as it must be.
#[derive(Debug, Clone, Copy)]
pub struct Tried {
    seen: Stale,
    order: Order,
}

/// Tries every strategy, and a write that is reported too early.
///
/// # Errors
/// Those of the library; [`Trouble::OneProcessor`].
pub fn all(rounds: u32) -> Result<Vec<Tried>, Trouble> {
    let after = Order::AfterStore;
    let tried = |seen, order| Tried { seen, order };
    Ok(vec![
        tried(measure(Locked::default, rounds, after)?, after),
        tried(measure(Fenced::default, rounds, after)?, after),
        tried(measure(Membarrier::strategy, rounds, after)?, after),
        tried(
            measure(Fenced::default, rounds, Order::BeforeStore)?,
            Order::BeforeStore,
        ),
    ])
}

/// Lays out the table.
#[must_use]
pub fn table(all: &[Tried]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "tables made on one core, written on another",
        "rounds",
        "met",
        "stale translations",
    ]);
    for Tried { seen, order } in all {
        let name = match order {
            Order::AfterStore => seen.strategy.to_owned(),
            Order::BeforeStore => {
                format!(
                    "{}, but the write reported before it is made",
                    seen.strategy
                )
            }
        };
        table.add_row([
            name,
            grouped(seen.rounds.into()),
            grouped(seen.met.into()),
            grouped(seen.stale.into()),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Returns what must not have happened: a strategy that left something stale.
#[must_use]
pub fn wrong(all: &[Tried]) -> Vec<String> {
    let bad = all
        .iter()
        .filter(|tried| tried.order == Order::AfterStore && tried.seen.stale > 0);
    bad.map(|tried| {
        format!(
            "{} left {} stale translations on this machine",
            tried.seen.strategy, tried.seen.stale
        )
    })
    .collect()
}

#[cfg(test)]
mod judging {
    use super::{Tried, table, wrong};
    use vmmu_parallel::stale::{Order, Stale};

    #[test]
    fn what_is_wrong_on_purpose_counts_against_nobody() {
        let tried = |order, stale| Tried {
            seen: Stale {
                strategy: "fenced",
                rounds: 10,
                met: 5,
                stale,
            },
            order,
        };
        let early = tried(Order::BeforeStore, 3);
        assert!(wrong(&[tried(Order::AfterStore, 0), early]).is_empty());
        assert_eq!(wrong(&[tried(Order::AfterStore, 1)]).len(), 1);
        assert!(table(&[early]).contains("reported before it is made"));
    }
}
