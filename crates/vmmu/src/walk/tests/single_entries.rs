//! Entries decoded one by one mean what a walk through them found.

use super::guest::{ALL, bits32, level4, level5, pae};
use crate::addr::{Gfn, Level};
use crate::paging::{CpuFeatures, Cr4, Efer, PagingState};
use crate::walk::decoder::Step;
use crate::walk::{CacheBits, Decoder, Entry, Gpte, Rights};

/// Entries with every single bit and every pair of bits changed against an ordinary one.
fn entries() -> impl Iterator<Item = Gpte> {
    (0..64).flat_map(|a| (0..64).map(move |b| Gpte::new(ALL ^ 1 << a ^ 1 << b)))
}

fn states() -> impl Iterator<Item = PagingState> {
    [bits32(), pae(), level4(), level5()]
        .into_iter()
        .flat_map(|state| {
            let plain = PagingState {
                cr4: state.cr4 - Cr4::PSE,
                efer: state.efer - Efer::NXE,
                ..state
            };
            let mut poor = state;
            poor.cpu.features = CpuFeatures::empty();
            [state, plain, poor]
        })
}

#[test]
fn the_walk_and_the_decoder_judge_alike() {
    for state in states() {
        let decoder = Decoder::new(state.mode());
        let format = state.format();
        for &level in format.levels() {
            for gpte in
                entries().filter(|gpte| format.width().bytes() == 8 || gpte.raw() >> 32 == 0)
            {
                let step = decoder.step_in(format, level, gpte);
                let expected = match decoder.decode(level, gpte, Rights::all()) {
                    Entry::NotPresent | Entry::Reserved => Step::Invalid,
                    Entry::Table(_) => Step::Table,
                    Entry::Leaf(_) => Step::Leaf,
                };
                assert_eq!(step, expected, "{format:?} {level:?} {gpte:?}");
                assert_eq!(decoder.is_valid(level, gpte), step != Step::Invalid);
                let reserved = decoder.reserved_bits(level, gpte) != Gpte::new(0);
                assert_eq!(
                    gpte.has(Gpte::PRESENT) && reserved,
                    decoder.decode(level, gpte, Rights::all()) == Entry::Reserved
                );
            }
        }
    }
}

#[test]
fn a_leaf_keeps_what_a_mapping_needs() {
    let decoder = Decoder::new(level4().mode());
    let gpte = Gpte::new(1 << 63 | 9 << 59 | 0x1234_5000 | 1 << 8 | 1 << 7 | 1 << 4 | 0x25);
    let Entry::Leaf(leaf) = decoder.decode(Level::L1, gpte, Rights::all()) else {
        panic!("a leaf")
    };
    assert_eq!((leaf.base, leaf.rights), (Gfn::new(0x1_2345), Rights::USER));
    assert_eq!(
        (leaf.is_accessed(), leaf.is_dirty(), leaf.is_global()),
        (true, false, true)
    );
    assert_eq!(leaf.protection_key().get(), 9);
    assert_eq!(leaf.cache_bits(), CacheBits::PCD | CacheBits::PAT);
}

#[test]
fn the_pat_bit_moves_in_a_large_leaf() {
    let decoder = Decoder::new(level4().mode());
    for (bits, cache) in [
        (1 << 7, CacheBits::empty()),
        (1 << 12 | 1 << 7, CacheBits::PAT),
        (1 << 7 | 1 << 3, CacheBits::PWT),
    ] {
        let Entry::Leaf(leaf) = decoder.decode(Level::L2, Gpte::new(bits | ALL), Rights::all())
        else {
            panic!("a leaf")
        };
        assert_eq!(leaf.cache_bits(), cache);
    }
}

#[test]
fn rights_only_narrow() {
    let decoder = Decoder::new(level4().mode());
    let inherited = Rights::WRITE | Rights::EXECUTE;
    let Entry::Table(table) = decoder.decode(Level::L2, Gpte::new(0x3000 | ALL), inherited) else {
        panic!("a table")
    };
    assert_eq!((table.gfn, table.rights), (Gfn::new(3), inherited));
}

#[test]
fn accessed_and_dirty_do_not_change_an_entry() {
    let gpte = Gpte::new(0x5007);
    let used = gpte.with(Gpte::ACCESSED).with(Gpte::DIRTY);
    assert!(used.is_still(gpte) && used.is_still(used));
    assert!(!gpte.is_still(used));
    assert!(!used.without(Gpte::DIRTY).is_still(used));
    assert!(!gpte.with(Gpte::LARGE).is_still(gpte));
    assert!(!gpte.without(Gpte::WRITABLE).is_still(gpte));
}
