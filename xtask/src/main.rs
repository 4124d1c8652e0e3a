//! `cargo xtask`: the only build tool. See `cargo xtask help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match xtask::tasks::Cli::main() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
