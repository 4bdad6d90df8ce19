//! The processor that the guest is shown.
//!
//! [`Shape`] filters the real processor's CPUID: what the hypervisor doesn't offer, or the configuration hides, is taken out, and the
//! valid bits of CR4 and EFER follow from what is left.
//!
//! Invariants:
//! 1. A feature that the guest isn't shown can't be switched on: CR4 and EFER refuse its bit.

use core::num::NonZeroU8;

use vmmu::paging::{CpuFeatures, CpuModel, Cr4, Efer, PhysBits};

use crate::arch::register::CpuidResult;
use crate::config::{Configuration, Hidden, Paging};

const VMX: u32 = 1 << 5;
const MONITOR: u32 = 1 << 3;
const PCID: u32 = 1 << 17;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const XSAVE: u32 = 1 << 26;
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
const PSE36: u32 = 1 << 17;

const FSGSBASE: u32 = 1;
const SMEP: u32 = 1 << 7;
const INVPCID: u32 = 1 << 10;
const SMAP: u32 = 1 << 20;
const UMIP: u32 = 1 << 2;
const PKU: u32 = 1 << 3;
const OSPKE: u32 = 1 << 4;
const SHADOW_STACKS: u32 = 1 << 7;
const LA57: u32 = 1 << 16;
const PKS: u32 = 1 << 31;
const INDIRECT_BRANCH_TRACKING: u32 = 1 << 20;

const SVM: u32 = 1 << 2;
const SKINIT: u32 = 1 << 12;
const NX: u32 = 1 << 20;
const FFXSR: u32 = 1 << 25;
const PAGES_1G: u32 = 1 << 26;

/// Bit of the XSAVE state component of PKRU.
const PKRU_STATE: u32 = 1 << 9;

/// The filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    cpus: NonZeroU8,
    hidden: Hidden,
    phys_bits: PhysBits,
    cr4_valid: Cr4,
    efer_valid: Efer,
    features: CpuFeatures,
}

impl Shape {
    /// Makes the filter for a configuration and the processor behind `cpuid`.
    pub fn new(configuration: &Configuration, cpuid: impl Fn(u32, u32) -> CpuidResult) -> Self {
        let mut hidden = configuration.hidden;
        if configuration.paging == Paging::Shadow {
            // The shadow engine emulates neither.
            hidden |= Hidden::PKU | Hidden::LA57;
        }
        let real = cpuid(0x8000_0008, 0).eax as u8;
        let asked = configuration.phys_bits.map_or(real, PhysBits::get);
        let phys_bits = PhysBits::new(asked.min(real)).unwrap_or(PhysBits::MAX);
        let mut shape = Self {
            cpus: configuration.cpus,
            hidden,
            phys_bits,
            cr4_valid: Cr4::empty(),
            efer_valid: Efer::empty(),
            features: CpuFeatures::empty(),
        };
        shape.derive(cpuid);
        shape
    }

    /// Works out which bits of CR4 and EFER the guest may set.
    fn derive(&mut self, cpuid: impl Fn(u32, u32) -> CpuidResult) {
        let seen = |leaf| self.filter(leaf, 0, Cr4::empty(), cpuid(leaf, 0));
        let (one, seven, extended) = (seen(1), seen(7), seen(0x8000_0001));
        let mut cr4 = Cr4::VME
            | Cr4::PVI
            | Cr4::TSD
            | Cr4::DE
            | Cr4::PSE
            | Cr4::PAE
            | Cr4::MCE
            | Cr4::PGE
            | Cr4::PCE;
        cr4 |= Cr4::OSFXSR | Cr4::OSXMMEXCPT;
        for (present, bit) in [
            (one.ecx & XSAVE, Cr4::OSXSAVE),
            (seven.ebx & FSGSBASE, Cr4::FSGSBASE),
            (seven.ebx & SMEP, Cr4::SMEP),
            (seven.ebx & SMAP, Cr4::SMAP),
            (seven.ecx & UMIP, Cr4::UMIP),
            (seven.ecx & PKU, Cr4::PKE),
            (seven.ecx & LA57, Cr4::LA57),
        ] {
            cr4.set(bit, present != 0);
        }
        let mut efer = Efer::SCE | Efer::LME | Efer::LMA;
        efer.set(Efer::NXE, extended.edx & NX != 0);
        efer.set(Efer::FFXSR, extended.edx & FFXSR != 0);
        self.features
            .set(CpuFeatures::PAGES_1G, extended.edx & PAGES_1G != 0);
        self.features.set(CpuFeatures::PSE36, one.edx & PSE36 != 0);
        (self.cr4_valid, self.efer_valid) = (cr4, efer);
    }

