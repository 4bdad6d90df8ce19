//! Direct-mapped arrays in front of the MMU: what nearly every access finds.
//!
//! Key types: [`Front`], [`Class`]. Each kind of access and privilege has an array of its own, so that a hit needs no check of rights.
//!
//! Invariants:
//! 1. An entry says what the MMU said when it was filled; whatever may change that calls [`Front::clear`].
//! 2. Closed, it holds nothing: a hostile processor decides at each access anew.

use vmmu_cpu::{Access, Hpa, Kind, Privilege};

/// The places of an array.
const PLACES: usize = 1024;
/// Three kinds of access, four privileges, and four more to make it a power of two.
const CLASSES: usize = 16;
/// Where the generation lies in a tag: in bits that repeat the address's bit 47.
const GENERATION: u32 = 48;

/// A kind of access with its privilege.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Class(usize);

impl Class {
    /// Makes one.
    #[inline(always)]
    pub(super) const fn new(kind: Kind, privilege: Privilege) -> Self {
        Self((kind as usize) * 4 + privilege as usize)
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    /// The page's address, with the generation in the top bits.
    tag: u64,
    /// What leads from the linear to the host-physical address.
    distance: u64,
}

/// The arrays.
#[derive(Debug)]
pub(super) struct Front {
    places: Box<[Place; PLACES * CLASSES]>,
    /// Shifted to its place in a tag.
    generation: u64,
    open: bool,
}

impl Front {
    /// Makes empty arrays; `open` says whether they ever hold anything.
    pub(super) fn new(open: bool) -> Self {
        let empty = Place {
            tag: 0,
            distance: 0,
        };
        let places = vec![empty; PLACES * CLASSES].into_boxed_slice();
        Self {
            places: places.try_into().expect("as long as it was made"),
            // Tags of generation 0 are the empty ones.
            generation: 1 << GENERATION,
            open,
        }
    }

    /// Says whether it ever holds anything.
    pub(super) const fn is_open(&self) -> bool {
        self.open
    }

    #[inline(always)]
    const fn index(class: Class, at: u64) -> usize {
        class.0 % CLASSES * PLACES + (at >> 12) as usize % PLACES
    }

    /// Finds where an access of `bytes` goes; misses if it is not aligned.
    #[inline(always)]
    pub(super) fn get(&self, class: Class, at: u64, bytes: usize) -> Option<Hpa> {
        let place = &self.places[Self::index(class, at)];
        let wanted = (at & (!0xfff | (bytes as u64 - 1))) ^ self.generation;
        (place.tag == wanted).then(|| Hpa::new(at.wrapping_add(place.distance)))
    }

    /// Finds where the byte at `at` lies.
    #[inline(always)]
    pub(super) fn get_byte(&self, class: Class, at: u64) -> Option<Hpa> {
        self.get(class, at, 1)
    }

    /// Puts in where the page around `at` lies.
    pub(super) fn fill(&mut self, access: Access, at: u64, hpa: Hpa) {
        if self.open {
            self.places[Self::index(Class::new(access.kind, access.privilege), at)] = Place {
                tag: (at & !0xfff) ^ self.generation,
                distance: hpa.get().wrapping_sub(at),
            };
        }
    }

    /// Takes out everything.
    pub(super) fn clear(&mut self) {
        self.generation = self.generation.wrapping_add(1 << GENERATION);
        if self.generation == 0 {
            self.generation = 1 << GENERATION;
            for place in self.places.iter_mut() {
                place.tag = 0;
            }
        }
    }
}

#[cfg(test)]
mod the_front {
    use super::{Class, Front};
    use vmmu_cpu::{Access, Hpa};

    const READ: Class = Class::new(Access::READ.kind, Access::READ.privilege);

    #[test]
    fn finds_what_was_put_in_for_that_kind_of_access_alone() {
        let mut front = Front::new(true);
        front.fill(Access::READ, 0xffff_8000_0000_1008, Hpa::new(0x5008));
        assert_eq!(
            front.get(READ, 0xffff_8000_0000_1ff8, 8),
            Some(Hpa::new(0x5ff8))
        );
        assert_eq!(front.get(READ, 0xffff_8000_0000_1ffc, 8), None);
        assert_eq!(front.get(READ, 0x0000_8000_0000_1ff8, 8), None);
        let write = Class::new(Access::WRITE.kind, Access::WRITE.privilege);
        assert_eq!(front.get(write, 0xffff_8000_0000_1000, 8), None);
        let user = Class::new(Access::USER_READ.kind, Access::USER_READ.privilege);
        assert_eq!(front.get(user, 0xffff_8000_0000_1000, 8), None);
    }

    #[test]
    fn forgets_everything_for_good() {
        let mut front = Front::new(true);
        assert_eq!(front.get(READ, 0, 8), None);
        front.fill(Access::READ, 0x2000, Hpa::new(0x6000));
        assert!(front.get(READ, 0x2000, 1).is_some());
        for _ in 0..0x2_0000 {
            front.clear();
            assert_eq!(front.get(READ, 0x2000, 1), None);
        }
        assert_eq!(front.get(READ, 0, 1), None);
    }

    #[test]
    fn holds_nothing_when_closed() {
        let mut front = Front::new(false);
        front.fill(Access::READ, 0x1000, Hpa::new(0x5000));
        assert_eq!(front.get(READ, 0x1000, 1), None);
    }
}
