//! `image`: the bootable disk images of a system, for BIOS and UEFI.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{ArgMatches, Args};

use super::Task;
use crate::{build, description::Description, host, setup::image_maker::Firmware};

/// Make the bootable disk images NAME.bios and NAME.uefi, and the machine's second disk NAME.second if the system has something there.
#[derive(Debug, Args)]
pub struct Image {
    /// The system to build
    system: PathBuf,
    /// Where the images go
    #[arg(short, long, value_name = "NAME")]
    output: PathBuf,
}

impl Task for Image {
    fn run(self, _: &ArgMatches) -> Result<u8> {
        let description = Description::load(&self.system, None)?;
        host::writable(&self.output)?;
        for firmware in [Firmware::Bios, Firmware::Uefi] {
            let image = build::image::build(&description, firmware)?;
            let mut out = self.output.clone().into_os_string();
            out.push(format!(".{}", firmware.name()));
            let out = Path::new(&out);
            std::fs::copy(&image.disk, out)
                .with_context(|| format!("writing {}", out.display()))?;
            host::step(format!("wrote {}", out.display()));
            if let (Firmware::Bios, Some(second)) = (firmware, &image.second_disk) {
                let mut out = self.output.clone().into_os_string();
                out.push(".second");
                let out = Path::new(&out);
                std::fs::copy(second, out).with_context(|| format!("writing {}", out.display()))?;
                host::step(format!("wrote {}", out.display()));
            }
        }
        Ok(0)
    }
}
