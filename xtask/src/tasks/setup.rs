//! `setup`: installs and builds all that the other commands would install and build when needed.

use anyhow::Result;
use clap::{ArgMatches, Args};

use super::Task;
use crate::{
    emulator::{bochs, qemu},
    host,
    setup::{guests, image_maker::ImageMaker, toolchain::Toolchain},
};

/// Make this machine ready: toolchain, emulator, boot loader, guests (other commands do so by themselves).
#[derive(Debug, Args)]
pub struct Setup;

impl Task for Setup {
    fn run(self, _: &ArgMatches) -> Result<u8> {
        Toolchain::get()?;
        qemu::program()?;
        bochs::program()?;
        ImageMaker::get()?;
        for (_, file) in guests::File::ALL {
            file.get()?;
        }
        host::step("this machine is ready");
        Ok(0)
    }
}
