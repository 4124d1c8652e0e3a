//! stub
use super::Task;
use anyhow::Result;
use clap::{ArgMatches, Args};
/// x
#[derive(Debug, Args)]
pub struct Test;
impl Task for Test {
    fn run(self, _: &ArgMatches) -> Result<u8> {
        Ok(1)
    }
}