    /// Returns the bits that the guest may set in CR4.
    pub const fn cr4_valid(&self) -> Cr4 {
        self.cr4_valid
    }
    /// Returns the bits that the guest may set in EFER.
    pub const fn efer_valid(&self) -> Efer {
        self.efer_valid
    }
    /// Returns what translation needs to know of the processor.
    pub const fn model(&self) -> CpuModel {
        CpuModel {
            phys_bits: self.phys_bits,
            features: self.features,
        }
    }

    /// Turns the processor's answer into the guest's.
    #[inline]
    pub fn filter(
        &self,
        leaf: u32,
        subleaf: u32,
        cr4: Cr4,
        mut answer: CpuidResult,
    ) -> CpuidResult {
        let hides = |feature| self.hidden.contains(feature);
        match leaf {
            1 => {
                answer.ecx &= !(VMX | MONITOR | PCID | X2APIC | TSC_DEADLINE | OSXSAVE);
                answer.ecx |= HYPERVISOR;
                answer.ebx = answer.ebx & !(0xff << 16) | u32::from(self.cpus.get()) << 16;
                if cr4.contains(Cr4::OSXSAVE) {
                    answer.ecx |= OSXSAVE;
                }
            }
            5 => answer = CpuidResult::default(),
            7 if subleaf == 0 => {
                answer.ebx &= !INVPCID;
                answer.ecx &= !(OSPKE | PKS | SHADOW_STACKS);
                answer.edx &= !INDIRECT_BRANCH_TRACKING;
                remove(&mut answer.ebx, SMEP, hides(Hidden::SMEP));
                remove(&mut answer.ebx, SMAP, hides(Hidden::SMAP));
                remove(&mut answer.ecx, PKU, hides(Hidden::PKU));
                remove(&mut answer.ecx, LA57, hides(Hidden::LA57));
                if cr4.contains(Cr4::PKE) {
                    answer.ecx |= OSPKE;
                }
            }
            0xd if subleaf == 0 => remove(&mut answer.eax, PKRU_STATE, hides(Hidden::PKU)),
            0xd if subleaf == 9 && hides(Hidden::PKU) => answer = CpuidResult::default(),
            0x4000_0000 => answer = signature(),
            0x4000_0001..=0x4fff_ffff => answer = CpuidResult::default(),
            0x8000_0001 => {
                answer.ecx &= !(SVM | SKINIT);
                remove(&mut answer.edx, NX, hides(Hidden::NX));
                remove(&mut answer.edx, PAGES_1G, hides(Hidden::PDPE1GB));
            }
            0x8000_0008 => {
                answer.eax = answer.eax & !0xff | u32::from(self.phys_bits.get());
                answer.ecx = answer.ecx & !0xff | u32::from(self.cpus.get() - 1);
                if hides(Hidden::LA57) {
                    answer.eax = answer.eax & !0xff00 | 48 << 8;
                }
            }
            // Nested virtualisation and encrypted memory.
            0x8000_000a | 0x8000_001f => answer = CpuidResult::default(),
            _ => {}
        }
        answer
    }
}

