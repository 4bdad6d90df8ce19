//! The image's course: take stock, lay memory out, load the guest, run it, report.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};

use vmmu::addr::Hpa;

use crate::arch::{heap, mapping, physical, register, world};
use crate::bundle::Bundle;
use crate::channel::{self, End};
use crate::config::Configuration;
use crate::cpuid::Shape;
use crate::layout::Layout;
use crate::load::{Guest, load};
use crate::machine::Machine;
use crate::paging::Memory;
use crate::start_info::StartInfo;
use crate::tables::TableFrames;

/// A page for VMRUN to keep the host's state in.
#[repr(C, align(4096))]
struct HostSave([u8; 4096]);
static HOST_SAVE: HostSave = HostSave([0; 4096]);

/// Runs the image; called once, by the entry code, with the start info's address.
pub(crate) fn start(start_info: Hpa) -> ! {
    physical::install_descriptors();
    let info = StartInfo::parse(start_info, physical::copy_out);
    channel::open();
    let end = match info
        .map_err(|error| error.to_string())
        .and_then(|info| run(&info))
    {
        Ok(end) => end,
        Err(text) => {
            channel::stats(&[], &[]);
            End::Refused(text)
        }
    };
    channel::end(&end)
}

/// Loads and runs the guest.
fn run(info: &StartInfo) -> Result<End, String> {
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
    };
    let entry = load(&guest, &*ram).map_err(|error| error.to_string())?;

    register::enable_svm(world::physical(&HOST_SAVE));
    let shape = Shape::new(&configuration, register::cpuid);
    let memory = Memory::new(&configuration, &shape, &ram, TableFrames::new(frames))
        .map_err(|error| error.to_string())?;
    let mut machine = Machine::new(&configuration, shape, entry, ram, memory);
    channel::ready();
    let end = machine.run();
    let (mmu, mut bytes) = (machine.memory().counters(), machine.memory().bytes());
    bytes.push(("heap", heap::used() as u64));
    channel::stats(&mmu, &bytes);
    Ok(end)
}

/// Reports a bug and leaves; a bug on the way is not reported again.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    static AGAIN: AtomicBool = AtomicBool::new(false);
    if AGAIN.swap(true, Ordering::Relaxed) {
        register::halt()
    }
    channel::bug(info)
}
