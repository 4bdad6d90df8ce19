//! Repackages an ELF64 file as ELF32: `wrap-elf32 IN OUT`.

use core::error::Error;
use std::{env, fs};

use vmmu_guest::elf32::Elf32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let (Some(input), Some(output), None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: wrap-elf32 IN OUT".into());
    };
    let elf64 = fs::read(input)?;
    let file = Elf32::from_elf64(&elf64)?;
    let mut elf32 = vec![0; file.size()];
    file.write(&mut elf32)?;
    Ok(fs::write(output, elf32)?)
}