/// Returns the leaf that names the hypervisor.
const fn signature() -> CpuidResult {
    let word = u32::from_le_bytes(*b"vmmu");
    CpuidResult {
        eax: 0x4000_0000,
        ebx: word,
        ecx: word,
        edx: word,
    }
}

fn remove(register: &mut u32, bit: u32, hidden: bool) {
    if hidden {
        *register &= !bit;
    }
}

#[cfg(test)]
mod the_guest_is_shown {
    use super::*;
    use core::num::NonZeroU8;

    fn shape(paging: Paging, hidden: Hidden, phys_bits: Option<u8>) -> Shape {
        let configuration = Configuration {
            paging,
            memory: 0,
            cpus: NonZeroU8::MIN,
            phys_bits: phys_bits.and_then(PhysBits::new),
            hidden,
            max_pages: None,
            audit: None,
        };
        Shape::new(&configuration, everything)
    }
    fn everything(leaf: u32, _: u32) -> CpuidResult {
        let all = CpuidResult {
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
        };
        if leaf == 0x8000_0008 {
            CpuidResult { eax: 0x3928, ..all }
        } else {
            all
        }
    }

    #[test]
    fn no_feature_whose_control_bit_it_may_not_set_and_none_less() {
        for hidden in (0..64).map(Hidden::from_bits_truncate) {
            for paging in [Paging::Shadow, Paging::Nested] {
                let shape = shape(paging, hidden, None);
                let seven = shape.filter(7, 0, Cr4::empty(), everything(7, 0));
                let extended =
                    shape.filter(0x8000_0001, 0, Cr4::empty(), everything(0x8000_0001, 0));
                assert_eq!(seven.ebx & SMEP != 0, shape.cr4_valid().contains(Cr4::SMEP));
                assert_eq!(seven.ebx & SMAP != 0, shape.cr4_valid().contains(Cr4::SMAP));
                assert_eq!(seven.ecx & PKU != 0, shape.cr4_valid().contains(Cr4::PKE));
                assert_eq!(seven.ecx & LA57 != 0, shape.cr4_valid().contains(Cr4::LA57));
                assert_eq!(
                    extended.edx & NX != 0,
                    shape.efer_valid().contains(Efer::NXE)
                );
                assert_eq!(extended.ecx & SVM, 0);
                assert!(
                    !shape.cr4_valid().contains(Cr4::PCIDE)
                        && !shape.efer_valid().contains(Efer::SVME)
                );
            }
        }
    }

    #[test]
    fn protection_keys_under_nested_paging_only() {
        assert!(
            shape(Paging::Nested, Hidden::empty(), None)
                .cr4_valid()
                .contains(Cr4::PKE)
        );
        assert!(
            !shape(Paging::Shadow, Hidden::empty(), None)
                .cr4_valid()
                .contains(Cr4::PKE)
        );
    }

    #[test]
    fn a_narrower_physical_address_but_never_a_wider_one() {
        let width = |bits| {
            shape(Paging::Nested, Hidden::empty(), bits)
                .filter(0x8000_0008, 0, Cr4::empty(), everything(0x8000_0008, 0))
                .eax
                & 0xff
        };
        assert_eq!(
            (width(None), width(Some(36)), width(Some(52))),
            (40, 36, 40)
        );
    }

    #[test]
    fn its_own_cr4_in_the_bits_that_mirror_it() {
        let shape = shape(Paging::Nested, Hidden::empty(), None);
        let mirrored = |cr4| {
            (
                shape.filter(1, 0, cr4, everything(1, 0)).ecx & OSXSAVE != 0,
                shape.filter(7, 0, cr4, everything(7, 0)).ecx & OSPKE != 0,
            )
        };
        assert_eq!(mirrored(Cr4::empty()), (false, false));
        assert_eq!(mirrored(Cr4::OSXSAVE | Cr4::PKE), (true, true));
    }
}
