//! The processor that the guest is shown.
//!
//! Key type: [`Shape`]: a baseline x86-64 with SSE2, FXSAVE, NX and SYSCALL, less what is hidden. What the emulator may be asked follows from it.
//!
//! Invariants:
//! 1. A feature that the guest isn't shown can't be switched on: CR4 and EFER refuse its bit.

use vmmu::paging::{CpuFeatures, CpuModel, Cr4, Efer, PhysBits};
use vmmu_cpu::{Features as MmuFeatures, Model};
use vmmu_emu::system::features::Features;

bitflags::bitflags! {
    /// Features that the guest isn't shown.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Hidden: u8 {
        /// No-execute pages.
        const NX = 1 << 0;
        /// Supervisor-mode execution prevention.
        const SMEP = 1 << 1;
        /// Supervisor-mode access prevention.
        const SMAP = 1 << 2;
        /// 1 GiB pages.
        const PDPE1GB = 1 << 3;
    }
}

/// The width of physical addresses unless told otherwise.
const PHYS_BITS: u8 = 40;
/// Family 17h, model 1, stepping 2: what the features come nearest to among processors that kernels know.
const SIGNATURE: u32 = 0x0080_0f12;

/// The processor that the guest is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    hidden: Hidden,
    phys_bits: u8,
    cpus: u8,
}

/// EAX, EBX, ECX, EDX.
type Answer = [u32; 4];

impl Shape {
    /// Makes it.
    #[must_use]
    pub fn new(hidden: Hidden, phys_bits: Option<PhysBits>, cpus: u8) -> Self {
        Self {
            hidden,
            phys_bits: phys_bits.map_or(PHYS_BITS, PhysBits::get),
            cpus,
        }
    }

    const fn shows(&self, feature: Hidden) -> bool {
        !self.hidden.contains(feature)
    }

    /// Returns the width of physical addresses.
    #[must_use]
    pub fn phys_bits(&self) -> PhysBits {
        PhysBits::new(self.phys_bits).unwrap_or(PhysBits::MAX)
    }

    /// Returns what the library needs to know.
    #[must_use]
    pub fn model(&self) -> CpuModel {
        let mut features = CpuFeatures::PSE36;
        features.set(CpuFeatures::PAGES_1G, self.shows(Hidden::PDPE1GB));
        CpuModel {
            phys_bits: self.phys_bits(),
            features,
        }
    }

    /// Returns what the processor's MMU is under nested paging, where it walks the guest's own tables; and under shadow paging, where it walks the
    /// library's, which no guest feature limits.
    #[must_use]
    pub fn mmu(&self, dimensions: crate::cpu::Dimensions) -> Model {
        let mut features = MmuFeatures::all() - MmuFeatures::UPPER_BIT8_RESERVED;
        let nested = dimensions == crate::cpu::Dimensions::Nested;
        if nested {
            features.set(MmuFeatures::GB_PAGES, self.shows(Hidden::PDPE1GB));
        }
        // The host's memory is larger than the guest's, but the library's tables name no more than that.
        let phys_bits = if nested { self.phys_bits } else { 48 };
        Model {
            phys_bits,
            features,
        }
    }

    /// Returns what the emulator offers.
    #[must_use]
    pub fn features(&self) -> Features {
        let mut features = Features::BASELINE;
        for (hidden, bit) in [(Hidden::SMEP, Cr4::SMEP), (Hidden::SMAP, Cr4::SMAP)] {
            if !self.shows(hidden) {
                features.cr4 &= !bit.bits();
            }
        }
        if !self.shows(Hidden::NX) {
            features.efer &= !Efer::NXE.bits();
        }
        features.physical_bits = self.phys_bits;
        features
    }

    /// Answers CPUID (AMD APM vol. 3, appendix E) for processor `cpu`.
    #[must_use]
    pub fn cpuid(&self, cpu: u8, leaf: u32) -> Answer {
        match leaf {
            0 => vendor(7),
            1 => self.basic(cpu),
            7 => self.structured(),
            0x4000_0000 => {
                let word = u32::from_le_bytes(*b"vmmu");
                [0x4000_0000, word, word, word]
            }
            0x8000_0000 => vendor(0x8000_0008),
            0x8000_0001 => self.extended(),
            0x8000_0002..=0x8000_0004 => brand(leaf - 0x8000_0002),
            // The time-stamp counter keeps its rate.
            0x8000_0007 => [0, 0, 0, 1 << 8],
            0x8000_0008 => [
                u32::from(self.phys_bits) | 48 << 8,
                0,
                u32::from(self.cpus.saturating_sub(1)),
                0,
            ],
            _ => [0; 4],
        }
    }

