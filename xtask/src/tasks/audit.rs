//! stub
use super::Task;
use anyhow::Result;
use clap::{ArgMatches, Args};
/// x
#[derive(Debug, Args)]
pub struct Audit;
impl Task for Audit {
    fn run(self, _: &ArgMatches) -> Result<u8> {
        Ok(1)
    }
}
