//! The commands, one file each.

pub mod audit;
pub mod bench;
pub mod fuzz;
pub mod image;
pub mod run;
pub mod setup;
pub mod sizes;
pub mod test;

use anyhow::Result;
use clap::{ArgMatches, FromArgMatches, Parser, Subcommand};

/// One command.
pub trait Task {
    /// Does it; the value is the command's exit code.
    fn run(self, matches: &ArgMatches) -> Result<u8>;
}

/// Builds, runs and checks Vireo.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Setup(setup::Setup),
    Run(run::Run),
    Image(image::Image),
    Test(test::Test),
    Bench(bench::Bench),
    Fuzz(fuzz::Fuzz),
    Sizes(sizes::Sizes),
    Audit(audit::Audit),
}

impl Cli {
    /// Reads the command line and does what it says.
    pub fn main() -> Result<u8> {
        let matches = <Self as clap::CommandFactory>::command().get_matches();
        let cli = Self::from_arg_matches(&matches)?;
        let empty = ArgMatches::default();
        let sub = matches.subcommand().map_or(&empty, |(_, sub)| sub);
        match cli.command {
            Command::Setup(task) => task.run(sub),
            Command::Run(task) => task.run(sub),
            Command::Image(task) => task.run(sub),
            Command::Test(task) => task.run(sub),
            Command::Bench(task) => task.run(sub),
            Command::Fuzz(task) => task.run(sub),
            Command::Sizes(task) => task.run(sub),
            Command::Audit(task) => task.run(sub),
        }
    }
}