    fn basic(&self, cpu: u8) -> Answer {
        // FPU, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, PGE, CMOV, PAT, PSE36, CLFSH, MMX, FXSR, SSE, SSE2.
        let bits = [
            0, 2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26,
        ];
        let mut edx = bits.iter().fold(0, |edx, bit| edx | 1 << bit);
        if self.cpus > 1 {
            edx |= 1 << 28;
        }
        // Hypervisor; CMPXCHG16B where nobody notices that it is no single access.
        let mut ecx = 1 << 31;
        if self.cpus == 1 {
            ecx |= 1 << 13;
        }
        let ebx = 8 << 8 | u32::from(self.cpus) << 16 | u32::from(cpu) << 24;
        [SIGNATURE, ebx, ecx, edx]
    }

    const fn structured(&self) -> Answer {
        // FSGSBASE; UMIP. TSC_ADJUST: systems trust a time-stamp counter more that they can see nobody has changed.
        let mut ebx = 1 | 1 << 1;
        if self.shows(Hidden::SMEP) {
            ebx |= 1 << 7;
        }
        if self.shows(Hidden::SMAP) {
            ebx |= 1 << 20;
        }
        [0, ebx, 1 << 2, 0]
    }

    fn extended(&self) -> Answer {
        // As leaf 1, SYSCALL, RDTSCP, long mode; no SYSENTER and CLFLUSH here.
        let mut edx = self.basic(0)[3] & 0x0183_f3ff & !(1 << 11);
        edx |= 1 << 11 | 1 << 27 | 1 << 29;
        if self.shows(Hidden::NX) {
            edx |= 1 << 20;
        }
        if self.shows(Hidden::PDPE1GB) {
            edx |= 1 << 26;
        }
        // LAHF in 64-bit mode.
        [SIGNATURE, 0, 1, edx]
    }
}

const fn vendor(last: u32) -> Answer {
    let word = u32::from_le_bytes;
    [last, word(*b"Auth"), word(*b"cAMD"), word(*b"enti")]
}

fn brand(third: u32) -> Answer {
    let mut text = [0; 48];
    let name = b"vmmu software processor";
    text[..name.len()].copy_from_slice(name);
    let word = |i: usize| {
        let at = third as usize * 16 + i * 4;
        u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]])
    };
    [word(0), word(1), word(2), word(3)]
}

#[cfg(test)]
mod the_guest {
    use super::{Hidden, Shape};
    use vmmu::paging::{Cr4, Efer, PhysBits};

    #[test]
    fn can_switch_on_what_it_is_shown_and_nothing_else() {
        let all = Shape::new(Hidden::empty(), None, 1);
        assert_ne!(all.cpuid(0, 7)[1] & 1 << 20, 0);
        assert_ne!(all.features().cr4 & Cr4::SMAP.bits(), 0);
        let none = Shape::new(Hidden::all(), PhysBits::new(36), 1);
        assert_eq!(none.cpuid(0, 7)[1] & (1 << 7 | 1 << 20), 0);
        assert_eq!(none.cpuid(0, 0x8000_0001)[3] & (1 << 20 | 1 << 26), 0);
        assert_eq!(none.features().cr4 & (Cr4::SMAP | Cr4::SMEP).bits(), 0);
        assert_eq!(none.features().efer & Efer::NXE.bits(), 0);
        assert_eq!(none.cpuid(0, 0x8000_0008)[0] & 0xff, 36);
        assert_eq!(none.model().phys_bits.get(), 36);
    }

    #[test]
    fn reads_who_makes_the_processor() {
        let shape = Shape::new(Hidden::empty(), None, 2);
        let text: Vec<u8> = (0x8000_0002..0x8000_0005)
            .flat_map(|leaf| shape.cpuid(0, leaf))
            .flat_map(u32::to_le_bytes)
            .collect();
        assert!(text.starts_with(b"vmmu software processor\0"));
        let [_, ebx, ecx, edx] = shape.cpuid(0, 0);
        let name: Vec<u8> = [ebx, edx, ecx]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        assert_eq!(name, b"AuthenticAMD");
        assert_eq!(shape.cpuid(1, 1)[1] >> 24, 1);
    }
}
