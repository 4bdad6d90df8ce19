//! The image's course: take stock, lay memory out, load the guest, run it, report.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::num::NonZeroU8;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;
use vmmu::addr::Hpa;
use vmmu::host::VcpuId;

use crate::arch::apic::LocalApic;
use crate::arch::{heap, mapping, physical, register, start, world};
use crate::bundle::Bundle;
use crate::channel::{self, End};
use crate::config::Configuration;
use crate::cpuid::Shape;
use crate::cpus::{Cpus, identifier};
use crate::layout::Layout;
use crate::load::{Guest, acpi, load};
use crate::machine::{Board, Machine};
use crate::paging::Unit;
use crate::permission::{MsrMap, PortMap};
use crate::start_info::StartInfo;
use crate::tables::TableFrames;

/// A page for VMRUN to keep the host's state in.
#[repr(C, align(4096))]
struct HostSave([u8; 4096]);

/// The processor that is being started, for the one that takes it over.
static HANDED_OVER: Mutex<Option<Machine>> = Mutex::new(None);

/// Runs the image; called once, by the entry code, with the start info's address.
pub(crate) fn start(start_info: Hpa) -> ! {
    physical::install_descriptors();
    let info = StartInfo::parse(start_info, physical::copy_out);
    channel::open();
    let machine = info
        .map_err(|error| error.to_string())
        .and_then(|info| make(&info));
    match machine {
        Ok((first, None)) => {
            channel::ready();
            run(first)
        }
        Ok((first, Some(others))) => {
            channel::ready();
            others.complete(first)
        }
        Err(text) => {
            channel::claim_end();
            channel::stats(&[], &[]);
            channel::end(&End::Refused(text))
        }
    }
}

/// Goes on with the processor that was handed over: the course of every processor but the first, which waits for `up` to be called.
pub(crate) fn started(number: u8, up: impl FnOnce()) -> ! {
    let machine = HANDED_OVER.lock().take();
    let machine =
        machine.unwrap_or_else(|| panic!("processor {number} was started without its machine"));
    enable_svm();
    up();
    run(machine)
}

/// Switches SVM on, on this processor.
fn enable_svm() {
    let page: &'static HostSave = Box::leak(Box::new(HostSave([0; 4096])));
    register::enable_svm(world::physical(page));
}

/// Runs a processor until the guest ends, and reports.
fn run(mut machine: Machine) -> ! {
    let end = machine.run();
    channel::claim_end();
    let (mmu, mut bytes) = (machine.unit().counters(), machine.unit().bytes());
    bytes.push(("heap", heap::used() as u64));
    channel::stats(&mmu, &bytes);
    channel::end(&end)
}

/// Loads the guest, and starts all of several processors but the first; returns that.
fn make(info: &StartInfo) -> Result<(Machine, Option<Others>), String> {
    let module = info
        .modules
        .first()
        .ok_or("there is no bundle: the image wants one as its module")?
        .clone();
    let bundle =
        Bundle::parse(physical::module(module.clone())).map_err(|error| error.to_string())?;
    let configuration: Configuration = bundle
        .configuration
        .parse()
        .map_err(|error: crate::config::ConfigurationError| error.to_string())?;
    if !register::has_svm() {
        return Err("the processor has no SVM: start QEMU with -cpu max or -cpu EPYC".to_string());
    }
    let top = info
        .ram
        .iter()
        .map(|range| range.end)
        .max()
        .unwrap_or_default();
    if top.get() > 4 << 30 {
        mapping::map_above_4g(top);
    }
    let low = Hpa::new(0)..Hpa::new(1 << 20);
    let layout = Layout::divide(
        &info.ram,
        &[low, physical::image_range(), module],
        configuration.memory,
    )
    .map_err(|error| error.to_string())?;
    let (ram, frames) = physical::claim(layout);
    let ram = Arc::new(ram);
    let guest = Guest {
        kernel: bundle.kernel,
        modules: &bundle.modules,
        command_line: bundle.command_line,
        rsdp: None,
    };
    let entry = load(&guest, &mut &*ram).map_err(|error| error.to_string())?;
    if configuration.cpus > NonZeroU8::MIN {
        acpi::write(configuration.cpus, &mut &*ram).map_err(|error| error.to_string())?;
    }

    let shape = Shape::new(&configuration, register::cpuid);
    let cpus = Arc::new(Cpus::new(configuration.cpus, LocalApic::get()));
    let frames = TableFrames::new(frames);
    let unit = Unit::new(&configuration, &shape, &ram, frames, Arc::clone(&cpus))
        .map_err(|error| error.to_string())?;
    let board = Board {
        unit,
        ram,
        cpus,
        shape,
        maps: Arc::new((PortMap::new(), MsrMap::new())),
    };
    physical::install_discarding();
    let machine = |number| Machine::new(&configuration, board.clone(), VcpuId(number), entry);
    if configuration.cpus == NonZeroU8::MIN {
        enable_svm();
        return Ok((machine(0), None));
    }
    let others = Others {
        apic: board.cpus.apic,
        cpus: configuration.cpus,
    };
    for number in 1..configuration.cpus.get() {
        others.start(number, machine(number.into()))?;
    }
    Ok((machine(0), Some(others)))
}

/// The host's processors that run several of the guest's: all but the first ([`identifier`]).
struct Others {
    apic: LocalApic,
    cpus: NonZeroU8,
}

impl Others {
    /// Starts the one that runs a processor of the guest's.
    fn start(&self, number: u8, machine: Machine) -> Result<(), String> {
        *HANDED_OVER.lock() = Some(machine);
        if start::start(self.apic, identifier(VcpuId(number.into()), self.cpus)) {
            return Ok(());
        }
        Err(format!(
            "processor {number} did not start: give QEMU one more than the guest has, with -smp {}",
            self.cpus.get() + 1
        ))
    }

    /// Starts the guest's first processor, by which all run, and leaves this processor of the host's waiting for good.
    fn complete(&self, first: Machine) -> ! {
        self.apic.retire();
        if let Err(text) = self.start(0, first) {
            channel::claim_end();
            channel::stats(&[], &[]);
            channel::end(&End::Refused(text))
        }
        register::halt()
    }
}

/// Reports a bug and leaves; a bug on the way is not reported again.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    static AGAIN: AtomicBool = AtomicBool::new(false);
    if AGAIN.swap(true, Ordering::Relaxed) {
        register::halt()
    }
    channel::bug(info)
}
